"""What would come of a payload, over REST; and how an explanation is written in JSON."""

from __future__ import annotations

import json
from typing import Any

from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from runs import events
from runs.api.auth import workspace_of
from runs.api.bodies import Strict, Text
from runs.api.errors import ApiError
from runs.api.schema import ERROR
from webhooks import simulation
from webhooks.explanations import Explanation, Heard
from webhooks.guards import Verdict
from webhooks.models import Source

LARGEST = 10 * 1024 * 1024  # characters of a body, as at the door
MOST_VALUES = 50  # of an event, for one filter

Fields = dict[str, serializers.Field[Any, Any, Any, Any]]


class Payload(Strict):
    source = Text(max_length=100, help_text="Its name.")  # type: ignore[assignment]
    payload = serializers.JSONField(required=False, help_text="The body as JSON; or, as it was sent, `body`.")
    body = Text(required=False, max_length=LARGEST, trim_whitespace=False)
    event = Text(
        required=False, allow_blank=True, max_length=100, help_text="For the header in which the provider says it."
    )
    headers = serializers.DictField(child=Text(max_length=10_000, allow_blank=True), required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("payload" in attrs) == ("body" in attrs):
            raise serializers.ValidationError("give either payload or body")
        return attrs


GUARD = inline_serializer(
    "Guard",
    {
        "outcome": serializers.CharField(),
        "reason": serializers.CharField(),
        "held_until": serializers.CharField(allow_null=True),
    },
)
HEARD = inline_serializer(
    "Heard",
    {
        "agent": serializers.CharField(),
        "index": serializers.IntegerField(),
        "source": serializers.CharField(),
        "matched": serializers.BooleanField(),
        "reason": serializers.CharField(help_text="Why it would start nothing; empty: it would."),
        "resumes": serializers.CharField(allow_null=True, help_text="The task that waits for it and would go on."),
        "filters": serializers.ListField(
            child=inline_serializer(
                "FilterVerdict",
                {
                    "filter": serializers.CharField(),
                    "wanted": serializers.ListField(child=serializers.CharField()),
                    "had": serializers.ListField(child=serializers.CharField()),
                    "passed": serializers.BooleanField(),
                    "sentence": serializers.CharField(),
                },
            )
        ),
    },
)
EXPLAINED: Fields = {
    "event": serializers.CharField(allow_null=True),
    "context": serializers.JSONField(allow_null=True),
    "fault": serializers.CharField(help_text="Why there is no event."),
    "guard": GUARD,
    "triggers": serializers.ListField(child=HEARD),
    "left_out": serializers.IntegerField(help_text="Further triggers."),
    "resumed": serializers.DictField(help_text="Agent to its task that waits for this event."),
}
SIMULATED = inline_serializer("Simulated", {**EXPLAINED, "prompts": serializers.DictField(help_text="By agent.")})


class Simulate(APIView):
    @extend_schema(request=Payload, responses={200: SIMULATED, 400: ERROR, 404: ERROR})
    def post(self, request: Request) -> Response:
        """What a webhook would start and what its agents would be told. Nothing is stored, and nothing is started."""
        form = Payload(data=request.data)
        form.is_valid(raise_exception=True)
        asked: dict[str, Any] = form.validated_data
        source = source_or_404(request, asked["source"])
        body = asked["body"] if "body" in asked else json.dumps(asked["payload"], ensure_ascii=False)
        try:
            found = simulation.simulate(
                source,
                body.encode(errors="surrogatepass"),
                event=asked.get("event", ""),
                headers=asked.get("headers", {}),
            )
        except simulation.Unfit as error:
            raise ApiError(400, "VALIDATION_ERROR", str(error)) from error
        return Response({**explained(found.explanation), "prompts": found.prompts})


def source_or_404(request: Request, name: str) -> Source:
    source = Source.objects.filter(workspace=workspace_of(request), name=name).first()
    if source is None:
        raise ApiError(404, "SOURCE_NOT_FOUND", f"there is no source {name!r}")
    return source


def explained(explanation: Explanation) -> dict[str, Any]:
    event = explanation.event
    return {
        "event": event.event if event else None,
        "context": event.context if event else None,
        "fault": explanation.fault,
        "guard": guard_in_json(explanation.guard) if explanation.guard else None,
        "triggers": [heard_in_json(heard) for heard in explanation.heard],
        "left_out": explanation.left_out,
        "resumed": explanation.resumed,
    }


def guard_in_json(guard: Verdict) -> dict[str, str | None]:
    held_until = events.isoformat(guard.held_until) if guard.held_until else None
    return {"outcome": guard.outcome, "reason": guard.reason, "held_until": held_until}


def heard_in_json(heard: Heard) -> dict[str, Any]:
    return {
        "agent": heard.trigger.agent.name,
        "index": heard.trigger.index,
        "source": heard.trigger.source.name,
        "matched": heard.passed,
        "reason": heard.reason,
        "resumes": heard.resumes or None,
        "filters": [
            {
                "filter": verdict.filter,
                "wanted": verdict.wanted,
                "had": verdict.had[:MOST_VALUES],
                "passed": verdict.passed,
                "sentence": verdict.sentence,
            }
            for verdict in heard.filters
        ],
    }
