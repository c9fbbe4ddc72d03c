"""See what has become of a call, or wait for its end without a thread, a slot or a cent."""

from __future__ import annotations

import json
from datetime import timedelta

from pydantic import Field

from agents import clock
from runs import agent_calls
from runs.models import WaitReason
from runs.tools.base import Arguments, Desk, Park, Result, Tool, ToolFailed

LONGEST = 7 * 86_400  # seconds


class CheckCallArguments(Arguments):
    call_id: str = Field(description="As `call_agent` gave it.")
    wait_seconds: int = Field(
        default=0, ge=0, le=LONGEST, description="Wait for its end, up to so long. 0: say how it stands now."
    )


def act(arguments: CheckCallArguments, desk: Desk) -> Result | Park:
    try:
        status = agent_calls.status(desk.attempt, arguments.call_id)
    except agent_calls.NoSuchCall as error:
        raise ToolFailed("call not found") from error
    until = (desk.call.started_at or clock.now()) + timedelta(seconds=arguments.wait_seconds)
    if status["status"] in agent_calls.OVER or clock.now() >= until:
        return Result(json.dumps(status, ensure_ascii=False))
    return Park(WaitReason.HANDOFF, until)


TOOL = Tool(
    name=agent_calls.CHECK_CALL,
    description=(
        "What has become of a call: pending, running, completed (with its return value) or error. With `wait_seconds` "
        "you are told when it is over, or when the time is up; waiting costs nothing."
    ),
    arguments=CheckCallArguments,
    act=act,
    in_sandbox=False,
)
