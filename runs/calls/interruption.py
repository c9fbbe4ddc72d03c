"""A call that ends because somebody has something to say first."""

from __future__ import annotations

from django.db import transaction

from runs import approvals, trigger_waits
from runs.calls import outcome, start
from runs.events import New
from runs.hands import CallHands, CallLost
from runs.models import SandboxState, ToolCall
from runs.sandbox.base import SandboxGone
from runs.step import Step
from runs.tools import bash
from runs.tools.base import Result

INTERRUPTED = "[interrupted by a person] "
NOT_RUN = "[not run: interrupted]"


def stop_call(step: Step, call: ToolCall) -> None:
    """Somebody's word comes first: end the call if it has begun, and start nothing."""
    step.halt.check()
    if not call.sandbox_id:
        with transaction.atomic():
            result = stopped_waiting(call) if call.started_at else Result(NOT_RUN, is_error=True)
            outcome.store_result(step, call, result)
            approvals.void(call)
        return
    try:
        sandbox = start.same_sandbox(step, call)
    except CallLost:
        outcome.lose(step, call)
        return
    stopped(step, call, CallHands(step, call, sandbox))


def stopped_waiting(call: ToolCall) -> Result:
    """Of one that the run was parked for: an event that has come is not kept from the model."""
    came = trigger_waits.end(call)
    return Result(INTERRUPTED, is_error=True) if came is None else Result(came)


def stopped(step: Step, call: ToolCall, hands: CallHands) -> None:
    """A command that does not end when it is told to takes its sandbox with it."""
    live = call.name == bash.TOOL.name
    try:
        done = hands.stop(live=live)
    except CallLost:
        outcome.lose(step, call, sandbox_too=True)
        return
    except SandboxGone:
        step.engine.remove(step.attempt.sandbox_name)
        result = Result(f"{INTERRUPTED}{hands.printed()}", is_error=True)
        with transaction.atomic():
            outcome.store_result(step, call, result, New("sandbox.lost"), offset=hands.offset)
            put_away(step)
        return
    text = done.text if live else ""
    result = Result(f"{INTERRUPTED}{text}", is_error=True, exit_code=done.exit_code)
    outcome.store_result(step, call, result, *hands.unstored, offset=hands.offset, **hands.counted())


def put_away(step: Step) -> None:
    """Store that we have removed the sandbox ourselves: no loss, and the next call that needs one starts it."""
    step.attempt.sandbox_state, step.attempt.sandbox_id = SandboxState.GONE, ""
    step.attempt.save(update_fields=["sandbox_state", "sandbox_id"])
