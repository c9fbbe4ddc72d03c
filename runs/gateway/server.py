"""The gateway's process: it listens on the addresses that the sandbox network has on this host, and on no other.

The worker makes that network when it first needs it, and writes the addresses into HOME/gateway.json. The file is
looked at again and again: it may come, change, and name an address that is not there yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from agents import private_files
from runs.gateway.asgi import App
from runs.gateway.routes import Routes

log = logging.getLogger(__name__)

LOOK_EVERY = 0.5  # seconds
STOPS_WITHIN = 1.0  # seconds for answers that are under way
CONNECTIONS = 1000
BACKLOG = 512
SWITCH_EVERY = 0.001  # seconds, a fifth of the usual: who asks for nothing but /health waits for the locks' thread

Place = tuple[str, int]  # address and port


def serve(home: Path) -> None:
    """Serve until told to stop."""
    sys.setswitchinterval(SWITCH_EVERY)
    asyncio.run(_serve(home))
    # Threads that wait for a locked database would keep the process for as long as that takes.
    os._exit(0)


async def _serve(home: Path) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    await serve_until(told, home / "gateway.json")


async def serve_until(told: asyncio.Event, file: Path) -> None:
    """Serve where `file` says, until `told` is set."""
    gateway = Gateway(file)
    log.info("the gateway is ready, and waits for %s", file)
    following = asyncio.create_task(gateway.follow())
    await told.wait()
    following.cancel()
    await gateway.stop()


class Gateway:
    """The server and where it listens."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._routes = Routes()
        self._config = Config(
            App(self._routes.table()),
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
        )
        self._config.load()
        self._state = ServerState()
        self.listening: dict[Place, asyncio.Server] = {}
        self._complained: dict[Place, str] = {}

    async def follow(self) -> None:
        """Listen where the file says, as long as it says so."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        wanted = set(places(private_files.read_json(self.file)))
        for place in set(self.listening) - wanted:
            self.listening.pop(place).close()
            log.info("no longer listening on %s:%d", *place)
        for place in wanted - set(self.listening):
            await self._listen(place)

    async def stop(self) -> None:
        """Answer what is under way, within a second, and let go of everything."""
        for server in self.listening.values():
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        self._routes.send_the_waiting_away()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=STOPS_WITHIN)
        self._routes.stop(STOPS_WITHIN / 2)

    async def _listen(self, place: Place) -> None:
        loop = asyncio.get_running_loop()
        try:
            self.listening[place] = await loop.create_server(self._connection, sock=_bound(place), backlog=BACKLOG)
        except OSError as error:  # an address that is not there yet, most of all
            if self._complained.get(place) != error.strerror:
                self._complained[place] = error.strerror or ""
                log.warning("not listening on %s:%d: %s", *place, error.strerror)
        else:
            self._complained.pop(place, None)
            log.info("listening on %s:%d", *place)

    def _connection(self) -> asyncio.Protocol:
        make: Any = self._config.http_protocol_class
        protocol = make(config=self._config, server_state=self._state, app_state={})
        protocol.access_log = False  # whatever loggers are set to: its lines hold secrets that stand in URLs
        made: asyncio.Protocol = protocol
        return made


def places(network: dict[str, Any]) -> Iterator[Place]:
    """Where gateway.json says to listen. One that stands for all addresses of the host is not taken."""
    addresses, port = network.get("addresses"), network.get("port")
    if not isinstance(addresses, list) or not isinstance(port, int):
        return
    for address in addresses:
        with contextlib.suppress(ValueError):
            if not ipaddress.ip_address(address).is_unspecified:
                yield str(address), port


def _bound(place: Place) -> socket.socket:
    """Raises OSError."""
    # The protocol has to be named: only then does asyncio switch off Nagle's algorithm, which costs 40 ms an answer.
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
    except OSError:
        bound.close()
        raise
    return bound
