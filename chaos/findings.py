"""What a judge finds, and how it reads the records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from chaos.errands import script_of
from chaos.model import Attempt
from chaos.records import Event, Evidence, Run

BY_A_FAULT = frozenset({"SANDBOX_LOST"})  # how a run may end whose sandbox was killed

Kind = Literal["lost", "doubled", "missing", "left"]


@dataclass(frozen=True)
class Finding:
    """Something that must not be, `count` times. `about`: a run's id, a token where there is none, a container."""

    kind: Kind
    about: str
    says: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.kind}: {self.about}: {self.says}"


def ended_by_fault(run: Run, evidence: Evidence) -> bool:
    return run.status == "failed" and run.error in BY_A_FAULT and kills(run.id, evidence) > 0


def kills(run_id: str, evidence: Evidence) -> int:
    return sum(1 for fault in evidence.faults if run_id in fault.run_ids)


def attempts_of(run: Run) -> list[list[Event]]:
    """The run's events, one list for each of its attempts. A call's id is its own within one of them."""
    attempts: list[list[Event]] = [[]]
    for event in run.events:
        attempts[-1].append(event)
        if event.type == "attempt.failed":
            attempts.append([])
    return attempts


def output_by_call(events: Sequence[Event]) -> dict[str, str]:
    printed: defaultdict[str, str] = defaultdict(str)
    for event in events:
        if event.type == "output":
            printed[event.data["callId"]] += event.data["text"]
    return printed


def started_calls(events: Sequence[Event]) -> dict[str, str]:
    """The command, or the tool's name, of each call that has started, by its id."""
    starts = (event.data for event in events if event.type == "tool.start")
    return {data["callId"]: script_of(data.get("toolName", "bash"), data["toolInput"]) for data in starts}


def attempts_by_token(attempts: Sequence[Attempt]) -> dict[str, list[Attempt]]:
    found: defaultdict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        found[attempt.token].append(attempt)
    return found
