"""What is known when all is over, from three sides: the senders, the model, and the installation itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agentfleet.client import Client
from chaos.faults import Happened
from chaos.model import Attempt
from chaos.senders import Promise

TERMINAL = frozenset({"finished", "failed", "canceled"})
LIVE = ("pending", "processing", "waiting")
PAGE = 200


@dataclass(frozen=True)
class Event:
    """As REST gives it. `at`: seconds since the epoch."""

    id: int
    type: str
    data: Mapping[str, Any]
    at: float


@dataclass(frozen=True)
class Run:
    """What the installation says of one run."""

    id: str
    status: str
    output: str
    error: str  # its code, or empty
    event_count: int
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Evidence:
    promises: Sequence[Promise]
    runs: Mapping[str, Run]  # all that the installation knows, by their ids
    attempts: Sequence[Attempt]
    faults: Sequence[Happened]
    left: Sequence[str] = ()  # containers, volumes, networks, firewall rules, locks, slots


def tasks(client: Client, **wanted: str) -> Iterator[dict[str, Any]]:
    """Raises ServerSays, NoServer."""
    cursor: str | None = ""
    while cursor is not None:
        page = client.call("GET", "tasks", params={**wanted, "limit": PAGE, "cursor": cursor})
        yield from page["tasks"]
        cursor = page["next_cursor"]


def live(client: Client) -> int:
    """How many runs are not over, as far as one look tells. Raises ServerSays, NoServer."""
    return sum(1 for status in LIVE for _ in tasks(client, status=status))


def all_runs(client: Client) -> dict[str, Run]:
    """Raises ServerSays, NoServer."""
    return {task["id"]: _run(task, _events(client, task["id"])) for task in tasks(client)}


def _events(client: Client, run_id: str) -> list[Event]:
    events: list[Event] = []
    while page := client.call("GET", f"tasks/{run_id}/events", params={"since": events[-1].id if events else 0})[
        "events"
    ]:
        events += map(_event, page)
    return events


def _event(stored: Mapping[str, Any]) -> Event:
    return Event(stored["id"], stored["type"], stored["data"], datetime.fromisoformat(stored["created_at"]).timestamp())


def _run(task: Mapping[str, Any], events: Sequence[Event]) -> Run:
    code = (task["error"] or {}).get("code", "")
    return Run(task["id"], task["status"], task["output"] or "", code, task["eventCount"], tuple(events))
