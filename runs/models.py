"""What is running: runs, their attempts, transcripts, tool calls and events, and the hosts they run on.

A status is written by `runs.lifecycle` and by nothing else.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from agents import clock
from agents.ids import new_id
from agents.models import Agent, AgentVersion, Coalesce, Priority, Workspace


class Host(models.Model):
    """A machine with a sandbox engine and a worker. Its queue is `host.<id>`."""

    id = models.CharField(primary_key=True, max_length=32)
    name = models.CharField(max_length=255)
    capacity = models.PositiveIntegerField(default=0, help_text="Steps its workers take at once.")
    last_seen_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name

    @property
    def queue(self) -> str:
        return f"host.{self.pk}"


class Status(models.TextChoices):
    PENDING = "pending"
    PROCESSING = "processing"
    WAITING = "waiting"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELED = "canceled"


TERMINAL = frozenset({Status.FINISHED, Status.FAILED, Status.CANCELED})


class WaitReason(models.TextChoices):
    INPUT = "input"
    APPROVAL = "approval"
    TRIGGER = "trigger"
    RATE_LIMIT = "rate_limit"
    HANDOFF = "handoff"
    RETRY = "retry"


# Soon over and not of the run's own making: these keep the slot, so that nobody else starts in between.
KEEP_THE_SLOT = frozenset({WaitReason.RATE_LIMIT, WaitReason.RETRY})


class TriggerKind(models.TextChoices):
    SCHEDULE = "schedule"
    WEBHOOK = "webhook"
    CALL = "call"
    API = "api"
    MANUAL = "manual"
    RERUN = "rerun"


class Run(models.Model):
    """One piece of work for one agent, however it was asked for. The REST API calls it a task."""

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "run"), editable=False)
    # No index of their own: the lists below begin with them, and every index is written with every run.
    workspace = models.ForeignKey(Workspace, on_delete=models.PROTECT, related_name="runs", db_index=False)
    agent = models.ForeignKey(Agent, on_delete=models.PROTECT, related_name="runs", db_index=False)
    version = models.ForeignKey(AgentVersion, null=True, on_delete=models.PROTECT, related_name="+")

    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PENDING)
    wait_reason = models.CharField(max_length=10, choices=WaitReason.choices, blank=True)
    question = models.TextField(blank=True, help_text="What a waiting run asks.")
    error = models.JSONField(null=True, help_text='{"code", "message", …} of a failed run.')
    output = models.TextField(null=True)  # noqa: DJ001 - no output and an empty output are different answers
    status_text = models.CharField(max_length=500, blank=True, help_text="What the agent says it is doing.")

    trigger = models.CharField(max_length=10, choices=TriggerKind.choices)
    trigger_context = models.JSONField(default=dict)
    caused_by = models.CharField(max_length=64, blank=True, help_text="The delivery or the run behind it.")
    parent = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="children")
    input = models.TextField(blank=True)
    tags = models.JSONField(default=list)
    priority = models.PositiveSmallIntegerField(choices=Priority.choices, default=Priority.NORMAL)
    scheduled_for = models.DateTimeField(null=True)
    claim_key = models.CharField(max_length=200, blank=True, help_text="What it is about; one of them at a time.")
    coalesce = models.CharField(max_length=10, choices=Coalesce.choices, blank=True)
    session_key = models.CharField(max_length=200, blank=True, help_text="The conversation it belongs to.")
    resumed_from = models.ForeignKey(
        "self", null=True, on_delete=models.SET_NULL, related_name="resumptions", db_index=False
    )
    rerun_of = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="reruns", db_index=False)
    rerun_number = models.PositiveIntegerField(default=0)
    rerun_requested = models.BooleanField(default=False)
    idempotency_key = models.CharField(max_length=255, blank=True)
    request_digest = models.CharField(max_length=64, blank=True)

    max_turns = models.PositiveIntegerField(null=True, help_text="In place of the agent's own limit.")
    wall_seconds = models.PositiveIntegerField(null=True, help_text="In place of the agent's own limit.")
    token_budget = models.PositiveIntegerField(null=True, help_text="In place of the agent's own limit.")
    idle_seconds = models.PositiveIntegerField(null=True, help_text="In place of the agent's own limit.")
    cost_budget = models.DecimalField(null=True, max_digits=12, decimal_places=6, help_text="US dollars.")
    output_limit = models.PositiveBigIntegerField(null=True, help_text="Bytes, in place of the agent's own limit.")

    has_slot = models.BooleanField(default=False)
    host = models.ForeignKey(Host, null=True, on_delete=models.SET_NULL, related_name="runs")
    lease_owner = models.CharField(max_length=64, blank=True)
    lease_epoch = models.PositiveBigIntegerField(default=0)
    # With an owner: when the lease ends. Without: when the sweep should look, had the doorbell been lost.
    lease_expires_at = models.DateTimeField(null=True)
    takeovers = models.PositiveSmallIntegerField(default=0, help_text="In a row, without progress between.")
    machinery_waits = models.PositiveSmallIntegerField(default=0, help_text="In a row, without progress between.")
    cancel_requested_at = models.DateTimeField(null=True)
    delete_requested_at = models.DateTimeField(null=True)

    queued_at = models.DateTimeField(default=clock.now, help_text="In line since; a woken run stands first.")
    waiting_since = models.DateTimeField(null=True)
    wake_at = models.DateTimeField(null=True)
    deadline_at = models.DateTimeField(null=True, help_text="Moves on by the time spent waiting.")

    turns = models.PositiveIntegerField(default=0)
    input_tokens = models.PositiveBigIntegerField(default=0)
    output_tokens = models.PositiveBigIntegerField(default=0)
    cache_read_tokens = models.PositiveBigIntegerField(default=0)
    cache_write_tokens = models.PositiveBigIntegerField(default=0)
    estimated_tokens = models.PositiveBigIntegerField(
        default=0, help_text="Of the above: sent in requests whose answer was lost."
    )
    open_request_tokens = models.PositiveIntegerField(
        null=True, help_text="Estimate for the request now under way; counted if its answer never arrives."
    )
    open_request_cost = models.DecimalField(null=True, max_digits=12, decimal_places=6, help_text="Of that estimate.")
    cost = models.DecimalField(max_digits=12, decimal_places=6, default=0, help_text="US dollars, as far as known.")
    output_bytes = models.PositiveBigIntegerField(default=0, help_text="Printed by its commands.")
    exit_code = models.IntegerField(null=True, help_text="Of a command agent's program.")
    last_event = models.PositiveBigIntegerField(default=0)
    progress_at = models.DateTimeField(null=True, help_text="When it last had something to say for itself.")

    created_at = models.DateTimeField(default=clock.now)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                name="finished_means_terminal",
                condition=Q(status__in=sorted(TERMINAL), finished_at__isnull=False)
                | (~Q(status__in=sorted(TERMINAL)) & Q(finished_at=None)),
            ),
            models.CheckConstraint(
                name="waiting_has_a_reason",
                condition=(Q(status=Status.WAITING) & ~Q(wait_reason=""))
                | (~Q(status=Status.WAITING) & Q(wait_reason="")),
            ),
            models.CheckConstraint(name="failed_says_why", condition=~Q(status=Status.FAILED) | Q(error__isnull=False)),
            models.CheckConstraint(
                name="only_processing_runs_are_leased",
                condition=Q(lease_owner="") | Q(status=Status.PROCESSING, has_slot=True),
            ),
            models.CheckConstraint(
                name="a_slot_is_held_by_a_live_run",
                condition=Q(has_slot=False) | Q(status__in=[Status.PROCESSING, Status.WAITING]),
            ),
            models.UniqueConstraint(
                fields=["agent", "scheduled_for"],
                condition=Q(scheduled_for__isnull=False),
                name="a_tick_starts_one_run",
            ),
            models.UniqueConstraint(
                fields=["agent", "idempotency_key"],
                condition=~Q(idempotency_key=""),
                name="an_idempotency_key_starts_one_run",
            ),
            models.UniqueConstraint(
                fields=["agent", "claim_key"],
                condition=~Q(claim_key="") & Q(status__in=[Status.PROCESSING, Status.WAITING]),
                name="one_run_of_a_claim_key_at_work",
            ),
            models.UniqueConstraint(
                fields=["agent", "claim_key"],
                condition=~Q(claim_key="") & Q(status=Status.PENDING, coalesce=Coalesce.REPLACE),
                name="a_replaced_claim_key_is_in_line_once",
            ),
            models.UniqueConstraint(
                fields=["agent", "claim_key"],
                condition=~Q(claim_key="")
                & Q(status__in=[Status.PENDING, Status.PROCESSING, Status.WAITING], coalesce=Coalesce.SKIP),
                name="a_skipped_claim_key_lives_once",
            ),
            models.UniqueConstraint(
                fields=["agent", "session_key"],
                condition=~Q(session_key="") & Q(status__in=[Status.PROCESSING, Status.WAITING]),
                name="one_run_of_a_session_at_work",
            ),
        ]
        indexes: ClassVar = [
            # lifecycle.claim: the agent's line
            models.Index("agent", "priority", "id", condition=Q(status="pending"), name="runs_in_line"),
            # lifecycle.claim: woken runs stand before it
            models.Index("agent", "queued_at", condition=Q(status="processing", has_slot=False), name="runs_woken"),
            # lifecycle.claim: how many slots are in use
            models.Index("agent", condition=Q(has_slot=True), name="runs_with_a_slot"),
            models.Index("workspace", condition=Q(has_slot=True), name="runs_with_a_slot_in_all"),
            # sweep: leases that ended, and steps whose doorbell was lost
            models.Index("lease_expires_at", condition=Q(status="processing", has_slot=True), name="runs_leases"),
            # sweep: runs to wake
            models.Index("wake_at", condition=Q(status="waiting"), name="runs_to_wake"),
            # sweep: runs somebody deleted
            models.Index("delete_requested_at", condition=Q(delete_requested_at__isnull=False), name="runs_to_purge"),
            # the front page's last failures
            models.Index(F("id").desc(), condition=Q(status="failed"), name="runs_failed"),
            # leases.renew and the wishes it reads
            models.Index("lease_owner", condition=~Q(lease_owner=""), name="runs_of_an_owner"),
            # GET tasks and the admin's lists, newest first
            models.Index(F("workspace"), F("id").desc(), name="runs_newest"),
            models.Index(F("agent"), F("id").desc(), name="runs_newest_of_an_agent"),
            # queue.submit: is a run of this claim key alive?
            models.Index(
                "agent",
                "claim_key",
                condition=~Q(claim_key="") & Q(status__in=["pending", "processing", "waiting"]),
                name="runs_of_a_claim_key",
            ),
            # deleting a run, and the page of what came after it; most runs have neither, and need no entry
            models.Index("resumed_from", condition=Q(resumed_from__isnull=False), name="runs_by_resumed_from"),
            models.Index("rerun_of", condition=Q(rerun_of__isnull=False), name="runs_by_rerun_of"),
            # the page of a delivery: what it started
            models.Index("caused_by", condition=~Q(caused_by=""), name="runs_by_cause"),
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


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
    error = models.JSONField(null=True, help_text='{"code", "message"} of one that was followed by another.')
    started_at = models.DateTimeField(default=clock.now)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["run", "number"], name="attempts_are_numbered"),
        ]
        indexes: ClassVar = [
            # sweep: what may still stand on this host
            models.Index("host", condition=Q(has_workspace=True), name="attempts_with_a_workspace"),
        ]

    def __str__(self) -> str:
        return f"{self.run_id}/{self.number}"

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
