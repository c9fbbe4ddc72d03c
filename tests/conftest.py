from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.core.management.commands import flush
from django.db import DEFAULT_DB_ALIAS, connection, transaction
from django.db.backends.signals import connection_created

from agents import clock
from runs import bells, events, llm, sweep
from runs.bells import Bell, Note
from runs.models import Run
from runs.sandbox.fake import FakeEngine
from runs.transcript import Body
from runs.worker import Worker

PATIENCE = 60.0  # seconds until a test that waits for something has failed


class Rung:
    """The doorbells and notes of a test, in order, instead of Redis."""

    def __init__(self) -> None:
        self.bells: list[Bell] = []
        self.notes: list[Note] = []

    def put(self, hint: Bell | Note) -> None:
        if isinstance(hint, Bell):
            self.bells.append(hint)
        else:
            self.notes.append(hint)


# Made by migrating, the same for every test. Django makes them anew after each flush, which takes longer than a test.
KEPT = {"django_content_type", "auth_permission"}


def flushed(style: Any, database: Any, *, reset_sequences: bool = True, allow_cascade: bool = False) -> list[str]:
    """The statements that empty every table but those that are KEPT.

    Few hold anything after a test, and PostgreSQL takes 40 ms of a processor to truncate them all.
    """
    assert not reset_sequences, "numbers go on from test to test"
    tables = sorted({*database.introspection.django_table_names()} - KEPT)
    return [f"DELETE FROM {database.ops.quote_name(table)}" for table in filled(database, tables)]  # noqa: S608


def filled(database: Any, tables: Sequence[str]) -> list[str]:
    """Those of the tables with a row."""
    quoted = {table: database.ops.quote_name(table) for table in tables}
    asked = [f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {name})" for table, name in quoted.items()]  # noqa: S608
    with database.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(asked))
        return [table for (table,) in cursor.fetchall()]


@pytest.fixture(autouse=True, scope="session")
def quick_flush() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flush, "sql_flush", flushed)
        patch.setattr(flush, "emit_post_migrate_signal", lambda *_: None)
        yield


def not_waiting_for_the_disk(connection: Any, **_: Any) -> None:
    """No test's rows need to outlive a power cut: a busy disk takes longer for each commit than a test for all else."""
    if connection.vendor == "sqlite" and connection.alias == DEFAULT_DB_ALIAS:
        connection.connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(autouse=True, scope="session")
def quick_commits() -> Iterator[None]:
    connection_created.connect(not_waiting_for_the_disk)
    yield
    connection_created.disconnect(not_waiting_for_the_disk)


@pytest.fixture(autouse=True)
def rung(monkeypatch: pytest.MonkeyPatch) -> Rung:
    rung = Rung()
    monkeypatch.setattr(bells, "_carrier", rung)
    return rung


class DrivenClock:
    """What time it is, as the test says: the real time and so much ahead, or one moment that stands still."""

    def __init__(self) -> None:
        self._real = clock.now
        self._ahead = timedelta()
        self._moment: datetime | None = None

    def now(self) -> datetime:
        return (self._moment or self._real()) + self._ahead

    def forward(self, seconds: float) -> None:
        self._ahead += timedelta(seconds=seconds)

    def stand_at(self, moment: datetime) -> None:
        self._moment, self._ahead = moment, timedelta()


@pytest.fixture
def driven_clock(monkeypatch: pytest.MonkeyPatch) -> DrivenClock:
    driven = DrivenClock()
    monkeypatch.setattr(clock, "now", driven.now)
    return driven


class PlayedModel:
    """A model that says what the test put into `answers`: a message, an exception, or a future resolved later."""

    def __init__(self) -> None:
        self.answers: list[Body | Exception | Future[Body]] = []
        self.asked: list[llm.Request] = []

    def submit(self, request: llm.Request) -> Future[Body]:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Future):
            return answer
        future = Future[Body]()
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> PlayedModel:
    model = PlayedModel()
    monkeypatch.setattr(llm, "submit", model.submit)
    return model


