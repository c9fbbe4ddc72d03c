"""The mock model: it plays each run's plan, and keeps what it was shown. That is the record the judge trusts.

It knows a run by the token in its prompt, and an attempt by the id of its first tool call: the model gave that id, and
a transcript that is append-only shows the same one for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from chaos.errands import Shown, script_of
from chaos.work import LEDGER, TOKEN, Plan, Turn
from tests.doubles.anthropic import Asked, Reply

INTERRUPTED = "[interrupted:"  # how a result begins that tells the model of a lost command


@dataclass(frozen=True)
class Told:
    """What the model was shown of one call: the command or the tool, and every different result."""

    script: str
    results: tuple[str, ...]


@dataclass(frozen=True)
class Attempt:
    """One conversation, as the model saw it. `calls` by the ids the model gave them, in order."""

    token: str
    first_call: str
    calls: dict[str, Told] = field(default_factory=dict)

    @property
    def ledger(self) -> list[str] | None:
        """The commands that started, one entry for each time; None if the model never saw it."""
        seen = [told.results[-1] for told in self.calls.values() if told.script == LEDGER]
        return next((text.split() for text in reversed(seen) if not was_lost(text)), None)


class Player:
    """The plan of a MockAnthropic: `reply` is called from any thread."""

    def __init__(self, plans: Iterable[Plan]) -> None:
        known = [each for plan in plans for each in (plan, plan.callee) if each is not None]
        self._plans = {plan.token: plan for plan in known}
        self._attempts: dict[tuple[str, str], Attempt] = {}
        self._lock = threading.Lock()
        self.requests = 0
        self.answered: set[str] = set()  # tokens of the runs that were given their last answer
        self.strangers = 0  # requests without a token of ours

    @property
    def attempts(self) -> list[Attempt]:
        with self._lock:
            return list(self._attempts.values())

    def reply(self, asked: Asked) -> Reply:
        found = TOKEN.search(str(asked.body["messages"][0]["content"]))
        plan = self._plans.get(found[0]) if found else None
        with self._lock:
            self.requests += 1
            if plan is None:
                self.strangers += 1
                return Reply(text="Who are you?")
            shown = list(calls_shown(asked.body["messages"]))
            self._remember(plan.token, shown)
            return self._next(plan, asked.turn, shown)

    def _remember(self, token: str, shown: Shown) -> None:
        if not shown:
            return
        attempt = self._attempts.setdefault((token, shown[0][0]), Attempt(token, shown[0][0]))
        for call_id, script, result in shown:
            known = attempt.calls.get(call_id, Told(script, ()))
            if result not in known.results:
                attempt.calls[call_id] = Told(script, (*known.results, result))

    def _next(self, plan: Plan, turn: int, shown: Shown) -> Reply:
        if turn < len(plan.turns):
            return said(plan.turns[turn], shown)
        if any(script == LEDGER and not was_lost(result) for _, script, result in shown):
            self.answered.add(plan.token)
            return Reply(text=plan.answer)
        return Reply(text="And the ledger.", tools=[("bash", {"command": LEDGER})])


def said(turn: Turn, shown: Shown) -> Reply:
    return Reply(turn.text, [command.request(shown) for command in turn.commands], pace=turn.pace)


def was_lost(result: str) -> bool:
    return result.startswith(INTERRUPTED)


def calls_shown(messages: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """(id, command or tool, result) of every call in a request that has its result, in order."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    results = {part["tool_use_id"]: _text(part["content"]) for part in parts if part["type"] == "tool_result"}
    for part in parts:
        if part["type"] == "tool_use" and part["id"] in results:
            yield part["id"], script_of(part["name"], part["input"]), results[part["id"]]


def _text(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
