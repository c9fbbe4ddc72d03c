"""A tool call's hands: commands in the sandbox, at most once each, followed line by line."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from django.db.models import F

from runs import events, limits, log_lines
from runs.db import release_connection
from runs.log_lines import Listener, LogStream, PlainStream
from runs.models import Event, ToolCall
from runs.sandbox.base import Command, Ending, Following, Sandbox, SandboxGone
from runs.step import Step
from runs.tools.base import RESULT_CHARACTERS, Finished

GATHER = 0.1  # seconds of output in one event…
GATHER_CHARACTERS = 32 * 1024  # …unless it is this much
GATHER_EVENTS = 500  # …or these are as many
KEPT = 1024 * 1024  # characters of one call's output that become events
STRETCH = 30.0  # seconds a step follows a command before it gives others its thread
WHOLE = 4 * 1024 * 1024  # bytes that a command which is not live may print
INSIDE_FIRST = 30  # seconds the sandbox's own watchdog has before the outside gives up on it


STOP_GRACE = 3  # seconds that an interrupted command has to end by itself
STOPPED_WITHIN = 2.0  # seconds after that until its last word is read
NOTHING = ("true",)  # a command that does nothing


class Again(Exception):
    """The stretch is over and the command is not: what came is stored; the next step goes on from there."""


class CallLost(Exception):
    """The command may have run, and nobody can tell how far."""


class Excerpt:
    """The head and the tail of a long text, as it comes in."""

    def __init__(self, limit: int = RESULT_CHARACTERS) -> None:
        self._half = limit // 2
        self._head = ""
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self.size = 0

    def feed(self, text: str) -> None:
        self.size += len(text)
        room = self._half - len(self._head)
        self._head += text[:room]
        if rest := text[room:]:
            self._tail.append(rest)
            self._tail_size += len(rest)
            while self._tail_size - len(self._tail[0]) >= self._half:
                self._tail_size -= len(self._tail.popleft())

    def text(self) -> str:
        tail = "".join(self._tail)[-self._half :]
        missing = self.size - len(self._head) - len(tail)
        note = f"\n[… {missing} characters left out …]\n" if missing > 0 else ""
        return self._head + note + tail


class CallHands:
    """The hands of one tool call in one step."""

    def __init__(self, step: Step, call: ToolCall, sandbox: Sandbox, *, forget: Sequence[str] = ()) -> None:
        self._step = step
        self._call = call
        self._sandbox = sandbox
        self._forget = forget
        self._commands = 0
        self._inside_first: float = INSIDE_FIRST
        self.signals_left = False  # a command has left signal files
        self.unstored: list[events.New] = []  # output not yet stored: goes into the call's last transaction
        self.offset = self._stored = call.offset
        self._listener: Listener | None = None  # of a program whose log lines count
        self._excerpt = Excerpt()  # of all the text that has come
        self._gathered = ""  # text that is no event yet

    def exec(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: int = 60, live: bool = False, logs: bool = False
    ) -> Finished:
        """See `Hands.exec`. With `logs`, log lines in live output are heard.

        Raises Halted, Again, CallLost, SandboxError.
        """
        if logs:
            self._listener = Listener(self._call.call_id, self._step.redactor, events=self._logged_so_far())
        command = Command(
            call_id=f"{self._call.call_id}.{self._commands}",
            argv=argv,
            stdin=stdin,
            timeout=timeout,
            forget=self._forget if self._commands == 0 else (),
        )
        self._commands += 1
        release_connection()
        self._step.know_secrets(self._sandbox)
        following = self._step.engine.exec(self._sandbox, command, offset=self.offset if live else 0)
        self._step.halt.listen(following.close)
        try:
            text, raw = self._follow_live(following, timeout) if live else self._follow_whole(following, timeout)
        finally:
            self._step.halt.ignore(following.close)
            following.close()
            following.read(0)
        self._step.halt.check()
        outcome = following.outcome()
        if outcome.ending is Ending.LOST:
            raise CallLost
        self.signals_left = self.signals_left or outcome.signals
        return Finished(text, raw, outcome.ending, outcome.exit_code)

    def stop(self, *, live: bool) -> Finished:
        """End what this call has begun, and follow that to its end. What has not begun never will.

        Raises SandboxGone if it does not end; else as `exec`.
        """
        release_connection()
        self._step.engine.stop_commands(self._sandbox, grace=STOP_GRACE)
        self._inside_first = STOPPED_WITHIN
        return self.exec(NOTHING, timeout=1, live=live)

    def printed(self) -> str:
        """What is stored of the call's output."""
        return self._stored_so_far().text()

    def _follow_whole(self, following: Following, timeout: int) -> tuple[str, bytes]:
        gathered = bytearray()
        end = time.monotonic() + timeout + self._inside_first
        release_connection()
        while (data := following.read(1.0)) is not None:
            gathered += data[: WHOLE - len(gathered)]
            self._give_up_after(end, timeout)
        return gathered.decode("utf-8", "replace"), bytes(gathered)

    def _follow_live(self, following: Following, timeout: int) -> tuple[str, bytes]:
        self._excerpt = self._stored_so_far()
        stream = self._stream(self._excerpt)
        began_at = self._call.offset
        flush_at = now = time.monotonic()
        stretch_end, end = now + STRETCH, now + timeout + self._inside_first
        while True:
            release_connection()
            data = following.read(max(0.0, flush_at - now) if self._waiting() else 1.0)
            if data:
                self._step.progressed()
            now = time.monotonic()
            if not self._waiting():
                flush_at = now + GATHER
            self._take(stream.feed(data or b"", last=data is None))
            self.offset = began_at + stream.consumed
            if data is None:
                self._gather()
                return self._excerpt.text(), b""
            if self._waiting() and (now >= flush_at or self._is_much()):
                self._store()
                limits.check_output(self._step.run, self._step.spec, self._step.run.output_bytes)
            if now >= stretch_end:
                self._store()
                raise Again
            self._give_up_after(end, timeout)

    def _waiting(self) -> bool:
        """Whether there is something to store."""
        return bool(self._gathered or self.unstored)

    def _is_much(self) -> bool:
        return len(self._gathered) >= GATHER_CHARACTERS or len(self.unstored) >= GATHER_EVENTS

    def _take(self, pieces: Sequence[str | log_lines.Record]) -> None:
        for piece in pieces:
            if isinstance(piece, str):
                self._excerpt.feed(piece)
                self._gathered += piece
            else:
                self._gather()
                self._hear(piece)

    def _stream(self, stored: Excerpt) -> PlainStream | LogStream:
        if self._listener is None:
            return PlainStream(self._step.redactor)
        return LogStream(self._step.redactor, inside_line=stored.size > 0 and not stored.text().endswith("\n"))

    def _hear(self, record: log_lines.Record) -> None:
        assert self._listener is not None
        self.unstored += self._listener.hear(record)

    def _logged_so_far(self) -> int:
        """How many log lines of this call earlier steps stored as events."""
        if not self.offset:
            return 0
        stored = Event.objects.filter(run_id=self._step.run.pk, type__in=log_lines.TYPES)
        return stored.filter(data__callId=self._call.call_id).count()

    def _stored_so_far(self) -> Excerpt:
        """What earlier steps stored of this call's output."""
        excerpt = Excerpt()
        if self.offset:
            rows = Event.objects.filter(run_id=self._step.run.pk, type="output", data__callId=self._call.call_id)
            for data in rows.order_by("number").values_list("data", flat=True):
                excerpt.feed(data["text"])
        return excerpt

    def _gather(self) -> None:
        """Make an event of the text that has come since the last one, up to the cap."""
        text, self._gathered = self._gathered, ""
        room = KEPT - (self._excerpt.size - len(text))
        if text and room > 0:
            self.unstored.append(events.New("output", {"callId": self._call.call_id, "text": text[:room]}))
            if len(text) >= room:
                note = {"callId": self._call.call_id, "kept": KEPT}
                self.unstored.append(events.New("output.cut", note))

    def _store(self) -> None:
        self._gather()
        # A stretch that was followed in silence is none of the model's or the command's words, but no takeover either.
        with self._step.write(*self.unstored, progress=bool(self.unstored), takeovers=0, **self.counted()):
            ToolCall.objects.filter(pk=self._call.pk).update(offset=self.offset)
        self._step.run.output_bytes += self.offset - self._stored
        self._stored = self.offset
        self.unstored = []
        if self._listener is not None and self._listener.stored(self._step.run):
            limits.check_budget(self._step.run, self._step.spec)

    def counted(self) -> dict[str, Any]:
        """The run's columns for what has been printed, and logged, since the last store."""
        printed = self.offset - self._stored
        heard = self._listener.columns() if self._listener is not None else {}
        return {**heard, **({"output_bytes": F("output_bytes") + printed} if printed else {})}

    def _give_up_after(self, end: float, timeout: int) -> None:
        if time.monotonic() > end:
            raise SandboxGone(f"the command should have been killed after {timeout} s and still runs")
