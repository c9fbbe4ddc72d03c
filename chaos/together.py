"""Judges what runs have done with each other: locks that they shared, calls that they made, slots that they lent.

Pure, as the judge is. A lock is somebody's from the line behind the answer to the line before the request that gives
it back: two such spans of one key that overlap are two holders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from chaos.errands import HELD, TRIED, Call, CheckCall, Lock, call_id_in
from chaos.findings import (
    Finding,
    attempts_by_token,
    attempts_of,
    ended_by_fault,
    kills,
    output_by_call,
    started_calls,
)
from chaos.model import Attempt, was_lost
from chaos.records import Event, Evidence, Run
from chaos.senders import Promise
from chaos.work import Plan

REFUSED, NOT_FOUND = 1, 2  # exit codes of the commands
FINAL = 4  # the last of those that are an answer; above, nobody knows what came of the request


def findings(evidence: Evidence) -> Iterator[Finding]:
    yield from two_holders(evidence)
    by_token = attempts_by_token(evidence.attempts)
    for promise in evidence.promises:
        for run in (evidence.runs[run_id] for run_id in promise.run_ids if run_id in evidence.runs):
            yield from lost_locks(run, promise.plan)
            yield from unsettled_slots(run)
            if promise.plan.callee is not None:
                yield from wrong_calls(run, promise.plan, by_token[promise.plan.token], evidence)


# --- locks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Span:
    """Seconds since the epoch, by the clock of this machine, which its sandboxes share."""

    key: str
    began: float
    ended: float
    run_id: str


def two_holders(evidence: Evidence) -> Iterator[Finding]:
    spans = sorted(span for run in evidence.runs.values() for span in spans_of(run, evidence))
    last: dict[str, Span] = {}
    for span in spans:
        before = last.get(span.key)
        if before is not None and span.began < before.ended:
            says = f"got {span.key} {before.ended - span.began:.3f} s before {before.run_id} let it go"
            yield Finding("doubled", span.run_id, says)
        if before is None or span.ended > before.ended:
            last[span.key] = span


def spans_of(run: Run, evidence: Evidence) -> Iterator[Span]:
    """One whose command was cut off ends when its sandbox was killed, or at once where nobody knows when that was."""
    for printed in (text for events in attempts_of(run) for text in output_by_call(events).values()):
        said = HELD.findall(printed)
        for (what, key, at), following in pairwise([*said, None]):
            if what == "got":
                yield Span(
                    key, float(at), float(following[2]) if following else _cut_off(run, float(at), evidence), run.id
                )


def _cut_off(run: Run, after: float, evidence: Evidence) -> float:
    killed = [fault.began for fault in evidence.faults if run.id in fault.run_ids and fault.began > after]
    return min(killed, default=after)


def lost_locks(run: Run, plan: Plan) -> Iterator[Finding]:
    """A holder was told that it has the lock no more, or that its secret is none, while it was at work."""
    locks = {command.script for command in plan.commands if isinstance(command, Lock)}
    for events in attempts_of(run):
        printed = output_by_call(events)
        for call_id in (call_id for call_id, script in started_calls(events).items() if script in locks):
            yield from (Finding("lost", run.id, says) for says in broken_promises(printed.get(call_id, "")))


def broken_promises(printed: str) -> Iterator[str]:
    unanswered = False
    for what, code in ((name, int(code)) for name, code in TRIED.findall(printed)):
        # a release whose answer was lost has freed the lock, and is not found the second time
        if code <= FINAL and not (what == "runlock" and code == NOT_FOUND and unanswered):
            yield f"{what} answered {code} to who had the lock: {printed[:200]!r}"
        unanswered = what == "runlock" and code > FINAL


# --- slots ------------------------------------------------------------------------------------------------------


def unsettled_slots(run: Run) -> Iterator[Finding]:
    if run.status != "finished":
        return
    balance = {"slot.lent": 1, "slot.back": -1, "slot.given_up": -1}
    if open_ := sum(balance.get(event.type, 0) for event in attempts_of(run)[-1]):
        yield Finding("left", run.id, f"its slot was lent {open_} times more often than it came back")


# --- calls ------------------------------------------------------------------------------------------------------


def promised_by_calls(evidence: Evidence) -> list[Promise]:
    """The called runs, as those of a sender are: what a caller's run says of its calls."""
    return [
        made
        for promise in evidence.promises
        if promise.plan.callee is not None
        for run_id in promise.run_ids
        if (run := evidence.runs.get(run_id)) is not None
        if (made := _made_by(run, promise.plan, promise.plan.callee)).answers
    ]


def _made_by(run: Run, plan: Plan, callee: Plan) -> Promise:
    made = [str(data["run"]) for data in calls_of(run, callee)]
    attempts = attempts_of(run)
    allowed = sum(1 + unanswered(events, plan) for events in attempts)
    return Promise(callee, tuple((run_id,) for run_id in made), len(made), max(1, allowed))


def calls_of(run: Run, callee: Plan) -> list[Mapping[str, Any]]:
    return [
        event.data for event in run.events if event.type == "call" and event.data["context"].strip() == callee.token
    ]


def unanswered(events: Sequence[Event], plan: Plan) -> int:
    """Tries of its `al-call` in this attempt of which nobody knows whether they have started a run."""
    scripts = {command.script for command in plan.commands if isinstance(command, Call)}
    printed = output_by_call(events)
    mine = [printed.get(call_id, "") for call_id, script in started_calls(events).items() if script in scripts]
    return sum(1 for text in mine for what, code in TRIED.findall(text) if what == "alcall" and int(code) > FINAL)


def wrong_calls(run: Run, plan: Plan, attempts: Sequence[Attempt], evidence: Evidence) -> Iterator[Finding]:
    """What the model was told of its call, held against what the called run gave."""
    if run.status != "finished" or not attempts or plan.callee is None:
        return
    made = {str(data["callId"]): evidence.runs.get(str(data["run"])) for data in calls_of(run, plan.callee)}
    told = {each.script: each.results[-1] for each in attempts[-1].calls.values()}
    asked = next(
        told.get(each.script, "") for each in plan.commands if each.script == "call_agent" or isinstance(each, Call)
    )
    if was_lost(asked):
        return
    call_id = call_id_in(asked)
    if call_id not in made:
        yield Finding("lost", run.id, f"its model was told of call {call_id!r}, and there is none: {asked[:200]!r}")
        return
    called = made[call_id]
    answer = _answered(call_id, plan, told)
    if called is None or answer is None or ended_by_fault(called, evidence):
        return  # that is the called run's loss, or the command's, and is counted there
    if answer.get("status") != "completed":
        yield Finding("lost", run.id, f"{called.id} is {called.status}, and its caller was told {str(answer)[:200]}")
    elif answer.get("returnValue") != plan.callee.value and not (
        kills(called.id, evidence) and "returnValue" not in answer
    ):
        says = (
            f"{called.id} gave {len(plan.callee.value)} characters, its caller got {len(answer.get('returnValue', ''))}"
        )
        yield Finding("lost", run.id, says)


def _answered(call_id: str, plan: Plan, told: Mapping[str, str]) -> dict[str, Any] | None:
    """What came of the call, as the model was shown it. None: the command that waited for it was lost."""
    for each in plan.commands:
        result = told.get(each.script, "")
        if was_lost(result):
            continue
        if isinstance(each, CheckCall):
            return _parsed(result)
        if isinstance(each, Call):
            found: dict[str, Any] = _parsed(result.splitlines()[-1] if result else "").get(call_id, {})
            return found
    return None


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {"unreadable": text}
    return value if isinstance(value, dict) else {"unreadable": text}
