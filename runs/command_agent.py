"""An agent of kind `command`: its program is the agent, and the whole run is one call of it in the sandbox.

The prompt comes on its standard input, the trigger in /workspace/trigger.json. What it prints is output, or log lines
(`runs.log_lines`). Its exit code and the signals it left are the outcome: 0 done, 42 done and more to do, 124 out of
time, all others a failure. Source: spec/action-llama.md 7.4, 7.5.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import transaction

from runs import limits, opening, setup_steps, signals
from runs.calls import outcome, start
from runs.hands import Again, CallHands, CallLost
from runs.models import CallState, Event, ToolCall
from runs.sandbox.base import Ending, SandboxGone
from runs.step import Step
from runs.tools.base import Finished, Result

NAME = "command"
CALL_ID = "0-0"
RERUN = 42
TIMED_OUT = 124
PROGRAM_LOST = "the sandbox was lost while the agent's program ran"
LARGEST_PROMPT = 100_000  # bytes in PROMPT; the kernel takes no variable above 128 KiB

# The prompt is untrusted text, and too long for some places: it comes through standard input and goes on from here.
LAUNCH = f"""\
AGENTFLEET_PROMPT_FILE=$HOME/prompt.md
cat >"$AGENTFLEET_PROMPT_FILE"
export AGENTFLEET_PROMPT_FILE
env=${{AL_ENV_FILE:-/tmp/env.sh}}
[ -f "$env" ] && . "$env"
if [ "$(wc -c <"$AGENTFLEET_PROMPT_FILE")" -le {LARGEST_PROMPT} ]; then
  PROMPT=$(cat "$AGENTFLEET_PROMPT_FILE")
  export PROMPT
fi
exec "$@" <"$AGENTFLEET_PROMPT_FILE"
"""


def advance(step: Step) -> None:
    """Do what comes before it, start the program or follow it, and end the run with its exit code."""
    step.halt.check()
    if not setup_steps.before(step):
        return
    call = the_call(step)
    if call.state == CallState.DONE:  # and somebody died before the run was ended
        finish(step, call)
    elif call.state == CallState.PLANNED and start.gave_slot_away(step):
        step.stand_in_line()
    else:
        run_program(step, call)


def run_program(step: Step, call: ToolCall) -> None:
    limits.check_tool_call(step.run, step.spec)
    if call.state == CallState.LOST:
        raise SandboxGone(PROGRAM_LOST)
    try:
        hands = start.begin(step, call, None)  # the operator's own program: no tool that a person would have to allow
        command = launched(step.spec.command)
        seconds = limits.seconds_left(step.run)
        done = hands.exec(command, stdin=opening.text(step).encode(), timeout=seconds, live=True, logs=True)
        left = signals.left(hands)
    except Again:
        step.release()
    except (CallLost, SandboxGone) as lost:
        outcome.lose(step, call, sandbox_too=isinstance(lost, SandboxGone))
        raise SandboxGone(PROGRAM_LOST) from lost
    else:
        conclude(step, call, hands, done, left)


def the_call(step: Step) -> ToolCall:
    known = ToolCall.objects.filter(attempt=step.attempt, call_id=CALL_ID).first()
    if known is not None:
        return known
    with step.write(progress=False):
        return ToolCall.objects.create(
            attempt=step.attempt,
            call_id=CALL_ID,
            model_call_id=CALL_ID,
            position=0,
            index=0,
            name=NAME,
            arguments=step.redactor.json({"command": step.spec.command}),
        )


def launched(command: str | Sequence[str]) -> list[str]:
    """Text is for the shell; a list is a program and its words."""
    words = ["sh", "-c", command] if isinstance(command, str) else list(command)
    return ["sh", "-c", LAUNCH, "launch", *words]


def conclude(step: Step, call: ToolCall, hands: CallHands, done: Finished, left: signals.Left) -> None:
    """What the program printed and how it ended, in one transaction with the end of the run.

    Where something comes after the program, that end is `finish`.
    """
    code = TIMED_OUT if done.ending is Ending.TIMEOUT else done.exit_code
    news, sets = left.news(step.run, step.redactor)
    result = Result(answer(call, done, hands), is_error=code not in {0, RERUN}, exit_code=code)
    with transaction.atomic():
        sets |= hands.counted()
        outcome.store_result(step, call, result, *hands.unstored, *news, offset=hands.offset, **sets)
        if done.ending is Ending.OUTPUT_LIMIT:
            step.give_up("OUTPUT_LIMIT", "the agent's program printed more than a command may", exit_code=code)
        elif not step.spec.hooks_post:
            end(step, call)
    if not step.over:
        finish(step, call)


def finish(step: Step, call: ToolCall) -> None:
    """Run hooks.post if the program has ended well, and end the run."""
    if ending(step, call).code or setup_steps.after(step, 0):
        end(step, call)


def ending(step: Step, call: ToolCall) -> signals.Conclusion:
    assert call.exit_code is not None, "a call that is done has one"
    return signals.conclusion(step.run, call.exit_code)


def end(step: Step, call: ToolCall) -> None:
    how = ending(step, call)
    if not how.code:
        step.finish(call.result, exit_code=how.exit_code, rerun=how.rerun)
    elif how.exit_code == TIMED_OUT and call.exit_code == TIMED_OUT:
        step.give_up("TIMEOUT", "the agent's program was still running when its time was up", exit_code=TIMED_OUT)
    else:
        step.give_up(how.code, message(how), exit_code=how.exit_code)


def message(how: signals.Conclusion) -> str:
    reason = signals.REASONS.get(how.exit_code)
    ended = f"the agent's program ended with exit code {how.exit_code}"
    return f"{ended}: {reason}" if reason else ended


def answer(call: ToolCall, done: Finished, hands: CallHands) -> str:
    """What it printed; of a program that speaks in log lines alone, the last thing that its agent said."""
    if done.text.strip():
        return done.text
    said = [new.data["text"] for new in hands.unstored if new.type == "agent.text"]
    stored = Event.objects.filter(run_id=call.attempt.run_id, type="agent.text", data__callId=call.call_id)
    if not said and (last := stored.order_by("-number").first()):
        said = [last.data["text"]]
    return str(said[-1]) if said else done.text
