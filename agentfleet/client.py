"""The command line's way to a server: REST, with the address and token of `client.json`."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from agentfleet import home
from agents import private_files

TERMINAL = {"finished", "failed", "canceled"}
AWAY_FOR = 30.0  # seconds without an answer before a follower gives up: a restart takes a few
# This machine is not reached through a company's proxy, whatever HTTP_PROXY says.
DIRECT = {f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")}


class ServerSays(Exception):
    """The server answered, and not with success."""

    def __init__(self, code: str, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.details = details


class NoServer(Exception):
    """Nothing answered; the message says what to do."""


class Client:
    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v1/",
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(30, read=60),
            mounts=DIRECT,
        )

    @classmethod
    def of(cls, folder: Path) -> Client:
        """For the server of this home, or of $AGENTFLEET_URL and $AGENTFLEET_TOKEN. Raises NoServer."""
        url, token = os.environ.get("AGENTFLEET_URL"), os.environ.get("AGENTFLEET_TOKEN")
        if url and token:
            return cls(url, token)
        known = private_files.read_json(folder / "client.json")
        if not known:
            raise NoServer(f"agentfleet is not up for {folder}: run `agentfleet up`, or set AGENTFLEET_URL and _TOKEN")
        return cls(known["url"], known["token"])

    @classmethod
    def here(cls) -> Client:
        return cls.of(home.path())

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> dict[str, Any]:
        """The answer's object. Raises ServerSays, NoServer."""
        try:
            answer = self._http.request(method, path, json=body, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NoServer(f"{self.url} does not answer: {error}") from error
        try:
            value: dict[str, Any] = answer.json()
        except ValueError:
            said = f"{answer.url} answered {answer.status_code}, and not in JSON: is it an agentfleet?"
            raise ServerSays(str(answer.status_code), said) from None
        if answer.is_success:
            return value
        fault = value.get("error")
        if not isinstance(fault, dict):
            raise ServerSays(str(answer.status_code), str(fault or value))
        raise ServerSays(str(fault.get("code")), str(fault.get("message")), fault.get("details"))

    def follow(self, run_id: str, *, after: int = 0) -> Iterator[dict[str, Any]]:
        """A run's events above `after`, stored and live, until it is over. Reconnects where the stream breaks.

        Raises ServerSays, and NoServer if it stays away.
        """
        task = self.call("GET", f"tasks/{run_id}")["task"]
        away_since: float | None = None
        while task["status"] not in TERMINAL or after < task["eventCount"]:
            with contextlib.suppress(httpx.HTTPError):
                for event in self._stream(run_id, after):
                    after = event["id"]
                    yield event
            try:
                task = self.call("GET", f"tasks/{run_id}")["task"]
                away_since = None
            except NoServer:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > AWAY_FOR:
                    raise
                time.sleep(0.2)

    def _stream(self, run_id: str, after: int) -> Iterator[dict[str, Any]]:
        headers = {"Last-Event-ID": str(after)}
        with self._http.stream("GET", f"tasks/{run_id}/stream", headers=headers) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                return
            name = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: ") and name == "task":
                    yield json.loads(line.removeprefix("data: "))
