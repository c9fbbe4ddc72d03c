"""Agents over REST: list, look, pause, resume, reset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.models import Count
from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agents import clock, schedule
from agents.models import Agent, Priority
from runs import events, lateness, queue
from runs.api.auth import workspace_of
from runs.api.tasks import ERROR, agent_or_404
from runs.models import Run, Status


class AgentRecord(serializers.ModelSerializer[Agent]):
    priority = serializers.SerializerMethodField()
    paused = serializers.BooleanField()
    next_runs = serializers.SerializerMethodField(help_text="The next fire times of its schedule.")
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
            "active", "paused", "next_runs", "expected_by", "running", "pending", "models", "queue_size", "claim_key",
            "coalesce", "breaker",
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

    def get_next_runs(self, agent: Agent) -> list[str]:
        if not agent.schedule or agent.refusal:
            return []
        ticks = schedule.upcoming(agent.schedule, agent.timezone, after=clock.now(), count=5)
        return [events.isoformat(tick) for tick in ticks]

    def get_expected_by(self, agent: Agent) -> str | None:
        moment = lateness.expected_by(agent)
        return events.isoformat(moment) if moment else None


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
        return Response({"agent": {**records([agent])[0], "spec": agent.shown_spec.dump()}})


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
    mine = Run.objects.filter(agent__in=agents).order_by().values_list("agent_id")
    doing = {
        "running": dict(mine.filter(has_slot=True).annotate(Count("pk"))),
        "pending": dict(mine.filter(status=Status.PENDING).annotate(Count("pk"))),
    }
    return [dict(record) for record in AgentRecord(agents, many=True, context=doing).data]
