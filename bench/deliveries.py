"""Signed webhooks of 11 KB as fast as they are answered: beside a bare insert, while runs go on, into a full line."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from bench import bare_path, load
from bench.figures import AtLeast, AtLeastOfFloor, AtMost, Bound, Figure, Unmeasured, percentile
from bench.installation import SECRET, installation
from bench.model import Model
from tests.box import Box

CLIENTS = 16  # at once, on connections that are kept
WARM_UP = 1.0  # seconds
ROUNDS = 3
ON_NEW_ISSUES = '[[webhooks]]\nsource = "github"\nevents = ["issues"]\nactions = ["opened"]\n'
PLACE = b"0123456789abcdef" * 2 + b"01234567"  # where a body gets its number
SETTINGS = {"DJANGO_SETTINGS_MODULE": "bench.settings"}
TRIGGERS, AGENTS, EVENTS = 3, 1000, 500


@dataclass(frozen=True)
class Sent:
    """What came of them: milliseconds each, and the seconds in which they were answered."""

    milliseconds: list[float]
    seconds: float
    answers: list[dict[str, Any]]

    @property
    def rate(self) -> float:
        return len(self.milliseconds) / self.seconds


class Template:
    """Requests that differ in one number, signed. Made of pieces, so that the sender takes little of the machine."""

    def __init__(self, event: str, path: str) -> None:
        make = load.push if event == "push" else load.issue_opened
        body = make(0, SECRET).body
        marked = body.replace(b"0" * 40, PLACE, 1) if event == "push" else titled(body)
        self._before, self._after = marked.split(PLACE)
        self._head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._head += f"X-GitHub-Event: {event}\r\nContent-Length: {len(marked)}\r\n"

    def request(self, number: int) -> bytes:
        body = b"%s%040x%s" % (self._before, number, self._after)
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        head = f"{self._head}X-GitHub-Delivery: {number:032x}\r\nX-Hub-Signature-256: sha256={signature}\r\n\r\n"
        return head.encode() + body


def titled(body: bytes) -> bytes:
    payload = json.loads(body)
    payload["issue"]["title"] = PLACE.decode()
    return json.dumps(payload, separators=(",", ":")).encode()


def send(box: Box, template: Template, numbers: Iterator[int], go_on: Callable[[], bool]) -> Sent:
    """From all clients, each as soon as it has its answer, for as long as `go_on`. Raises Unmeasured."""
    return asyncio.run(_send(urlsplit(box.client.url), template, numbers, go_on))


async def _send(url: Any, template: Template, numbers: Iterator[int], go_on: Callable[[], bool]) -> Sent:
    milliseconds: list[float] = []
    answers: list[dict[str, Any]] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        while go_on():
            request = template.request(next(numbers))
            began = time.perf_counter()
            writer.write(request)
            answers.append(await _answer(reader))
            milliseconds.append((time.perf_counter() - began) * 1000)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return Sent(milliseconds, time.perf_counter() - began, answers)


async def _answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(int(head.lower().rpartition(b"content-length:")[2].partition(b"\r")[0]))
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise Unmeasured(f"a webhook was answered {head[:40]!r} {body[:200]!r}")
    said: dict[str, Any] = json.loads(body)
    return said


def seconds(length: float) -> Callable[[], bool]:
    end = time.perf_counter() + length
    return lambda: time.perf_counter() < end


def shown(name: str, sent: Sent, *bounds: Bound) -> Figure:
    figure = Figure.of_samples(name, "answers/s, ms", sent.milliseconds, *bounds)
    return replace(figure, value=sent.rate, p99=percentile(sent.milliseconds, 99))


def unmatched(length: float, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """Pushes, where the one trigger wants new issues; in turns with a view that inserts the same row and no more."""
    numbers = itertools.count(1)
    with installation({**env, **SETTINGS}) as box:
        box.agent("triage", extra=ON_NEW_ISSUES)
        box.apply()
        ours, floor = Template("push", "/webhooks/github"), Template("push", bare_path.PATH)
        for template in (ours, floor):
            send(box, template, numbers, seconds(WARM_UP))
        rounds = [
            [send(box, template, numbers, seconds(length / ROUNDS)) for template in (ours, floor)]
            for _ in range(ROUNDS)
        ]
    all_ours = Sent(
        [sample for sent, _ in rounds for sample in sent.milliseconds], sum(sent.seconds for sent, _ in rounds), []
    )
    least = statistics.median(bare.rate for _, bare in rounds)
    figure = shown("deliveries", all_ours, AtLeastOfFloor(0.85), AtMost("p99", 60))
    yield replace(figure, floor=least, everywhere=True)


def while_runs_go_on(runs: int, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """The same pushes through a whole burst of runs."""
    stop = threading.Event()
    with Model() as model, installation(env, model) as box:
        box.agent("minimal", scale=4, extra=ON_NEW_ISSUES)
        load.burst(box, "minimal", 4)
        template = Template("push", "/webhooks/github")
        with ThreadPoolExecutor(1) as aside:
            sent = aside.submit(send, box, template, itertools.count(1), lambda: not stop.is_set())
            try:
                load.burst(box, "minimal", runs)
            finally:
                stop.set()
        found = sent.result()
    yield replace(shown("deliveries_during_runs", found, AtLeast(300), AtMost("p95", 100)), everywhere=True)


def into_a_full_line(length: float, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """New issues for an agent whose line is full: each is answered, and each is a dead letter."""
    busy = {"name": "bash", "arguments": {"command": "sleep 3600"}}
    with installation(env) as box:
        extra = f"maxWorkQueueSize = 1\n{ON_NEW_ISSUES}"
        box.agent("busy", turns=[{"tools": [busy]}, {"text": "done"}], scale=1, extra=extra)
        box.apply()
        template, numbers = Template("issues", "/webhooks/github"), itertools.count(1)
        warm = send(box, template, numbers, seconds(WARM_UP))
        sent = send(box, template, numbers, seconds(length))
        answers = [*warm.answers, *sent.answers]
        refused = sum(answer["skipped"] for answer in answers)
        if len(answers) != refused + sum(answer["matched"] for answer in answers) or refused != dead_letters(box):
            raise Unmeasured(f"of {len(answers)} events {refused} were refused, {dead_letters(box)} are dead letters")
    yield shown("deliveries_into_full_line", sent, AtMost("p95", 100))


def dead_letters(box: Box) -> int:
    count, cursor = 0, ""
    while True:
        page = box.client.call("GET", f"dead-letters?limit=100{cursor}")
        count += len(page["dead_letters"])
        if page["next_cursor"] is None:
            return count
        cursor = f"&cursor={page['next_cursor']}"


def matching(_env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """What a thousand agents, each with three triggers on a source, add to each of its events."""
    from webhooks.matching import Index  # noqa: PLC0415 - most parts never need the product's own modules
    from webhooks.providers.base import Event  # noqa: PLC0415

    index = Index(
        "github", [((agent, turn), wanted(agent, turn)) for agent in range(AGENTS) for turn in range(TRIGGERS)]
    )
    samples = []
    for number in range(EVENTS):
        context = {"repo": f"acme/app-{number % 100}", "action": "opened", "labels": ["bug"], "branch": "main"}
        event = Event(event=("issues", "push", "pull_request")[number % 3], context=context)
        began = time.perf_counter()
        index.matching(event)
        samples.append((time.perf_counter() - began) * 1000)
    yield replace(Figure.of_samples("matching", "ms", samples, AtMost("p95", 5)), everywhere=True)


def wanted(agent: int, turn: int) -> dict[str, list[str]]:
    """Realistic filters: a repository in a hundred, an event, its actions or labels."""
    repos = [f"acme/app-{agent % 100}"]
    return [
        {"events": ["issues"], "actions": ["opened", "labeled"], "repos": repos, "labels": ["bug", "agent"]},
        {"events": ["pull_request"], "actions": ["opened", "synchronize"], "repos": repos},
        {"events": ["push"], "branches": ["main"], "repos": repos},
    ][turn]
