"""Whoever wants work done: sends each request until it has an answer, and keeps what it was told.

What a sender was told is the list of the runs that must exist. A sender that waits for long asks again, as GitHub's
people and every REST client do; so a request may well be carried out whose answer nobody heard.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench import load
from chaos.work import Plan

PATIENCE = 10.0  # seconds a sender waits for an answer; GitHub's own
AGAIN_AFTER = 0.5  # seconds
REDELIVERED_AFTER = 2.0  # seconds after the answer
SENDERS = 64  # at the same time
ISSUE = load.PAYLOADS / "issues.opened.json"


@dataclass(frozen=True)
class Promise:
    """What the sender of one plan was told: the runs of each answer. None: it never got one.

    `allowed`: how many runs there may be. A call has no key of its own: one that nobody answered may have started one.
    """

    plan: Plan
    answers: tuple[tuple[str, ...], ...] = ()
    tries: int = 0
    allowed: int = 1

    @property
    def run_ids(self) -> list[str]:
        return sorted({run_id for answer in self.answers for run_id in answer})


@dataclass(frozen=True)
class Address:
    """Where to send, and with what."""

    url: str
    token: str
    secret: str


class Senders:
    """`start` begins to send as the plans are due; `promises` gives what was told once all have their answers."""

    def __init__(self, plans: Sequence[Plan], to: Address) -> None:
        self._plans = plans
        self._to = to
        self._given_up = threading.Event()
        self._pool = ThreadPoolExecutor(SENDERS, thread_name_prefix="sender")
        self._sent: list[Future[Promise]] = []
        self._thread = threading.Thread(target=self._send_all, name="senders", daemon=True)
        self.answered = 0

    def start(self) -> None:
        self._thread.start()

    def give_up(self) -> None:
        """Send nothing more: whoever has no answer now has been let down."""
        self._given_up.set()

    def done(self) -> bool:
        return not self._thread.is_alive() and all(sent.done() for sent in self._sent)

    def promises(self) -> list[Promise]:
        self._thread.join()
        self._pool.shutdown()
        return [sent.result() for sent in self._sent]

    def _send_all(self) -> None:
        began = time.monotonic()
        for plan in self._plans:
            self._given_up.wait(max(0.0, began + plan.due - time.monotonic()))
            self._sent.append(self._pool.submit(self._send, plan))

    def _send(self, plan: Plan) -> Promise:
        request = webhook(plan, self._to) if plan.channel == "webhook" else task(plan, self._to)
        answers, tries = [], 0
        for _ in range(2 if plan.redelivered else 1):
            answer, took = self._until_answered(request)
            tries += took
            if answer is None:
                break
            answers.append(answer)
            self._given_up.wait(REDELIVERED_AFTER if plan.redelivered else 0)
        self.answered += bool(answers)
        return Promise(plan, tuple(answers), tries)

    def _until_answered(self, request: httpx.Request) -> tuple[tuple[str, ...] | None, int]:
        """The run ids of the first answer, and how many tries it took."""
        tries = 0
        while not self._given_up.is_set():
            tries += 1
            try:
                with httpx.Client(timeout=PATIENCE, trust_env=False) as client:  # a connection of its own
                    answer = client.send(request)
            except httpx.HTTPError:
                answer = None
            if answer is not None and answer.status_code in {200, 202}:
                return told(answer.json()), tries
            self._given_up.wait(AGAIN_AFTER)
        return None, tries


def told(answer: dict[str, Any]) -> tuple[str, ...]:
    return (answer["taskId"],) if "taskId" in answer else tuple(answer["runs"])


def webhook(plan: Plan, to: Address) -> httpx.Request:
    """A new issue in the repository that the plan's agent watches. Sent again it is the same delivery."""
    payload = json.loads(Path(ISSUE).read_bytes())
    payload["issue"]["title"] = plan.token
    payload["repository"]["full_name"] = repository(plan.agent)
    signed = load.signed("issues", payload, to.secret)
    return httpx.Request("POST", f"{to.url}/webhooks/github", headers=signed.headers, content=signed.body)


def task(plan: Plan, to: Address) -> httpx.Request:
    headers = {"Authorization": f"Bearer {to.token}", "Idempotency-Key": plan.token}
    url = f"{to.url}/api/v1/agents/{plan.agent}/task"
    return httpx.Request("POST", url, headers=headers, json={"input": plan.token})


def repository(agent: str) -> str:
    return f"acme/{agent}"
