"""Why something should run: sources of webhooks, the agents' triggers on them, and every delivery received."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any, ClassVar

from django.db import models
from django.db.models import F, Q

from agents import clock
from agents.ids import new_id
from agents.models import NAME_LENGTH, Agent, Workspace
from agents.spec import SignatureScheme


def new_revision() -> int:
    """By chance, so that no two states of the table have the same sum. Six million of them stay within a column."""
    return secrets.randbits(40)


class Sources(models.QuerySet["Source"]):
    COUNTERS = frozenset({"refused_count", "refused_at", "handshake_count", "handshake_at"})

    def update(self, **sets: Any) -> int:
        """Whoever remembers the sources learns from `revision` that they are others now."""
        return super().update(**({} if sets.keys() <= self.COUNTERS else {"revision": new_revision()}) | sets)


class Source(models.Model):
    """Where webhooks come from: a provider's type and the credential whose secret signs them."""

    workspace = models.ForeignKey(Workspace, on_delete=models.PROTECT, related_name="sources")
    name = models.CharField(max_length=NAME_LENGTH)
    project = models.CharField(max_length=100, blank=True, help_text="The folder that defines it; empty: made here.")
    provider = models.CharField(max_length=40)
    credential = models.CharField(max_length=100, default="default", help_text="Instance of the secret's credential.")
    allow_unsigned = models.BooleanField(default=False, help_text="Accept requests that nobody signed. Dangerous.")
    options = models.JSONField(default=dict, blank=True, help_text="Guards and signature scheme: see SourceSpec.")
    active = models.BooleanField(default=True)
    refused_count = models.PositiveBigIntegerField(default=0, editable=False)
    refused_at = models.DateTimeField(null=True, editable=False)
    handshake_count = models.PositiveBigIntegerField(default=0, editable=False)
    handshake_at = models.DateTimeField(null=True, editable=False)
    revision = models.BigIntegerField(default=new_revision, editable=False)
    created_at = models.DateTimeField(default=clock.now, editable=False)

    objects = Sources.as_manager()

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["workspace", "name"], name="source_names_are_unique_in_a_workspace"),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.provider})"

    @property
    def scheme(self) -> SignatureScheme | None:
        """How it signs, where its provider leaves that to the source."""
        written = self.options.get("scheme")
        return SignatureScheme(**written) if written else None

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.revision = new_revision()
        if (fields := kwargs.get("update_fields")) is not None:
            kwargs["update_fields"] = {*fields, "revision"}
        super().save(*args, **kwargs)


class Triggers(models.QuerySet["Trigger"]):
    def bulk_create(self, objs: Iterable[Trigger], *args: Any, **kwargs: Any) -> list[Trigger]:
        made = super().bulk_create(objs, *args, **kwargs)
        anew({trigger.source_id for trigger in made})
        return made

    def update(self, **sets: Any) -> int:
        anew(set(self.values_list("source_id", flat=True)))
        return super().update(**sets)


def anew(source_ids: Collection[int]) -> None:
    """The triggers of these sources are others now. One that is deleted is missed in time."""
    Source.objects.filter(pk__in=source_ids).update(revision=new_revision())


class Trigger(models.Model):
    """One `[[webhooks]]` entry of an agent: start it when a delivery of this source passes every filter."""

    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="webhook_triggers")
    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="triggers")
    index = models.PositiveIntegerField(help_text="Place among the agent's entries.")
    filters = models.JSONField(default=dict, blank=True)

    objects = Triggers.as_manager()

    class Meta:
        ordering: ClassVar = ["agent_id", "index"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["agent", "index"], name="an_agents_triggers_are_numbered"),
        ]

    def __str__(self) -> str:
        return f"{self.agent} on {self.source}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        super().save(*args, **kwargs)
        anew([self.source_id])


class DeliveryOutcome(models.TextChoices):
    """What became of a delivery."""

    STARTED = "started"  # it started a run or resumed one, at least
    NO_MATCH = "no_match"
    SKIPPED = "skipped"  # agents matched, and none of them took it
    DUPLICATE = "duplicate"  # of one that was taken before
    IGNORED = "ignored"  # nothing an agent could act on
    NOT_UNDERSTOOD = "not_understood"  # signed, and not what its content type says
    HELD = "held"  # too many came before it: it is taken when there is room
    LIMITED = "limited"  # one too many that say the same
    OWN = "own"  # what we did ourselves
    LOOP = "loop"  # too far down a chain of causes


# Whoever looks for work that was not done looks at these.
SHOULD_HAVE_STARTED = (
    DeliveryOutcome.SKIPPED,
    DeliveryOutcome.NOT_UNDERSTOOD,
    DeliveryOutcome.HELD,
    DeliveryOutcome.LIMITED,
    DeliveryOutcome.LOOP,
)


