"""What sandboxes hold and wait for: locks, the wish for a lock, and triggers that a parked run goes on with."""

from __future__ import annotations

import hashlib
from typing import ClassVar

from django.db import models
from django.db.models import Q

from agents import clock
from agents.models import Workspace
from runs.models.run import Run
from runs.models.work import Attempt, ToolCall


def digest_of(key: str) -> str:
    """What a lock is found by: keys are of any length, and an index takes only so much."""
    return hashlib.sha256(key.encode()).hexdigest()


class Lock(models.Model):
    """A resource that one attempt of one run has for itself. See `runs.locks`."""

    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="locks", db_index=False)
    key = models.TextField()
    key_digest = models.CharField(max_length=64)
    attempt = models.ForeignKey(Attempt, on_delete=models.CASCADE, related_name="locks")
    holder = models.CharField(max_length=80, help_text="<agent>-<8 hex>, as everybody else sees who has it.")
    held_since = models.DateTimeField()
    expires_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["workspace", "key_digest"], name="a_lock_has_one_holder"),
        ]
        indexes: ClassVar = [
            # locks.sweep: what has run out
            models.Index("expires_at", name="locks_by_expiry"),
        ]

    def __str__(self) -> str:
        return f"{self.holder} {self.key[:80]}"


class LockWait(models.Model):
    """The lock an attempt last failed to get: an edge of the graph in which a circle is a deadlock."""

    attempt = models.OneToOneField(Attempt, on_delete=models.CASCADE, related_name="lock_wait")
    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="+", db_index=False)
    key = models.TextField()
    key_digest = models.CharField(max_length=64)
    since = models.DateTimeField(default=clock.now)

    def __str__(self) -> str:
        return f"{self.attempt_id} waits for {self.key[:80]}"


class TriggerWaitState(models.TextChoices):
    WAITING = "waiting"
    RESUMED = "resumed"
    EXPIRED = "expired"
    DROPPED = "dropped"  # the run ended first


class TriggerWait(models.Model):
    """What a run that waits for a trigger goes on with: the first event that matches. See `runs.trigger_waits`."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="trigger_waits")
    call = models.OneToOneField(ToolCall, on_delete=models.CASCADE, related_name="trigger_wait")
    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="+", db_index=False)
    kind = models.CharField(max_length=20, help_text="webhook or agent_trigger")
    source = models.CharField(max_length=200, blank=True)
    event = models.CharField(max_length=200, blank=True)
    match = models.JSONField(default=dict, help_text="Dotted paths into the event, and the value each must have.")
    source_agent = models.CharField(max_length=63, blank=True)
    expires_at = models.DateTimeField()
    state = models.CharField(max_length=10, choices=TriggerWaitState.choices, default=TriggerWaitState.WAITING)
    caused_by = models.CharField(max_length=64, blank=True, help_text="The delivery or the run it went on with.")
    created_at = models.DateTimeField(default=clock.now)

    class Meta:
        ordering: ClassVar = ["id"]
        indexes: ClassVar = [
            # dispatch: who goes on with this event, oldest first
            models.Index("workspace", "id", condition=Q(state="waiting"), name="trigger_waits_open"),
        ]

    def __str__(self) -> str:
        return f"{self.run_id} {self.kind} {self.source}{self.source_agent}"
