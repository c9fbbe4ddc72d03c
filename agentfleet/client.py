"""The way to a server for Python programs and the command line: REST, with the address and token of `client.json`.

client = Client.here()
made = client.run("hello", "Say it in French.", wait=60)
task = client.wait_for(made["taskId"], timeout=600)
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from agentfleet import home
from agents import private_files

TERMINAL = {"finished", "failed", "canceled"}
AWAY_FOR = 30.0  # seconds without an answer before a follower gives up: a restart takes a few
AGAIN_AFTER = 0.2  # seconds until it is asked once more
CONNECT_WITHIN = 30.0  # seconds
ANSWER_WITHIN = 60.0  # seconds
BESIDE = 20.0  # seconds for an answer, beside those that it is to wait for a run
AT_ONE_TIME = 50.0  # seconds a request waits for a run: a proxy may end what takes a minute
LOOK_AFTER = 1.0  # seconds until a run that waits for a person is looked at again
INF = float("inf")
RESTARTING = {"500", "502", "503", "504"}  # what a proxy, or a server without its database, says meanwhile
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
            timeout=httpx.Timeout(CONNECT_WITHIN, read=ANSWER_WITHIN),
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

    def steadily(
        self, method: str, path: str, body: Any = None, *, until: float = INF, **options: Any
    ) -> dict[str, Any]:
        """`call`, over again while the server restarts: for what may be asked twice. Raises ServerSays, NoServer.

        Gives up after AWAY_FOR seconds without an answer, or at `until` of the monotonic clock.
        """
        give_up_at = INF
        while True:
            try:
                return self.call(method, path, body, **options)
            except NoServer as error:
                away = error
            except ServerSays as error:
                if error.code not in RESTARTING:
                    raise
                away = NoServer(str(error))
            give_up_at = min(give_up_at, time.monotonic() + AWAY_FOR, until)
            if time.monotonic() >= give_up_at:
                raise away
            time.sleep(AGAIN_AFTER)

    def run(
        self,
        agent: str,
        input: str = "",  # noqa: A002 - the word of the contract
        *,
        wait: float = 0,
        idempotency_key: str = "",
        **fields: Any,
    ) -> dict[str, Any]:
        """Start an agent by hand, once, however often the connection breaks; `fields` are those of the REST API.

        The answer has `taskId` and `status`. With `wait`, seconds up to 300, it comes when the run is over and has
        `output`, `error` and `task`, or when it waits for a person and has `task`. Raises ServerSays, NoServer.
        """
        return self.steadily(
            "POST",
            f"agents/{agent}/run",
            {"input": input, **fields},
            params={"wait": wait},
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
            timeout=self._for(wait),
        )

    def send(self, run_id: str, message: str, mode: str = "", *, idempotency_key: str = "") -> dict[str, Any]:
        """Say something to a run, once, however often the connection breaks. Raises ServerSays, NoServer.

        The answer has `outcome`, and the `taskId` of the run that hears it: a new one, if it was over.
        """
        return self.steadily(
            "POST",
            f"tasks/{run_id}/input",
            {"message": message, "mode": mode},
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
        )

    def wait_for(self, run_id: str, timeout: float | None = None, *, or_question: bool = False) -> dict[str, Any]:
        """The task once it is over; with `or_question` also once it waits for a person. Restarts of the server pass.

        Raises TimeoutError after `timeout` seconds, ServerSays, and NoServer if it stays away.
        """
        end = INF if timeout is None else time.monotonic() + timeout
        while True:
            answer = self._long_poll(run_id, end)
            if answer["status"] in TERMINAL or (or_question and "task" in answer):
                task: dict[str, Any] = answer["task"]
                return task
            if time.monotonic() >= end:
                raise TimeoutError(f"{run_id} is {answer['status']} after {timeout} s")
            if "task" in answer:  # it waits for a person, and asking again would be answered at once
                time.sleep(min(LOOK_AFTER, max(0.0, end - time.monotonic())))

    def _long_poll(self, run_id: str, end: float) -> dict[str, Any]:
        """What is so after some of the time until `end`. Raises TimeoutError if nobody answers until then."""
        left = max(0.0, min(AT_ONE_TIME, end - time.monotonic()))
        path, params = f"tasks/{run_id}/wait", {"timeout": f"{left:.3f}"}
        try:
            return self.steadily("GET", path, until=end, params=params, timeout=self._for(left))
        except NoServer as error:
            if time.monotonic() < end:
                raise
            raise TimeoutError(f"{run_id}: {error}") from error

    def _for(self, seconds: float) -> httpx.Timeout:
        return httpx.Timeout(CONNECT_WITHIN, read=seconds + BESIDE)

    def follow(self, run_id: str, *, after: int = 0) -> Iterator[dict[str, Any]]:
        """A run's events above `after`, stored and live, until it is over. Reconnects where the stream breaks.

        Raises ServerSays, and NoServer if it stays away.
        """
        task = self.call("GET", f"tasks/{run_id}")["task"]
        while task["status"] not in TERMINAL or after < task["eventCount"]:
            with contextlib.suppress(httpx.HTTPError):
                for event in self._stream(run_id, after):
                    after = event["id"]
                    yield event
            task = self.steadily("GET", f"tasks/{run_id}")["task"]

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
