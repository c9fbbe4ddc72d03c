"""Runs in the admin: the list, the live page of one, and the two things people do to runs: cancel and respond."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cached_property
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
from unfold.widgets import UnfoldAdminTextareaWidget

from agents.models import Kind
from agents.pages import Deed, Page, PageOfRow, Refused, Words, moment, page, plain_lines
from agents.tables import BigTable, Operated, ReadOnly
from runs import (
    alerts_admin,  # noqa: F401 - registers the alerts
    approvals,
    definitions,
    events,
    inputs,
    locks_admin,  # noqa: F401 - registers the locks
    memory_admin,  # noqa: F401 - registers the memories
    queue,
    transcript,
)
from runs.dashboard import Fleet
from runs.facts import COLORS, Leave, code_of, context_for, duration
from runs.models import InputMode, Message, Run, TriggerKind

WHEN_HEARD = [
    (InputMode.FOLLOWUP, "when it has answered"),
    (InputMode.STEER, "before its next request"),
    (InputMode.INTERRUPT, "now: what it does is stopped"),
    (InputMode.QUEUE, "when it has answered what stands before"),
]

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
        attempt = attempt_asked_for(self.request)
        hears = self.row.terminal or self.row.agent.kind != Kind.COMMAND
        return super().get_context_data(
            **live, may_operate=may_operate, attempt=attempt, hears=hears, modes=WHEN_HEARD, **kwargs
        )


class RunFacts(RunPage):
    """The part of the page that changes with the run's row."""

    template_name = "runs/facts.html"


class RunDefinition(OfRun, TemplateView):
    """What the run was started with, and what its agent has become since."""

    template_name = "runs/definition.html"

    @property
    def title(self) -> str:
        return f"Definition of {self.row.pk}"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(**definitions.context_for(self.row), **kwargs)


class RunMessage(OfRun, View):
    """One message of the transcript, for the reader who opens it: the prompt, a whole result."""

    def get(self, request: HttpRequest, position: int, **kwargs: Any) -> JsonResponse:
        messages = Message.objects.filter(attempt__run=self.row, position=position)
        if attempt := attempt_asked_for(request):
            messages = messages.filter(attempt__number=attempt)
        found = messages.order_by("-attempt__number").first()
        return JsonResponse({"parts": [shown(part) for part in parts_of(found)] if found else []})


def parts_of(message: Message) -> list[transcript.Part]:
    """What it says, or that it says nothing that can be read."""
    try:
        return transcript.checked(message.body, message.position, message.position)["parts"]
    except transcript.Corrupt as error:
        return [{"type": "text", "text": str(error)}]


def attempt_asked_for(request: HttpRequest) -> int | None:
    """The number in `?attempt=`; None: it is not about one of them."""
    text = request.GET.get("attempt", "")
    return int(text) if re.fullmatch(r"[1-9][0-9]{0,4}", text) else None


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


class SomethingToSay(Words):
    mode = forms.ChoiceField(choices=WHEN_HEARD, initial=InputMode.FOLLOWUP, label="")


class SayToRun(Deed, OfRun):
    verb = "Send"
    sentence = "If the run is over, another goes on from where it ended."
    form_class = SomethingToSay

    @property
    def title(self) -> str:
        return f"Say something to {self.row}"

    def do(self, form: forms.Form) -> str:
        said = form.cleaned_data
        try:
            sent, _ = inputs.send(self.row, said["text"], InputMode(said["mode"]), trigger=TriggerKind.MANUAL)
        except inputs.HearsNothing as error:
            raise Refused(f"{self.row} is a program that hears nothing while it runs") from error
        except (queue.AgentRefuses, queue.QueueFull, queue.Coalesced) as error:
            raise Refused(str(error)) from error
        self.row = inputs.hearer(sent)
        return f"{self.row} has your message: {sent.outcome}"


class Decision(forms.Form):
    """On the call that was shown: the digest says which that was."""

    call_id = forms.CharField(max_length=32, widget=forms.HiddenInput)
    digest = forms.CharField(max_length=64, widget=forms.HiddenInput)
    reason = forms.CharField(max_length=10_000, required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}))

    def clean_reason(self) -> str:
        return plain_lines(self.cleaned_data["reason"])


class DecideOnCall(Deed, OfRun):
    decide: Callable[..., None]
    done = ""  # what the message says
    form_class = Decision
    template_name = "runs/decide.html"

    @cached_property
    def leave(self) -> Leave | None:
        return Leave.of(self.row)

    @property
    def title(self) -> str:
        return f"{self.verb} a call of {self.row}"

    @property
    def sentence(self) -> str:
        return "" if self.leave else "It asks leave for nothing at the moment."

    def get_initial(self) -> dict[str, Any]:
        return {"call_id": self.leave.call_id, "digest": self.leave.digest} if self.leave else {}

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(leave=self.leave, **kwargs)

    def do(self, form: forms.Form) -> str:
        said = form.cleaned_data
        try:
            self.decide(self.row, said["call_id"], said["digest"], by=str(self.request.user), reason=said["reason"])
        except approvals.CannotDecide as error:
            raise Refused(f"Nothing has changed: {why_not(error)}") from error
        return f"{self.done} call {said['call_id']} of {self.row}"


class ApproveCall(DecideOnCall):
    verb, done = "Approve", "Approved"
    decide = staticmethod(approvals.approve)


class RefuseCall(DecideOnCall):
    verb, done = "Refuse", "Refused"
    dangerous = True
    decide = staticmethod(approvals.refuse)


def why_not(error: approvals.CannotDecide) -> str:
    match error:
        case approvals.ApprovalChanged():
            return "the call is not the one that was shown"
        case approvals.AlreadyDecided():
            return f"it has been decided on, and is {error}"
        case approvals.ApprovalExpired():
            return f"the time to decide passed at {error}"
    return "it waits for no such word"


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
