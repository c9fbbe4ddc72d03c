"""The pages of a run in the admin: what it is, what happened to it, what was said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.views.generic import TemplateView, View

from agents.models import Kind
from agents.pages import PageOfRow
from runs import definitions, events, transcript
from runs.facts import context_for
from runs.models import InputMode, Message, Run

WHEN_HEARD = [
    (InputMode.FOLLOWUP, "when it has answered"),
    (InputMode.STEER, "before its next request"),
    (InputMode.INTERRUPT, "now: what it does is stopped"),
    (InputMode.QUEUE, "when it has answered what stands before"),
]


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


def shown(part: transcript.Part) -> dict[str, Any]:
    """A part without what is the provider's own."""
    return {key: part[key] for key in ("type", "text", "name", "arguments", "is_error") if key in part}


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


def lines_of(run_id: str) -> Iterator[str]:
    after = 0
    while page := events.fetch(run_id, after=after):
        after = page[-1]["id"]
        yield "".join(f"{json.dumps(event, ensure_ascii=False)}\n" for event in page)
