"""The tools' turn: every call of the model's last message, in order, each started at most once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db import transaction

from agents import clock
from runs import approvals, limits, signals, slots, tools, transcript, trigger_waits
from runs.events import New, isoformat
from runs.hands import Again, CallHands, CallLost
from runs.models import Approval, ApprovalState, Attempt, CallState, SandboxState, ToolCall, WaitReason
from runs.sandbox.base import Sandbox, SandboxError, SandboxGone
from runs.step import Step
from runs.tools import bash
from runs.tools.base import Asks, Desk, Finished, Park, Result, Tool, ToolFailed
from runs.transcript import Body, Corrupt, Part

PREVIEW = 200  # characters of a result in its event
INPUT_SHOWN = 2000  # characters of each argument in its event
LOST = (
    "[interrupted: the sandbox or its records were lost while this ran. It may have had effects, in part or in "
    "full, and it was not run again. Look at the state of things before you repeat it.]"
)
INTERRUPTED = "[interrupted by a person] "
NOT_RUN = "[not run: interrupted]"
NEVER_RUN = "[not run: the run ended first]"


def run_tools(step: Step, wanted: int, *, position: int, interrupted: bool) -> None:
    """Run what is left of this turn's `wanted` calls, in order, one at a time; then tell the model.

    `interrupted`: somebody has something to say first, so none of them starts and what runs is ended.
    """
    calls = calls_of(step.attempt, wanted, position=position)
    for call in calls:
        if call.state == CallState.PLANNED and gave_slot_away(step):
            step.stand_in_line()
            return
        if call.state in {CallState.PLANNED, CallState.STARTED}:
            stop_call(step, call) if interrupted else run_call(step, call)
            if step.released:
                return
    results: Body = {"role": "tool", "parts": [as_part(call) for call in calls]}
    with step.write(release=True):
        transcript.append(step.attempt, position + 1, results, redactor=step.redactor)


def gave_slot_away(step: Step) -> bool:
    """Whether a command before this call has waited for another run, and did not get its slot back."""
    return step.spec.reaches_gateway and slots.is_lent(step.run.pk)


def calls_of(attempt: Attempt, wanted: int, *, position: int) -> list[ToolCall]:
    """The rows of the calls that the message at `position` asks for. Raises Corrupt if they are not all there."""
    calls = list(ToolCall.objects.filter(attempt=attempt, position=position).order_by("index"))
    if len(calls) != wanted:
        raise Corrupt(f"message {position} of the transcript has {wanted} tool calls, and {len(calls)} are stored")
    return calls


def as_part(call: ToolCall) -> Part:
    return {
        "type": "tool_result",
        "id": call.model_call_id,
        "name": call.name,
        "text": call.result,
        "is_error": call.is_error,
    }


def answered(attempt: Attempt, messages: list[Body]) -> list[Body]:
    """The transcript of an attempt that has ended, with a result for every call: without one it cannot be told."""
    wanted = transcript.tool_calls(messages[-1]) if messages else []
    if not wanted:
        return messages
    results: list[Part] = []
    for call in calls_of(attempt, len(wanted), position=len(messages) - 1):
        if call.state != CallState.DONE:
            call.result, call.is_error = NEVER_RUN if call.state == CallState.PLANNED else LOST, True
        results.append(as_part(call))
    return [*messages, {"role": "tool", "parts": results}]


def stop_call(step: Step, call: ToolCall) -> None:
    """Somebody's word comes first: end the call if it has begun, and start nothing."""
    step.halt.check()
    if not call.sandbox_id:
        with transaction.atomic():
            store_result(step, call, stopped_waiting(call) if call.started_at else Result(NOT_RUN, is_error=True))
            approvals.void(call)
        return
    try:
        sandbox = same_sandbox(step, call)
    except CallLost:
        lose(step, call)
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
        lose(step, call, sandbox_too=True)
        return
    except SandboxGone:
        step.engine.remove(step.attempt.sandbox_name)
        result = Result(f"{INTERRUPTED}{hands.printed()}", is_error=True)
        with transaction.atomic():
            store_result(step, call, result, New("sandbox.lost"), offset=hands.offset)
            put_away(step)
        return
    text = done.text if live else ""
    result = Result(f"{INTERRUPTED}{text}", is_error=True, exit_code=done.exit_code)
    store_result(step, call, result, *hands.unstored, offset=hands.offset, **hands.counted())


