"""Whether the fleet works, asked of its parts: the answer comes within two seconds, whatever hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from django.conf import settings
from django.db import connection

from agents import clock
from runs import alerts, canaries
from runs.models import Alert

WITHIN = 1.5  # seconds for the parts to answer
FRESH = 1.0  # seconds an answer is good for: asking costs no more than once in that time

T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    ok: bool
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    checks: Mapping[str, Check]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks.values())

    def told(self, *, details: bool) -> dict[str, Any]:
        """{"status": "ok" or "failing", "checks": {name: {"ok": bool, …details}}}"""
        checks = {name: {"ok": check.ok, **(check.details if details else {})} for name, check in self.checks.items()}
        return {"status": "ok" if self.ok else "failing", "checks": checks}


class Question(Generic[T]):
    """Something that may take for ever to answer, asked on a thread of its own, and never twice at once."""

    def __init__(self, find_out: Callable[[], T]) -> None:
        self._find_out = find_out
        self._under_way: Future[T] | None = None

    def ask(self) -> Future[T]:
        """The answer under way, begun now if there is none."""
        if self._under_way is None or self._under_way.done():
            self._under_way = Future()
            threading.Thread(target=self._answer, args=(self._under_way,), name="readiness", daemon=True).start()
        return self._under_way

    def _answer(self, future: Future[T]) -> None:
        try:
            future.set_result(self._find_out())
        except Exception as error:  # noqa: BLE001 - for whoever waits for the answer
            future.set_exception(error)
        finally:
            connection.close()


def look_at_database() -> dict[str, Check]:
    """The database, and what stands in it about the rest."""
    began = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    checks = {"database": Check(True, {"milliseconds": milliseconds_since(began)})}
    return {**checks, **look_at_rows()}


def look_at_rows() -> dict[str, Check]:
    now = clock.now()
    hosts = canaries.live_hosts(now)
    heard = canaries.hearings(canaries.queues_of(hosts), now)
    standing = Alert.objects.filter(kind__in=(alerts.ENGINE_DOWN, alerts.SCHEDULE_LATE), cleared_at=None)
    subjects = list(standing.values_list("kind", "subject"))
    down = sorted({host.pk for host in hosts} & {subject for kind, subject in subjects if kind == alerts.ENGINE_DOWN})
    late = sum(kind != alerts.ENGINE_DOWN for kind, _ in subjects)
    ages = {one.queue: None if one.ago is None else round(one.ago, 1) for one in heard}
    judged = canaries.queues_of(canaries.with_room(hosts))
    unheard = any(one.deaf or one.stale for one in heard if one.queue in judged)
    ever_heard = any(one.ago is not None for one in heard)  # a fleet that has just begun has yet to prove it
    return {
        "canary": Check(ever_heard and not unheard, {"age_seconds": ages}),
        "engine": Check(bool(hosts) and not down, {"down": down}),
        "schedules": Check(not late, {"late": late}),
    }


def look_at_broker() -> dict[str, Check]:
    import redis  # noqa: PLC0415 - a part of every web's start, for those who ask

    began = time.monotonic()
    with closing(redis.Redis.from_url(settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1)) as client:
        client.ping()
    return {"broker": Check(True, {"milliseconds": milliseconds_since(began)})}


def milliseconds_since(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 1)


PARTS = (
    (("database", "canary", "engine", "schedules"), look_at_database),
    (("broker",), look_at_broker),
)


class Readiness:
    """The last report, for as long as it is fresh. One caller asks; those who come meanwhile wait for the same."""

    def __init__(self) -> None:
        self._questions = [(names, Question(look)) for names, look in PARTS]
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._report = Report({})

    def report(self) -> Report:
        with self._lock:
            if time.monotonic() - self._asked_at >= FRESH:
                self._report = self._ask()
                self._asked_at = time.monotonic()
            return self._report

    def _ask(self) -> Report:
        until = time.monotonic() + WITHIN
        asked = [(names, question.ask()) for names, question in self._questions]
        checks: dict[str, Check] = {}
        for names, answer in asked:
            checks.update(checks_of(names, answer, until))
        return Report(checks)


def checks_of(names: Sequence[str], answer: Future[dict[str, Check]], until: float) -> dict[str, Check]:
    try:
        return answer.result(max(0.0, until - time.monotonic()))
    except Exception as error:  # noqa: BLE001 - that a part fails is the answer, and how it is called tells enough
        return {name: Check(False, {"error": type(error).__name__}) for name in names}


_readiness = Readiness()


def now() -> Report:
    """At most FRESH seconds old; within some WITHIN seconds, whatever hangs."""
    return _readiness.report()


def within(seconds: float, find_out: Callable[[], T], otherwise: T) -> T:
    """What `find_out` gives, unless it takes longer or fails."""
    try:
        return Question(find_out).ask().result(seconds)
    except Exception:  # noqa: BLE001 - the caller has said what then
        return otherwise
