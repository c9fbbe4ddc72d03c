"""What the admin and REST show of an agent's polls."""

from __future__ import annotations

from typing import Any

from agents import clock
from agents.models import Agent
from agents.pages import length, moment, page_url
from agents.spec import PollSpec
from runs.events import isoformat
from webhooks.models import Poll, PollItem
from webhooks.polls import rows

ITEMS_SHOWN = 5


def described(agent: Agent) -> list[dict[str, Any]]:
    """For REST."""
    return [record(agent, poll) for poll in rows.of(agent)]


def record(agent: Agent, poll: Poll) -> dict[str, Any]:
    spec = rows.spec_of(poll)
    moments = {"first_look_at": poll.first_look_at, "looked_at": poll.looked_at}
    moments["next_look_at"] = None if agent.refusal else poll.next_at
    return {
        "name": poll.name,
        "looks_at": place(spec),
        "every_seconds": spec.every_seconds,
        **{name: isoformat(at) if at else None for name, at in moments.items()},
        "failures_in_a_row": poll.failures,
        "error": poll.error or None,
        "items_known": poll.items.count(),
    }


def place(spec: PollSpec) -> str:
    return spec.url or spec.path or spec.command


def lines(agent: Agent) -> list[dict[str, Any]]:
    """For the agent's page."""
    return [line(agent, poll) for poll in rows.of(agent)]


def line(agent: Agent, poll: Poll) -> dict[str, Any]:
    spec = rows.spec_of(poll)
    return {
        "poll": poll,
        "place": place(spec),
        "every": length(spec.every_seconds),
        "looked": moment(poll.looked_at),
        "following": following(agent, poll),
        "items": [of_item(item) for item in telling(poll)[:ITEMS_SHOWN]],
    }


def following(agent: Agent, poll: Poll) -> str:
    if agent.refusal:
        return "not looked at: nothing may start"
    return f"next look {moment(poll.next_at)}" if poll.next_at > clock.now() else "to be looked at now"


def telling(poll: Poll) -> Any:
    """Those that were there first have nothing to tell."""
    return poll.items.exclude(run="", reason="").order_by("-id")


def of_item(item: PollItem) -> dict[str, str]:
    url = page_url("runs", "run", item.run) if item.run else ""
    return {"shown": str(item), "run": item.run, "url": url, "reason": item.reason, "seen": moment(item.seen_at)}
