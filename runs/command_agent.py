"""An agent of kind `command`: its program is the agent, and the whole run is one call of it in the sandbox.

The prompt comes on its standard input, the trigger in /workspace/trigger.json. Its exit code is the outcome:
0 done, 42 done and more to do, 124 out of time, all others a failure. Source: spec/action-llama.md 7.5.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import transaction

from agents import clock
from runs import calls, limits, prompt
from runs.hands import Again, CallHands, CallLost
from runs.models import ToolCall
from runs.sandbox.base import Ending, SandboxGone
from runs.step import Step
from runs.tools.base import Finished, Result

NAME = "command"
CALL_ID = "0-0"
RERUN = 42
TIMED_OUT = 124
NO_LIMIT = 7 * 86_400  # seconds; what the sandbox's own watchdog has for a run without a limit of time


def advance(step: Step) -> None:
    """Start the program, or follow it where an earlier step left it, and end the run with its exit code."""
    step.halt.check()
    limits.check_tool_call(step.run, step.spec)
    call = the_call(step)
    try:
        hands = calls.begin(step, call, None)  # the operator's own program: no tool that a person would have to allow
        done = hands.exec(argv(step.spec.command), stdin=words(step), timeout=seconds_left(step), live=True)
    except Again:
        step.release()
    except (CallLost, SandboxGone) as lost:
        calls.lose(step, call, sandbox_too=isinstance(lost, SandboxGone))
        raise SandboxGone("the sandbox was lost while the agent's program ran") from lost
    else:
        conclude(step, call, hands, done)


def the_call(step: Step) -> ToolCall:
    known = ToolCall.objects.filter(attempt=step.attempt).first()
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


def argv(command: str | Sequence[str]) -> list[str]:
    """Text is for the shell; a list is a program and its words."""
    return ["sh", "-c", command] if isinstance(command, str) else list(command)


def words(step: Step) -> bytes:
    """The prompt a model would get, as plain text."""
    messages = prompt.build(step.spec, prompt.Trigger.of(step.run))
    return "\n\n".join(part["text"] for body in messages for part in body["parts"]).encode()


def seconds_left(step: Step) -> int:
    if step.run.deadline_at is None:
        return NO_LIMIT
    return max(1, round((step.run.deadline_at - clock.now()).total_seconds()))


def conclude(step: Step, call: ToolCall, hands: CallHands, done: Finished) -> None:
    """What the program printed and how it ended, in one transaction with the end of the run."""
    code = TIMED_OUT if done.ending is Ending.TIMEOUT else done.exit_code
    succeeded = code in {0, RERUN}
    with transaction.atomic():
        result = Result(done.text, is_error=not succeeded, exit_code=code)
        calls.store_result(step, call, result, *hands.unstored, offset=hands.offset, **hands.counted())
        if succeeded:
            step.finish(done.text, exit_code=code, rerun=code == RERUN)
        elif done.ending is Ending.OUTPUT_LIMIT:
            step.give_up("OUTPUT_LIMIT", "the agent's program printed more than a command may", exit_code=code)
        elif code == TIMED_OUT:
            step.give_up("TIMEOUT", "the agent's program was still running when its time was up", exit_code=code)
        else:
            step.give_up(f"EXIT_{code}", f"the agent's program ended with exit code {code}", exit_code=code)
