"""What people have to do with a run: the calls they allow, and what they say to it."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q

from agents import clock
from runs.models.run import Run
from runs.models.work import ToolCall


class ApprovalState(models.TextChoices):
    PENDING = "pending"
    APPROVED = "approved"
    REFUSED = "refused"
    EXPIRED = "expired"
    USED = "used"  # the call has been started: it counts for nothing else


class Approval(models.Model):
    """A person's word on one tool call, exactly as it was shown. See `runs.approvals`."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="approvals")
    call = models.OneToOneField(ToolCall, on_delete=models.CASCADE, related_name="approval")
    digest = models.CharField(max_length=64, help_text="SHA-256 over attempt, call, tool and arguments.")
    state = models.CharField(max_length=10, choices=ApprovalState.choices, default=ApprovalState.PENDING)
    expires_at = models.DateTimeField()
    decided_at = models.DateTimeField(null=True)
    decided_by = models.CharField(max_length=150, blank=True)
    reason = models.TextField(blank=True)
    created_at = models.DateTimeField(default=clock.now)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                name="a_decided_approval_says_when",
                condition=Q(state=ApprovalState.PENDING, decided_at=None)
                | (~Q(state=ApprovalState.PENDING) & Q(decided_at__isnull=False)),
            ),
        ]
        indexes: ClassVar = [
            # what waits for somebody's word
            models.Index("expires_at", condition=Q(state="pending"), name="approvals_pending"),
        ]

    def __str__(self) -> str:
        return f"{self.call} {self.state}"


class InputMode(models.TextChoices):
    QUEUE = "queue"  # when the model has answered, one at a time
    FOLLOWUP = "followup"  # when the model has answered, all of them together
    STEER = "steer"  # before the next model request
    INTERRUPT = "interrupt"  # now: what is under way is stopped


class InputState(models.TextChoices):
    PENDING = "pending"
    DELIVERED = "delivered"
    DROPPED = "dropped"  # the run ended first


class RunInput(models.Model):
    """A message to a run that has begun. See `runs.inputs`."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="inputs")
    mode = models.CharField(max_length=10, choices=InputMode.choices)
    message = models.TextField()
    state = models.CharField(max_length=10, choices=InputState.choices, default=InputState.PENDING)
    outcome = models.CharField(max_length=12, help_text="What the sender was told: direct, queued, interrupted…")
    restarted = models.ForeignKey(Run, null=True, on_delete=models.SET_NULL, related_name="+")
    idempotency_key = models.CharField(max_length=255, blank=True)
    request_digest = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField(default=clock.now)
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["run", "idempotency_key"],
                condition=~Q(idempotency_key=""),
                name="an_input_is_taken_once",
            ),
        ]
        indexes: ClassVar = [
            # inputs.pending: what the next step delivers
            models.Index("run", "id", condition=Q(state="pending"), name="inputs_pending"),
        ]

    def __str__(self) -> str:
        return f"{self.run_id} {self.mode}"
