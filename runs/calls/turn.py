"""The tools' turn: every call of the model's last message, in order, each started at most once."""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction

from agents import clock
from runs import approvals, limits, signals, tools, transcript
from runs.calls import in_worker, interruption, outcome, start
from runs.events import New, isoformat
from runs.hands import Again, CallHands, CallLost
from runs.models import Approval, ApprovalState, CallState, ToolCall, WaitReason
from runs.sandbox.base import SandboxGone
from runs.step import Step
from runs.tools.base import Result, Tool, ToolFailed
from runs.transcript import Body


def run_tools(step: Step, wanted: int, *, position: int, interrupted: bool) -> None:
    """Run what is left of this turn's `wanted` calls, in order, one at a time; then tell the model.

    `interrupted`: somebody has something to say first, so none of them starts and what runs is ended.
    """
    calls = outcome.calls_of(step.attempt, wanted, position=position)
    one_ran = False  # since the run's row was read, which said that its slot is its own
    for call in calls:
        if one_ran and call.state == CallState.PLANNED and start.gave_slot_away(step):
            step.stand_in_line()
            return
        if call.state in {CallState.PLANNED, CallState.STARTED}:
            interruption.stop_call(step, call) if interrupted else run_call(step, call)
            if step.released:
                return
            one_ran = True
    results: Body = {"role": "tool", "parts": [outcome.as_part(call) for call in calls]}
    with step.write(release=True):
        transcript.append(step.attempt, position + 1, results, redactor=step.redactor)


def run_call(step: Step, call: ToolCall) -> None:
    """Run one call, at most once, and store what came of it."""
    limits.check_tool_call(step.run, step.spec)
    step.halt.check()
    try:
        tool = offered_tool(step, call.name)
        arguments = tool.parse(call.arguments)
    except ToolFailed as error:
        outcome.store_result(step, call, Result(str(error), is_error=True))
        return
    if not tool.in_sandbox:
        in_worker.act_here(step, call, tool, arguments)
        return
    try:
        hands = start.begin(step, call, tool)
    except CallLost:
        outcome.lose(step, call)
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
        outcome.lose(step, call, sandbox_too=True)
        return
    news, sets = left.news(step.run, step.redactor)
    outcome.store_result(step, call, result, *hands.unstored, *news, offset=hands.offset, **sets, **hands.counted())


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
            **start.shown(call),
            "digest": approvals.digest_of(call),
            "expires_at": isoformat(expires_at),
        },
    )
    with transaction.atomic():
        step.wait(WaitReason.APPROVAL, asked)
        approvals.ask(step.lease.run_id, call, expires_at=expires_at)


def refuse(step: Step, call: ToolCall, approval: Approval) -> None:
    with transaction.atomic():
        outcome.store_result(step, call, Result(approvals.refusal(approval, call), is_error=True))
        approvals.void(call)
