"""Deliveries over REST: what came, what became of it and why, and once more if somebody wants it so."""

from __future__ import annotations

import base64
from typing import Any

from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from runs import events, trigger_waits
from runs.api.auth import workspace_of
from runs.api.bodies import Strict, Text
from runs.api.errors import ApiError
from runs.api.lookups import page_of
from runs.api.schema import ERROR
from runs.models import Run
from webhooks import explanations, replays
from webhooks.models import Delivery, DeliveryOutcome
from webhooks.replays import Replayed
from webhooks.simulation_api import EXPLAINED, Fields, explained

BODY_SHOWN = 256 * 1024  # bytes
RUNS_SHOWN = 100
BIG = ("body", "headers", "context")  # columns that lists leave alone


class Received(serializers.ModelSerializer[Delivery]):
    """One line of the list."""

    source = serializers.CharField(source="source.name", default=None)  # type: ignore[assignment]
    replay_of = serializers.CharField(source="replay_of_id", allow_null=True)
    duplicate_of = serializers.CharField(source="duplicate_of_id", allow_null=True)
    held_until = serializers.SerializerMethodField()
    received_at = serializers.SerializerMethodField()

    class Meta:
        model = Delivery
        fields = (
            "id", "source", "provider", "event", "sender", "external_id", "signed", "outcome", "reason", "matched",
            "skipped", "decisions", "hops", "held_until", "replay_of", "duplicate_of", "received_at",
        )  # fmt: skip

    def get_held_until(self, delivery: Delivery) -> str | None:
        return events.isoformat(delivery.held_until) if delivery.held_until else None

    def get_received_at(self, delivery: Delivery) -> str:
        return events.isoformat(delivery.received_at)


WHOLE = inline_serializer(
    "WholeDelivery",
    {
        "delivery": Received(),
        "context": serializers.JSONField(allow_null=True),
        "headers": serializers.DictField(),
        "body": inline_serializer(
            "DeliveryBody",
            {
                "text": serializers.CharField(required=False),
                "base64": serializers.CharField(required=False, help_text="Of a body that is no text."),
                "bytes": serializers.IntegerField(help_text="Of the whole of it."),
                "cut": serializers.BooleanField(),
            },
        ),
        "runs": serializers.ListField(child=serializers.CharField()),
        "replays": serializers.ListField(child=serializers.CharField()),
        "repeats": serializers.ListField(child=serializers.CharField()),
        "now": inline_serializer("Explained", EXPLAINED),
    },
)
REPLAYED: Fields = {
    "ok": serializers.BooleanField(),
    "matched": serializers.IntegerField(),
    "skipped": serializers.IntegerField(),
    "runs": serializers.ListField(child=serializers.CharField()),
    "replay": serializers.CharField(help_text="The delivery that this one has become."),
    "reason": serializers.CharField(help_text="Why it started nothing, if so."),
}


class DeliveryFilter(filters.FilterSet):
    outcome = filters.MultipleChoiceFilter(choices=DeliveryOutcome.choices)
    source = filters.CharFilter(field_name="source__name")
    event = filters.CharFilter(field_name="event")
    sender = filters.CharFilter(field_name="sender")


class Ids(Strict):
    ids = serializers.ListField(child=Text(max_length=40), min_length=1, max_length=replays.MOST)


def visible(request: Request) -> QuerySet[Delivery]:
    return Delivery.objects.filter(workspace=workspace_of(request)).select_related("source")


def delivery_or_404(request: Request, delivery_id: str) -> Delivery:
    delivery = visible(request).filter(pk=delivery_id).first()
    if delivery is None:
        raise ApiError(404, "DELIVERY_NOT_FOUND", f"there is no delivery {delivery_id!r}")
    return delivery


