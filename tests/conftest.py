from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runs import bells
from runs.bells import Bell, Note
from runs.models import Run
from runs.sandbox.fake import FakeEngine
from runs.worker import Worker


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


@pytest.fixture(autouse=True)
def rung(monkeypatch: pytest.MonkeyPatch) -> Rung:
    rung = Rung()
    monkeypatch.setattr(bells, "_carrier", rung)
    return rung


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(tmp_path / "sandboxes")
    yield engine
    for name in engine.names():
        engine.remove(name)


@pytest.fixture
def worker(db: None, engine: FakeEngine, tmp_path: Path, rung: Rung) -> DrivenWorker:
    return DrivenWorker(engine, tmp_path, rung)


class DrivenWorker(Worker):
    """A worker without threads of its own: it answers doorbells when the test says so, one after the other."""

    def __init__(self, engine: FakeEngine, home: Path, rung: Rung) -> None:
        super().__init__(home, threads=8, make_engine=lambda host_id: engine)
        self.fake = engine
        self.rung = rung
        (home / "owners").mkdir(exist_ok=True)
        self._hold_owner_file()
        self._seen()

    def answer_one(self) -> bool:
        """Answer the oldest bell. False: nobody rang."""
        if not self.rung.bells:
            return False
        bell = self.rung.bells.pop(0)
        if bell.task == "runs.tasks.look":
            self.look(bell.subject)
        else:
            self.look_for_work(int(bell.subject))
        return True

    def drive(self, run: Run, *, steps: int = 200) -> Run:
        """Answer bells until nobody rings; the run as it is then."""
        for _ in range(steps):
            if not self.answer_one():
                return Run.objects.get(pk=run.pk)
        raise AssertionError(f"still ringing after {steps} bells")


def other_worker(worker: DrivenWorker) -> DrivenWorker:
    """A second process on the same host."""
    second = DrivenWorker(worker.fake, worker.home, worker.rung)
    assert second.owner != worker.owner
    return second
