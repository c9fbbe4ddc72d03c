"""Agents in the admin. In the topmost application: it shows runs and triggers, and saving is what `apply` does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet, prefetch_related_objects
from django.http import HttpRequest, HttpResponseBase
from django.urls import URLPattern
from unfold.admin import ModelAdmin
from unfold.decorators import action, display
from unfold.views import ChangeList

from agents.models import Agent
from agents.pages import page
from agents.tables import Operated
from runs import queue
from runs.facts import COLORS, code_of
from runs.models import Run
from webhooks.agents_form import EditAgent, NewAgent
from webhooks.agents_images import AgentImages, BuildAgain, BuildLog
from webhooks.agents_pages import (
    STATES,
    AgentPage,
    PauseAgent,
    ResetAgent,
    ResumeAgent,
    RunNow,
    activities,
    limits_in_words,
    next_fires,
    state_of,
)
from webhooks.polls.pages import LookNow


class AgentList(ChangeList):
    """Looks up what the agents of the page are doing, all at once."""

    result_list: Iterable[Any]

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        agents: list[Any] = list(self.result_list)
        prefetch_related_objects(agents, "schedules")
        found = activities(agents)
        for agent in agents:
            agent.activity = found[agent.pk]
        self.result_list = agents


@admin.register(Agent)
class AgentAdmin(Operated, ModelAdmin):
    list_display = ("title_cell", "state", "work", "fires", "last_run", "models", "limits")
    list_select_related = ("version", "workspace")
    list_filter = ("project", "kind")
    list_per_page = 25
    search_fields = ("name", "description")
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()
    ordering = ("name",)
    actions = ("pause_selected", "resume_selected")
    actions_row = ("run_now", "pause", "resume")

    @display(description="Agent", header=True)
    def title_cell(self, agent: Agent) -> list[str]:
        return [agent.name, agent.project or "made here"]

    @display(description="State", label=STATES)
    def state(self, agent: Agent) -> tuple[str, str]:
        return state_of(agent)

    @display(description="Work")
    def work(self, agent: Any) -> str:
        return f"{agent.activity.running} running, {agent.activity.pending} pending"

    @display(description="Schedule", header=True)
    def fires(self, agent: Agent) -> list[str]:
        following = next_fires(agent, 1)
        said = "; ".join(map(str, agent.schedules.all()))
        return [said or "-", f"next {following[0]}" if following else ""]

    @display(description="Last run", label=COLORS)
    def last_run(self, agent: Any) -> tuple[str, str] | None:
        last: Run | None = agent.activity.last
        return (last.status, f"{last.status} {code_of(last)}".strip()) if last else None

    @display(description="Models")
    def models(self, agent: Agent) -> str:
        return ", ".join(model.model for model in agent.shown_spec.models)

    @display(description="Limits")
    def limits(self, agent: Agent) -> str:
        return limits_in_words(agent.shown_spec.limits)

    @admin.action(description="Pause", permissions=["operate"])
    def pause_selected(self, request: HttpRequest, rows: QuerySet[Agent]) -> None:
        for agent in rows:
            queue.pause(agent)
            self.log_change(request, agent, f"Paused {agent}")
        self.message_user(request, f"Paused {len(rows)} agents")

    @admin.action(description="Resume", permissions=["operate"])
    def resume_selected(self, request: HttpRequest, rows: QuerySet[Agent]) -> None:
        for agent in rows:
            queue.resume(agent)
            self.log_change(request, agent, f"Resumed {agent}")
        self.message_user(request, f"Resumed {len(rows)} agents")

    @action(description="Run now", url_path="run", permissions=["operate"], icon="play_arrow")
    def run_now(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return RunNow.as_view(model_admin=self)(request, object_id=object_id)

    @action(description="Pause", url_path="pause", permissions=["operate"], icon="pause")
    def pause(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return PauseAgent.as_view(model_admin=self)(request, object_id=object_id)

    @action(description="Resume", url_path="resume", permissions=["operate"], icon="resume")
    def resume(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return ResumeAgent.as_view(model_admin=self)(request, object_id=object_id)

    def get_urls(self) -> list[URLPattern]:
        return [
            page(self, "<str:object_id>/edit/", EditAgent),
            page(self, "<str:object_id>/reset/", ResetAgent),
            page(self, "<str:object_id>/polls/<int:poll>/look/", LookNow),
            page(self, "<str:object_id>/images/", AgentImages),
            page(self, "<str:object_id>/images/<int:build>/log/", BuildLog),
            page(self, "<str:object_id>/images/build/", BuildAgain),
            *super().get_urls(),
        ]

    def add_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return NewAgent.as_view(model_admin=self)(request)

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return AgentPage.as_view(model_admin=self)(request, object_id=object_id)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[AgentList]:
        return AgentList

    def has_edit_permission(self, request: HttpRequest) -> bool:
        return self.has_add_permission(request) and self.has_operate_permission(request)

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False
