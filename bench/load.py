"""What is sent: signed webhooks, one by one or at a steady rate, and bursts of runs."""

from __future__ import annotations

import functools
import hashlib
import hmac
import http.client
import itertools
import json
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.containers import Removals
from bench.figures import Unmeasured
from tests.box import Box

PAYLOADS = Path(__file__).parents[1] / "tests" / "data" / "github"
PUSH_SIZE = 11_000  # bytes at least: a push of a few commits
SENDERS = 32  # requests that may be under way before an open loop would have to wait for one
BURST_WITHIN = 300.0  # seconds


@dataclass(frozen=True)
class Webhook:
    """A request as GitHub makes it, signed. `send` opens a connection of its own, as GitHub does."""

    headers: dict[str, str]
    body: bytes

    def send(self, url: str) -> dict[str, Any]:
        """The answer. Raises Unmeasured if it is not 200."""
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        try:
            connection.request("POST", "/webhooks/github", self.body, self.headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise Unmeasured(f"a webhook was answered {answer.status} {text[:200]!r}")
        said: dict[str, Any] = json.loads(text)
        return said


def issue_opened(number: int, secret: str) -> Webhook:
    """A new issue; another number is another body."""
    payload = json.loads((PAYLOADS / "issues.opened.json").read_bytes())
    payload["issue"]["number"] = number
    return signed("issues", payload, secret)


def push(number: int, secret: str) -> Webhook:
    """A push of several commits, 11 KB; another number is another body."""
    return signed("push", {**_long_push(), "after": f"{number:040x}"}, secret)


def signed(event: str, payload: dict[str, Any], secret: str) -> Webhook:
    body = json.dumps(payload, separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": secrets.token_hex(16),
        "X-Hub-Signature-256": f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}",
    }
    return Webhook(headers, body)


def open_loop(
    send: Callable[[int], object], *, rate: float, stop: threading.Event, senders: int = SENDERS
) -> list[float]:
    """Call `send(0)`, `send(1)`, … `rate` times a second until told to stop, however long each takes.

    Milliseconds from when each was due, not from when it got its turn, to its end: a sender that is late, or a
    server that makes others queue, counts in full. Raises what a `send` raised.
    """

    def timed(number: int, due: float) -> float:
        send(number)
        return (time.monotonic() - due) * 1000

    start = time.monotonic()
    with ThreadPoolExecutor(senders) as pool:
        waits = []
        for number in itertools.count():
            due = start + number / rate
            if stop.wait(max(0.0, due - time.monotonic())):
                break
            waits.append(pool.submit(timed, number, due))
        return [wait.result() for wait in waits]


def burst(box: Box, agent: str, count: int) -> float:
    """Seconds from the first of `count` submits until all runs are finished and all their containers gone."""
    with Removals() as removals:
        began = time.time()
        run_ids = [box.start(agent) for _ in range(count)]
        gone_at = removals.wait(count, within=BURST_WITHIN)
        finished_at = max(finished(box, run_id) for run_id in run_ids)
    return max(gone_at, finished_at) - began


def finished(box: Box, run_id: str) -> float:
    """When the run finished, as `time.time()`. Raises Unmeasured if it ended otherwise."""
    task = box.wait(run_id)
    if task["status"] != "finished":
        raise Unmeasured(f"{run_id} is {task['status']}: {task['error']}")
    return datetime.fromisoformat(task["finished_at"]).timestamp()


@functools.cache
def _long_push() -> dict[str, Any]:
    payload: dict[str, Any] = json.loads((PAYLOADS / "push.json").read_bytes())
    (commit,) = payload["commits"]
    while len(json.dumps(payload, separators=(",", ":"))) < PUSH_SIZE:
        payload["commits"].append(commit)
    return payload