class Deliveries(APIView):
    @extend_schema(
        parameters=[
            OpenApiParameter("outcome", enum=DeliveryOutcome.values, many=True),
            OpenApiParameter("source"),
            OpenApiParameter("event"),
            OpenApiParameter("sender"),
            OpenApiParameter("limit", int),
            OpenApiParameter("cursor", description="The id of the last delivery of the page before."),
        ],
        responses=inline_serializer(
            "DeliveryPage",
            {"deliveries": Received(many=True), "next_cursor": serializers.CharField(allow_null=True)},
        ),
    )
    def get(self, request: Request) -> Response:
        """Webhooks that verified, newest first."""
        chosen = DeliveryFilter(request.query_params, queryset=visible(request).defer(*BIG))
        if not chosen.is_valid():
            raise serializers.ValidationError(chosen.errors)
        page, cursor = page_of(request, chosen.qs)
        return Response({"deliveries": Received(page, many=True).data, "next_cursor": cursor})


class DeliveryDetail(APIView):
    @extend_schema(responses={200: WHOLE, 404: ERROR})
    def get(self, request: Request, delivery_id: str) -> Response:
        """One delivery, whole; `now` is what its triggers would make of it as they are now."""
        return Response(whole(delivery_or_404(request, delivery_id)))


class DeliveryReplay(APIView):
    @extend_schema(request=None, responses={200: inline_serializer("Replayed", REPLAYED), 404: ERROR, 409: ERROR})
    def post(self, request: Request, delivery_id: str) -> Response:
        """Decide it anew, as a delivery of its own; one that is held is taken at once instead."""
        done = replays.replay(delivery_or_404(request, delivery_id))
        if done.outcome is None:
            raise ApiError(409, "CANNOT_REPLAY", done.fault)
        return Response(replayed(done))


class ReceiptReplay(DeliveryReplay):
    """The same at the path, and with the name, that other programs know: POST /api/webhooks/{id}/replay."""

    schema = None

    def post(self, request: Request, delivery_id: str) -> Response:
        answer = super().post(request, delivery_id)
        return Response({**answer.data, "replayReceiptId": answer.data["replay"]})


class DeliveriesReplay(APIView):
    @extend_schema(
        request=Ids,
        responses=inline_serializer(
            "ReplayedMany",
            {
                "deliveries": serializers.ListField(
                    child=inline_serializer("ReplayedOne", {"id": serializers.CharField(), **REPLAYED})
                )
            },
        ),
    )
    def post(self, request: Request) -> Response:
        """Decide many anew, in the order in which they came; each is answered for itself."""
        form = Ids(data=request.data)
        form.is_valid(raise_exception=True)
        done = replays.replay_all(form.validated_data["ids"], visible(request))
        return Response({"deliveries": [{"id": one.delivery_id, **replayed(one)} for one in done]})


def replayed(done: Replayed) -> dict[str, Any]:
    if done.outcome is None:
        return {"ok": False, "matched": 0, "skipped": 0, "runs": [], "replay": None, "reason": done.fault}
    outcome = done.outcome
    return {
        "ok": True,
        "matched": outcome.matched,
        "skipped": outcome.skipped,
        "runs": list(outcome.runs),
        "replay": outcome.delivery.pk,
        "reason": outcome.delivery.reason,
    }


def whole(delivery: Delivery) -> dict[str, Any]:
    return {
        "delivery": Received(delivery).data,
        "context": delivery.context,
        "headers": delivery.headers,
        "body": body_shown(bytes(delivery.body)),
        "runs": runs_of(delivery),
        "replays": first_ids(delivery.replays.all()),
        "repeats": first_ids(delivery.repeats.all()),
        "now": explained(explanations.of_delivery(delivery)),
    }


def body_shown(body: bytes) -> dict[str, Any]:
    """Its beginning, as text where it is text."""
    shown = {"bytes": len(body), "cut": len(body) > BODY_SHOWN}
    try:
        body.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body[:BODY_SHOWN]).decode(), **shown}
    return {"text": body[:BODY_SHOWN].decode(errors="ignore"), **shown}


def runs_of(delivery: Delivery) -> list[str]:
    """Those it resumed, then those it started."""
    started = Run.objects.filter(caused_by=delivery.pk, delete_requested_at=None).order_by("pk")
    return [*trigger_waits.resumed_by(delivery.pk), *started.values_list("pk", flat=True)[:RUNS_SHOWN]]


def first_ids(rows: QuerySet[Delivery]) -> list[str]:
    return list(rows.order_by("pk").values_list("pk", flat=True)[:RUNS_SHOWN])
