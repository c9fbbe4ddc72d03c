"""Runs and the hosts they run on. A status is written by `runs.lifecycle` and by nothing else."""

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
    POLL = "poll"


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
    parent = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="children", db_index=False)
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
    exit_requested = models.IntegerField(null=True, help_text="The exit code that a signal asked for.")
    return_value = models.TextField(null=True)  # noqa: DJ001 - none and an empty one are different answers
    ancestors = models.JSONField(
        default=list, help_text="Of a called run: the runs above it, [id, agent] from the first."
    )
    root = models.CharField(
        max_length=40, blank=True, help_text="The run that began all of this; empty: it began by itself."
    )
    hops = models.PositiveSmallIntegerField(default=0, help_text="Runs before it in the chain of causes.")
    idempotency_key = models.CharField(max_length=255, blank=True)
    request_digest = models.CharField(max_length=64, blank=True)

    max_turns = models.PositiveIntegerField(null=True, help_text="In place of the agent's own limit.")
    wall_seconds = models.PositiveIntegerField(null=True, help_text="In place of the agent's own limit.")
    token_budget = models.PositiveIntegerField(null=True, help_text="In place of the agent's own limit.")
    idle_seconds = models.PositiveIntegerField(null=True, help_text="In place of the agent's own limit.")
    cost_budget = models.DecimalField(null=True, max_digits=12, decimal_places=6, help_text="US dollars.")
    output_limit = models.PositiveBigIntegerField(null=True, help_text="Bytes, in place of the agent's own limit.")

    has_slot = models.BooleanField(default=False)
    # A command that waits for a call leaves its slot to others meanwhile, and asks for it back when the call is over.
    slot_lent_at = models.DateTimeField(null=True)
    slot_wanted_at = models.DateTimeField(null=True)
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
                name="only_a_slot_that_is_held_is_lent",
                condition=Q(slot_lent_at=None, slot_wanted_at=None) | Q(slot_lent_at__isnull=False, has_slot=True),
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
            # lifecycle.claim: slots that are lent
            models.Index("agent", condition=Q(slot_lent_at__isnull=False), name="runs_with_a_lent_slot"),
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
            # a caller's calls: their state, and their cancellation
            models.Index("parent", condition=Q(parent__isnull=False), name="runs_by_parent"),
            # intake: how many a run has set off in all
            models.Index("root", condition=~Q(root=""), name="runs_by_root"),
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
