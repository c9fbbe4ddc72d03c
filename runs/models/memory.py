"""What agents remember between runs."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q

from agents import clock
from agents.models import Agent, Workspace
from runs.models.run import Run


class Memory(models.Model):
    """A named text that an agent has written, for itself or, without an agent, for the whole workspace."""

    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="memories", db_index=False)
    agent = models.ForeignKey(Agent, null=True, on_delete=models.CASCADE, related_name="memories", db_index=False)
    name = models.CharField(max_length=200)
    content = models.TextField()
    run = models.ForeignKey(Run, null=True, on_delete=models.SET_NULL, related_name="+", help_text="Who wrote it last.")
    created_at = models.DateTimeField(default=clock.now)
    updated_at = models.DateTimeField(default=clock.now)

    class Meta:
        verbose_name_plural = "memories"
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["agent", "name"], condition=Q(agent__isnull=False), name="an_agent_has_a_memory_once"
            ),
            models.UniqueConstraint(
                fields=["workspace", "name"], condition=Q(agent=None), name="a_workspace_has_a_memory_once"
            ),
        ]

    def __str__(self) -> str:
        return self.name
