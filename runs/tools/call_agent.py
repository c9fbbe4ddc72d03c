"""Give another agent something to do, and go on meanwhile."""

from __future__ import annotations

import json

from pydantic import Field

from runs import agent_calls
from runs.tools.base import Arguments, Desk, Result, Tool, ToolFailed


class CallAgentArguments(Arguments):
    target_agent: str = Field(description="The name of the agent.", min_length=1)
    context: str = Field(description="What it is to do, in full: it knows nothing else of you.")


def act(arguments: CallAgentArguments, desk: Desk) -> Result:
    try:
        call_id = agent_calls.call(desk.attempt, arguments.target_agent, arguments.context, redactor=desk.redactor)
    except agent_calls.Refused as refused:
        raise ToolFailed(str(refused)) from refused
    return Result(json.dumps({"ok": True, "callId": call_id}))


TOOL = Tool(
    name="call_agent",
    description="Start another agent on a piece of work. Returns a call id at once; see `check_call` for the result.",
    arguments=CallAgentArguments,
    act=act,
    in_sandbox=False,
)
