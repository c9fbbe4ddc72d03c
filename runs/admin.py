"""Runs in the admin: the list, the live page of one, and the two things people do to runs: cancel and respond."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.template.defaultfilters import pluralize
from django.urls import URLPattern
from django.views.generic import TemplateView, View
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from agents.pages import Deed, Page, PageOfRow, Refused, Words, moment, page
from agents.tables import BigTable, Operated, ReadOnly
from runs import events, queue, transcript
from runs.dashboard import Fleet
from runs.facts import COLORS, code_of, context_for, duration
from runs.models import Message, Run

# Big texts of a run: no list loads them.
TEXTS = ("input", "output", "question", "trigger_context", "request_digest", "tags")

admin.site.index_title = "Fleet now"
for model in (ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule):
    admin.site.unregister(model)


# --- the page of a run ------------------------------------------------------------------------------------------


class OfRun(PageOfRow):
    def get_rows(self) -> QuerySet[Run]:
        rows: QuerySet[Run] = super().get_rows()
        return rows.defer(None).select_related("agent__workspace", "agent__version", "version", "host", "parent")


class RunPage(OfRun, TemplateView):
    """Facts from the server, events from the websocket: the template holds none of them."""

    template_name = "runs/run.html"

    @property
    def title(self) -> str:
        return f"Run of {self.row.agent}"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        may_operate = self.model_admin.has_operate_permission(self.request)
        live = context_for(self.row, may_operate=may_operate)
        return super().get_context_data(**live, may_operate=may_operate, **kwargs)


class RunFacts(RunPage):
    """The part of the page that changes with the run's row."""

    template_name = "runs/facts.html"


class RunMessage(OfRun, View):
    """One message of the transcript, for the reader who opens it: the prompt, a whole result."""

    def get(self, request: HttpRequest, position: int, **kwargs: Any) -> JsonResponse:
        found = Message.objects.filter(attempt__run=self.row, position=position).order_by("-attempt__number").first()
        return JsonResponse({"parts": [shown(part) for part in found.body["parts"]] if found else []})


class RunLog(OfRun, View):
    """All events, one JSON object a line."""

    def get(self, request: HttpRequest, **kwargs: Any) -> StreamingHttpResponse:
        response = StreamingHttpResponse(lines_of(self.row.pk), content_type="application/x-ndjson; charset=utf-8")
        response.headers["Content-Disposition"] = f'attachment; filename="{self.row.pk}.ndjson"'
        return response


def shown(part: transcript.Part) -> dict[str, Any]:
    """A part without what is the provider's own."""
    return {key: part[key] for key in ("type", "text", "name", "arguments", "is_error") if key in part}


def lines_of(run_id: str) -> Iterator[str]:
    after = 0
    while page := events.fetch(run_id, after=after):
        after = page[-1]["id"]
        yield "".join(f"{json.dumps(event, ensure_ascii=False)}\n" for event in page)


# --- what people do to runs -------------------------------------------------------------------------------------


class CancelRun(Deed, OfRun):
    verb = "Cancel the run"
    sentence = "Its command is stopped and its sandbox removed. What it has done stays done."
    dangerous = True

    @property
    def title(self) -> str:
        return f"Cancel {self.row}"

    def do(self, form: forms.Form) -> str:
        try:
            queue.cancel(self.row)
        except queue.AlreadyOver as over:
            raise Refused(f"{self.row} is over already: {Run.objects.get(pk=self.row.pk).status}") from over
        return f"Asked {self.row} to stop"


class RespondToRun(Deed, OfRun):
    verb = "Answer"
    form_class = Words

    @property
    def title(self) -> str:
        return f"Answer {self.row}"

    @property
    def sentence(self) -> str:
        return str(self.row.question) or "It asks nothing at the moment."

    def do(self, form: forms.Form) -> str:
        try:
            queue.respond(self.row, form.cleaned_data["text"])
        except queue.NotWaiting as over:
            raise Refused(f"{self.row} waits for no answer") from over
        return f"Answered {self.row}"


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
            page(self, "<str:object_id>/facts/", RunFacts),
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


# --- schedules --------------------------------------------------------------------------------------------------


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(ReadOnly, ModelAdmin):
    """Beat's rows only mirror the agents' schedules, so nobody changes them here."""

    list_display = ("name", "enabled", "crontab", "description", "last_run")
    list_select_related = ("crontab",)
    search_fields = ("name",)
    fields = ("name", "enabled", "description", "crontab", "task", "args", "queue", "expire_seconds", "last_run")
    readonly_fields = ("last_run",)

    @display(description="Last rung", empty_value="never")
    def last_run(self, task: Any) -> str | None:
        return moment(task.last_run_at) or None
