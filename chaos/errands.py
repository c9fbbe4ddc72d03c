"""What runs ask of others: locks, calls of other agents, and the value for their caller, by commands and by tools.

Each says what it was told, one line for each answer, so that the judge can hold one run's lines against another's.
A try without an answer is made again, as agents do; a refusal ends the command.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

LEDGER_FILE = "/workspace/ledger"
PATIENCE = 600  # seconds a call is waited for
KEYS = ["key-0", "key-1", "key-2"]  # the locks that everybody wants
# 1 is a refusal, which only whoever wants a lock asks again: told of a circle, it gives back what a command of its run
# that was cut off has left. 2 to 4 are final; above, nobody knows what came of it.
AGAIN = (
    'again() { until "$@" >/tmp/said 2>&1; do c=$?; [ "$1$c" = rlock1 ] || echo "tried $1 $c"; '
    'case "$1$c" in rlock1) '
    f"! grep -q deadlock /tmp/said || for k in {' '.join(KEYS)}; do runlock $k; done >/dev/null;; "
    "*[a-z][1-4]) return $c;; esac; sleep 1; done; }"
)
TRIED = re.compile(r"^tried (\S+) (\d+)$", re.MULTILINE)
HELD = re.compile(r"^(got|letting) (\S+) ([\d.]+)$", re.MULTILINE)
CALLED = re.compile(r"^called (\S+)$", re.MULTILINE)

Shown = Sequence[tuple[str, str, str]]  # id, script, result of each call that the model has been shown
Request = tuple[str, dict[str, Any]]  # a tool of the model's, and its arguments


@dataclass(frozen=True)
class Command:
    """Says in the ledger that it has started, then prints its lines. `token` is its own, `pause` in seconds."""

    token: str
    lines: int
    pause: float
    in_ledger: ClassVar = True

    @property
    def script(self) -> str:
        each = f"echo {self.token} line $i; sleep {self.pause:g}"
        return f"echo {self.token} >> {LEDGER_FILE}; for i in $(seq {self.lines}); do {each}; done"

    @property
    def output(self) -> str:
        return "".join(f"{self.token} line {number}\n" for number in range(1, self.lines + 1))

    def request(self, shown: Shown) -> Request:
        return "bash", {"command": self.script}


@dataclass(frozen=True)
class _Errand:
    """A command that prints what the gateway has answered; nobody can tell how long that takes."""

    token: str
    pause: ClassVar[float | None] = None
    output: ClassVar[str | None] = None
    in_ledger: ClassVar = True
    steps: ClassVar[str]

    @property
    def script(self) -> str:
        return f"echo {self.token} >> {LEDGER_FILE}; {AGAIN}\n{self._steps()}"

    def _steps(self) -> str:
        raise NotImplementedError

    def request(self, shown: Shown) -> Request:
        return "bash", {"command": self.script}


@dataclass(frozen=True)
class Lock(_Errand):
    """So many times: have `key` for so many seconds, and see in between that it is still there."""

    key: str
    seconds: float
    times: int = 1

    def _steps(self) -> str:
        return (
            f"for i in $(seq {self.times}); do again rlock {self.key} || break\n"
            f"echo got {self.key} $(date +%s.%N); sleep {self.seconds:g}; again rlock-heartbeat {self.key}\n"
            f"echo letting {self.key} $(date +%s.%N); again runlock {self.key}; done"
        )


@dataclass(frozen=True)
class Call(_Errand):
    """Call an agent, wait for the end, print what came of it. `callee`: the token of the called run."""

    target: str
    callee: str

    def _steps(self) -> str:
        return (
            f"alcall() {{ echo {self.callee} | al-call {self.target}; }}; again alcall\n"
            """id=$(sed -n 's/.*"callId":"\\([^"]*\\)".*/\\1/p' /tmp/said); echo called $id\n"""
            f"again al-wait $id --timeout {PATIENCE}; cat /tmp/said"
        )


@dataclass(frozen=True)
class Return(_Errand):
    """Give the caller a value of so many lines."""

    lines: int
    output: ClassVar[str | None] = '{"ok":true}\n'

    @property
    def value(self) -> str:
        return "\n".join(f"{self.token} value {number}" for number in range(1, self.lines + 1))

    def _steps(self) -> str:
        return f'al-return "$(for i in $(seq {self.lines}); do echo {self.token} value $i; done)"'


@dataclass(frozen=True)
class Tool:
    """A tool that acts in the worker, in one transaction with the note that it has. `script` is its name."""

    script: str
    arguments: dict[str, Any] = field(hash=False)
    token: str = ""
    pause: ClassVar[float | None] = None
    output: ClassVar[str | None] = None
    in_ledger: ClassVar = False

    def request(self, shown: Shown) -> Request:
        return self.script, self.arguments


@dataclass(frozen=True)
class CheckCall(Tool):
    """Waits for the call that the model was told of."""

    def request(self, shown: Shown) -> Request:
        answers = [result for _, script, result in shown if script == "call_agent"]
        return self.script, {**self.arguments, "call_id": call_id_in(answers[-1]) if answers else ""}


Ask = Command | Lock | Call | Return | Tool


def call_agent(target: str, callee: str) -> Tool:
    return Tool("call_agent", {"target_agent": target, "context": callee})


def check_call() -> CheckCall:
    return CheckCall("check_call", {"wait_seconds": PATIENCE})


def return_value(value: str) -> Tool:
    return Tool("return_value", {"value": value})


def script_of(tool: str, arguments: dict[str, Any]) -> str:
    """What a call is known by: its command, or the tool's name. Of the other tools a run calls each at most once."""
    return str(arguments["command"]) if tool == "bash" and "command" in arguments else tool


def call_id_in(text: str) -> str:
    """Of a `call_agent` result, or of what a Call has printed; empty if there is none."""
    if found := CALLED.search(text):
        return found[1]
    try:
        return str(json.loads(text)["callId"])
    except (ValueError, KeyError, TypeError):
        return ""
