"""Outgoing webhooks over REST: whom the projects tell of runs, what was said, and saying it again."""

from __future__ import annotations

from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from runs import events, outgoing
from runs.api.auth import workspace_of
from runs.api.errors import ApiError
from runs.api.lookups import page_of
from runs.api.schema import ERROR
from runs.models import Outgoing, OutgoingMessage, OutgoingState


class Receiver(serializers.ModelSerializer[Outgoing]):
    due = serializers.IntegerField(help_text="Messages that are still to be delivered.")
    failed = serializers.IntegerField(help_text="Messages that will not be, unless somebody replays them.")

    class Meta:
        model = Outgoing
        fields = ("name", "project", "url", "credential", "states", "agents", "format", "active", "due", "failed")


class Message(serializers.ModelSerializer[OutgoingMessage]):
    outgoing = serializers.CharField(source="outgoing.name")
    task_id = serializers.CharField(source="run_id", allow_null=True)
    replay_of = serializers.CharField(source="replay_of_id", allow_null=True)
    next_try_at = serializers.SerializerMethodField()
    created_at = serializers.SerializerMethodField()
    delivered_at = serializers.SerializerMethodField()

    class Meta:
        model = OutgoingMessage
        fields = (
            "id", "outgoing", "type", "task_id", "state", "tries", "next_try_at", "last_answer", "replay_of",
            "created_at", "delivered_at", "body",
        )  # fmt: skip

    def get_next_try_at(self, message: OutgoingMessage) -> str | None:
        return events.isoformat(message.next_try_at) if message.next_try_at else None

    def get_created_at(self, message: OutgoingMessage) -> str:
        return events.isoformat(message.created_at)

    def get_delivered_at(self, message: OutgoingMessage) -> str | None:
        return events.isoformat(message.delivered_at) if message.delivered_at else None


class MessageFilter(filters.FilterSet):
    outgoing = filters.CharFilter(field_name="outgoing__name")
    state = filters.ChoiceFilter(choices=OutgoingState.choices)


def visible(request: Request) -> QuerySet[OutgoingMessage]:
    messages = OutgoingMessage.objects.filter(outgoing__workspace=workspace_of(request))
    return messages.select_related("outgoing")


class Receivers(APIView):
    @extend_schema(responses=inline_serializer("OutgoingList", {"outgoing": Receiver(many=True)}))
    def get(self, request: Request) -> Response:
        """Whom this workspace's projects tell of runs, by name."""
        rows = outgoing.counted(Outgoing.objects.filter(workspace=workspace_of(request)).order_by("name"))
        return Response({"outgoing": Receiver(rows, many=True).data})


class Messages(APIView):
    @extend_schema(
        parameters=[
            OpenApiParameter("outgoing", description="The name of an outgoing webhook."),
            OpenApiParameter("state", enum=OutgoingState.values),
            OpenApiParameter("limit", int),
            OpenApiParameter("cursor", description="The id of the last message of the page before."),
        ],
        responses=inline_serializer(
            "OutgoingMessagePage",
            {"messages": Message(many=True), "next_cursor": serializers.CharField(allow_null=True)},
        ),
    )
    def get(self, request: Request) -> Response:
        """Messages about runs, newest first."""
        chosen = MessageFilter(request.query_params, queryset=visible(request))
        if not chosen.is_valid():
            raise serializers.ValidationError(chosen.errors)
        page, cursor = page_of(request, chosen.qs)
        return Response({"messages": Message(page, many=True).data, "next_cursor": cursor})


class MessageReplay(APIView):
    @extend_schema(
        request=None,
        responses={202: inline_serializer("ReplayedMessage", {"message": Message()}), 404: ERROR, 409: ERROR},
    )
    def post(self, request: Request, message_id: str) -> Response:
        """Say again what was said then, as a message of its own."""
        message = visible(request).filter(pk=message_id).first()
        if message is None:
            raise ApiError(404, "MESSAGE_NOT_FOUND", f"there is no message {message_id!r}")
        try:
            made = outgoing.replay(message)
        except outgoing.SwitchedOff as off:
            raise ApiError(409, "OUTGOING_OFF", str(off)) from off
        return Response({"message": Message(made).data}, status=202)
