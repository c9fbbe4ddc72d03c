"""Locks through the gateway's process: pairs of acquire and release, durable, asked for by many at once.

python -m bench.locks CLIENTS SECONDS     on the database of the environment; prints what it found as JSON
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentfleet.ports import free_port
from agents import private_files
from bench.figures import AtLeast, AtMost, Bound, Figure, Unmeasured, percentile

RATE = 400.0  # pairs a second
WARM_UP = 1.0  # seconds
ANSWERS_WITHIN = 15.0  # seconds that the gateway has until its first answer
ADDRESS = "127.0.0.1"

Turn = Callable[["Client"], Awaitable[None]]
GoOn = Callable[["Client", float], Awaitable[None]]  # until that time


def pairs(clients: int, seconds: float, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """Of `clients` at once. The floor asks the same server for nothing."""
    with tempfile.TemporaryDirectory(prefix="agentfleet-bench-") as home:
        argv = [sys.executable, "-m", "bench.locks", str(clients), str(seconds)]
        settings = {**os.environ, **env, "AGENTFLEET_HOME": home}
        done = subprocess.run(argv, env=settings, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    as_many, paced, contended = found["lock_pairs"], found["lock_latency"], found["lock_contention"]
    yield _shown(
        "lock_pairs", "pairs/s, ms", as_many, AtLeast(RATE), value=as_many["pairs"], floor=found["floor"]["pairs"]
    )
    yield _shown("lock_latency", "ms", paced, AtMost("p99", 30))
    yield _shown("lock_contention", "answers/s, ms", contended, value=contended["answers"])


def _shown(
    name: str,
    unit: str,
    found: Mapping[str, Any],
    *bounds: Bound,
    value: float | None = None,
    floor: float | None = None,
) -> Figure:
    figure = Figure.of_samples(name, unit, found["ms"], *bounds)
    return replace(figure, p99=percentile(found["ms"], 99), value=value, floor=floor)


class Client(asyncio.Protocol):
    """One connection that is kept, and how long each answer took. As lean as can be: the server is what is measured."""

    def __init__(self, port: int, secret: str, key: str) -> None:
        self._port = port
        body = json.dumps({"secret": secret, "resourceKey": key})
        self._requests = {
            path: f"POST {path} HTTP/1.1\r\nHost: {ADDRESS}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            for path in ("/locks/acquire", "/locks/release")
        } | {"/health": f"GET /health HTTP/1.1\r\nHost: {ADDRESS}\r\n\r\n".encode()}
        self._answer: asyncio.Future[int] | None = None
        self._received = b""
        self.milliseconds: list[float] = []
        self.pairs = 0

    async def connect(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._loop.create_connection(lambda: self, ADDRESS, self._port)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if end and len(body) == int(head.rpartition(b"content-length: ")[2].partition(b"\r")[0]):
            assert self._answer is not None, "nothing was asked"
            self._received = b""
            self._answer.set_result(int(head[9:12]))

    async def ask(self, path: str, due_at: float | None = None) -> int:
        """The status. Timed from when it was due, if it comes later than that."""
        began = due_at or time.perf_counter()
        self._answer = self._loop.create_future()
        self._transport.write(self._requests[path])
        status = await self._answer
        self.milliseconds.append((time.perf_counter() - began) * 1000)
        return status


async def pair(client: Client, due_at: float | None = None) -> None:
    """Get the client's key and give it back; if another has it, that was all."""
    if await client.ask("/locks/acquire", due_at) == 409:
        return
    released = await client.ask("/locks/release")
    assert released == 200, f"what one has can be released, and this was {released}"
    client.pairs += 1


async def nothing(client: Client) -> None:
    for _ in range(2):
        await client.ask("/health")
    client.pairs += 1


async def at_once(clients: list[Client], turn: Turn, seconds: float) -> dict[str, Any]:
    """Each asks again as soon as it has its answer."""

    async def go_on(client: Client, until: float) -> None:
        while time.perf_counter() < until:
            await turn(client)

    return await _measured(clients, go_on, seconds)


async def at_a_rate(clients: list[Client], rate: float, seconds: float) -> dict[str, Any]:
    """So many pairs a second, whether or not those before them have been answered in time."""
    every = len(clients) / rate

    async def go_on(client: Client, until: float) -> None:
        due_at = time.perf_counter() + every * clients.index(client) / len(clients)
        while due_at < until:
            await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
            await pair(client, due_at)
            due_at += every

    return await _measured(clients, go_on, seconds)


async def _measured(clients: list[Client], go_on: GoOn, seconds: float) -> dict[str, Any]:
    await asyncio.gather(*(client.connect() for client in clients))
    for length in (WARM_UP, seconds):
        for client in clients:
            client.milliseconds, client.pairs = [], 0
        began = time.perf_counter()
        await asyncio.gather(*(go_on(client, began + length) for client in clients))
    took = time.perf_counter() - began
    samples = [sample for client in clients for sample in client.milliseconds]
    return {"pairs": sum(client.pairs for client in clients) / took, "answers": len(samples) / took, "ms": samples}


@contextmanager
def gateway(home: Path) -> Iterator[int]:
    """The real process; its port."""
    port = free_port()
    private_files.write_json(home / "gateway.json", {"addresses": [ADDRESS], "port": port})
    with subprocess.Popen([sys.executable, "-m", "agentfleet", "gateway"]) as process:
        try:
            asyncio.run(_until_it_answers(port))
            yield port
        finally:
            process.terminate()


async def _until_it_answers(port: int) -> None:
    end = time.monotonic() + ANSWERS_WITHIN
    while time.monotonic() < end:
        client = Client(port, "", "")
        try:
            await client.connect()
            await client.ask("/health")
        except OSError:
            await asyncio.sleep(0.05)
        else:
            return
    raise Unmeasured("the gateway does not answer")


def main(count: int, seconds: float) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentfleet.settings")
    import django  # noqa: PLC0415 - the home must be known first

    django.setup()
    from django.conf import settings  # noqa: PLC0415
    from django.core.management import call_command  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    secrets = _secrets(count)
    with gateway(settings.HOME) as port:
        print(json.dumps(asyncio.run(_all_figures(port, secrets, seconds))))


async def _all_figures(port: int, secrets: list[str], seconds: float) -> dict[str, Any]:
    def clients(key: str) -> list[Client]:
        return [Client(port, secret, key.format(number)) for number, secret in enumerate(secrets)]

    return {
        "floor": await at_once(clients("none"), nothing, seconds),
        "lock_pairs": await at_once(clients("github://acme/app/issues/{}"), pair, seconds),
        "lock_latency": await at_a_rate(clients("github://acme/app/pulls/{}"), RATE, seconds),
        "lock_contention": await at_once(clients("the one"), pair, seconds),
    }


def _secrets(count: int) -> list[str]:
    """Of so many attempts at work."""
    from tests.at_work import at_work, secret_of  # noqa: PLC0415

    return [secret_of(at_work()) for _ in range(count)]


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
