"""A model that reads its lines from a file of the agent's folder: no key, no bill, the same answer every time.

    turns:
      - expect: ["opened", "trigger.json"]        # all of these in what the model was last shown, or the run fails
        text: I look at the issue first.
        tools:
          - {name: bash, arguments: {command: cat /workspace/trigger.json}}
      - text: Done.

The model is named by the file: `provider = "scripted"`, `model = "script.yaml"`. The turn is the number of
answers in the transcript, so a crash repeats a turn and never skips one. `delay` (seconds) plays a slow model.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from runs import transcript
from runs.llm.base import ModelError, Request
from runs.transcript import Body, Part

PROVIDER = "scripted"


_strict = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_strict)
class Call:
    name: str
    arguments: Any = None  # none is an empty object; what is no object plays a model that writes nonsense


@dataclass(frozen=True, kw_only=True, config=_strict)
class Turn:
    text: str = ""
    tools: tuple[Call, ...] = ()
    expect: tuple[str, ...] = ()
    delay: float = 0.0


_script = TypeAdapter(list[Turn])


async def said(answer: Body, delay: float) -> Body:
    await asyncio.sleep(delay)
    return answer


def answer(request: Request) -> tuple[Body, float]:
    """The message, and after how many seconds it comes. Raises ModelError, also for a script that cannot be read."""
    number = sum(1 for message in request.messages if message["role"] == "assistant")
    turns = _turns(request)
    if number >= len(turns):
        raise ModelError(
            f"{request.model.model} has {len(turns)} turns and was asked for one more", code="SCRIPT_ENDED"
        )
    turn = turns[number]
    shown = _shown(request)
    for expected in turn.expect:
        if expected not in shown:
            raise ModelError(
                f"turn {number + 1} of {request.model.model} expected to be shown {expected!r}, and was shown: "
                f"{shown[-2000:]}",
                code="SCRIPT_MISMATCH",
            )
    parts: list[Part] = [{"type": "text", "text": turn.text}] if turn.text else []
    for index, call in enumerate(turn.tools):
        parts.append(
            {
                "type": "tool_call",
                "id": f"scripted_{number}_{index}",
                "name": call.name,
                "arguments": {} if call.arguments is None else call.arguments,
            }
        )
    body: Body = {
        "role": "assistant",
        "parts": parts,
        "model": f"{PROVIDER}:{request.model.model}",
        "usage": {
            "input": transcript.estimated_tokens(request.messages),
            "output": len(json.dumps(parts)) // 4,
            "cache_read": 0,
            "cache_write": 0,
        },
        "stop": "tool_use" if turn.tools else "end_turn",
    }
    return body, turn.delay


def _turns(request: Request) -> Sequence[Turn]:
    path = request.model.model
    content = request.read_file(path)
    if content is None:
        raise ModelError(f"the agent's folder has no file {path}", code="SCRIPT_MISSING")
    try:
        turns = yaml.safe_load(content)["turns"]
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is not a script: a mapping with a list of turns", code="SCRIPT_MISSING") from error
    if not isinstance(turns, list):
        raise ModelError(f"{path} is not a script: turns is a list of mappings", code="SCRIPT_MISSING")
    try:
        return _script.validate_python(turns)
    except ValidationError as error:
        fault = error.errors()[0]
        where, *inside = (fault["loc"][0], *map(str, fault["loc"][1:]))
        words = ": ".join([f"turn {int(where) + 1}", *([".".join(inside)] if inside else []), fault["msg"]])
        raise ModelError(f"{path} is not a script: {words}", code="SCRIPT_MISSING") from error


def _shown(request: Request) -> str:
    """The text of what the model has not answered yet: all of the beginning, later the newest results."""
    return "\n".join(part.get("text", "") for part in request.messages[-1]["parts"])
