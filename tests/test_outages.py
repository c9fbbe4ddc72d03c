"""Every fault at every step of a run, on a driven worker and the fake sandbox.

Where the boundary of a process, an engine or a server is itself in question, the same faults hit a real box:
`test_kills.py`. "Every write" is each of test_engine's `WRITES`, from the claim to the end; between two of them lies
a model's answer, the start of a sandbox, a stretch of a command, or nothing.

    fault                  at every write, here          in the middle of things, on a real box
    ---------------------  ----------------------------  --------------------------------------------------------
    worker killed          test_engine (before, after)   model request; command, alone and beside another worker
    worker frozen          test_engine                   command, alone and beside another worker
    worker told to stop    after each                    model stream; command; ten runs in a rolling restart;
                                                         `down` and `up` with runs at work and in line
    web, beat killed       they write none of these      test_box: command, with somebody following
    Redis away             test_sweep: every bell lost   killed, and back empty; hung for longer than it is
                                                         waited for
    database fails         before each, and each         PostgreSQL crashes in a command; home is full in a
                           commit unanswered             command
    container lost         after each                    killed, removed, its first process killed; a command
                                                         out of memory
    engine away            after each                    restarted, killed with its containers kept, in a command
    machine restarted      after each                    box, engine and containers killed in a command
    clock set              after each, and after a       (a box has the machine's clock)
                           kill at each
    while the run waits    worker, container, machine,   (nothing of it is at work)
                           clock
"""

from __future__ import annotations

import asyncio
import contextlib
import socketserver
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError

from runs import bells, loop, queue
from runs.bells import Note
from runs.calls.outcome import LOST
from runs.halt import Why
from runs.models import TERMINAL, Attempt, CallState, Run, SandboxState, ToolCall
from runs.sandbox.base import Command, Ending, Outcome, Sandbox, SandboxGone
from runs.sandbox.docker import DockerEngine
from runs.sandbox.fake import FakeEngine
from runs.step import SANDBOX_LOSSES
from tests.conftest import DrivenClock, DrivenWorker, Points, meanwhile, other_worker, until
from tests.making import ask, bash, make_agent, submit
from tests.test_engine import (
    COMMAND,
    PRINTED,
    WRITES,
    Killed,
    assert_every_request_is_accounted_for,
    assert_nothing_stands,
    assert_whole,
    data,
    error_of,
    kill,
    let_it_go_on,
    printed,
    reload,
    told,
    types,
)

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = 3600.0
# A container that goes after these takes the command with it, or stands in the row and nowhere else.
STANDS_UNUSED = ("sandbox.ready 1", "model.turn 1", "tool.start 1", "output 1")


def start(points: Points, worker: DrivenWorker, *, wall_seconds: int = 0) -> Run:
    """A run with one command, which goes on when its first line is about to be stored."""
    run = start_gated(wall_seconds=wall_seconds)
    points.before("output 1", lambda: let_it_go_on(worker, run))
    points.missed.clear()  # the run may be over before, or the command lost
    return run


def start_gated(*, wall_seconds: int = 0) -> Run:
    """A run with one command, which prints a line and waits."""
    agent = make_agent(turns=[{"tools": [bash(COMMAND)]}, {"text": "done"}])
    return submit(agent, wall_seconds=wall_seconds)


def drive(worker: DrivenWorker, run: Run) -> None:
    """Answer bells as a worker's pool does: what fails is logged there, and the thread lives."""
    while worker.rung.bells:
        worker._edge(partial(worker.hear, worker.rung.bells.pop(0)))


def carry_on(worker: DrivenWorker, run: Run, driven_clock: DrivenClock) -> Run:
    """Bells and sweeps, two seconds apart as the clock says, until the run is over and another ten seconds."""
    for _ in range(60):
        drive(worker, run)
        worker._handed.clear()
        worker.sweep()
        if reload(run).status in TERMINAL:
            break
        driven_clock.forward(2)
    driven_clock.forward(10)
    worker._handed.clear()
    worker.sweep()
    return reload(run)


def remove_container(worker: DrivenWorker, run: Run) -> None:
    worker.fake.remove(Attempt.objects.get(run=run).sandbox_name)


def remove_standing_container(worker: DrivenWorker, run: Run) -> None:
    """The model may be quicker than the sandbox's start."""
    until(lambda: stands(worker, Attempt.objects.get(run=run).sandbox_name))
    remove_container(worker, run)


