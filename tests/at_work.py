"""Attempts at work without a worker, for what a sandbox asks of the gateway."""

from __future__ import annotations

from typing import Any

from agents import clock
from agents.models import Agent
from runs import attempt_keys, lifecycle
from runs.leases import Lease
from runs.models import Attempt, Host, Run
from tests.making import make_agent, submit


def host() -> Host:
    found, _ = Host.objects.get_or_create(
        pk="here", defaults={"name": "here", "capacity": 100, "last_seen_at": clock.now()}
    )
    return found


def begun(agent: Agent) -> tuple[Lease, Attempt]:
    """A run of the agent that is at work, and its lease."""
    submit(agent)
    lease = lifecycle.claim(agent.pk, owner="me", host_id=host().pk)
    assert lease is not None
    return lease, Attempt.objects.select_related("run__agent", "run__version").get(run=lease.run_id)


def at_work(name: str = "dev", **spec: Any) -> Attempt:
    """The attempt of a new run of the agent `name`, made as `spec` says if there is none."""
    agent = Agent.objects.filter(name=name).first() or make_agent(name, scale=100, **spec)
    return begun(agent)[1]


def secret_of(attempt: Attempt) -> str:
    return attempt_keys.secret(attempt.run_id, attempt.number)


def name_of(attempt: Attempt) -> str:
    """As others see who holds a lock."""
    return f"{Run.objects.get(pk=attempt.run_id).agent.name}-{attempt.suffix}"
