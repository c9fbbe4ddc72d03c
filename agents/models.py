"""What should run: workspaces, agents and the definitions they were given, tokens that may ask."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import ClassVar, Self

from django.core.validators import RegexValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Length
from pydantic import ValidationError

from agents import clock, schedule
from agents.spec import AgentSpec

models.CharField.register_lookup(Length)

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]*$"
NAME_LENGTH = 63
valid_name = RegexValidator(
    re.compile(NAME_PATTERN + r"\Z"),
    "Use lower-case letters, digits and dashes; start with a letter or digit.",
)


class Workspace(models.Model):
    """A tenant. `default` exists from the start."""

    name = models.CharField(max_length=NAME_LENGTH, unique=True, validators=[valid_name])
    scale = models.PositiveIntegerField(null=True, blank=True, help_text="Runs at once in all; empty: no cap.")
    paused_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(default=clock.now, editable=False)

    def __str__(self) -> str:
        return self.name

    @classmethod
    def default(cls) -> Workspace:
        return cls.objects.get(name="default")


FLEET_PAUSED = "the fleet is paused"


class Kind(models.TextChoices):
    MODEL = "model"  # our loop
    COMMAND = "command"  # the container's own program is the agent


class Priority(models.IntegerChoices):
    """Lower is served first, so that an ascending index is the line."""

    HIGH = 10
    NORMAL = 20
    LOW = 30

    @classmethod
    def named(cls, name: str) -> Priority:
        return cls[name.upper()]

    @property
    def word(self) -> str:
        return self.name.lower()


class Coalesce(models.TextChoices):
    """What becomes of an event whose claim key a live run has already."""

    QUEUE = "queue"  # it runs after that one
    SKIP = "skip"  # it is skipped
    REPLACE = "replace"  # it takes the place of one still in line


class Agent(models.Model):
    """A definition that may run. What queries need stands in columns; the whole of it is `version.spec`."""

    workspace = models.ForeignKey(Workspace, on_delete=models.PROTECT, related_name="agents")
    name = models.CharField(max_length=NAME_LENGTH, validators=[valid_name])
    project = models.CharField(max_length=100, blank=True, help_text="The folder that defines it; empty: made here.")
    version = models.ForeignKey("AgentVersion", null=True, on_delete=models.PROTECT, related_name="+")
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.MODEL)
    description = models.CharField(max_length=500, blank=True)
    scale = models.PositiveIntegerField(default=1, help_text="Runs at once; 0 switches the agent off.")
    priority = models.PositiveSmallIntegerField(choices=Priority.choices, default=Priority.NORMAL)
    task_enabled = models.BooleanField(default=True, help_text="May be asked for over REST.")
    queue_size = models.PositiveIntegerField(default=100, help_text="In line at most; more are dead letters.")
    claim_key = models.CharField(
        max_length=200, blank=True, help_text="What an event is about: github://{repo}/{number}"
    )
    coalesce = models.CharField(max_length=10, choices=Coalesce.choices, default=Coalesce.QUEUE)
    breaker_failures = models.PositiveIntegerField(default=5, help_text="In a row, then it holds its line; 0: never.")
    failures_in_a_row = models.PositiveIntegerField(default=0, editable=False)
    broken_at = models.DateTimeField(null=True, blank=True, editable=False)
    probe_at = models.DateTimeField(null=True, editable=False, help_text="When a broken one tries one run again.")
    active = models.BooleanField(default=True, help_text="Still in its project's folder.")
    paused_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(default=clock.now, editable=False)

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["workspace", "name"], name="agent_names_are_unique_in_a_workspace"),
            models.CheckConstraint(
                condition=~Q(name="default") & Q(name__length__gte=1), name="agents_are_not_called_default"
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def paused(self) -> bool:
        return self.paused_at is not None

    @property
    def broken(self) -> bool:
        """It has failed too often in a row and holds its line, but for a probe now and then."""
        return self.broken_at is not None

    @property
    def refusal(self) -> str:
        """Why nothing new may start now, in words; empty if it may."""
        if not self.active:
            return f"agent {self.name} is no longer in its project"
        if self.scale == 0:
            return f"agent {self.name} is switched off (scale 0)"
        if self.paused:
            return f"agent {self.name} is paused"
        return FLEET_PAUSED if self.workspace.paused_at else ""

    @property
    def spec(self) -> AgentSpec:
        """Raises pydantic's ValidationError if what is stored can no longer be read."""
        assert self.version is not None, "an agent gets its version when it is made"
        return self.version.read()

    @property
    def shown_spec(self) -> AgentSpec:
        """For pages and lists: an empty definition where it cannot be read, so that one agent hides no others."""
        known = self.version.shown() if self.version else AgentSpec(name=self.name)
        return known if known.name == self.name else replace(known, name=self.name)


class Missed(models.TextChoices):
    """What becomes of ticks that passed while nothing could fire them."""

    SKIP = "skip"  # nothing
    LATEST = "latest"  # the latest stands for all of them
    ALL = "all"  # each is made up for, in its order


