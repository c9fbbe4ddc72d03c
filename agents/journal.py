"""What happened to an agent apart from any run: kept in order, shown on its page, read by the watcher."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from agents import clock, storable
from agents.models import Agent, AgentEvent


def note(agent: Agent, kind: str, data: dict[str, Any] | None = None, *, tick: datetime | None = None) -> None:
    """Append an entry: a dotted type, a JSON object, and the scheduled time it is about, if it is about one.

    What repeats the newest entry is counted there, so that a tick skipped every second does not fill the table.
    """
    data = storable.json(data or {})
    newest = AgentEvent.objects.filter(agent_id=agent.pk).order_by("-id").first()
    if newest is not None and newest.type == kind and {**newest.data, "times": 0} == {**data, "times": 0}:
        newest.data["times"] = newest.data.get("times", 1) + 1
        newest.tick, newest.created_at = tick, clock.now()
        newest.save(update_fields=["data", "tick", "created_at"])
        return
    AgentEvent.objects.create(agent_id=agent.pk, type=kind, data=data, tick=tick, created_at=clock.now())