def stands(worker: DrivenWorker, name: str) -> bool:
    """And has been given its secrets, the last thing of its start."""
    try:
        return bool(worker.fake.read_secrets(worker.fake.find(name)))
    except SandboxGone:
        return False


def times_started(worker: DrivenWorker) -> int:
    return len({command.call_id for command in worker.fake.commands})


# --- the worker ---------------------------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.parametrize("write", WRITES[:-1])
def test_a_worker_goes_on_at_once_with_what_a_dead_one_of_its_host_held(
    worker: DrivenWorker, points: Points, write: str
) -> None:
    """Within its first sweep, before any clock has moved."""
    run = start(points, worker)
    points.after(write, kill)
    with pytest.raises(Killed):
        worker.drive(run)
    held = reload(run).lease_owner == worker.owner
    worker.die()
    second = other_worker(worker)
    second.sweep()
    assert (len(data(run, "run.takeover")) == 1) is held


# --- the database -------------------------------------------------------------------------------------------------


def disk_is_full() -> None:
    raise OperationalError("database or disk is full")


@pytest.mark.postgresql
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_may_fail_or_its_commit_go_unanswered(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, write: str, moment: str
) -> None:
    """After: the server has committed, and the connection broke before it said so."""
    run = start(points, worker)
    {"before": points.before, "after": points.after}[moment](write, disk_is_full)
    run = carry_on(worker, run, driven_clock)
    assert_whole(run)
    assert_every_request_is_accounted_for(run)
    assert_nothing_stands(worker, run)


@pytest.mark.postgresql
@pytest.mark.parametrize("write", WRITES[1:])
def test_a_worker_goes_on_by_itself_once_the_database_answers(worker: DrivenWorker, points: Points, write: str) -> None:
    """Long before its lease would have run out."""
    run = start(points, worker)
    points.before(write, disk_is_full)
    drive(worker, run)
    worker.lease_thread.end_given_up()
    worker.sweep()
    drive(worker, run)
    assert_whole(reload(run))


# --- Redis --------------------------------------------------------------------------------------------------------


class HungLayer:
    """A channel layer whose Redis does not answer until `thawed`."""

    def __init__(self) -> None:
        self.thawed = asyncio.Event()
        self.asked: list[str] = []

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        self.asked.append(group)
        await self.thawed.wait()


def test_a_hung_redis_takes_few_connections_and_everybody_is_told_when_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, carrier = HungLayer(), bells._Carrier()
    monkeypatch.setattr(bells, "get_channel_layer", lambda: layer)
    for number in range(100):
        carrier.put(Note(f"run_{number}", 1))
    until(lambda: len(carrier._due) == 100 - bells.AT_ONCE)
    assert len(layer.asked) <= bells.AT_ONCE
    loop.get().call_soon_threadsafe(layer.thawed.set)
    until(lambda: len(layer.asked) == 100)
    assert set(layer.asked) == {bells.run_group(f"run_{number}") for number in range(100)}


# --- the container and its engine ---------------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITES)
def test_a_container_may_be_lost_after_any_write(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, write: str
) -> None:
    """The model is told of a command that was lost, also where it may not have begun; it is not started again."""
    lost = write in STANDS_UNUSED
    run = start_gated() if lost else start(points, worker)
    at_work: list[bool] = []

    def lose() -> None:
        (remove_standing_container if lost else remove_container)(worker, run)
        # The last output is mostly stored with the command's end; on a slow machine it may come before it.
        at_work.append(ToolCall.objects.filter(state=CallState.STARTED).exists())

    points.after(write, lose)
    run = carry_on(worker, run, driven_clock)
    lost = lost or (write == "output 2" and at_work == [True])
    assert (run.status, run.output, run.has_slot) == ("finished", "done", False)
    assert told(run) == [(LOST, True) if lost else (PRINTED, False)]
    assert printed(run) == {"output 1": "one\n", "output 2": PRINTED}.get(write, "" if lost else PRINTED)
    assert ToolCall.objects.get().state == (CallState.LOST if lost else CallState.DONE)
    assert [command.call_id for command in worker.fake.commands] == ["1-0.0"]
    assert_nothing_stands(worker, run)


@dataclass
class Mortal:
    """Removes what it starts while that is being given its secrets: the first `losses` of them."""

    worker: DrivenWorker
    losses: int

    def write(self, name: str, writing: bytes) -> None:
        if self.losses:
            self.losses -= 1
            self.worker.fake.remove(name)
        FakeEngine._write(self.worker.fake, name, writing)


