"""The start of a call in the sandbox: committed before any sandbox is asked, so that it happens at most once."""

from __future__ import annotations

from typing import Any

from agents import clock
from runs import approvals, slots
from runs.events import New
from runs.hands import CallHands, CallLost
from runs.models import CallState, ToolCall
from runs.sandbox.base import Sandbox, SandboxGone
from runs.step import Step
from runs.tools.base import Tool

INPUT_SHOWN = 2000  # characters of each argument in its event


def begin(step: Step, call: ToolCall, tool: Tool | None) -> CallHands:
    """Commit that the call has started, before any sandbox hears of it. Raises CallLost, NotApproved, SandboxError."""
    stored = ToolCall.objects.filter(attempt=step.attempt, state__in=[CallState.DONE, CallState.LOST])
    forget = list(stored.order_by("-position", "-index").values_list("call_id", flat=True)[:8])
    if call.state == CallState.STARTED:
        sandbox = same_sandbox(step, call)
        return CallHands(step, call, sandbox, forget=forget)
    guarded = tool is not None and approvals.needed(step.spec.approvals, tool, call.arguments)
    if guarded and not approvals.is_good(call):  # before there is a sandbox for nothing
        raise approvals.NotApproved(call.call_id)
    sandbox = running_sandbox(step)
    with step.write(New("tool.start", shown(call))):
        if guarded:
            approvals.use(call)
        call.state, call.sandbox_id, call.started_at = CallState.STARTED, sandbox.id, clock.now()
        call.save(update_fields=["state", "sandbox_id", "started_at"])
    return CallHands(step, call, sandbox, forget=forget)


def gave_slot_away(step: Step) -> bool:
    """Whether a command before this call has waited for another run, and did not get its slot back."""
    return step.spec.reaches_gateway and slots.is_lent(step.run.pk)


def same_sandbox(step: Step, call: ToolCall) -> Sandbox:
    """The very sandbox the call was started in, in the same life. Raises CallLost, EngineDown."""
    try:
        sandbox = step.engine.find(step.attempt.sandbox_name)
    except SandboxGone:
        sandbox = None
    if sandbox is None or sandbox.id != call.sandbox_id:
        with step.write(New("sandbox.lost")):
            step.sandbox_is_gone()
        raise CallLost
    return sandbox


def running_sandbox(step: Step) -> Sandbox:
    """The attempt's sandbox, started if there is none. Raises SandboxError; SandboxGone after too many losses."""
    while step.known_sandbox is None:
        image = step.prepare_sandbox()
        with step.write(New("sandbox.start", {"image": image}), progress=False):
            step.sandbox_is_starting(image)
        step.note_sandbox(step.start_sandbox(image))
    return step.known_sandbox


def shown(call: ToolCall) -> dict[str, Any]:
    """A call as its events show it."""
    return {"toolName": call.name, "callId": call.call_id, "toolInput": shortened(call.arguments)}


def shortened(arguments: object) -> object:
    """Arguments as an event shows them: whole, but for what is very long."""
    if isinstance(arguments, str):
        return arguments if len(arguments) <= INPUT_SHOWN else f"{arguments[:INPUT_SHOWN]}[… {len(arguments)} in all]"
    if isinstance(arguments, dict):
        return {key: shortened(value) for key, value in arguments.items()}
    if isinstance(arguments, list):
        return [shortened(value) for value in arguments[:100]]
    return arguments