class Delivery(models.Model):
    """One webhook request that verified, kept whether or not it matched."""

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "dlv"), editable=False)
    workspace = models.ForeignKey(Workspace, on_delete=models.PROTECT, related_name="deliveries")
    source = models.ForeignKey(Source, null=True, on_delete=models.SET_NULL, related_name="deliveries")
    provider = models.CharField(max_length=40)
    external_id = models.CharField(max_length=200, blank=True, help_text="The sender's own id; not signed.")
    event = models.CharField(max_length=100, blank=True)
    context = models.JSONField(null=True, help_text="What agents are told; null: an event nobody can act on.")
    headers = models.JSONField(default=dict)
    body = models.BinaryField()
    digest = models.CharField(max_length=64, help_text="SHA-256 of the body.")
    signed = models.BooleanField(default=True)
    outcome = models.CharField(max_length=16, choices=DeliveryOutcome.choices, default=DeliveryOutcome.NO_MATCH)
    decisions = models.JSONField(
        default=list, help_text="For each trigger whose filters passed: agent, index, and run or reason."
    )
    sender = models.CharField(max_length=200, blank=True)
    fingerprint = models.CharField(max_length=32, blank=True, help_text="The same for events that say the same.")
    hops = models.PositiveSmallIntegerField(default=0, help_text="Runs before it in the chain of causes.")
    held_until = models.DateTimeField(null=True)
    replay_of = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="replays")
    duplicate_of = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="repeats")
    matched = models.PositiveIntegerField(default=0)
    skipped = models.PositiveIntegerField(default=0)
    reason = models.CharField(max_length=500, blank=True, help_text="Why it started nothing, if so.")
    received_at = models.DateTimeField(default=clock.now)
    decided_at = models.DateTimeField(default=clock.now, help_text="Later than that, where it was held.")

    class Meta:
        ordering: ClassVar = ["-id"]
        verbose_name_plural = "deliveries"
        indexes: ClassVar = [
            # dispatch: has this body already started a run?
            models.Index(
                "provider",
                "digest",
                "received_at",
                condition=Q(matched__gt=0),
                name="deliveries_that_started",
            ),
            # dispatch: has a request of this id already started a run?
            models.Index(
                "provider",
                "external_id",
                "received_at",
                condition=Q(matched__gt=0) & ~Q(external_id=""),
                name="deliveries_that_started_by_id",
            ),
            # guards: how many events of a source, of a sender, and of the same words have started runs lately
            models.Index("source", "decided_at", condition=Q(matched__gt=0), name="deliveries_of_a_source"),
            models.Index("source", "sender", "decided_at", condition=Q(matched__gt=0), name="deliveries_of_a_sender"),
            models.Index(
                "source", "fingerprint", "decided_at", condition=Q(matched__gt=0), name="deliveries_that_say_the_same"
            ),
            # sweep: those that wait for room
            models.Index("held_until", condition=Q(held_until__isnull=False), name="deliveries_held"),
            # the front page: what should have started something and did not
            models.Index("id", condition=Q(outcome__in=SHOULD_HAVE_STARTED), name="deliveries_left_behind"),
            # the admin's list, newest first
            models.Index(F("workspace"), F("id").desc(), name="deliveries_newest"),
        ]

    def __str__(self) -> str:
        return self.id


class Poll(models.Model):
    """One `[[polls]]` entry of an agent, and when it is looked at."""

    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="polls")
    name = models.CharField(max_length=NAME_LENGTH)
    spec = models.JSONField(help_text="See PollSpec.")
    active = models.BooleanField(default=True, help_text="Still in the agent's definition.")
    next_at = models.DateTimeField(default=clock.now)
    first_look_at = models.DateTimeField(null=True, help_text="What was there then is known, and started nothing.")
    looked_at = models.DateTimeField(null=True)
    failures = models.PositiveIntegerField(default=0, help_text="In a row.")
    error = models.CharField(max_length=500, blank=True, help_text="Of the last look; empty: it went well.")
    etag = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering: ClassVar = ["agent_id", "name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["agent", "name"], name="poll_names_are_unique_in_an_agent"),
        ]
        indexes: ClassVar = [
            # sweep: those to look at
            models.Index("next_at", condition=Q(active=True), name="polls_due"),
        ]

    def __str__(self) -> str:
        return f"{self.name} of {self.agent}"


class PollItem(models.Model):
    """What a poll has seen: each starts one run at most, whoever looks and how often."""

    poll = models.ForeignKey(Poll, on_delete=models.CASCADE, related_name="items", db_index=False)
    item = models.CharField(max_length=64, help_text="SHA-256 of what names it.")
    shown = models.CharField(max_length=200, blank=True, help_text="What names it.")
    run = models.CharField(max_length=40, blank=True, help_text="The run it started; empty: it was there first.")
    reason = models.CharField(max_length=500, blank=True, help_text="Why it started nothing.")
    seen_at = models.DateTimeField(default=clock.now)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["poll", "item"], name="an_item_is_new_once"),
        ]

    def __str__(self) -> str:
        return self.shown or self.item
