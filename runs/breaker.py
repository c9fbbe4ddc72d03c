"""The breaker of an agent: after too many failed runs in a row it holds its line, says so, and probes.

A broken agent refuses nothing: what comes stands in line. When `probe_at` has come one run may begin; if it
succeeds the line moves again, else the next probe is twice as far away. Every verb belongs into the transaction
that ends a run, or starts one.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db.models import F, Q
from pydantic import ValidationError

from agents import clock, journal
from agents.models import Agent
from agents.spec import Breaker
from runs import alerts, bells

LONGEST = timedelta(hours=6)  # between two probes
KIND = "agent.broken"


def succeeded(agent_id: int) -> None:
    """A run has finished. Writes nothing for an agent that is well, so that its runs need not wait for its row."""
    unwell = Q(failures_in_a_row__gt=0) | Q(broken_at__isnull=False)
    if Agent.objects.filter(unwell, pk=agent_id).exists():
        mend(Agent.objects.get(pk=agent_id), "a run finished")


def mend(agent: Agent, why: str) -> None:
    """Forget the failures and let the line move."""
    Agent.objects.filter(pk=agent.pk).update(failures_in_a_row=0, broken_at=None, probe_at=None)
    alerts.end(alerts.AGENT_SHUT_DOWN, str(agent.pk))
    if agent.broken:
        journal.note(agent, "breaker.closed", {"reason": why})
        alerts.end(KIND, str(agent.pk))
        bells.ring_agent(agent.pk)


def failed(agent_id: int, code: str) -> None:
    """A run has failed."""
    Agent.objects.filter(pk=agent_id).update(failures_in_a_row=F("failures_in_a_row") + 1)
    agent = Agent.objects.select_related("version").get(pk=agent_id)
    if 0 < agent.breaker_failures <= agent.failures_in_a_row:
        trip(agent, code)


def trip(agent: Agent, code: str) -> None:
    now = clock.now()
    probe_at = next_probe(agent, now)
    Agent.objects.filter(pk=agent.pk).update(broken_at=agent.broken_at or now, probe_at=probe_at)
    if agent.broken:
        return
    said = f"agent {agent.name} failed {agent.failures_in_a_row} times in a row, last with {code}"
    journal.note(agent, "breaker.opened", {"failures": agent.failures_in_a_row, "code": code})
    alerts.begin(KIND, str(agent.pk), f"{said}: its line waits; it tries one run at {probe_at:%Y-%m-%d %H:%M} UTC")


def probing(agent: Agent, now: datetime) -> None:
    """One pending run of a broken agent begins; the next has to wait for what becomes of it."""
    Agent.objects.filter(pk=agent.pk).update(probe_at=next_probe(agent, now))
    journal.note(agent, "breaker.probe")


def next_probe(agent: Agent, now: datetime) -> datetime:
    beyond = max(0, agent.failures_in_a_row - agent.breaker_failures)
    try:
        first = agent.spec.breaker.probe_seconds
    except ValidationError:  # which may be why it fails
        first = Breaker().probe_seconds
    return now + min(LONGEST, timedelta(seconds=first * 2 ** min(beyond, 20)))
