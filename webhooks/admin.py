"""Sources and deliveries in the admin, and what was refused on the front page."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import display

from agents.pages import change_url, moment, preformatted, pretty
from agents.tables import BigTable, ReadOnly
from runs import dashboard
from runs.models import Run
from webhooks import agents_admin, credentials_admin, dead_letters_admin  # noqa: F401 - they register agents and the like
from webhooks.models import Delivery, Source

BODY_SHOWN = 256 * 1024  # bytes
RUNS_SHOWN = 100
A_DAY = timedelta(days=1)


@admin.register(Source)
class SourceAdmin(ReadOnly, ModelAdmin):
    """Where webhooks may come from, as the project folders say."""

    list_display = ("name", "provider", "project", "signatures", "state", "refused")
    list_filter = ("provider", "active")
    search_fields = ("name",)
    fields = ("name", "provider", "project", "credential", "signatures", "state", "refused", "triggers_shown")
    readonly_fields = ("signatures", "state", "refused", "triggers_shown")

    @display(description="Signatures", label={"unsigned allowed": "danger", "required": "success"})
    def signatures(self, source: Source) -> str:
        return "unsigned allowed" if source.allow_unsigned else "required"

    @display(description="State", label={"active": "success", "off": "default"})
    def state(self, source: Source) -> str:
        return "active" if source.active else "off"

    @display(description="Refused")
    def refused(self, source: Source) -> str:
        last = f", last {moment(source.refused_at)}" if source.refused_at else ""
        return f"{source.refused_count:,}{last}"

    @display(description="Agents that listen")
    def triggers_shown(self, source: Source) -> SafeString:
        triggers = source.triggers.select_related("agent").order_by("agent__name", "index")
        return links((trigger.agent.name, change_url(trigger.agent), trigger.filters) for trigger in triggers)


@admin.register(Delivery)
class DeliveryAdmin(BigTable, ReadOnly, ModelAdmin):
    """Every webhook that verified, whether or not it started anything. Bodies are read one at a time."""

    id_prefix = "dlv_"
    list_display = ("id", "provider", "event", "source", "outcome", "reason", "received")
    list_select_related = ("source",)
    list_filter = ("provider", "source", "signed")
    fields = (
        "id", "provider", "event", "source", "received", "signatures", "external_id", "matched", "skipped",
        "reason", "duplicate_of", "runs_started", "context_shown", "headers_shown", "body_shown",
    )  # fmt: skip
    readonly_fields = (
        "id", "received", "signatures", "runs_started", "context_shown", "headers_shown", "body_shown",
    )  # fmt: skip

    @display(
        description="Outcome",
        label={"matched": "success", "skipped": "warning", "duplicate": "info", "nothing": "default"},
    )
    def outcome(self, delivery: Delivery) -> tuple[str, str]:
        if delivery.duplicate_of_id:
            return "duplicate", "duplicate"
        skipped = f", skipped {delivery.skipped}" if delivery.skipped else ""
        if delivery.matched:
            return "matched", f"matched {delivery.matched}{skipped}"
        return ("skipped", f"skipped {delivery.skipped}") if delivery.skipped else ("nothing", "no match")

    @display(description="Received")
    def received(self, delivery: Delivery) -> str:
        return moment(delivery.received_at)

    @display(description="Signature", label={"signed": "success", "unsigned": "danger"})
    def signatures(self, delivery: Delivery) -> str:
        return "signed" if delivery.signed else "unsigned"

    @display(description="Runs started")
    def runs_started(self, delivery: Delivery) -> SafeString:
        started = Run.objects.filter(caused_by=delivery.duplicate_of_id or delivery.pk, delete_requested_at=None)
        rows = started.select_related("agent").only("id", "status", "agent__name").order_by("-id")[:RUNS_SHOWN]
        return links((run.pk, change_url(run), f"{run.agent.name}: {run.status}") for run in rows)

    @display(description="What agents are told")
    def context_shown(self, delivery: Delivery) -> SafeString:
        return pretty(delivery.context)

    @display(description="Headers")
    def headers_shown(self, delivery: Delivery) -> SafeString:
        return pretty(delivery.headers)

    @display(description="Body")
    def body_shown(self, delivery: Delivery) -> SafeString:
        body = bytes(delivery.body)
        text = body[:BODY_SHOWN].decode("utf-8", "replace")
        left_out = len(body) - BODY_SHOWN
        return preformatted(f"{text}\n[… {left_out:,} bytes left out …]" if left_out > 0 else text)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        rows: QuerySet[Delivery] = super().get_queryset(request)
        return rows.defer("body", "headers", "context")


def links(rows: Any) -> SafeString:
    """A line for each (name, address, what about it)."""
    line = '<div><a class="af-link" href="{1}">{0}</a> <span class="af-dim">{2}</span></div>'
    return format_html_join("", line, rows) or SafeString("-")


@dashboard.also
def refused_deliveries(now: datetime) -> dashboard.Panel | None:
    """Sources that turned somebody away in the last day; None if none did."""
    rows = [
        dashboard.Row(
            source.name,
            change_url(source),
            f"{source.refused_count:,} refused in all: unsigned, or signed with another secret",
            source.refused_at,
            "ago",
            alarm=True,
        )
        for source in Source.objects.filter(refused_at__gt=now - A_DAY).order_by("-refused_at")
    ]
    return dashboard.Panel("Deliveries refused in the last day", rows, alarm=True) if rows else None
