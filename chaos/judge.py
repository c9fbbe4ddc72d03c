"""Counts what was lost, done twice, or is missing. Pure: from records alone, and it knows nothing of how they came.

A run is what a sender was promised, a command is what the model asked for, an effect is a line in a ledger; what the
installation says of itself is held against these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chaos import together
from chaos.findings import (
    Finding,
    Kind,
    attempts_by_token,
    attempts_of,
    ended_by_fault,
    kills,
    output_by_call,
    started_calls,
)
from chaos.model import Attempt, Told, was_lost
from chaos.records import TERMINAL, Event, Evidence, Run
from chaos.senders import Promise
from chaos.stall import Stall, longest_stall
from chaos.work import LEDGER, Plan

# As docs/states.md draws it.
WAYS: dict[str | None, frozenset[str]] = {
    None: frozenset({"pending"}),
    "pending": frozenset({"processing", "failed", "canceled"}),
    "processing": frozenset({"waiting", "finished", "failed", "canceled"}),
    "waiting": frozenset({"processing", "failed", "canceled"}),
}


@dataclass(frozen=True)
class Verdict:
    runs: int
    findings: Sequence[Finding]
    second_attempts: int
    ended_by_faults: Counter[str]  # error codes of runs whose sandbox was killed
    lost_commands: int  # of which the model was told
    stall: Stall

    def count(self, kind: Kind) -> int:
        """Lost runs, each once; of the other kinds, everything."""
        found = [finding for finding in self.findings if finding.kind == kind]
        return len({finding.about for finding in found}) if kind == "lost" else sum(each.count for each in found)

    @property
    def good(self) -> bool:
        return not self.findings

    def line(self) -> str:
        return (
            f"runs {self.runs}, lost {self.count('lost')}, doubled {self.count('doubled')}, "
            f"events missing {self.count('missing')}, left behind {self.count('left')}, "
            f"longest stall {self.stall.seconds:.1f} s"
        )


def judge(evidence: Evidence) -> Verdict:
    promises = [*evidence.promises, *together.promised_by_calls(evidence)]
    findings = [*lost(evidence, promises), *doubled(evidence, promises), *missing(evidence, promises)]
    findings += together.findings(evidence)
    findings += [Finding("left", name, "stands when all is over") for name in evidence.left]
    return Verdict(
        runs=len(evidence.promises),
        findings=findings,
        second_attempts=sum(len(attempts_of(run)) - 1 for run in evidence.runs.values()),
        ended_by_faults=Counter(run.error for run in evidence.runs.values() if ended_by_fault(run, evidence)),
        lost_commands=sum(1 for attempt in evidence.attempts for told in attempt.calls.values() if lost_call(told)),
        stall=longest_stall(evidence, promises),
    )


# --- lost -------------------------------------------------------------------------------------------------------


def lost(evidence: Evidence, promises: Sequence[Promise]) -> Iterator[Finding]:
    """Runs that were promised and are not there, not over, or not over as planned; and effects that are gone."""
    by_token = attempts_by_token(evidence.attempts)
    for promise in promises:
        if not promise.run_ids:
            yield Finding("lost", promise.plan.token, f"its sender was promised no run in {promise.tries} tries")
        for run_id in promise.run_ids:
            run = evidence.runs.get(run_id)
            for says in why_lost(run, promise.plan, evidence):
                yield Finding("lost", run_id, says)
            if run is not None and run.status == "finished":
                for says in lost_work(run, promise.plan, by_token[promise.plan.token], evidence):
                    yield Finding("lost", run_id, says)


def why_lost(run: Run | None, plan: Plan, evidence: Evidence) -> Iterator[str]:
    if run is None:
        yield f"was promised to the sender of {plan.token} and is not there"
    elif run.status not in TERMINAL:
        yield f"is still {run.status}"
    elif run.status != "finished":
        if not ended_by_fault(run, evidence):
            yield f"ended as {run.status} {run.error}, though no fault took its sandbox"
    elif run.output != plan.answer:
        yield f"answered {run.output[:100]!r} instead of {plan.answer!r}"


def lost_work(run: Run, plan: Plan, attempts: Sequence[Attempt], evidence: Evidence) -> Iterator[str]:
    """Commands the last attempt was not told of, whose effect is gone, or that were lost and nobody killed anything."""
    if not attempts:
        yield "finished, and the model was never shown anything of it"
        return
    last = attempts[-1]
    told = {each.script: each for each in last.calls.values()}
    started = Counter(last.ledger or [])
    for command in plan.commands:
        if command.script not in told:
            yield f"finished without {command.token or command.script}"
        elif command.in_ledger and not was_lost(told[command.script].results[-1]) and not started[command.token]:
            yield f"the effect of command {command.token} is gone from the workspace"
    interrupted = sum(1 for each in last.calls.values() if lost_call(each))
    if interrupted > kills(run.id, evidence):
        yield f"{interrupted} commands were given up as lost, its sandbox was killed {kills(run.id, evidence)} times"


def lost_call(told: Told) -> bool:
    return was_lost(told.results[-1])


# --- doubled ----------------------------------------------------------------------------------------------------


def doubled(evidence: Evidence, promises: Sequence[Promise]) -> Iterator[Finding]:
    """Requests that made two runs, calls that started twice, results that changed."""
    promised: set[str] = set()
    for promise in promises:
        promised.update(promise.run_ids)
        if (more := len(promise.run_ids) - promise.allowed) > 0:
            says = f"its request started {', '.join(promise.run_ids)}"
            yield Finding("doubled", promise.plan.token, says, more)
    for run_id in evidence.runs.keys() - promised:
        yield Finding("doubled", run_id, "exists, and no sender was told of it")
    for attempt in evidence.attempts:
        yield from doubled_in(attempt)
    yield from unannounced(evidence, promises)
    for run in evidence.runs.values():
        for number, events in enumerate(attempts_of(run), start=1):
            starts = Counter(event.data["callId"] for event in events if event.type == "tool.start")
            for call_id, times in starts.items():
                if times > 1:
                    says = f"call {call_id} was started {times} times in attempt {number}"
                    yield Finding("doubled", run.id, says, times - 1)


def unannounced(evidence: Evidence, promises: Sequence[Promise]) -> Iterator[Finding]:
    """Attempts the model saw begin, of which the run says nothing."""
    seen = Counter(attempt.token for attempt in evidence.attempts)
    for promise in promises:
        told = sum(len(attempts_of(evidence.runs[run_id])) for run_id in promise.run_ids if run_id in evidence.runs)
        if told and seen[promise.plan.token] > told:
            says = f"the model saw {seen[promise.plan.token]} attempts begin, and there are {told}"
            yield Finding("doubled", promise.plan.token, says, seen[promise.plan.token] - told)


def doubled_in(attempt: Attempt) -> Iterator[Finding]:
    for command, times in Counter(attempt.ledger or []).items():
        if times > 1:
            says = f"command {command} ran {times} times in the attempt of {attempt.first_call}"
            yield Finding("doubled", attempt.token, says, times - 1)
    for call_id, told in attempt.calls.items():
        if len(told.results) > 1:
            says = f"the model was shown {len(told.results)} results of its call {call_id}"
            yield Finding("doubled", attempt.token, says, len(told.results) - 1)


# --- missing ----------------------------------------------------------------------------------------------------


def missing(evidence: Evidence, promises: Sequence[Promise]) -> Iterator[Finding]:
    """Events and lines that are not there, there twice, or in a place where they cannot be."""
    by_token = attempts_by_token(evidence.attempts)
    for promise in promises:
        known = {each.script: each.output for each in promise.plan.commands if each.output is not None}
        attempts = by_token[promise.plan.token]
        for run in (evidence.runs[run_id] for run_id in promise.run_ids if run_id in evidence.runs):
            ledgers = {
                told.results[-1] for attempt in attempts for told in attempt.calls.values() if told.script == LEDGER
            }
            found = [*wrong_numbers(run), *wrong_path(run)]
            for number, events in enumerate(attempts_of(run), start=1):
                whole = run.status == "finished" and number == len(attempts_of(run))
                found += wrong_output(events, known, ledgers, whole=whole)
            yield from (Finding("missing", run.id, says, count) for says, count in found)
        yield from (finding for attempt in attempts for finding in wrong_results(attempt, known))


def wrong_numbers(run: Run) -> Iterator[tuple[str, int]]:
    numbers = [event.id for event in run.events]
    expected = range(1, run.event_count + 1)
    if gaps := sorted(set(expected) - set(numbers)):
        yield f"events {shortened(gaps)} of {run.event_count} are missing", len(gaps)
    if extra := len(numbers) - len(set(numbers).intersection(expected)):
        yield f"{extra} events are there twice or beyond the last", extra
    if numbers != sorted(numbers):
        yield "events are out of order", 1


def wrong_path(run: Run) -> Iterator[tuple[str, int]]:
    at: str | None = None
    for event in run.events:
        if event.type != "status.change":
            continue
        old, new = event.data["from"], event.data["to"]
        if old != at or new not in WAYS.get(old, ()):
            yield f"event {event.id} changes {old} to {new}, and it was {at}", 1
        at = new
    if at != run.status:
        yield f"the last change of status is to {at}, and it is {run.status}", 1


def wrong_output(
    events: Sequence[Event], known: dict[str, str], ledgers: set[str], *, whole: bool
) -> Iterator[tuple[str, int]]:
    """Every finished command's output, held against its plan; the ledger's, against what the model was shown.

    `whole`: this attempt came to its end, so every call has one.
    """
    printed = output_by_call(events)
    ended = {event.data["callId"]: event for event in events if event.type == "tool.end"}
    for call_id, script in started_calls(events).items():
        if call_id not in ended:
            if whole:
                yield f"call {call_id} has no end", 1
        elif ended[call_id].data.get("lost"):
            continue
        elif script in known:
            yield from compared(f"call {call_id}", printed[call_id], known[script])
        elif script == LEDGER and whole and printed[call_id].strip() not in map(str.strip, ledgers):
            yield f"call {call_id} printed another ledger than the model was shown", 1


def wrong_results(attempt: Attempt, known: dict[str, str]) -> Iterator[Finding]:
    """What the model was told of a finished command must be what that printed."""
    for call_id, told in attempt.calls.items():
        if told.script in known and not lost_call(told):
            shown = told.results[-1].removesuffix("\n") + "\n"
            for says, count in compared(f"the result of {call_id}", shown, known[told.script]):
                yield Finding("missing", attempt.token, says, count)


def compared(what: str, found: str, expected: str) -> Iterator[tuple[str, int]]:
    if found == expected:
        return
    have, wanted = Counter(found.splitlines()), Counter(expected.splitlines())
    gone, extra = (wanted - have).total(), (have - wanted).total()
    first = next(iter((wanted - have) or (have - wanted) or [""]))
    yield f"{what}: {gone} lines are missing, {extra} too many, such as {first!r}", max(1, gone + extra)


def shortened(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (" …" if len(numbers) > 5 else "")
