"""What must not pass unseen: events that started nothing, alerts, and the queues' canaries."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from agents import clock
from agents.ids import new_id
from agents.models import Agent, Workspace
from runs.models.run import Run, TriggerKind


class DeadLetter(models.Model):
    """An event that should have started a run and could not; kept with its reason until somebody replays it."""

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "ded"), editable=False)
    workspace = models.ForeignKey(Workspace, on_delete=models.PROTECT, related_name="dead_letters")
    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="dead_letters")
    code = models.CharField(max_length=40)
    reason = models.CharField(max_length=500)
    trigger = models.CharField(max_length=10, choices=TriggerKind.choices)
    trigger_context = models.JSONField(default=dict)
    caused_by = models.CharField(max_length=64, blank=True)
    input = models.TextField(blank=True)
    created_at = models.DateTimeField(default=clock.now)
    replayed_at = models.DateTimeField(null=True)
    run = models.ForeignKey(Run, null=True, on_delete=models.SET_NULL, related_name="+")

    class Meta:
        ordering: ClassVar = ["-id"]
        indexes: ClassVar = [
            # lists, newest first
            models.Index(F("workspace"), F("id").desc(), name="dead_letters_newest"),
        ]

    def __str__(self) -> str:
        return self.id


class Alert(models.Model):
    """Something an operator must know, once, from when it began until it is over. See `runs.alerts`."""

    kind = models.CharField(max_length=40)
    subject = models.CharField(max_length=100, help_text="What it is about: an agent, a run, a queue.")
    message = models.TextField()
    raised_at = models.DateTimeField(default=clock.now)
    cleared_at = models.DateTimeField(null=True)
    notified_at = models.DateTimeField(null=True, help_text="When somebody was told that it began.")
    clear_notified_at = models.DateTimeField(null=True, help_text="When somebody was told that it is over.")
    tries = models.PositiveIntegerField(default=0, help_text="To tell somebody, since the last success.")
    next_try_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["kind", "subject"], condition=Q(cleared_at=None), name="an_alert_is_raised_once"
            ),
        ]
        indexes: ClassVar = [
            # notices: what to tell somebody
            models.Index(
                "id",
                condition=Q(notified_at=None) | Q(cleared_at__isnull=False, clear_notified_at=None),
                name="alerts_to_tell",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}"


class Canary(models.Model):
    """The last messages sent through a real queue and back, one row a queue. See `runs.canaries`."""

    queue = models.CharField(primary_key=True, max_length=100)
    number = models.PositiveBigIntegerField(default=0)
    sent_at = models.DateTimeField(null=True)
    heard_number = models.PositiveBigIntegerField(default=0)
    heard_at = models.DateTimeField(null=True)
    milliseconds = models.PositiveIntegerField(null=True, help_text="The last one's way.")

    class Meta:
        verbose_name_plural = "canaries"

    def __str__(self) -> str:
        return self.queue
