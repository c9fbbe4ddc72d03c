"""What a run is made of: attempts, their transcripts and tool calls, and the events of the run."""

from __future__ import annotations

import hashlib
from typing import ClassVar

from django.db import models
from django.db.models import Q

from agents import clock
from runs.models.run import Host, Run


class SandboxState(models.TextChoices):
    NONE = "none"
    STARTING = "starting"  # committed before the engine is asked
    RUNNING = "running"
    GONE = "gone"  # removal verified


class Attempt(models.Model):
    """One try at a run, in one sandbox. A retry is a new attempt; a crash recovery is not."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveIntegerField(default=1)
    host = models.ForeignKey(Host, null=True, on_delete=models.SET_NULL, related_name="attempts")
    image = models.CharField(max_length=500, blank=True)
    sandbox_state = models.CharField(max_length=10, choices=SandboxState.choices, default=SandboxState.NONE)
    sandbox_id = models.CharField(max_length=128, blank=True, help_text="The engine's id and the moment of its start.")
    sandbox_losses = models.PositiveSmallIntegerField(default=0)
    has_workspace = models.BooleanField(default=False, help_text="Its volume may stand on the host.")
    gateway_digest = models.CharField(
        max_length=64, blank=True, help_text="SHA-256 of what its sandbox shows the gateway."
    )
    error = models.JSONField(null=True, help_text='{"code", "message"} of one that was followed by another.')
    started_at = models.DateTimeField(default=clock.now)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["run", "number"], name="attempts_are_numbered"),
            models.UniqueConstraint(
                fields=["gateway_digest"], condition=~Q(gateway_digest=""), name="a_gateway_secret_is_of_one_attempt"
            ),
        ]
        indexes: ClassVar = [
            # sweep: what may still stand on this host
            models.Index("host", condition=Q(has_workspace=True), name="attempts_with_a_workspace"),
        ]

    def __str__(self) -> str:
        return f"{self.run_id}/{self.number}"

    @property
    def suffix(self) -> str:
        """8 hex digits that tell its instance from others of the agent: `<agent>-<suffix>` holds locks."""
        return hashlib.sha256(f"{self.run_id}/{self.number}".encode()).hexdigest()[:8]

    @property
    def sandbox_name(self) -> str:
        """Deterministic, so that creating twice adopts."""
        return f"agentfleet-{self.run_id}-{self.number}"


class Message(models.Model):
    """One entry of an attempt's transcript; see `runs.transcript` for the shapes of `body`."""

    attempt = models.ForeignKey(Attempt, on_delete=models.CASCADE, related_name="messages")
    position = models.PositiveIntegerField()
    body = models.JSONField()
    created_at = models.DateTimeField(default=clock.now)

    class Meta:
        ordering: ClassVar = ["attempt_id", "position"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["attempt", "position"], name="a_transcript_only_grows"),
        ]

    def __str__(self) -> str:
        return f"{self.attempt_id}:{self.position}"


class CallState(models.TextChoices):
    PLANNED = "planned"  # the model asked for it
    STARTED = "started"  # committed before the sandbox was asked
    DONE = "done"
    LOST = "lost"  # may have had effects; never started again


class ToolCall(models.Model):
    """One tool call of one turn: at most one start, exactly one result."""

    attempt = models.ForeignKey(Attempt, on_delete=models.CASCADE, related_name="tool_calls")
    call_id = models.CharField(max_length=32, help_text="Ours: <position of the turn>-<index in it>.")
    model_call_id = models.CharField(max_length=200, help_text="The model's own, given back with the result.")
    position = models.PositiveIntegerField(help_text="Of the message that asked.")
    index = models.PositiveIntegerField()
    name = models.CharField(max_length=200)
    arguments = models.JSONField()
    state = models.CharField(max_length=10, choices=CallState.choices, default=CallState.PLANNED)
    sandbox_id = models.CharField(max_length=128, blank=True)
    offset = models.PositiveBigIntegerField(default=0, help_text="Raw bytes whose redacted text is stored.")
    result = models.TextField(blank=True, help_text="What the model is told.")
    is_error = models.BooleanField(default=False)
    exit_code = models.IntegerField(null=True)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["attempt_id", "position", "index"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["attempt", "call_id"], name="a_call_has_one_row"),
        ]

    def __str__(self) -> str:
        return f"{self.name} {self.call_id}"


class Event(models.Model):
    """One numbered, typed entry of what happened to a run. Numbers have no gaps; see `runs.events`."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="events")
    number = models.PositiveBigIntegerField()
    type = models.CharField(max_length=40)
    data = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=clock.now)

    class Meta:
        ordering: ClassVar = ["run_id", "number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["run", "number"], name="event_numbers_have_no_twins"),
        ]

    def __str__(self) -> str:
        return f"{self.run_id}#{self.number} {self.type}"
