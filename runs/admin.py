"""Runs in the admin: the list, and what hangs on each."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseBase
from django.template.defaultfilters import pluralize
from django.urls import URLPattern
from django.views.generic import TemplateView
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from agents.pages import Page, moment, page
from agents.tables import BigTable, Operated, ReadOnly
from runs import (
    alerts_admin,  # noqa: F401 - registers the alerts
    beat_admin,  # noqa: F401 - registers what is left of beat's
    locks_admin,  # noqa: F401 - registers the locks
    memory_admin,  # noqa: F401 - registers the memories
    outgoing_admin,  # noqa: F401 - registers outgoing webhooks and their messages
    queue,
)
from runs.dashboard import Fleet
from runs.deeds import ApproveCall, CancelRun, RefuseCall, RespondToRun, SayToRun
from runs.facts import COLORS, code_of, duration
from runs.fleet_deeds import PauseFleet, ResumeFleet
from runs.models import Run
from runs.pages import RunDefinition, RunFacts, RunLog, RunMessage, RunPage

# Big texts of a run: no list loads them.
TEXTS = ("input", "output", "question", "trigger_context", "request_digest", "tags")

admin.site.index_title = "Fleet now"


@admin.register(Run)
class RunAdmin(BigTable, Operated, ReadOnly, ModelAdmin):
    """Read-only by construction: a run changes through `runs.queue` and through nothing else."""

    id_prefix = "run_"
    list_display = ("whose", "badge", "why", "trigger", "created", "used")
    list_select_related = ("agent",)
    list_fullwidth = True
    list_filter = ("status", "wait_reason", "trigger", "agent")
    actions = ("cancel_selected",)
    actions_row = ("cancel", "respond")

    @display(description="Run", header=True)
    def whose(self, run: Run) -> tuple[str, str]:
        return run.agent.name, run.pk

    @display(description="Status", label=COLORS)
    def badge(self, run: Run) -> str:
        return run.status

    @display(description="Why")
    def why(self, run: Run) -> str:
        return run.wait_reason or code_of(run)

    @display(description="Created, duration", header=True)
    def created(self, run: Run) -> tuple[str, str]:
        return moment(run.created_at), duration(run)

    @display(description="Used", header=True)
    def used(self, run: Run) -> tuple[str, str]:
        return f"{run.turns:,} turn{pluralize(run.turns)}", f"{run.tokens:,} tokens"

    @admin.action(description="Cancel", permissions=["operate"])
    def cancel_selected(self, request: HttpRequest, rows: QuerySet[Run]) -> None:
        over = 0
        for run in rows:
            try:
                queue.cancel(run)
                self.log_change(request, run, f"Asked {run} to stop")
            except queue.AlreadyOver:
                over += 1
        self.message_user(request, f"Asked {len(rows) - over} runs to stop; {over} were over already", messages.INFO)

    @action(description="Cancel", url_path="cancel", permissions=["operate"], icon="cancel")
    def cancel(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return CancelRun.as_view(model_admin=self)(request, object_id=object_id)

    @action(description="Respond", url_path="respond", permissions=["operate"], icon="reply")
    def respond(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return RespondToRun.as_view(model_admin=self)(request, object_id=object_id)

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return RunPage.as_view(model_admin=self)(request, object_id=object_id)

    def get_urls(self) -> list[URLPattern]:
        return [
            page(self, "fleet/", FleetPage),
            page(self, "pause-fleet/", PauseFleet),
            page(self, "resume-fleet/", ResumeFleet),
            page(self, "<str:object_id>/facts/", RunFacts),
            page(self, "<str:object_id>/definition/", RunDefinition),
            page(self, "<str:object_id>/approve/", ApproveCall),
            page(self, "<str:object_id>/refuse/", RefuseCall),
            page(self, "<str:object_id>/say/", SayToRun),
            page(self, "<str:object_id>/log/", RunLog),
            page(self, "<str:object_id>/message/<int:position>/", RunMessage),
            *super().get_urls(),
        ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        rows: QuerySet[Run] = super().get_queryset(request)
        return rows.filter(delete_requested_at=None).defer(*TEXTS)


class FleetPage(Page, TemplateView):
    """The part of the front page that changes."""

    template_name = "runs/fleet.html"
    title = "Fleet"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(fleet=Fleet.now(), **kwargs)
