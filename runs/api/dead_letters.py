"""Dead letters over REST: what should have started a run and could not, until somebody replays it."""

from __future__ import annotations

from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from runs import events, queue
from runs.api.auth import workspace_of
from runs.api.errors import ApiError
from runs.api.lookups import page_of
from runs.api.schema import ACCEPTED, ERROR
from runs.api.starting import queue_full
from runs.models import DeadLetter


class Letter(serializers.ModelSerializer[DeadLetter]):
    agent_name = serializers.CharField(source="agent.name")
    task_id = serializers.CharField(source="run_id", allow_null=True, help_text="The run that replaying it made.")
    created_at = serializers.SerializerMethodField()
    replayed_at = serializers.SerializerMethodField()

    class Meta:
        model = DeadLetter
        fields = (
            "id", "agent_name", "code", "reason", "trigger", "trigger_context", "caused_by", "input", "created_at",
            "replayed_at", "task_id",
        )  # fmt: skip

    def get_created_at(self, letter: DeadLetter) -> str:
        return events.isoformat(letter.created_at)

    def get_replayed_at(self, letter: DeadLetter) -> str | None:
        return events.isoformat(letter.replayed_at) if letter.replayed_at else None


class LetterFilter(filters.FilterSet):
    agentName = filters.CharFilter(field_name="agent__name")  # noqa: N815
    replayed = filters.ChoiceFilter(choices=[("true", "true"), ("false", "false")], method="by_replayed")

    def by_replayed(self, rows: QuerySet[DeadLetter], name: str, value: str) -> QuerySet[DeadLetter]:
        return rows.filter(replayed_at__isnull=value == "false")


def visible(request: Request) -> QuerySet[DeadLetter]:
    return DeadLetter.objects.filter(workspace=workspace_of(request)).select_related("agent")


def letter_or_404(request: Request, letter_id: str) -> DeadLetter:
    letter = visible(request).filter(pk=letter_id).first()
    if letter is None:
        raise ApiError(404, "DEAD_LETTER_NOT_FOUND", f"there is no dead letter {letter_id!r}")
    return letter


class DeadLetters(APIView):
    @extend_schema(
        parameters=[
            OpenApiParameter("agentName"),
            OpenApiParameter("replayed", bool),
            OpenApiParameter("limit", int),
            OpenApiParameter("cursor", description="The id of the last dead letter of the page before."),
        ],
        responses=inline_serializer(
            "DeadLetterPage",
            {"dead_letters": Letter(many=True), "next_cursor": serializers.CharField(allow_null=True)},
        ),
    )
    def get(self, request: Request) -> Response:
        """Dead letters, newest first."""
        chosen = LetterFilter(request.query_params, queryset=visible(request))
        if not chosen.is_valid():
            raise serializers.ValidationError(chosen.errors)
        page, cursor = page_of(request, chosen.qs)
        return Response({"dead_letters": Letter(page, many=True).data, "next_cursor": cursor})


class DeadLetterDetail(APIView):
    @extend_schema(responses={200: inline_serializer("OneDeadLetter", {"dead_letter": Letter()}), 404: ERROR})
    def get(self, request: Request, letter_id: str) -> Response:
        """One dead letter, whole."""
        return Response({"dead_letter": Letter(letter_or_404(request, letter_id)).data})


class DeadLetterReplay(APIView):
    @extend_schema(request=None, responses={202: ACCEPTED, 404: ERROR, 409: ERROR, 429: ERROR})
    def post(self, request: Request, letter_id: str) -> Response:
        """Start, once, what the event would have started."""
        letter = letter_or_404(request, letter_id)
        try:
            run = queue.replay(letter)
        except queue.AlreadyReplayed as done:
            raise already_replayed(letter) from done
        except queue.AgentRefuses as refusal:
            raise ApiError(409, refusal.code, str(refusal)) from refusal
        except queue.Coalesced as busy:
            raise ApiError(409, "CLAIM_KEY_BUSY", str(busy), {"taskId": busy.run_id}) from busy
        except queue.QueueFull as full:
            return queue_full(full)
        return Response({"taskId": run.pk, "status": run.status}, status=202)


def already_replayed(letter: DeadLetter) -> ApiError:
    """With the run it became; null if that has been deleted."""
    run_id = DeadLetter.objects.values_list("run_id", flat=True).get(pk=letter.pk)
    made = f"it became task {run_id}" if run_id else "its task has been deleted"
    return ApiError(409, "ALREADY_REPLAYED", f"{letter.pk} has been replayed: {made}", {"taskId": run_id})
