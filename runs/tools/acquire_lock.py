"""Have a resource for this run alone, as long as it works on it."""

from __future__ import annotations

import json

from pydantic import Field

from runs import locks
from runs.tools.base import Arguments, Desk, Result, Tool


class AcquireLockArguments(Arguments):
    resource_key: str = Field(description="What it is about, such as github://owner/repository/issues/1.", min_length=1)
    ttl_seconds: int | None = Field(default=None, description="When it runs out by itself.", ge=1, le=10 * 365 * 86_400)


def act(arguments: AcquireLockArguments, desk: Desk) -> Result:
    answer = locks.acquire(desk.attempt, desk.redactor.text(arguments.resource_key), seconds=arguments.ttl_seconds)
    return Result(json.dumps(answer.body, ensure_ascii=False))


TOOL = Tool(
    name="acquire_lock",
    description=(
        "Get a lock on a resource, or see who has it; this does not wait. Getting one again renews it. "
        'The answer is JSON: "ok" is true if it is yours. It is released when the run ends.'
    ),
    arguments=AcquireLockArguments,
    act=act,
    in_sandbox=False,
)
