"""Why something should run: sources of webhooks, the agents' triggers on them, and every delivery received."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from agents import clock
from agents.ids import new_id
from agents.models import NAME_LENGTH, Agent, Workspace


class Source(models.Model):
    """Where webhooks come from: a provider's type and the credential whose secret signs them."""

    workspace = models.ForeignKey(Workspace, on_delete=models.PROTECT, related_name="sources")
    name = models.CharField(max_length=NAME_LENGTH)
    project = models.CharField(max_length=100, blank=True, help_text="The folder that defines it; empty: made here.")
    provider = models.CharField(max_length=40)
    credential = models.CharField(max_length=100, default="default", help_text="Instance of the secret's credential.")
    allow_unsigned = models.BooleanField(default=False, help_text="Accept requests that nobody signed. Dangerous.")
    active = models.BooleanField(default=True)
    refused_count = models.PositiveBigIntegerField(default=0, editable=False)
    refused_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(default=clock.now, editable=False)

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["workspace", "name"], name="source_names_are_unique_in_a_workspace"),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.provider})"


class Trigger(models.Model):
    """One `[[webhooks]]` entry of an agent: start it when a delivery of this source passes every filter."""

    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="webhook_triggers")
    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="triggers")
    index = models.PositiveIntegerField(help_text="Place among the agent's entries.")
    filters = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering: ClassVar = ["agent_id", "index"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["agent", "index"], name="an_agents_triggers_are_numbered"),
        ]

    def __str__(self) -> str:
        return f"{self.agent} on {self.source}"


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
    duplicate_of = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="repeats")
    matched = models.PositiveIntegerField(default=0)
    skipped = models.PositiveIntegerField(default=0)
    reason = models.CharField(max_length=500, blank=True, help_text="Why it started nothing, if so.")
    received_at = models.DateTimeField(default=clock.now)

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
            # the admin's list, newest first
            models.Index(F("workspace"), F("id").desc(), name="deliveries_newest"),
        ]

    def __str__(self) -> str:
        return self.id
