"""The polls of a definition as rows, and which of them are due."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from django.db.models import QuerySet

from agents import clock
from agents.models import Agent
from agents.spec import AgentSpec, PollSpec, ProjectSpec
from runs import alerts, lateness
from webhooks.models import Poll
from webhooks.polls import files

FAILING = "poll.failing"  # an alert, of an agent
ALARMING = 3  # failures in a row

# What says where to look and what is one item: with another, what is there was never looked at.
PLACE = ("url", "path", "command", "items", "id")


def apply(agent: Agent, spec: AgentSpec, *, back: bool) -> None:
    """One that asks the same as before keeps what it has seen; any other has a first look again, as have all of an
    agent that is back."""
    for wanted in spec.polls:
        row, new = Poll.objects.get_or_create(agent=agent, name=wanted.name, defaults={"spec": asdict(wanted)})
        if not new:
            change(row, asdict(wanted), anew=back or not row.active)
    drop(agent, keep=[wanted.name for wanted in spec.polls])


def change(row: Poll, wanted: dict[str, Any], *, anew: bool) -> None:
    if not anew and row.spec == wanted:
        return
    sets: dict[str, Any] = {"spec": wanted, "active": True, "next_at": clock.now(), "etag": ""}
    if anew or any(row.spec.get(name) != wanted[name] for name in PLACE):
        row.items.all().delete()
        sets |= {"first_look_at": None, "looked_at": None, "failures": 0, "error": ""}
    Poll.objects.filter(pk=row.pk).update(**sets)


def drop(agent: Agent, *, keep: list[str]) -> None:
    Poll.objects.filter(agent=agent, active=True).exclude(name__in=keep).update(active=False)
    settle_alert(agent.pk)


def settle_alert(agent_id: int) -> None:
    """It stands as long as one of the agent's polls fails."""
    if not Poll.objects.filter(agent=agent_id, active=True, agent__active=True, failures__gte=ALARMING).exists():
        alerts.end(FAILING, str(agent_id))


def due() -> QuerySet[Poll]:
    """Those to look at now. What comes while its agent may start nothing is new at the first look after."""
    return Poll.objects.filter(active=True, next_at__lte=clock.now(), agent__in=lateness.able())


def of(agent: Agent) -> QuerySet[Poll]:
    return Poll.objects.filter(agent=agent, active=True).order_by("name")


def look_now(poll: Poll) -> None:
    """A look that is under way is given up for another."""
    Poll.objects.filter(pk=poll.pk, active=True).update(next_at=clock.now())


def refused_here(project: ProjectSpec) -> Iterator[str]:
    """Paths that this host does not look at, in sentences."""
    for spec in project.agents:
        for poll in spec.polls:
            if poll.path and (fault := files.refusal(poll.path)):
                yield f"poll {poll.name} of {spec.name}: {fault}"


def spec_of(poll: Poll) -> PollSpec:
    return PollSpec(**poll.spec)
