"""What each run is to do, from the seed: its sender, its turns, its commands, and what they will have printed."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LEDGER = "cat /workspace/ledger"
TOKEN = re.compile(r"chaos-\d+-\d{5}")
PIECE = 40  # characters the mock model sends at a time
REDELIVERED = 0.25  # of all requests are sent once more after their answer

Channel = Literal["webhook", "rest"]


@dataclass(frozen=True)
class Command:
    """Says in the ledger that it has started, then prints its lines. `token` is its own, `pause` in seconds."""

    token: str
    lines: int
    pause: float

    @property
    def script(self) -> str:
        each = f"echo {self.token} line $i; sleep {self.pause:g}"
        return f"echo {self.token} >> /workspace/ledger; for i in $(seq {self.lines}); do {each}; done"

    @property
    def output(self) -> str:
        return "".join(f"{self.token} line {number}\n" for number in range(1, self.lines + 1))


@dataclass(frozen=True)
class Turn:
    """One answer of the model: words, and what it wants to have run. `pace`: seconds between its pieces."""

    text: str
    commands: tuple[Command, ...] = ()
    pace: float = 0.0

    @property
    def seconds(self) -> float:
        """How long the answer takes, as the mock model sends it."""
        texts = [self.text, *(json.dumps({"command": command.script}) for command in self.commands)]
        pieces = sum(2 + math.ceil(len(text) / PIECE) for text in texts)
        return self.pace * (3 + pieces)


@dataclass(frozen=True)
class Plan:
    """One run. `due`: seconds after the start. After `turns` it asks for the ledger, then says `answer`."""

    token: str
    agent: str
    channel: Channel
    due: float
    turns: tuple[Turn, ...]
    redelivered: bool = False

    @property
    def answer(self) -> str:
        return f"{self.token} is done"

    @property
    def commands(self) -> list[Command]:
        return [command for turn in self.turns for command in turn.commands]


def chance(*of: object) -> random.Random:
    """A source of its own for each purpose, so that one more draw here changes nothing there."""
    return random.Random("/".join(map(str, of)))  # noqa: S311 - a seed is to repeat


def plans(seed: int, count: int, *, seconds: float, agents: Sequence[str]) -> list[Plan]:
    """`count` runs, due evenly over `seconds`, half of them by webhook."""
    return [_plan(seed, number, seconds * number / count, agents[number // 2 % len(agents)]) for number in range(count)]


def _plan(seed: int, number: int, due: float, agent: str) -> Plan:
    draw, token = chance(seed, "run", number), f"chaos-{seed}-{number:05d}"
    # one long command, one answer with a command behind it that comes slowly, the rest is over at once
    long = Command(f"{token}.1", draw.randint(3, 10), 1.0)
    slow = f"{token} thinks aloud. " * draw.randint(6, 12)
    turns = (
        Turn("First a look.", (_short(draw, f"{token}.0"),)),
        Turn("Now the work.", (long, _short(draw, f"{token}.2"))),
        Turn(slow, (_short(draw, f"{token}.3"),), pace=draw.uniform(0.1, 0.3)),
        Turn("Nearly there.", tuple(_short(draw, f"{token}.{index}") for index in range(4, 4 + draw.randint(1, 3)))),
    )
    return Plan(token, agent, "rest" if number % 2 else "webhook", due, turns, draw.random() < REDELIVERED)


def _short(draw: random.Random, token: str) -> Command:
    return Command(token, draw.randint(1, 5), draw.choice([0.0, 0.0, 0.2]))
