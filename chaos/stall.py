"""The longest time that a run which had a slot showed nothing new, although it should have.

Taken off: the silence that was planned (an answer under way, a command between two lines, one that waits for a lock or
for another run), and the time that the database or the engine was away. Nothing is taken off for Redis or for
processes that were killed or stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from chaos.errands import script_of
from chaos.faults import Happened
from chaos.records import Event, Evidence, Run
from chaos.senders import Promise
from chaos.work import Plan

EXCUSED = frozenset({"database", "engine"})

Span = tuple[float, float]


@dataclass(frozen=True)
class Stall:
    """`after`: the number of the event that nothing followed for so long."""

    seconds: float = 0.0
    run_id: str = ""
    after: int = 0

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s in {self.run_id} after event {self.after}" if self.run_id else "none"


def longest_stall(evidence: Evidence, promises: Sequence[Promise]) -> Stall:
    outages = merged(evidence.faults)
    plans = {run_id: promise.plan for promise in promises for run_id in promise.run_ids}
    found = (
        stall
        for run in evidence.runs.values()
        if (plan := plans.get(run.id)) is not None
        for stall in stalls(run, plan, outages)
    )
    return max(found, key=lambda stall: stall.seconds, default=Stall())


def stalls(run: Run, plan: Plan, outages: Sequence[Span]) -> Iterator[Stall]:
    silences = planned_silences(run.events, plan)
    for event, following in pairwise(run.events):
        silence = silences[event.id]
        if silence is not None:
            gap = following.at - event.at - silence - overlap((event.at, following.at), outages)
            yield Stall(max(0.0, gap), run.id, event.id)


def planned_silences(events: Sequence[Event], plan: Plan) -> Mapping[int, float | None]:
    """After each event, the seconds for which nothing need come; None while the run is not at work."""
    pauses = {command.script: command.pause for command in plan.commands}
    silences: dict[int, float | None] = {}
    at_work, parked = False, False
    silence: float | None = 0.0
    for event in events:
        match event.type:
            case "status.change":
                at_work, silence = event.data["to"] == "processing" and not parked, 0.0
                parked = event.data.get("reason") == "handoff"
            case "slot.given_up":
                at_work = False  # it stands in line
            case "run.resumed":
                at_work = True
            case "model.start":
                turn = event.data["turn"] - 1
                silence = plan.turns[turn].seconds if turn < len(plan.turns) else 0.0
            case "tool.start":
                asked = script_of(event.data.get("toolName", "bash"), event.data["toolInput"])
                silence = pauses.get(asked, 0.0)
            case "model.turn" | "tool.end":
                silence = 0.0
        silences[event.id] = silence if at_work else None
    return silences


def merged(faults: Sequence[Happened]) -> list[Span]:
    """When the database or the engine was away, without overlaps."""
    spans: list[Span] = []
    for began, ready in sorted((fault.began, fault.ready) for fault in faults if fault.part in EXCUSED):
        if spans and began <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], ready))
        else:
            spans.append((began, ready))
    return spans


def overlap(span: Span, outages: Sequence[Span]) -> float:
    return sum(max(0.0, min(span[1], ready) - max(span[0], began)) for began, ready in outages)
