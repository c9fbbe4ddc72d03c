"""What an agent's own program says in log lines: JSON objects with `"_log": true`, each on a line of its own.

They become events and the run's counters; every other line is output. Source: spec/action-llama.md 7.4.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from django.db.models import F

from agents import storable
from agents.redaction import RedactedStream, Redactor
from runs.events import New
from runs.models import Run

Record = dict[str, Any]

LONGEST = 64 * 1024  # bytes of a log line; a longer one is output
MOST = 10_000  # log lines of one call that become events; what they count and signal is heard all the same
TEXT_SHOWN = 20_000  # characters of an agent's words in their event
FIELD_SHOWN = 2_000  # of any other text
LARGEST_COUNT = 2**40  # tokens; a program that says more does not know what it says
LARGEST_COST = 1_000_000  # dollars

TYPES = ("agent.text", "agent.tool", "agent.usage", "log")

_may_begin = re.compile(rb"^[ \t]*(?:\{|\Z)", re.MULTILINE)

_COUNTERS = {
    "inputTokens": "input_tokens",
    "outputTokens": "output_tokens",
    "cacheReadTokens": "cache_read_tokens",
    "cacheWriteTokens": "cache_write_tokens",
    "turnCount": "turns",
}


class PlainStream:
    """Output in which nothing is a log line. `consumed` raw bytes are in what it gave out."""

    def __init__(self, redactor: Redactor) -> None:
        self._plain = RedactedStream(redactor)

    @property
    def consumed(self) -> int:
        return self._plain.consumed

    def feed(self, data: bytes, *, last: bool = False) -> list[str | Record]:
        text = self._plain.feed(data, last=last)
        return [text] if text else []


class LogStream:
    """Raw output as clean text and log lines, in their order. `consumed` raw bytes are in what it gave out.

    It holds back a line that may become a log line until it is whole; the records are not redacted.
    """

    def __init__(self, redactor: Redactor, *, inside_line: bool = False) -> None:
        self._plain = RedactedStream(redactor)
        self._held = b""
        self._inside_line = inside_line  # the beginning of the current line has been given out as text
        self._logged = 0

    @property
    def consumed(self) -> int:
        return self._plain.consumed + self._logged

    def feed(self, data: bytes, *, last: bool = False) -> list[str | Record]:
        """The pieces that are whole with `data`; all there is, with `last`."""
        data = self._held + data
        pieces: list[str | Record] = []
        done = 0  # up to here it has been given out
        for start, end in self._lines(data, last=last):
            record = parsed(data[start:end])
            if record is not None:
                pieces += [self._plain.feed(data[done:start], last=True), record]
                self._logged += end - start
                done = end
        plain, self._held = data[done : len(data) - self._unfinished], data[len(data) - self._unfinished :]
        pieces.append(self._plain.feed(plain, last=last))
        if data:
            self._inside_line = not self._held and not data.endswith(b"\n")
        return [piece for piece in pieces if piece != ""]

    def _lines(self, data: bytes, *, last: bool) -> Iterator[tuple[int, int]]:
        """Where whole lines stand that may be log lines. Sets how many bytes at the end may be the next one's."""
        self._unfinished = 0
        at = 1 if self._inside_line else 0
        while (found := _may_begin.search(data, at)) is not None:
            start = found.start()
            end = data.find(b"\n", start) + 1 or len(data)
            if data[end - 1 : end] == b"\n" or last:
                yield start, end
            elif end - start <= LONGEST:
                self._unfinished = end - start
            if end == len(data):
                return
            at = end


def parsed(line: bytes) -> Record | None:
    """The object, if the line is a log line."""
    if len(line) > LONGEST or b'"_log"' not in line:
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.get("_log") is True else None