class Schedule(models.Model):
    """One schedule of an agent, and how far its ticks are done with. Which of them are due is `agents.schedule`'s."""

    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="schedules")
    index = models.PositiveSmallIntegerField(default=0)
    cron = models.CharField(max_length=schedule.LONGEST)
    timezone = models.CharField(max_length=64, default="UTC")
    jitter_seconds = models.PositiveIntegerField(default=0, help_text="A run starts so much later, at most.")
    missed = models.CharField(max_length=10, choices=Missed.choices, default=Missed.LATEST)
    missed_seconds = models.PositiveIntegerField(default=86_400, help_text="Older ticks are skipped; 0: none is.")
    fired_at = models.DateTimeField(default=clock.now, editable=False, help_text="Ticks up to here are done with.")
    since = models.DateTimeField(default=clock.now, editable=False, help_text="Ticks before it are of no concern.")
    anchor = models.DateTimeField(default=clock.now, editable=False, help_text="What @every is counted from.")

    class Meta:
        ordering: ClassVar = ["agent", "index"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["agent", "cron", "timezone"], name="an_agent_has_a_schedule_once"),
        ]

    def __str__(self) -> str:
        return f"{self.cron} {self.timezone}" if schedule.is_of_a_zone(self.cron) else self.cron

    def ticks(self, *, after: datetime) -> Iterator[datetime]:
        """All after `after`, in order. Raises BadSchedule at the first."""
        return schedule.ticks(self.cron, self.timezone, after=after, anchor=self.anchor)

    def latest(self, *, since: datetime, now: datetime) -> datetime | None:
        """The last tick in (since, now]. Raises BadSchedule."""
        return schedule.latest_due(self.cron, self.timezone, since=since, now=now, anchor=self.anchor)

    def starts_at(self, tick: datetime) -> datetime:
        """When the tick's run is to begin: its time, and its part of the jitter."""
        return tick + schedule.delay(self.jitter_seconds, self.agent_id, self.cron, self.timezone, tick.isoformat())


class AgentVersion(models.Model):
    """One definition, never changed: a run keeps the one it started with."""

    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="versions")
    digest = models.CharField(max_length=64, help_text="SHA-256 over the spec and every file.")
    spec = models.JSONField()
    created_at = models.DateTimeField(default=clock.now, editable=False)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["agent", "digest"], name="a_definition_is_stored_once"),
        ]

    def __str__(self) -> str:
        return self.digest[:12]

    def read(self) -> AgentSpec:
        """Raises pydantic's ValidationError."""
        return AgentSpec.load(self.spec)

    def shown(self) -> AgentSpec:
        """See `Agent.shown_spec`."""
        try:
            return self.read()
        except ValidationError:
            return AgentSpec(name="unreadable", instructions="The stored definition cannot be read: apply it again.")


class AgentEvent(models.Model):
    """What happened to an agent apart from any run: ticks skipped, its breaker opened, events coalesced."""

    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="events")
    type = models.CharField(max_length=40)
    data = models.JSONField(default=dict)
    tick = models.DateTimeField(null=True, help_text="The scheduled time it is about.")
    created_at = models.DateTimeField(default=clock.now)

    class Meta:
        ordering: ClassVar = ["-id"]
        indexes: ClassVar = [
            # the agent's page, newest first
            models.Index(F("agent"), F("id").desc(), name="agent_events_newest"),
            # the watcher: what became of a tick
            models.Index("agent", "tick", condition=Q(tick__isnull=False), name="agent_events_of_a_tick"),
        ]

    def __str__(self) -> str:
        return f"{self.agent_id} {self.type}"


class AgentFile(models.Model):
    """One file of an agent's folder, as it was when the version was made."""

    version = models.ForeignKey(AgentVersion, on_delete=models.CASCADE, related_name="files")
    path = models.CharField(max_length=500)
    content = models.BinaryField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["version", "path"], name="a_version_has_a_path_once"),
        ]

    def __str__(self) -> str:
        return self.path


class Credential(models.Model):
    """A reference, `<type>:<instance>`: agents and sources name it, and its values are in a store, never here."""

    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="credentials")
    type = models.CharField(max_length=100)
    instance = models.CharField(max_length=100, default="default")
    created_at = models.DateTimeField(default=clock.now, editable=False)
    used_at = models.DateTimeField(null=True, editable=False, help_text="When a run last got it.")

    class Meta:
        ordering: ClassVar = ["type", "instance"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["workspace", "type", "instance"], name="a_credential_is_referred_to_once"),
        ]

    def __str__(self) -> str:
        return self.type if self.instance == "default" else f"{self.type}:{self.instance}"


class CredentialValue(models.Model):
    """One field of a credential in the encrypted store; the key is outside the database. See `agents.credentials`."""

    credential = models.ForeignKey(Credential, on_delete=models.CASCADE, related_name="values")
    field = models.CharField(max_length=100)
    ciphertext = models.TextField()
    created_at = models.DateTimeField(default=clock.now, editable=False)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["credential", "field"], name="a_credential_has_a_field_once"),
        ]

    def __str__(self) -> str:
        return f"{self.credential_id} {self.field}"


class ApiToken(models.Model):
    """A bearer token: only its hash is kept. 256 bits of chance need no slow hash."""

    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=12, editable=False)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    created_at = models.DateTimeField(default=clock.now, editable=False)
    last_used_at = models.DateTimeField(null=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    is_operators = models.BooleanField(
        default=False, editable=False, help_text="The command line's own, which may log a person in."
    )

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @classmethod
    def issue(cls, workspace: Workspace, name: str, *, is_operators: bool = False) -> tuple[Self, str]:
        """A new token and its value, which is not kept and cannot be shown again."""
        value = f"af_{secrets.token_urlsafe(32)}"
        token = cls.objects.create(
            workspace=workspace,
            name=name,
            prefix=value[:9],
            digest=cls.hashed(value),
            is_operators=is_operators,
        )
        return token, value

    @classmethod
    def find(cls, value: str) -> Self | None:
        """The living token with this value."""
        return cls.objects.select_related("workspace").filter(digest=cls.hashed(value), revoked_at=None).first()

    @staticmethod
    def hashed(value: str) -> str:
        return hashlib.sha256(value.encode()).hexdigest()

    def touch(self, now: datetime) -> None:
        """Remember the use, to the minute: not one write a request."""
        if self.last_used_at is None or (now - self.last_used_at).total_seconds() > 60:
            type(self).objects.filter(pk=self.pk).update(last_used_at=now)
