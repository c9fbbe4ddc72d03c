"""Images made for agents, one row for each on each host, with the log of its making."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import F

from agents import clock
from agents.models import Agent, Workspace
from runs.models.run import Host


class BuildState(models.TextChoices):
    PENDING = "pending"
    BUILDING = "building"
    BUILT = "built"
    FAILED = "failed"


class ImageBuild(models.Model):
    """One image: its tag is made from all that goes into it, so that equal ones are built once. See `runs.images`."""

    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="builds", db_index=False)
    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="+", db_index=False)
    agent = models.ForeignKey(Agent, null=True, on_delete=models.CASCADE, related_name="builds", db_index=False)
    tag = models.CharField(max_length=200)
    state = models.CharField(max_length=10, choices=BuildState.choices, default=BuildState.PENDING)
    log = models.TextField(blank=True, help_text="What the engine said, as it came; of a very long one the end.")
    error = models.TextField(blank=True)
    builder = models.CharField(max_length=64, blank=True, help_text="The worker process that makes it.")
    created_at = models.DateTimeField(default=clock.now)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    used_at = models.DateTimeField(null=True, help_text="When a run last started from it; old ones are removed.")

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["host", "tag"], name="an_image_is_built_once_on_a_host"),
        ]
        indexes: ClassVar = [
            # the agent's page, newest first
            models.Index(F("agent"), F("id").desc(), name="builds_newest_of_an_agent"),
        ]

    def __str__(self) -> str:
        return self.tag