def put_away(step: Step) -> None:
    """Store that we have removed the sandbox ourselves: no loss, and the next call that needs one starts it."""
    step.attempt.sandbox_state, step.attempt.sandbox_id = SandboxState.GONE, ""
    step.attempt.save(update_fields=["sandbox_state", "sandbox_id"])


def run_call(step: Step, call: ToolCall) -> None:
    """Run one call, at most once, and store what came of it."""
    limits.check_tool_call(step.run, step.spec)
    step.halt.check()
    try:
        tool = offered_tool(step, call.name)
        arguments = tool.parse(call.arguments)
    except ToolFailed as error:
        store_result(step, call, Result(str(error), is_error=True))
        return
    if not tool.in_sandbox:
        act_here(step, call, tool, arguments)
        return
    try:
        hands = begin(step, call, tool)
    except CallLost:
        lose(step, call)
        return
    except approvals.NotApproved:
        ask_or_refuse(step, call)
        return
    try:
        result = told(tool, arguments, hands)
        left = signals.left(hands)
    except Again:
        step.release()
        return
    except (CallLost, SandboxGone):
        # Also where only the records are lost: without them no command starts there again.
        lose(step, call, sandbox_too=True)
        return
    news, sets = left.news(step.run, step.redactor)
    store_result(step, call, result, *hands.unstored, *news, offset=hands.offset, **sets, **hands.counted())


def told(tool: Tool, arguments: object, hands: CallHands) -> Result:
    try:
        return tool.run(arguments, hands)
    except ToolFailed as error:
        return Result(str(error), is_error=True)


def offered_tool(step: Step, name: str) -> Tool:
    """Raises ToolFailed for one the agent does not have, whatever the model believes."""
    offered = {tool.name: tool for tool in tools.of(step.spec)}
    if name not in offered:
        raise ToolFailed(f"there is no tool {name!r}; there are {', '.join(offered)}")
    return offered[name]


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
    shown = {"toolName": call.name, "callId": call.call_id, "toolInput": shortened(call.arguments)}
    with step.write(New("tool.start", shown)):
        if guarded:
            approvals.use(call)
        call.state, call.sandbox_id, call.started_at = CallState.STARTED, sandbox.id, clock.now()
        call.save(update_fields=["state", "sandbox_id", "started_at"])
    return CallHands(step, call, sandbox, forget=forget)


def ask_or_refuse(step: Step, call: ToolCall) -> None:
    """Of a call that may not start now: park the run for somebody's word, or tell the model what that was."""
    approval = approvals.of(call)
    if approval is None:
        ask_for_leave(step, call)
    elif approval.state == ApprovalState.PENDING:
        step.wait(WaitReason.APPROVAL)
    else:
        refuse(step, call, approval)


def ask_for_leave(step: Step, call: ToolCall) -> None:
    expires_at = clock.now() + timedelta(seconds=step.spec.approvals.expires_seconds)
    asked = New(
        "approval.asked",
        {
            "callId": call.call_id,
            "toolName": call.name,
            "toolInput": shortened(call.arguments),
            "digest": approvals.digest_of(call),
            "expires_at": isoformat(expires_at),
        },
    )
    with transaction.atomic():
        step.wait(WaitReason.APPROVAL, asked)
        approvals.ask(step.lease.run_id, call, expires_at=expires_at)


def refuse(step: Step, call: ToolCall, approval: Approval) -> None:
    with transaction.atomic():
        store_result(step, call, Result(approvals.refusal(approval, call), is_error=True))
        approvals.void(call)


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


