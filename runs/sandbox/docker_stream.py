"""What a command prints, out of the engine's stream of an exec."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from runs.sandbox.base import Following, Outcome, Sandbox, SandboxGone, outcome_of

DIES_WITHIN = 1.0  # seconds from the end of a container's streams to the engine's knowing of it


class DockerFollowing(Following):
    """Reads the engine's framed stream: 8 bytes of header (which stream, how long), then that many of data."""

    HEADER = struct.Struct(">BxxxL")
    STDOUT = 1

    def __init__(self, find: Callable[[str], Sandbox], sandbox: Sandbox, stream: Any, raw: socket.socket) -> None:
        self._find = find
        self._sandbox = sandbox
        self._stream = stream
        self._raw = raw
        self._buffer = bytearray(_read_ahead(stream, raw))
        self._said = b""  # by the keeper, on stderr
        self._closed = False

    def read(self, timeout: float) -> bytes | None:
        if data := self._frames():
            return data
        try:
            waiting = select.poll()  # unlike select, at home with more than 1024 open files
            waiting.register(self._raw, select.POLLIN)
            if not waiting.poll(timeout * 1000):
                return b""
            received = self._raw.recv(256 * 1024)
        except (OSError, ValueError):  # closed by another thread, or the engine went away
            received = b""
        if not received:
            self._finish()
            return None
        self._buffer += received
        return self._frames()

    def outcome(self) -> Outcome:
        return outcome_of(self._said.decode("utf-8", "replace").strip().rpartition("\n")[2])

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_RDWR)

    def _frames(self) -> bytes:
        """The output in all complete frames received so far; the keeper's own words are put aside."""
        output = bytearray()
        while len(self._buffer) >= self.HEADER.size:
            kind, length = self.HEADER.unpack_from(self._buffer)
            end = self.HEADER.size + length
            if len(self._buffer) < end:
                break
            data = self._buffer[self.HEADER.size : end]
            if kind == self.STDOUT:
                output += data
            else:
                self._said = (self._said + data)[-2000:]
            del self._buffer[:end]
        return bytes(output)

    def _finish(self) -> None:
        """The stream's end is not the command's: without the keeper's last word, ask what became of the sandbox."""
        self._stream._response.close()  # noqa: SLF001 - or the connection would wait for the garbage collector
        self._raw.close()
        if self._closed or self._said:
            return
        # The stream of a dying container ends some milliseconds before the engine says that it has died.
        end = time.monotonic() + DIES_WITHIN
        while self._find(self._sandbox.name) == self._sandbox:
            if time.monotonic() > end:
                self._said = b"lost"  # the container stands: only the keeper was killed
                return
            time.sleep(0.02)
        raise SandboxGone(f"container {self._sandbox.name} was started anew")


def _read_ahead(stream: Any, raw: socket.socket) -> bytes:
    """What came together with the head of the answer: the SDK's reader has it, and the socket has it no more."""
    timeout = raw.gettimeout()
    raw.setblocking(False)
    try:
        ahead: bytes = stream._response.raw._fp.fp.peek()  # noqa: SLF001 - the SDK shows it to nobody
    finally:
        raw.settimeout(timeout)
    return ahead
