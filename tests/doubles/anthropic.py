"""A stand-in for the Anthropic Messages API over real HTTP: streams what a plan says and remembers every request.

    with MockAnthropic(plan) as mock:   # mock.url goes into ANTHROPIC_BASE_URL

A plan is asked once per request and gives a Reply. `python -m tests.doubles.anthropic PORT` serves `two_turns`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Reply:
    text: str = ""
    tools: list[tuple[str, dict[str, Any] | str]] = field(default_factory=list)  # a string is sent as it is
    thinking: str = ""  # a block before the text, signed "signed: <thinking>"
    redacted: str = ""  # a block of thinking that only the provider can read
    delay: float = 0.0  # seconds before the first byte
    pace: float = 0.0  # seconds between events
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: str = ""
    kind: str = "mock_error"  # the error's type, as the provider names it
    cut: bool = False  # hang up in the middle of the stream
    short: bool = False  # end the stream in its middle as if that were all
    trouble: str = ""  # the type of an error event in the middle of the stream
    stop: str = ""


@dataclass(frozen=True)
class Asked:
    at: float  # time.time()
    body: dict[str, Any]
    key: str

    @property
    def turn(self) -> int:
        return sum(1 for message in self.body["messages"] if message["role"] == "assistant")

    def shown(self) -> str:
        """What the newest message says, tool results included, as JSON."""
        return json.dumps(self.body["messages"][-1]["content"])


Plan = Callable[[Asked], Reply]


def two_turns(asked: Asked) -> Reply:
    """The bench's minimal run: one `echo` in the sandbox, then an answer."""
    if asked.turn == 0:
        return Reply(tools=[("bash", {"command": "echo hello from the sandbox"})])
    return Reply(text="done")


class MockAnthropic:
    def __init__(self, plan: Plan = two_turns, *, port: int = 0, remember: bool = True) -> None:
        self.plan = plan
        self.asked: list[Asked] = []
        self.hung_up: list[Asked] = []  # requests with a delay or a pace whose asker left before the end
        self.connections = 0
        self._remember = remember
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._calls = 0

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                pairs = (line.partition(": ") for line in head.decode().split("\r\n")[1:])
                headers = {name.lower(): value for name, _, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
                asked = Asked(time.time(), json.loads(body), key)
                if self._remember:
                    self.asked.append(asked)
                await self._answer(reader, writer, asked)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # a task of a stream server that ends as cancelled would be reported as an error
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked) -> None:
        reply = await asyncio.get_running_loop().run_in_executor(None, self.plan, asked)
        if not reply.delay and not reply.pace:
            await self._say(writer, asked, reply)
            return
        saying = asyncio.ensure_future(self._say(writer, asked, reply))
        leaving = asyncio.ensure_future(reader.read(1))  # nobody sends more before the answer's end
        try:
            await asyncio.wait({saying, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not saying.done():
                self.hung_up.append(asked)
                raise ConnectionAbortedError
        finally:
            saying.cancel()
            leaving.cancel()
            await asyncio.gather(saying, leaving, return_exceptions=True)

    async def _say(self, writer: asyncio.StreamWriter, asked: Asked, reply: Reply) -> None:
        await asyncio.sleep(reply.delay)
        if reply.status != 200:
            error = {"type": "error", "error": {"type": reply.kind, "message": reply.error or "no"}}
            payload = json.dumps(error).encode()
            writer.write(_head(reply.status, "application/json", reply.headers, len(payload)) + payload)
            await writer.drain()
            return
        events = [_event(event) for event in self._events(asked, reply)]
        half = events[: len(events) // 2 + 1]
        if reply.trouble:
            error = {"type": "error", "error": {"type": reply.trouble, "message": reply.error or "no"}}
            events = [*half, _event(error)]
        elif reply.short:
            events = half
        writer.write(_head(200, "text/event-stream", reply.headers, sum(map(len, events))))
        said = half if reply.cut else events
        for event in said if reply.pace else [b"".join(said)]:
            writer.write(event)
            await writer.drain()
            await asyncio.sleep(reply.pace)
        if reply.cut:
            writer.transport.abort()

    def _events(self, asked: Asked, reply: Reply) -> list[dict[str, Any]]:
        usage = {
            "input_tokens": 100,
            "output_tokens": 1,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
        }
        message = {
            "id": "msg_mock",
            "type": "message",
            "role": "assistant",
            "model": asked.body["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        events: list[dict[str, Any]] = [{"type": "message_start", "message": message}]
        index = 0
        if reply.thinking:
            events.append(_start_block(index, {"type": "thinking", "thinking": "", "signature": ""}))
            events += [_delta(index, {"type": "thinking_delta", "thinking": word}) for word in _pieces(reply.thinking)]
            events.append(_delta(index, {"type": "signature_delta", "signature": f"signed: {reply.thinking}"}))
            events.append({"type": "content_block_stop", "index": index})
            index += 1
        if reply.redacted:
            events.append(_start_block(index, {"type": "redacted_thinking", "data": reply.redacted}))
            events.append({"type": "content_block_stop", "index": index})
            index += 1
        if reply.text:
            events.append(_start_block(index, {"type": "text", "text": ""}))
            events += [_delta(index, {"type": "text_delta", "text": word}) for word in _pieces(reply.text)]
            events.append({"type": "content_block_stop", "index": index})
            index += 1
        for name, arguments in reply.tools:
            self._calls += 1
            block = {"type": "tool_use", "id": f"toolu_{self._calls}", "name": name, "input": {}}
            events.append(_start_block(index, block))
            pieces = _pieces(arguments if isinstance(arguments, str) else json.dumps(arguments))
            events += [_delta(index, {"type": "input_json_delta", "partial_json": piece}) for piece in pieces]
            events.append({"type": "content_block_stop", "index": index})
            index += 1
        stop = reply.stop or ("tool_use" if reply.tools else "end_turn")
        delta = {"stop_reason": stop, "stop_sequence": None}
        events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 20}})
        events.append({"type": "message_stop"})
        return events


def _start_block(index: int, block: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def _pieces(text: str) -> list[str]:
    return [text[start : start + 40] for start in range(0, len(text), 40)]


def _event(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def _head(status: int, kind: str, extra: dict[str, str], length: int) -> bytes:
    headers = {"content-type": kind, "content-length": str(length), **extra}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Mock\r\n{lines}\r\n".encode()


if __name__ == "__main__":
    with MockAnthropic(port=int(sys.argv[1])) as mock:
        print(mock.url, flush=True)  # noqa: T201
        threading.Event().wait()
