"""Calls of tools that act in the worker: the effect and the row's change are one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import transaction

from agents import clock
from runs.calls import outcome, start
from runs.events import New
from runs.models import CallState, ToolCall, WaitReason
from runs.sandbox.base import SandboxError
from runs.step import Step
from runs.tools.base import Asks, Desk, Finished, Park, Result, Tool, ToolFailed


def act_here(step: Step, call: ToolCall, tool: Tool, arguments: object) -> None:
    began = [] if call.started_at else [New("tool.start", start.shown(call))]
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
                outcome.store_result(step, call, came)


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
    """Of tools that need none: nothing of theirs is in a sandbox."""

    def exec(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: int = 60, live: bool = False) -> Finished:
        raise SandboxError("this tool has no hands in the sandbox")
