"""Agents over REST: list, look, pause, resume, reset."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django.db.models import Count, prefetch_related_objects
from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agents import clock, timetable
from agents.models import Agent, Priority, Schedule
from runs import events, lateness, queue
from runs.api.auth import workspace_of
from runs.api.lookups import agent_or_404
from runs.api.schema import ERROR
from runs.models import Run, Status

NEXT = 5  # fire times
TIMING = ("cron", "timezone", "jitter_seconds", "missed", "missed_seconds")


class AgentRecord(serializers.ModelSerializer[Agent]):
    priority = serializers.SerializerMethodField()
    paused = serializers.BooleanField()
    refusal = serializers.SerializerMethodField(help_text="Why nothing new may start; null if it may.")
    schedule = serializers.SerializerMethodField(help_text="Its schedules in one line; empty: none.")
    timezone = serializers.SerializerMethodField(help_text="Of schedules that name none.")
    schedules = serializers.SerializerMethodField(help_text="Each by itself, with its next fire times.")
    next_runs = serializers.SerializerMethodField(help_text="The next fire times of all its schedules.")
    expected_by = serializers.SerializerMethodField(help_text="When its next tick must have been fired; past: late.")
    running = serializers.SerializerMethodField()
    pending = serializers.SerializerMethodField()
    models = serializers.SerializerMethodField()
    claim_key = serializers.SerializerMethodField(help_text="The template of its claim keys.")
    coalesce = serializers.SerializerMethodField(help_text="What becomes of a second event of one key.")
    breaker = serializers.SerializerMethodField()

    class Meta:
        model = Agent
        fields = (
            "name", "project", "kind", "description", "scale", "priority", "schedule", "timezone", "task_enabled",
            "active", "paused", "refusal", "schedules", "next_runs", "expected_by", "running", "pending", "models",
            "queue_size", "claim_key", "coalesce", "breaker",
        )  # fmt: skip

    def get_priority(self, agent: Agent) -> str:
        return Priority(agent.priority).word

    def get_running(self, agent: Agent) -> int:
        return int(self.context["running"].get(agent.pk, 0))

    def get_pending(self, agent: Agent) -> int:
        return int(self.context["pending"].get(agent.pk, 0))

    def get_claim_key(self, agent: Agent) -> str | None:
        return agent.claim_key or None

    def get_coalesce(self, agent: Agent) -> str | None:
        return agent.coalesce if agent.claim_key else None

    def get_breaker(self, agent: Agent) -> dict[str, int | str | None]:
        """`broken_at` is null unless it holds its line."""
        moments = {"broken_at": agent.broken_at, "probe_at": agent.probe_at}
        told = {name: events.isoformat(at) if at else None for name, at in moments.items()}
        return {"failures_in_a_row": agent.failures_in_a_row, **told}

    def get_models(self, agent: Agent) -> list[str]:
        return [f"{model.provider}:{model.model}" for model in agent.shown_spec.models]

    def get_refusal(self, agent: Agent) -> str | None:
        return agent.refusal or None

    def get_schedule(self, agent: Agent) -> str:
        return "; ".join(schedule.cron for schedule in agent.schedules.all())

    def get_timezone(self, agent: Agent) -> str:
        return agent.shown_spec.timezone

    def get_schedules(self, agent: Agent) -> list[dict[str, Any]]:
        return [
            {name: getattr(schedule, name) for name in TIMING} | {"next_runs": next_runs(agent, [schedule])}
            for schedule in agent.schedules.all()
        ]

    def get_next_runs(self, agent: Agent) -> list[str]:
        return [told["tick"] for told in next_runs(agent, agent.schedules.all())]

    def get_expected_by(self, agent: Agent) -> str | None:
        moment = lateness.expected_by(agent)
        return events.isoformat(moment) if moment else None


def next_runs(agent: Agent, schedules: Iterable[Schedule]) -> list[dict[str, str]]:
    """The next of these, with the jitter of each: none while nothing may start."""
    following = [] if agent.refusal else timetable.upcoming(schedules, after=clock.now(), count=NEXT)
    return [
        {"tick": events.isoformat(tick.at), "starts_at": events.isoformat(tick.at + tick.jitter)} for tick in following
    ]


Telling = Callable[[Agent], Any]
_details: dict[str, Telling] = {}


def detail(name: str, tell: Telling) -> None:
    """One more field of one agent, for what stands above this package."""
    _details[name] = tell


class Agents(APIView):
    @extend_schema(responses=inline_serializer("AgentList", {"agents": AgentRecord(many=True)}))
    def get(self, request: Request) -> Response:
        """All agents of the workspace, with what they are doing."""
        rows = Agent.objects.filter(workspace=workspace_of(request)).select_related("version")
        return Response({"agents": records(rows.order_by("name"))})


class AgentDetail(APIView):
    @extend_schema(responses={200: AgentRecord, 404: ERROR})
    def get(self, request: Request, name: str) -> Response:
        """One agent, with its definition."""
        agent = agent_or_404(request, name)
        more = {name: tell(agent) for name, tell in _details.items()}
        return Response({"agent": {**records([agent])[0], "spec": agent.shown_spec.dump(), **more}})


class AgentPause(APIView):
    @extend_schema(request=None, responses={200: AgentRecord, 404: ERROR})
    def post(self, request: Request, name: str) -> Response:
        """Start nothing new; what runs goes on."""
        return paused(request, name, pause=True)


class AgentResume(APIView):
    @extend_schema(request=None, responses={200: AgentRecord, 404: ERROR})
    def post(self, request: Request, name: str) -> Response:
        """Take work again. Ticks that passed in the meantime are not made up for."""
        return paused(request, name, pause=False)


class AgentReset(APIView):
    @extend_schema(request=None, responses={200: AgentRecord, 404: ERROR})
    def post(self, request: Request, name: str) -> Response:
        """Forget its failures in a row: if it held its line, that moves again."""
        agent = agent_or_404(request, name)
        queue.reset_breaker(agent)
        return as_it_is_now(agent)


def paused(request: Request, name: str, *, pause: bool) -> Response:
    agent = agent_or_404(request, name)
    queue.pause(agent) if pause else queue.resume(agent)
    return as_it_is_now(agent)


def as_it_is_now(agent: Agent) -> Response:
    agent.refresh_from_db()
    return Response({"agent": records([agent])[0]})


def records(agents: Iterable[Agent]) -> list[dict[str, Any]]:
    """Agents with what they are doing. Counted by two indexes that hold live runs only, however many have ended."""
    agents = list(agents)
    prefetch_related_objects(agents, "schedules", "workspace", "version")
    mine = Run.objects.filter(agent__in=agents).order_by().values_list("agent_id")
    doing = {
        "running": dict(mine.filter(has_slot=True).annotate(Count("pk"))),
        "pending": dict(mine.filter(status=Status.PENDING).annotate(Count("pk"))),
    }
    return [dict(record) for record in AgentRecord(agents, many=True, context=doing).data]
