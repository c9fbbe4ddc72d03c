"""What each run is to do, from the seed: its sender, its turns, its commands, and what they will have printed."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from chaos import errands
from chaos.errands import Ask, Call, Command, Lock, Return

LEDGER = "cat /workspace/ledger"
TOKEN = re.compile(r"chaos-\d+-\d{5}")
PIECE = 40  # characters the mock model sends at a time
REDELIVERED = 0.25  # of all requests are sent once more after their answer

CALLEES = 50_000  # what the number of a called run is more than its caller's

Channel = Literal["webhook", "rest", "call"]


@dataclass(frozen=True)
class Turn:
    """One answer of the model: words, and what it wants to have run. `pace`: seconds between its pieces."""

    text: str
    commands: tuple[Ask, ...] = ()
    pace: float = 0.0

    @property
    def seconds(self) -> float:
        """How long the answer takes, as the mock model sends it."""
        texts = [self.text, *(json.dumps(command.request(())[1]) for command in self.commands)]
        pieces = sum(2 + math.ceil(len(text) / PIECE) for text in texts)
        return self.pace * (3 + pieces)


@dataclass(frozen=True)
class Plan:
    """One run. `due`: seconds after the start. After `turns` it asks for the ledger, then says `answer`.

    `callee`: the plan of the run that it calls; `value`: what it gives back to whoever called it.
    """

    token: str
    agent: str
    channel: Channel
    due: float
    turns: tuple[Turn, ...]
    redelivered: bool = False
    callee: Plan | None = None
    value: str = ""

    @property
    def answer(self) -> str:
        return f"{self.token} is done"

    @property
    def commands(self) -> list[Ask]:
        return [command for turn in self.turns for command in turn.commands]


def chance(*of: object) -> random.Random:
    """A source of its own for each purpose, so that one more draw here changes nothing there."""
    return random.Random("/".join(map(str, of)))  # noqa: S311 - a seed is to repeat


def plans(seed: int, count: int, *, seconds: float, agents: Sequence[str]) -> list[Plan]:
    """`count` runs, due evenly over `seconds`, half of them by webhook."""
    return [_plan(seed, number, seconds * number / count, agents) for number in range(count)]


def _plan(seed: int, number: int, due: float, agents: Sequence[str]) -> Plan:
    agent, draw, token = agents[number // 2 % len(agents)], chance(seed, "run", number), f"chaos-{seed}-{number:05d}"
    # one long command, one answer with a command behind it that comes slowly, the rest is over at once
    long = Command(f"{token}.1", draw.randint(3, 10), 1.0)
    slow = f"{token} thinks aloud. " * draw.randint(6, 12)
    turns = (
        Turn("First a look.", (_short(draw, f"{token}.0"),)),
        Turn("Now the work.", (long, _short(draw, f"{token}.2"))),
        Turn(slow, (_short(draw, f"{token}.3"),), pace=draw.uniform(0.1, 0.3)),
        Turn("Nearly there.", tuple(_short(draw, f"{token}.{index}") for index in range(4, 4 + draw.randint(1, 3)))),
    )
    plan = Plan(token, agent, "rest" if number % 2 else "webhook", due, turns, draw.random() < REDELIVERED)
    target = agents[(number // 2 + 1) % len(agents)]
    return _with_errands(plan, number, target, f"chaos-{seed}-{number + CALLEES:05d}")


def _with_errands(plan: Plan, number: int, target: str, callee: str) -> Plan:
    """Of five runs two are without, one wants locks, two call another agent: by a command, or by the model's tools."""
    draw = chance("errands", plan.token)
    keys = [draw.choice(errands.KEYS) for _ in range(3)]
    times = [1, 10, 1]  # the second hardly holds it: so that a fault of the gateway always finds somebody asking
    locks = [
        Lock(f"{plan.token}.lock-{index}", keys[index], draw.choice([0.2, 1.0, 2.0]) / each**2, each)
        for index, each in enumerate(times)
    ]
    match number % 5:
        case 2:
            turns = (Turn("Alone, please.", (locks[0], locks[1])), *plan.turns, Turn("And once more.", (locks[2],)))
            return replace(plan, turns=turns)
        case 3:
            call = Call(f"{plan.token}.call", target, callee)
            value = Return(f"{callee}.1", 300)
            called = _called(callee, target, Turn("For my caller.", (value,)), value.value)
            return replace(plan, turns=(*plan.turns, Turn("Who helps?", (call, *locks[:2]))), callee=called)
        case 4:
            text = f"{callee} was here." * 100
            called = _called(callee, target, Turn("For my caller.", (errands.return_value(text),)), text)
            turns = (Turn("Who helps?", (errands.call_agent(target, callee),)), *plan.turns)
            return replace(plan, turns=(*turns, Turn("What became of it?", (errands.check_call(),))), callee=called)
    return plan


def _called(token: str, agent: str, gives: Turn, value: str) -> Plan:
    first = Turn("I was called.", (Command(f"{token}.0", 3, 0.2),))
    return Plan(token, agent, "call", 0.0, (first, gives), value=value)


def _short(draw: random.Random, token: str) -> Command:
    return Command(token, draw.randint(1, 5), draw.choice([0.0, 0.0, 0.2]))
