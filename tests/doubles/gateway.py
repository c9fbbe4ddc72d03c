"""A gateway that answers as a test says and remembers what it was asked, with everybody's arguments at that moment."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

OK = (200, '{"ok":true}')

Answer = tuple[int, str]  # status and body
Answers = Callable[["Asked"], Answer]


@dataclass(frozen=True)
class Asked:
    method: str
    path: str  # with the query, unquoted
    bearer: str
    body: dict[str, Any]


class StubGateway:
    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.asked: list[Asked] = []
        self.arguments: set[str] = set()  # command lines of all processes of this machine, seen with each request

    def take(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        self.arguments.update(command_lines())
        return self.answers(asked)


def command_lines() -> Iterator[str]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield file.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:  # it has ended
            continue


@contextmanager
def stub_gateway(address: str, port: int, answers: Answers = lambda _: OK) -> Iterator[StubGateway]:
    stub = StubGateway(answers)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, said = stub.take(Asked(self.command, unquote(self.path), bearer, json.loads(body or b"{}")))
            self.send_response(status)
            self.send_header("Content-Length", str(len(said.encode())))
            self.end_headers()
            self.wfile.write(said.encode())

        do_GET = do_POST = answer  # noqa: N815 - their names are the protocol's

        def log_message(self, *args: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer((address, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