@pytest.mark.parametrize("sandbox", ["eager", "lazy"])
def test_a_container_that_is_lost_while_it_starts_is_started_again(
    worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch, sandbox: str
) -> None:
    """No command has run in it: nothing is lost but the time."""
    monkeypatch.setattr(worker.fake, "_write", Mortal(worker, losses=1).write)
    run = submit(make_agent(turns=[{"tools": [bash("echo here")]}, {"text": "done"}], sandbox=sandbox))
    worker.drive(run)
    run = reload(run)
    assert (run.status, told(run)) == ("finished", [("here\n", False)])
    assert [one for one in types(run) if one.startswith("sandbox.")] == [
        "sandbox.start", "sandbox.lost", "sandbox.start", "sandbox.ready"
    ]  # fmt: skip
    assert_every_request_is_accounted_for(run)
    assert_nothing_stands(worker, run)


def test_a_run_whose_containers_are_all_lost_while_they_start_has_lost_its_sandbox(
    worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.fake, "_write", Mortal(worker, losses=100).write)
    run = submit(make_agent(turns=[{"tools": [bash("echo here")]}, {"text": "done"}], retry="never"))
    worker.drive(run)
    run = reload(run)
    assert (run.status, error_of(run)[0]) == ("failed", "SANDBOX_LOST")
    assert types(run).count("sandbox.lost") == SANDBOX_LOSSES + 1
    assert_nothing_stands(worker, run)


@pytest.mark.parametrize("write", WRITES)
def test_the_engine_may_go_away_after_any_write(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, write: str
) -> None:
    run = start(points, worker)
    points.after(write, lambda: setattr(worker.fake, "down", True))
    drive(worker, run)
    assert worker.fake.down
    worker.fake.down = False
    run = carry_on(worker, run, driven_clock)
    assert (run.status, run.output, run.has_slot) == ("finished", "done", False)
    assert (told(run), printed(run)) == ([(PRINTED, False)], PRINTED)
    assert types(run).count("tool.start") == 1
    assert_every_request_is_accounted_for(run)
    assert_nothing_stands(worker, run)


@pytest.mark.postgresql
@pytest.mark.parametrize("write", WRITES)
def test_the_machine_may_be_restarted_after_any_write(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, write: str
) -> None:
    """Worker and container are gone together; workspace and database are there."""
    run = start(points, worker)
    points.after(write, kill)
    with pytest.raises(Killed):
        worker.drive(run)
    worker.die()
    attempt = Attempt.objects.get()
    lost = write in STANDS_UNUSED and attempt.sandbox_state == SandboxState.RUNNING
    worker.fake.remove(attempt.sandbox_name)
    run = carry_on(other_worker(worker), run, driven_clock)
    assert (run.status, run.output, run.has_slot) == ("finished", "done", False)
    assert told(run) == [(LOST, True) if lost else (PRINTED, False)]
    assert types(run).count("tool.start") == 1
    assert_every_request_is_accounted_for(run)
    assert_nothing_stands(worker, run)


