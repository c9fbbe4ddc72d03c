"""What a run does around its work: preflight, hooks.pre and the commands in the instructions before, hooks.post after.

Each is one command in the sandbox with a row of its own, so it is started at most once and a takeover follows it.
Sources: spec/action-llama.md 3.6, 7.7, 7.8.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agents.spec import AgentSpec
from runs import limits, preflight, signals
from runs.calls import outcome, start
from runs.events import New
from runs.hands import Again, CallLost
from runs.models import CallState, ToolCall
from runs.sandbox.base import OUTPUT_LIMIT, Ending, SandboxGone
from runs.step import Step
from runs.tools.base import Finished, Result, shorten
from runs.transcript import Corrupt

HOOK_SECONDS = 300
INJECTION_SECONDS = 60
ERROR_SHOWN = 500  # characters of what a command said before it failed

INJECTION = re.compile(r"!`([^`]+)`")

# What an earlier one exported with `setenv` counts. HOME is /tmp.
PROLOGUE = """\
cd "$HOME" || exit
env=${AL_ENV_FILE:-/tmp/env.sh}
[ -f "$env" ] && . "$env"
"""
# Only what it prints on stdout is put into the instructions; what it says on stderr, only if it fails.
INJECTED = """\
said=$(mktemp -d "$HOME/inject.XXXXXX") || exit
/bin/sh -c {command} >"$said/out" 2>"$said/err"
code=$?
if [ $code -eq 0 ]; then cat "$said/out"; else head -c 4000 "$said/err"; fi
rm -rf -- "$said"
exit $code
"""


@dataclass(frozen=True, kw_only=True)
class SetupStep:
    """One command. `label` names it in sentences; a failure of a required one has that error code."""

    call_id: str
    name: str
    shown: dict[str, Any]
    script: str
    label: str
    code: str = ""
    seconds: int | None = None  # None: as long as the run has
    live: bool = True  # its output becomes events

    @property
    def required(self) -> bool:
        return self.code != ""

    @property
    def argv(self) -> list[str]:
        return ["sh", "-c", PROLOGUE + self.script, self.name]


def before(step: Step, *, inject: bool = True) -> bool:
    """Run what comes before the work. False: the step is over.

    Raises SandboxGone where a required step was lost, and as `start.begin` and `CallHands.exec`.
    """
    wanted = list(steps_before(step.spec, inject=inject))
    for one, call in zip(wanted, rows_of(step, wanted, position=0), strict=True):
        if not done(step, one, call):
            return False
        if one.required and call.state == CallState.LOST:
            raise SandboxGone(f"the sandbox was lost while {one.label} ran")
        if one.required and call.is_error:
            step.give_up(one.code, f"{one.label} failed: {shown_end(call.result)}")
            return False
    return True


def after(step: Step, position: int) -> bool:
    """Run hooks.post behind the answer at `position`, up to the first that fails. False: the step is over."""
    wanted = list(steps_after(step.spec, position))
    for one, call in zip(wanted, rows_of(step, wanted, position=position), strict=True):
        if not done(step, one, call):
            return False
        if call.is_error:
            break
    return True


def wanted_before(spec: AgentSpec) -> bool:
    return any(steps_before(spec, inject=True))


def with_injections(step: Step) -> AgentSpec:
    """The agent as the prompt shows it: what its commands printed stands in their place. After `before`."""
    spec = step.spec
    if not INJECTION.search(spec.instructions):
        return spec
    rows = ToolCall.objects.filter(attempt=step.attempt, name="inject").order_by("index")
    results = iter([injected(call) for call in rows])
    try:
        return replace(spec, instructions=INJECTION.sub(lambda _: next(results), spec.instructions))
    except StopIteration as error:
        raise Corrupt("what the commands in the instructions printed is not stored") from error


def injected(call: ToolCall) -> str:
    if call.state == CallState.LOST:
        return "[Error: the sandbox was lost while this ran]"
    return f"[Error: {call.result.strip()[:ERROR_SHOWN]}]" if call.is_error else call.result


# --- which there are ----------------------------------------------------------------------------------------------


def steps_before(spec: AgentSpec, *, inject: bool) -> Iterator[SetupStep]:
    for number, entry in enumerate(spec.preflight):
        yield preflight_step(number, entry)
    for number, command in enumerate(spec.hooks_pre):
        yield hook("pre", f"hook-{number}", number, command)
    for number, found in enumerate(INJECTION.finditer(spec.instructions) if inject else ()):
        yield SetupStep(
            call_id=f"inject-{number}",
            name="inject",
            shown={"command": found[1]},
            script=INJECTED.format(command=shlex.quote(found[1])),
            label=f"command {number + 1} in the instructions",
            seconds=INJECTION_SECONDS,
            live=False,
        )


def steps_after(spec: AgentSpec, position: int) -> Iterator[SetupStep]:
    for number, command in enumerate(spec.hooks_post):
        yield hook("post", f"post{position}-{number}", number, command)


def preflight_step(number: int, entry: dict[str, Any]) -> SetupStep:
    provider, params = str(entry.get("provider")), dict(entry.get("params") or {})
    required = entry.get("required", True)
    try:
        script = preflight.script(provider, params)
    except preflight.Unfit as error:
        script = f"echo {shlex.quote(str(error))} >&2; exit 1"
    return SetupStep(
        call_id=f"pre-{number}",
        name="preflight",
        shown={"provider": provider, "required": required, "params": params},
        script=script,
        label=f'{"Required" if required else "Optional"} preflight step "{provider}"',
        code="PREFLIGHT_FAILED" if required else "",
    )


def hook(when: str, call_id: str, number: int, command: str) -> SetupStep:
    return SetupStep(
        call_id=call_id,
        name=f"hooks.{when}",
        shown={"command": command},
        script=f"exec /bin/sh -c {shlex.quote(command)}\n",
        label=f"hooks.{when}[{number}]",
        code="HOOK_FAILED" if when == "pre" else "",
        seconds=HOOK_SECONDS,
    )


# --- running one --------------------------------------------------------------------------------------------------


def rows_of(step: Step, wanted: Sequence[SetupStep], *, position: int) -> list[ToolCall]:
    """The rows of the steps, in their order; made where they are missing."""
    if not wanted:
        return []
    known = {call.call_id: call for call in ToolCall.objects.filter(attempt=step.attempt)}
    missing = [
        ToolCall(
            attempt=step.attempt,
            call_id=one.call_id,
            model_call_id=one.call_id,
            position=position,
            index=index,
            name=one.name,
            arguments=step.redactor.json(one.shown),
        )
        for index, one in enumerate(wanted)
        if one.call_id not in known
    ]
    if missing:
        with step.write(progress=False):
            made = ToolCall.objects.bulk_create(missing)
        known |= {call.call_id: call for call in made}
    return [known[one.call_id] for one in wanted]


def done(step: Step, one: SetupStep, call: ToolCall) -> bool:
    """Run it, unless that has been done. False: it still runs, and the step is over."""
    if call.state not in {CallState.PLANNED, CallState.STARTED}:
        return True
    if call.state == CallState.PLANNED and start.gave_slot_away(step):
        step.stand_in_line()
        return False
    limits.check_tool_call(step.run, step.spec)
    step.halt.check()
    try:
        hands = start.begin(step, call, None)
    except CallLost:
        outcome.lose(step, call)
        return True
    seconds = seconds_for(step, one)
    try:
        ended = hands.exec(one.argv, timeout=seconds, live=one.live)
        left = signals.left(hands)
    except Again:
        step.release()
        return False
    except (CallLost, SandboxGone):
        outcome.lose(step, call, sandbox_too=True)
        return True
    result = result_of(one, ended, seconds)
    news, sets = left.news(step.run, step.redactor)
    news += warnings(one, result)
    outcome.store_result(step, call, result, *hands.unstored, *news, offset=hands.offset, **sets, **hands.counted())
    return True


def seconds_for(step: Step, one: SetupStep) -> int:
    left = limits.seconds_left(step.run)
    return left if one.seconds is None else min(one.seconds, left)


def result_of(one: SetupStep, ended: Finished, seconds: int) -> Result:
    text = ended.text if one.live else shorten(ended.text.strip())
    notes = {
        Ending.TIMEOUT: f"still running after {seconds} s",
        Ending.OUTPUT_LIMIT: f"printed more than {OUTPUT_LIMIT // (1024 * 1024)} MiB",
        Ending.EXITED: f"exit code {ended.exit_code}",
    }
    if ended.ending is Ending.EXITED and ended.exit_code == 0:
        return Result(text, exit_code=0)
    if not one.live and text:  # what it said stands in the instructions
        return Result(text, is_error=True, exit_code=ended.exit_code)
    said = f"{text.rstrip()}\n" if text.strip() else ""
    return Result(said + notes[ended.ending], is_error=True, exit_code=ended.exit_code)


def warnings(one: SetupStep, result: Result) -> list[New]:
    """A step whose failure ends nothing is warned of; of a command in the instructions the model is told."""
    if not result.is_error or one.required or not one.live:
        return []
    return [New("warning", {"callId": one.call_id, "message": f"{one.label} failed: {shown_end(result.text)}"})]


def shown_end(text: str) -> str:
    """The end of what it printed, where the reason mostly stands, on one line."""
    return " / ".join(text.split("\n"))[-ERROR_SHOWN:].strip(" /")
