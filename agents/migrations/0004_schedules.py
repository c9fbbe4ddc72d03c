from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import django.db.models.deletion
from django.db import migrations, models

import agents.clock


def to_rows(apps: Any, schema_editor: Any) -> None:
    """An agent's schedule becomes its first row; one that was never looked at counts from now."""
    now = datetime.now(UTC).replace(microsecond=0)
    rows = apps.get_model("agents", "Schedule").objects
    for agent in apps.get_model("agents", "Agent").objects.exclude(schedule=""):
        rows.create(
            agent=agent,
            cron=agent.schedule,
            timezone=agent.timezone,
            fired_at=agent.schedule_fired_at or now,
            since=agent.schedule_since or agent.schedule_fired_at or now,
            anchor=now,
        )


def to_columns(apps: Any, schema_editor: Any) -> None:
    """Of several schedules an agent keeps the first."""
    for row in apps.get_model("agents", "Schedule").objects.order_by("-index").select_related("agent"):
        agent = row.agent
        agent.schedule, agent.timezone = row.cron, row.timezone
        agent.schedule_fired_at, agent.schedule_since = row.fired_at, row.since
        agent.save(update_fields=["schedule", "timezone", "schedule_fired_at", "schedule_since"])


class Migration(migrations.Migration):
    dependencies = [
        ("agents", "0003_credentials"),
    ]

    operations = [
        migrations.AddField(
            model_name="workspace",
            name="paused_at",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.CreateModel(
            name="Schedule",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("index", models.PositiveSmallIntegerField(default=0)),
                ("cron", models.CharField(max_length=100)),
                ("timezone", models.CharField(default="UTC", max_length=64)),
                (
                    "jitter_seconds",
                    models.PositiveIntegerField(default=0, help_text="A run starts so much later, at most."),
                ),
                (
                    "missed",
                    models.CharField(
                        choices=[("skip", "Skip"), ("latest", "Latest"), ("all", "All")],
                        default="latest",
                        max_length=10,
                    ),
                ),
                (
                    "missed_seconds",
                    models.PositiveIntegerField(default=86400, help_text="Older ticks are skipped; 0: none is."),
                ),
                (
                    "fired_at",
                    models.DateTimeField(
                        default=agents.clock.now, editable=False, help_text="Ticks up to here are done with."
                    ),
                ),
                (
                    "since",
                    models.DateTimeField(
                        default=agents.clock.now, editable=False, help_text="Ticks before it are of no concern."
                    ),
                ),
                (
                    "anchor",
                    models.DateTimeField(
                        default=agents.clock.now, editable=False, help_text="What @every is counted from."
                    ),
                ),
                (
                    "agent",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="schedules", to="agents.agent"
                    ),
                ),
            ],
            options={
                "ordering": ["agent", "index"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("agent", "cron", "timezone"), name="an_agent_has_a_schedule_once"
                    )
                ],
            },
        ),
        migrations.RunPython(to_rows, to_columns),
        migrations.RemoveIndex(model_name="agent", name="agents_with_a_schedule"),
        migrations.RemoveField(model_name="agent", name="schedule"),
        migrations.RemoveField(model_name="agent", name="timezone"),
        migrations.RemoveField(model_name="agent", name="schedule_fired_at"),
        migrations.RemoveField(model_name="agent", name="schedule_since"),
    ]
