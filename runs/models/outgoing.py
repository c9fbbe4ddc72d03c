"""What is sent to others when a run changes its state: to whom, and each message until it is delivered."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from agents import clock
from agents.ids import new_id
from agents.models import NAME_LENGTH, Workspace
from runs.models.run import Run


class OutgoingFormat(models.TextChoices):
    STANDARD = "standard"  # standardwebhooks.com
    SLACK = "slack"  # {"text": …}, as chats take it


class Outgoing(models.Model):
    """One `[outgoing.<name>]` of a project: an address that is told of runs."""

    workspace = models.ForeignKey(Workspace, on_delete=models.PROTECT, related_name="outgoing")
    name = models.CharField(max_length=NAME_LENGTH)
    project = models.CharField(max_length=100, blank=True, help_text="The folder that defines it; empty: made here.")
    url = models.CharField(max_length=2000, blank=True, help_text="Empty: the credential's `url`, where it is secret.")
    credential = models.CharField(max_length=200, blank=True, help_text="Reference of the key that signs, if any.")
    states = models.JSONField(default=list, help_text="The states a run comes to that are told; empty: all.")
    agents = models.JSONField(default=list, help_text="Names of the agents whose runs are told; empty: all.")
    format = models.CharField(max_length=10, choices=OutgoingFormat.choices, default=OutgoingFormat.STANDARD)
    active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=clock.now, editable=False)

    class Meta:
        ordering: ClassVar = ["name"]
        verbose_name = "outgoing webhook"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["workspace", "name"], name="outgoing_names_are_unique_in_a_workspace"),
        ]

    def __str__(self) -> str:
        return self.name


class OutgoingState(models.TextChoices):
    DUE = "due"
    DELIVERED = "delivered"
    FAILED = "failed"  # for good: its tries are used up, or the receiver wants no more


class OutgoingMessage(models.Model):
    """One state of one run for one address, made in the transaction that changed the state."""

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "out"), editable=False)
    outgoing = models.ForeignKey(Outgoing, on_delete=models.CASCADE, related_name="messages", db_index=False)
    run = models.ForeignKey(Run, null=True, on_delete=models.SET_NULL, related_name="outgoing_messages")
    type = models.CharField(max_length=40, help_text="Such as run.failed.")
    body = models.JSONField(help_text="What is sent, without secrets.")
    state = models.CharField(max_length=10, choices=OutgoingState.choices, default=OutgoingState.DUE)
    tries = models.PositiveSmallIntegerField(default=0)
    next_try_at = models.DateTimeField(null=True, default=clock.now)
    last_answer = models.CharField(max_length=200, blank=True, help_text="Status of the last try, or what went wrong.")
    replay_of = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="replays")
    created_at = models.DateTimeField(default=clock.now)
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        indexes: ClassVar = [
            # sender: whose messages are due, and which
            models.Index("outgoing", "next_try_at", condition=Q(state="due"), name="outgoing_messages_due"),
            # the front page, and how many there are
            models.Index("outgoing", "id", condition=Q(state="failed"), name="outgoing_messages_failed"),
            # the admin's list of an address, newest first
            models.Index(F("outgoing"), F("id").desc(), name="outgoing_messages_newest"),
        ]

    def __str__(self) -> str:
        return self.id
