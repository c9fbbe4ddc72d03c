"""Let others have a resource that this run has no more need of."""

from __future__ import annotations

import json

from pydantic import Field

from runs import locks
from runs.tools.base import Arguments, Desk, Result, Tool


class ReleaseLockArguments(Arguments):
    resource_key: str = Field(description="As it was acquired.", min_length=1)


def act(arguments: ReleaseLockArguments, desk: Desk) -> Result:
    answer = locks.release(desk.attempt, desk.redactor.text(arguments.resource_key))
    return Result(json.dumps(answer.body, ensure_ascii=False))


TOOL = Tool(
    name="release_lock",
    description='Release a lock that this run holds. The answer is JSON: "ok" is true if it was yours.',
    arguments=ReleaseLockArguments,
    act=act,
    in_sandbox=False,
)