class Listener:
    """Turns the log lines of one call into events, and gathers what they add to the run until that is stored."""

    def __init__(self, call_id: str, redactor: Redactor, *, events: int = 0) -> None:
        self._call_id = call_id
        self._redactor = redactor
        self._events = events  # that there are already
        self._spent: dict[str, int | Decimal] = {}
        self._said: dict[str, Any] = {}

    def hear(self, record: Record) -> list[New]:
        message = str(record.get("msg", ""))
        heard = (_heard.get(message) or Listener._other)(self, record)
        self._events += 1
        if self._events > MOST:
            return [New("output.cut", {"callId": self._call_id, "kept": MOST})] if self._events == MOST + 1 else []
        return [heard]

    def columns(self) -> dict[str, Any]:
        """Of the run's row: what has been heard since the last store."""
        return {**{name: F(name) + count for name, count in self._spent.items()}, **self._said}

    def stored(self, run: Run) -> bool:
        """It is in the run's row now: put it into `run` too. Whether the run has spent something."""
        for name, count in self._spent.items():
            setattr(run, name, getattr(run, name) + count)
        for name, value in self._said.items():
            setattr(run, name, value)
        spent = bool(self._spent)
        self._spent, self._said = {}, {}
        return spent

    def _text(self, record: Record) -> New:
        return New("agent.text", {"callId": self._call_id, "text": _cut(record.get("text", ""), TEXT_SHOWN)})

    def _bash(self, record: Record) -> New:
        return New(
            "agent.tool", {"callId": self._call_id, "toolName": "bash", "state": "start", **_shown(record, "cmd")}
        )

    def _tool(self, record: Record) -> New:
        state = str(record["msg"]).removeprefix("tool ")
        tool = _cut(record.get("tool", ""), 200)
        return New(
            "agent.tool",
            {
                "callId": self._call_id,
                "toolName": tool,
                "state": state,
                **_shown(record, "cmd", "result", "resultLength"),
            },
        )

    def _usage(self, record: Record) -> New:
        counts = {name: _count(record.get(name)) for name in _COUNTERS}
        cost = _dollars(record.get("cost"))
        for name, count in counts.items():
            self._spend(_COUNTERS[name], count)
        self._spend("cost", cost)
        return New("agent.usage", {"callId": self._call_id, **counts, "costUsd": str(cost)})

    def _spend(self, column: str, amount: int | Decimal) -> None:
        if amount:
            self._spent[column] = self._spent.get(column, 0) + amount

    def _signal(self, record: Record) -> New:
        match record:
            case {"type": "exit", "exitCode": int(code)} if 0 <= code <= 255:
                self._said["exit_requested"] = code
                return New("signal.exit", {"code": code})
            case {"type": "rerun"}:
                self._said["rerun_requested"] = True
                return New("signal.rerun")
            case {"type": "return", "value": str(value)}:
                self._said["return_value"] = self._redactor.text(storable.text(value))
                return New("signal.return", {"value": value[:FIELD_SHOWN]})
        return self._other(record)

    def _other(self, record: Record) -> New:
        known = {"_log", "level", "msg", "ts"}
        fields = {str(name)[:100]: _any(value) for name, value in list(record.items())[:50] if name not in known}
        level, message = str(record.get("level", "info"))[:20], _cut(record.get("msg", ""), FIELD_SHOWN)
        return New(
            "log", {"callId": self._call_id, "level": level, "msg": message, **({"fields": fields} if fields else {})}
        )


_heard: dict[str, Callable[[Listener, Record], New]] = {
    "assistant": Listener._text,  # noqa: SLF001 - its own table
    "bash": Listener._bash,  # noqa: SLF001
    "tool start": Listener._tool,  # noqa: SLF001
    "tool done": Listener._tool,  # noqa: SLF001
    "tool error": Listener._tool,  # noqa: SLF001
    "token-usage": Listener._usage,  # noqa: SLF001
    "signal-result": Listener._signal,  # noqa: SLF001
}


def _cut(value: Any, characters: int) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:characters]


def _any(value: Any) -> Any:
    """As it is, or its JSON cut, where it is long or deep."""
    return value if isinstance(value, int | float | bool | None) else _cut(value, FIELD_SHOWN)


def _shown(record: Record, *names: str) -> dict[str, Any]:
    return {name: _any(record[name]) for name in names if name in record}


def _count(value: Any) -> int:
    """A whole number as programs write it; 0 for what cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return int(value) if 0 <= value <= LARGEST_COUNT else 0


def _dollars(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return Decimal(0)
    return round(Decimal(str(value)), 6) if 0 <= value <= LARGEST_COST else Decimal(0)
