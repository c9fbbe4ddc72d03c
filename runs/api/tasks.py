"""The tasks API, to the letter of spec/airstore-machina-veil.md 3: a task is a run."""

from __future__ import annotations

from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agents.models import Priority
from runs import events, queue
from runs.api.bodies import Answer
from runs.api.errors import ApiError
from runs.api.lookups import number, page_of, run_or_404, visible
from runs.api.records import Task, WholeTask
from runs.api.schema import ACCEPTED, ERROR
from runs.models import Run, Status


class TaskFilter(filters.FilterSet):
    agentName = filters.CharFilter(field_name="agent__name")  # noqa: N815
    status = filters.ChoiceFilter(choices=[*Status.choices, ("cancelled", "cancelled")], method="by_status")
    priority = filters.ChoiceFilter(choices=[(p.word, p.word) for p in Priority], method="by_priority")

    def by_status(self, rows: QuerySet[Run], name: str, value: str) -> QuerySet[Run]:
        return rows.filter(status="canceled" if value == "cancelled" else value)

    def by_priority(self, rows: QuerySet[Run], name: str, value: str) -> QuerySet[Run]:
        return rows.filter(priority=Priority.named(value))


class Tasks(APIView):
    @extend_schema(
        parameters=[
            OpenApiParameter("agentName"),
            OpenApiParameter("status"),
            OpenApiParameter("priority"),
            OpenApiParameter("limit", int),
            OpenApiParameter("cursor", description="The id of the last task of the page before."),
        ],
        responses=inline_serializer(
            "TaskPage",
            {"tasks": Task(many=True), "next_cursor": serializers.CharField(allow_null=True)},
        ),
    )
    def get(self, request: Request) -> Response:
        """Tasks, newest first."""
        chosen = TaskFilter(request.query_params, queryset=visible(request))
        if not chosen.is_valid():
            raise serializers.ValidationError(chosen.errors)
        page, cursor = page_of(request, chosen.qs.prefetch_related("version", "agent__version"))
        return Response({"tasks": Task(page, many=True).data, "next_cursor": cursor})


class TaskDetail(APIView):
    @extend_schema(responses={200: inline_serializer("OneTask", {"task": WholeTask()}), 404: ERROR})
    def get(self, request: Request, run_id: str) -> Response:
        """One task, whole."""
        return Response({"task": WholeTask(run_or_404(request, run_id)).data})

    @extend_schema(
        parameters=[OpenApiParameter("force", bool, description="Cancel it first if it is active.")],
        responses={
            200: inline_serializer(
                "Deleted", {"deleted": serializers.BooleanField(), "taskId": serializers.CharField()}
            ),
            404: ERROR,
            409: ERROR,
        },
    )
    def delete(self, request: Request, run_id: str) -> Response:
        """Delete a task with everything that belongs to it."""
        run = run_or_404(request, run_id)
        force = request.query_params.get("force", "").lower() in {"1", "true", "yes"}
        try:
            queue.delete(run, force=force)
        except queue.StillActive as error:
            message = f"task {run.pk} is {run.status}: wait for its end, or add force=true to cancel it first"
            raise ApiError(409, "TASK_ACTIVE", message) from error
        return Response({"deleted": True, "taskId": run.pk})


class TaskEvents(APIView):
    @extend_schema(
        parameters=[OpenApiParameter("since", int), OpenApiParameter("limit", int)],
        responses={
            200: inline_serializer(
                "EventPage",
                {
                    "taskId": serializers.CharField(),
                    "events": inline_serializer(
                        "Event",
                        {
                            "id": serializers.IntegerField(),
                            "type": serializers.CharField(),
                            "data": serializers.JSONField(),
                            "created_at": serializers.DateTimeField(),
                        },
                        many=True,
                    ),
                },
            ),
            404: ERROR,
        },
    )
    def get(self, request: Request, run_id: str) -> Response:
        """Events with ids above `since`, in order."""
        run = run_or_404(request, run_id)
        since = number(request, "since", 0, low=0, high=2**62)
        limit = number(request, "limit", 500, low=1, high=5000)
        return Response({"taskId": run.pk, "events": events.fetch(run.pk, after=since, limit=limit)})


class TaskRespond(APIView):
    @extend_schema(request=Answer, responses={200: ACCEPTED, 400: ERROR, 404: ERROR})
    def post(self, request: Request, run_id: str) -> Response:
        """Answer a waiting task."""
        run = run_or_404(request, run_id)
        form = Answer(data=request.data)
        form.is_valid(raise_exception=True)
        try:
            queue.respond(run, form.validated_data["message"])
        except queue.NotWaiting as error:
            raise ApiError(400, "TASK_NOT_WAITING", f"task {run.pk} waits for no answer") from error
        return Response({"taskId": run.pk, "status": Status.PROCESSING})


class TaskCancel(APIView):
    @extend_schema(request=None, responses={200: ACCEPTED, 400: ERROR, 404: ERROR})
    def post(self, request: Request, run_id: str) -> Response:
        """Cancel a task that is not over."""
        run = run_or_404(request, run_id)
        try:
            queue.cancel(run)
        except queue.AlreadyOver as error:
            raise ApiError(400, "TASK_ALREADY_TERMINAL", f"task {run.pk} is over already") from error
        return Response({"taskId": run.pk, "status": Status.CANCELED})