class Points:
    """Where a run may be interrupted: its writes, each called by its first event and counted, as in `tool.end 2`.

    A write without an event is called `silent`. What is to happen there happens once, on the writing thread.
    """

    def __init__(self) -> None:
        self.missed: set[tuple[str, str]] = set()  # what has not come about
        self.passed: list[str] = []
        self._counts = Counter[str]()
        self._acts: dict[tuple[str, str], list[Callable[[], Any]]] = defaultdict(list)
        self._append = events.append

    def before(self, point: str, act: Callable[[], Any]) -> None:
        """In the transaction, before anything is written."""
        self._at("before", point, act)

    def after(self, point: str, act: Callable[[], Any]) -> None:
        """When it is committed, and before any bell is rung for it."""
        self._at("after", point, act)

    def _at(self, moment: str, point: str, act: Callable[[], Any]) -> None:
        self._acts[moment, point].append(act)
        self.missed.add((moment, point))

    def _act(self, moment: str, point: str) -> None:
        self.missed.discard((moment, point))
        for act in self._acts.pop((moment, point), []):
            act()

    def append(self, run_id: str, new: Sequence[events.New], **rest: Any) -> bool:
        name = new[0].type if new else "silent"
        self._counts[name] += 1
        point = f"{name} {self._counts[name]}"
        self.passed.append(point)
        self._act("before", point)
        written = self._append(run_id, new, **rest)
        if written and ("after", point) in self._acts:
            transaction.on_commit(partial(self._act, "after", point))
        return written


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Iterator[Points]:
    points = Points()
    monkeypatch.setattr(events, "append", points.append)
    yield points
    assert not points.missed


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path / "sandboxes")
    yield engine
    for name in engine.names():
        engine.remove(name)


@pytest.fixture
def worker(db: None, engine: FakeEngine, tmp_path: Path, rung: Rung) -> DrivenWorker:
    return DrivenWorker(engine, tmp_path, rung)


class Handed(Executor):
    """A worker's pool that does nothing by itself: what it was handed waits for the test to say `work`."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], Any]] = []

    def submit(self, what: Callable[..., Any], /, *args: Any, **keywords: Any) -> Future[Any]:
        self.waiting.append(partial(what, *args, **keywords))
        return Future()

    def work(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


class DrivenWorker(Worker):
    """A worker without threads of its own: it answers doorbells when the test says so, one after the other."""

    def __init__(self, engine: FakeEngine, home: Path, rung: Rung) -> None:
        super().__init__(home, threads=8, make_engine=lambda host_id: engine)
        self.fake = engine
        self.rung = rung
        self.handed = Handed()
        self._pool = self.builder.pool = self.handed
        (home / "owners").mkdir(exist_ok=True)
        self._hold_owner_file()
        self._seen()

    def answer_one(self) -> bool:
        """Answer the oldest bell. False: nobody rang."""
        if not self.rung.bells:
            return False
        bell = self.rung.bells.pop(0)
        self.hear(bell)
        return True

    def drive(self, run: Run, *, steps: int = 200) -> Run:
        """Answer bells until nobody rings; the run as it is then."""
        for _ in range(steps):
            if not self.answer_one():
                return Run.objects.get(pk=run.pk)
        raise AssertionError(f"still ringing after {steps} bells")

    def sweep(self) -> None:
        """One round of the sweep, and what it handed to this worker."""
        sweep.sweep(self)
        self.handed.work()

    def die(self) -> None:
        """The process is gone: its lock with it, and the bells it was about to ring. Nobody is told."""
        self._held.__exit__(None, None, None)
        self.rung.bells.clear()


def other_worker(worker: DrivenWorker) -> DrivenWorker:
    """A second process on the same host."""
    second = DrivenWorker(worker.fake, worker.home, worker.rung)
    assert second.owner != worker.owner
    return second


@contextmanager
def meanwhile(what: Callable[[], Any]) -> Iterator[None]:
    """Do `what` on another thread for the length of the block; at its end wait for it, and raise what it raised."""
    failed: list[BaseException] = []

    def do() -> None:
        try:
            what()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            failed.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=do)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)
    assert not thread.is_alive(), "the other thread does not end"
    if failed:
        raise failed[0]


def until(true: Callable[[], Any]) -> None:
    """Return as soon as it is so."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
