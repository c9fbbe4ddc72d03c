"""What people do to the whole fleet in the admin: pause it, resume it."""

from __future__ import annotations

from typing import Any

from django import forms
from django.urls import reverse

from agents.models import Workspace
from agents.pages import Deed
from runs import queue


class OfFleet(Deed):
    """Of every workspace; what is logged is logged with the first."""

    @property
    def row(self) -> Any:
        return Workspace.objects.order_by("pk")[0]

    @property
    def title(self) -> str:
        return self.verb

    def get_success_url(self) -> str:
        return reverse("admin:index")

    def back(self) -> str:
        return self.get_success_url()


class PauseFleet(OfFleet):
    verb = "Pause the fleet"
    sentence = (
        "Nothing new starts for any agent, whatever asks. What has begun goes on, and what is in line stays there."
    )
    dangerous = True

    def do(self, form: forms.Form) -> str:
        for workspace in Workspace.objects.all():
            queue.pause_fleet(workspace)
        return "Paused the fleet"


class ResumeFleet(OfFleet):
    verb = "Resume the fleet"
    sentence = (
        "Agents take work again, but for those that are paused themselves. Ticks that passed are not made up for."
    )

    def do(self, form: forms.Form) -> str:
        for workspace in Workspace.objects.all():
            queue.resume_fleet(workspace)
        return "Resumed the fleet"
