"""The images of an agent, as its page shows them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agents import clock
from agents.models import Agent
from agents.pages import length, moment
from runs import images
from runs.models import BuildState, ImageBuild

SHOWN = 10
LOG_SHOWN = 20_000  # characters of its end
COLORS = {
    BuildState.PENDING: "default",
    BuildState.BUILDING: "info",
    BuildState.BUILT: "success",
    BuildState.FAILED: "danger",
}


@dataclass(frozen=True)
class Shown:
    """One image on one host."""

    id: int
    tag: str
    whose: str
    host: str
    state: str
    color: str
    at: str
    took: str
    error: str
    log: str
    cut: bool  # the log begins earlier

    @property
    def failed(self) -> bool:
        return self.state == BuildState.FAILED

    @property
    def building(self) -> bool:
        return self.state == BuildState.BUILDING


@dataclass(frozen=True)
class Images:
    """All there are of an agent, the newest first."""

    lines: list[Shown]

    @property
    def busy(self) -> bool:
        return any(line.state in {BuildState.PENDING, BuildState.BUILDING} for line in self.lines)

    @property
    def failed(self) -> bool:
        return any(line.failed for line in self.lines)


def of(agent: Agent) -> Images:
    rows = images.rows_of(agent).select_related("host").order_by("-id")[:SHOWN]
    return Images([shown(row) for row in rows])


def shown(row: ImageBuild) -> Shown:
    return Shown(
        id=row.pk,
        tag=row.tag,
        whose="its own" if row.agent_id else "its project's",
        host=row.host.name or row.host.pk,
        state=row.state,
        color=COLORS[BuildState(row.state)],
        at=moment(row.ended_at or row.started_at or row.created_at),
        took=took(row.started_at, row.ended_at),
        error=row.error,
        log=row.log[-LOG_SHOWN:],
        cut=len(row.log) > LOG_SHOWN,
    )


def took(started: datetime | None, ended: datetime | None) -> str:
    return length(((ended or clock.now()) - started).total_seconds()) if started else ""