def act_here(step: Step, call: ToolCall, tool: Tool, arguments: object) -> None:
    """A tool that acts in the worker: its effect and its row's change are one transaction."""
    shown = {"toolName": call.name, "callId": call.call_id, "toolInput": shortened(call.arguments)}
    began = [] if call.started_at else [New("tool.start", shown)]
    with transaction.atomic():
        with step.write(*began):
            came = effect(step, call, tool, arguments)
        match came:
            case Asks():
                question = New("ask", {"callId": call.call_id, "question": came.question})
                park(step, call, WaitReason.INPUT, question, question=came.question)
            case Park():
                park(step, call, came.reason, wake_at=came.wake_at)
            case Result():
                store_result(step, call, came)


def effect(step: Step, call: ToolCall, tool: Tool, arguments: object) -> Result | Park | Asks:
    """What came of it; of one that failed, nothing stays."""
    try:
        with transaction.atomic():
            return tool.run(arguments, NoHands()) if tool.act is None else tool.act(arguments, desk_of(step, call))
    except ToolFailed as error:
        return Result(str(error), is_error=True)
    except Asks as asks:
        return asks


def desk_of(step: Step, call: ToolCall) -> Desk:
    return Desk(run=step.run, attempt=step.attempt, spec=step.spec, call=call, redactor=step.redactor)


def park(step: Step, call: ToolCall, reason: WaitReason, *also: New, **details: Any) -> None:
    """The call has begun, and the run waits for its result."""
    step.wait(reason, *also, **details)
    began = call.started_at or clock.now()
    ToolCall.objects.filter(pk=call.pk).update(state=CallState.STARTED, started_at=began)


class NoHands:
    """For tools that act in the worker."""

    def exec(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: int = 60, live: bool = False) -> Finished:
        raise SandboxError("this tool has no hands in the sandbox")


def store_result(step: Step, call: ToolCall, result: Result, *before: New, offset: int = 0, **sets: Any) -> None:
    """`sets`: further columns of the run."""
    now = clock.now()
    ended = New(
        "tool.end",
        {
            "toolName": call.name,
            "callId": call.call_id,
            "durationMs": max(0, round((now - (call.started_at or now)).total_seconds() * 1000)),
            "success": not result.is_error,
            "outputPreview": result.text[:PREVIEW],
            **({} if result.exit_code is None else {"exitCode": result.exit_code}),
        },
    )
    with step.write(*before, ended, **sets):
        call.state, call.ended_at, call.offset = CallState.DONE, now, offset
        call.result, call.is_error, call.exit_code = (
            step.redactor.text(result.text),
            result.is_error,
            result.exit_code,
        )
        call.save(update_fields=["state", "ended_at", "offset", "result", "is_error", "exit_code"])


def lose(step: Step, call: ToolCall, *, sandbox_too: bool = False) -> None:
    """Tell the model, never start it again."""
    if sandbox_too:
        step.engine.remove(step.attempt.sandbox_name)
    ended = {"toolName": call.name, "callId": call.call_id, "success": False, "outputPreview": LOST[:PREVIEW]}
    lost = [New("sandbox.lost")] if sandbox_too else []
    with step.write(*lost, New("tool.end", {**ended, "durationMs": 0, "lost": True})):
        if sandbox_too:
            step.sandbox_is_gone()
        call.state, call.ended_at, call.result, call.is_error = CallState.LOST, clock.now(), LOST, True
        call.save(update_fields=["state", "ended_at", "result", "is_error"])


def shortened(arguments: object) -> object:
    """Arguments as an event shows them: whole, but for what is very long."""
    if isinstance(arguments, str):
        return arguments if len(arguments) <= INPUT_SHOWN else f"{arguments[:INPUT_SHOWN]}[… {len(arguments)} in all]"
    if isinstance(arguments, dict):
        return {key: shortened(value) for key, value in arguments.items()}
    if isinstance(arguments, list):
        return [shortened(value) for value in arguments[:100]]
    return arguments