class HastyEngine(socketserver.StreamRequestHandler):
    """A Docker engine that sends all it has to say of a command in one piece, headers and output."""

    def handle(self) -> None:
        while request := self.rfile.readline().decode():
            length = 0
            while header := self.rfile.readline().strip().lower():
                if header.startswith(b"content-length:"):
                    length = int(header.partition(b":")[2])
            self.rfile.read(length)
            if "/start" in request:
                frames = [b"\x01\0\0\0\0\0\0\x07line 1\n", b"\x02\0\0\0\0\0\0\x07exit 0\n"]
                self.request.sendall(b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\n" + b"".join(frames))
                return
            body = b"[]" if "/networks" in request else b'{"ApiVersion": "1.41", "Id": "1"}'
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            self.request.sendall(head.encode() + body)


def test_output_that_comes_with_the_engines_answer_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a busy machine, where the reader comes late."""
    server = socketserver.ThreadingUnixStreamServer(str(tmp_path / "sock"), HastyEngine)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/sock")
    engine = DockerEngine("test")
    with server, meanwhile(lambda: server.serve_forever(0.02)), contextlib.ExitStack() as cleanup:
        cleanup.callback(server.shutdown)
        cleanup.callback(engine.close)
        following = engine.exec(Sandbox("box", "id@start"), Command(call_id="1-0", argv=["true"], timeout=5))
        assert following.read(5) == b"line 1\n"
        assert following.read(5) is None
        assert following.outcome() == Outcome(Ending.EXITED, 0)


# --- the clock ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["on", "back"])
@pytest.mark.parametrize("write", WRITES)
def test_the_clock_may_jump_an_hour_after_any_write(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, write: str, jump: float
) -> None:
    run = start(points, worker)
    points.after(write, partial(driven_clock.forward, jump))
    run = carry_on(worker, run, driven_clock)
    assert_whole(run)
    assert_nothing_stands(worker, run)


@pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["on", "back"])
@pytest.mark.parametrize("write", WRITES)
def test_the_clock_may_jump_an_hour_while_no_worker_is_there(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, write: str, jump: float
) -> None:
    """As at a boot before the time is set."""
    run = start(points, worker)
    points.after(write, kill)
    with pytest.raises(Killed):
        worker.drive(run)
    worker.die()
    driven_clock.forward(jump)
    second = other_worker(worker)
    run = carry_on(second, run, driven_clock)
    assert_whole(run)
    assert_nothing_stands(worker, run)


@pytest.mark.parametrize("write", WRITES[:-3])  # with the last request sent, its answer is taken
def test_a_clock_that_jumps_past_the_deadline_ends_the_run_with_its_reason(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, write: str
) -> None:
    """No clock that lasts from one process to the next knows better."""
    run = start(points, worker, wall_seconds=900)
    points.after(write, partial(driven_clock.forward, HOUR))
    run = carry_on(worker, run, driven_clock)
    assert error_of(run)[0] == "TIMEOUT"
    assert times_started(worker) <= 1
    assert worker.engine.names() == []
    assert not Attempt.objects.get().has_workspace


# --- a worker told to stop ----------------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.parametrize("write", WRITES)
def test_a_worker_may_be_told_to_stop_after_any_write(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, write: str
) -> None:
    """It hands the run over: nobody takes anything from anybody."""
    run = start(points, worker)

    def stop() -> None:
        worker.stopping.set()
        worker.lease_thread.halt_all(Why.STOPPING)

    points.after(write, stop)
    drive(worker, run)
    assert reload(run).lease_owner == ""
    worker.die()
    run = carry_on(other_worker(worker), run, driven_clock)
    assert_whole(run)
    assert_every_request_is_accounted_for(run)
    assert data(run, "run.takeover") == []
    assert_nothing_stands(worker, run)


# --- while the run waits for a person -----------------------------------------------------------------------------


def nothing(worker: DrivenWorker, run: Run, driven_clock: DrivenClock) -> DrivenWorker:
    return worker


def worker_is_killed(worker: DrivenWorker, run: Run, driven_clock: DrivenClock) -> DrivenWorker:
    worker.die()
    return other_worker(worker)


def container_is_lost(worker: DrivenWorker, run: Run, driven_clock: DrivenClock) -> DrivenWorker:
    remove_container(worker, run)
    return worker


def machine_is_restarted(worker: DrivenWorker, run: Run, driven_clock: DrivenClock) -> DrivenWorker:
    return worker_is_killed(container_is_lost(worker, run, driven_clock), run, driven_clock)


def clock_jumps_on(worker: DrivenWorker, run: Run, driven_clock: DrivenClock) -> DrivenWorker:
    driven_clock.forward(HOUR)
    return worker


def clock_jumps_back(worker: DrivenWorker, run: Run, driven_clock: DrivenClock) -> DrivenWorker:
    driven_clock.forward(-HOUR)
    return worker


Fault = Callable[[DrivenWorker, Run, DrivenClock], DrivenWorker]
FAULTS = [
    nothing, worker_is_killed, container_is_lost, machine_is_restarted, clock_jumps_on, clock_jumps_back
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_that_waits_outlives_what_happens_meanwhile(
    worker: DrivenWorker, driven_clock: DrivenClock, fault: Fault
) -> None:
    """Its time limit does not know of the jump: it was waiting."""
    turns = [
        {"tools": [bash("echo kept >kept"), ask("which?")]},
        {"tools": [bash("cat kept"), bash("cat kept")]},
        {"text": "done"},
    ]
    run = worker.drive(submit(make_agent(turns=turns)))
    assert (run.status, run.has_slot) == ("waiting", False)
    worker = fault(worker, run, driven_clock)
    worker.sweep()
    assert reload(run).status == "waiting"
    queue.respond(reload(run), "that")
    run = carry_on(worker, run, driven_clock)
    assert (run.status, run.output) == ("finished", "done")
    assert told(run)[-1] == ("kept\n", False)
    assert_nothing_stands(worker, run)
