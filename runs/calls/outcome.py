"""What came of a call: stored in one transaction with whatever goes with it, and told to the model."""

from __future__ import annotations

from typing import Any

from agents import clock
from runs import transcript
from runs.events import New
from runs.models import Attempt, CallState, ToolCall
from runs.step import Step
from runs.tools.base import Result
from runs.transcript import Body, Corrupt, Part

PREVIEW = 200  # characters of a result in its event
LOST = (
    "[interrupted: the sandbox or its records were lost while this ran. It may have had effects, in part or in "
    "full, and it was not run again. Look at the state of things before you repeat it.]"
)
NEVER_RUN = "[not run: the run ended first]"


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
