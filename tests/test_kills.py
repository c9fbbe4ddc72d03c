"""Parts of a running box, or of the machine under it, are killed, frozen, stopped or full; runs go on.

Of every run: its command was started once, no line and no event is missing or doubled, nothing is left behind.
`test_outages.py` has the table of faults and steps.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import psycopg
import pytest

from agentfleet import background
from agentfleet.client import NoServer, ServerSays
from tests import postgres
from tests.box import Box, kill
from tests.doubles.anthropic import Asked, MockAnthropic, Reply

pytestmark = [pytest.mark.box, pytest.mark.engine, pytest.mark.faults, pytest.mark.timeout(180)]

IMAGE = "agentfleet-sandbox:latest"
LEASE = 20.0  # seconds
STOPS_WITHIN = 30.0  # seconds from TERM to a worker's end on a busy machine; its commands would go on for ever
# A line five times a second until the file `go` is there; `ran` counts how often the command was started.
SLOW = (
    "echo started >>ran; n=0; until [ -e go ]; do n=$((n + 1)); echo line $n; sleep 0.2; done; "
    "echo starts: $(wc -l <ran)"
)
SHORT = "echo started >>ran; for n in 1 2 3 4 5; do echo line $n; sleep 0.2; done; echo starts: $(wc -l <ran)"
# Grows to 300 MB once the file `go` is there.
HUNGRY = "echo started >>ran; echo line 1; until [ -e go ]; do sleep 0.1; done; x=$(yes | head -c 300000000); echo $?"


@pytest.fixture(scope="module")
def shared_mock() -> Iterator[MockAnthropic]:
    with MockAnthropic() as mock:
        yield mock


@pytest.fixture
def mock(shared_mock: MockAnthropic) -> MockAnthropic:
    shared_mock.asked.clear()
    shared_mock.hung_up.clear()
    shared_mock.plan = slow_command
    return shared_mock


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, shared_mock: MockAnthropic) -> Iterator[Box]:
    """The installation that most tests share. Each leaves it whole, with one worker."""
    box = Box(tmp_path_factory.mktemp("box"), shared_mock)
    box.define("dev", scale=10)
    box.define("narrow")
    with box:
        box.apply()
        yield box


def slow_command(asked: Asked) -> Reply:
    if asked.turn == 0:
        return Reply(tools=[("bash", {"command": SLOW})])
    return Reply(text=f"result: {asked.shown()}")


def in_a_command(box: Box) -> str:
    """A run whose command has printed some lines."""
    run_id = box.start("dev")
    see_lines(box, run_id, 3)
    return run_id


def see_lines(box: Box, run_id: str, more: int = 1) -> None:
    """Its command prints, and somebody stores it."""
    seen = box.output(run_id).count("\n")
    box.until(lambda: box.output(run_id).count("\n") >= seen + more, 60, lambda: box.story(run_id))


def let_it_end(box: Box, run_id: str) -> None:
    """The command of SLOW or HUNGRY."""
    docker(box, "exec", container(run_id), "touch", "go")


def container(run_id: str) -> str:
    return f"agentfleet-{run_id}-1"


def docker(box: Box, *words: str) -> str:
    return subprocess.run(["docker", *words], env=box.env, capture_output=True, text=True, check=True).stdout


def assert_whole(box: Box, run_id: str, *, commands: int = 1) -> None:
    """The run finished, its commands ran once, and every event and line is there once."""
    assert_numbered(box, run_id)
    outputs = box.output(run_id).split("starts: ")
    for number, output in enumerate(outputs[:-1]):
        lines = output.splitlines()[bool(number) :]  # behind the count of the one before
        assert lines == [f"line {n}" for n in range(1, len(lines) + 1)], box.story(run_id)
    assert [output.splitlines()[0] for output in outputs[1:]] == [str(n + 1) for n in range(commands)]
    assert_nothing_left(box, run_id)


def assert_numbered(box: Box, run_id: str) -> None:
    task = box.wait(run_id)
    assert task["status"] == "finished", box.story(run_id)
    numbers = [event["id"] for event in box.events(run_id)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert task["eventCount"] == len(numbers)


def assert_nothing_left(box: Box, run_id: str) -> None:
    label = f"label=agentfleet.run={run_id}"

    def left() -> str:
        return docker(box, "ps", "-aq", "--filter", label) + docker(box, "volume", "ls", "-q", "--filter", label)

    box.until(lambda: left() == "", 20)


def count(box: Box, run_id: str, kind: str) -> int:
    return [event["type"] for event in box.events(run_id)].count(kind)


def assert_works(box: Box, mock: MockAnthropic) -> None:
    mock.plan = lambda asked: Reply(text="still here")
    assert box.wait(box.start("dev"))["output"] == "still here"


def times_ready(box: Box, log: str = "worker.log") -> int:
    file = box.home / "logs" / log
    return file.read_text().count(" is ready\n") if file.exists() else 0


def another_worker(box: Box) -> subprocess.Popen[bytes]:
    """One more process on the same home, taking work."""
    before = times_ready(box, "worker-2.log")
    process = box.worker()
    box.until(lambda: times_ready(box, "worker-2.log") > before)
    return process


@contextlib.contextmanager
def nobody_restarts(box: Box) -> Iterator[None]:
    supervisor = box.pids()["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(supervisor, signal.SIGCONT)


def is_gone(pid: int) -> bool:
    """Ended; where its parent is frozen, a zombie."""
    return background.started_at(pid) is None


# --- a worker killed ----------------------------------------------------------------------------------------------


def test_a_worker_killed_in_a_model_request(box: Box, mock: MockAnthropic) -> None:
    def plan(asked: Asked) -> Reply:
        if len(mock.asked) == 1:
            return Reply(text="never heard", delay=60)
        return Reply(text="second answer")

    mock.plan = plan
    run_id = box.start("dev")
    box.until(lambda: mock.asked)
    kill(box.pids()["worker"])
    task = box.wait(run_id)
    assert (task["status"], task["output"]) == ("finished", "second answer"), box.story(run_id)
    assert len(mock.asked) == 2
    lost = [event for event in box.events(run_id) if event["type"] == "model.lost"]
    assert len(lost) == 1
    assert task["token_input"] == 100 + lost[0]["data"]["estimatedTokens"]
    assert_nothing_left(box, run_id)


def test_a_worker_killed_in_a_command(box: Box, mock: MockAnthropic) -> None:
    """The next knows that it is dead: runs move long before its leases would have run out."""
    run_id = in_a_command(box)
    killed_at = time.monotonic()
    kill(box.pids()["worker"])
    box.until(lambda: count(box, run_id, "run.takeover"))
    assert time.monotonic() - killed_at < LEASE
    see_lines(box, run_id)
    let_it_end(box, run_id)
    assert_whole(box, run_id)
    assert len(mock.asked) == 2


def test_of_two_workers_one_killed_in_a_command(box: Box, mock: MockAnthropic) -> None:
    run_id = in_a_command(box)
    second = another_worker(box)
    with nobody_restarts(box):
        killed_at = time.monotonic()
        kill(box.pids()["worker"])
        box.until(lambda: count(box, run_id, "run.takeover"))
        assert time.monotonic() - killed_at < LEASE
        see_lines(box, run_id)
        let_it_end(box, run_id)
        assert_whole(box, run_id)
    second.terminate()
    assert second.wait(STOPS_WITHIN) == 0
    assert_works(box, mock)


# --- a worker frozen ----------------------------------------------------------------------------------------------


def test_a_worker_frozen_in_a_command_for_longer_than_a_lease(box: Box, mock: MockAnthropic) -> None:
    run_id = in_a_command(box)
    frozen = box.pids()["worker"]
    os.kill(frozen, signal.SIGSTOP)
    second = another_worker(box)
    box.until(lambda: count(box, run_id, "run.takeover"), 60)
    see_lines(box, run_id)
    os.kill(frozen, signal.SIGCONT)
    let_it_end(box, run_id)
    assert_whole(box, run_id)
    # Awake again, it has let go of the run, and takes new ones.
    second.terminate()
    assert second.wait(STOPS_WITHIN) == 0
    assert_works(box, mock)
    assert box.pids()["worker"] == frozen


def test_the_only_worker_frozen_and_continued(box: Box, mock: MockAnthropic) -> None:
    run_id = in_a_command(box)
    worker = box.pids()["worker"]
    os.kill(worker, signal.SIGSTOP)
    time.sleep(LEASE + 2)
    os.kill(worker, signal.SIGCONT)
    see_lines(box, run_id)
    let_it_end(box, run_id)
    assert_whole(box, run_id)
    assert box.pids()["worker"] == worker


# --- a worker told to stop ----------------------------------------------------------------------------------------


def stop(pid: int) -> None:
    """TERM, and patience that no command lasts as long as."""
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOPS_WITHIN
    while not is_gone(pid):
        assert time.monotonic() < end, f"not gone within {STOPS_WITHIN} s"
        time.sleep(0.02)


def test_a_worker_told_to_stop_in_a_command_leaves_it_running(box: Box, mock: MockAnthropic) -> None:
    run_id = in_a_command(box)
    stop(box.pids()["worker"])
    see_lines(box, run_id, 2)
    let_it_end(box, run_id)
    assert_whole(box, run_id)
    assert count(box, run_id, "run.takeover") == 0
    assert len(mock.asked) == 2


def test_a_worker_told_to_stop_in_a_model_stream_hangs_up(box: Box, mock: MockAnthropic) -> None:
    def plan(asked: Asked) -> Reply:
        if len(mock.asked) == 1:
            return Reply(text="never heard to its end" * 100, pace=0.5)
        return Reply(text="second answer")

    mock.plan = plan
    run_id = box.start("dev")
    box.until(lambda: count(box, run_id, "sandbox.ready"))
    stop(box.pids()["worker"])
    assert len(mock.hung_up) == 1
    task = box.wait(run_id)
    assert (task["status"], task["output"]) == ("finished", "second answer"), box.story(run_id)
    assert (count(box, run_id, "model.lost"), count(box, run_id, "run.takeover")) == (1, 0)
    assert_nothing_left(box, run_id)


def test_a_rolling_restart_under_load_loses_nothing(box: Box, mock: MockAnthropic) -> None:
    def plan(asked: Asked) -> Reply:
        if asked.turn < 3:
            return Reply(tools=[("bash", {"command": SHORT})], delay=0.3)
        return Reply(text="done", delay=0.3)

    mock.plan = plan
    runs = [box.start("dev") for _ in range(10)]
    box.until(lambda: sum(count(box, run_id, "tool.end") for run_id in runs))
    second, before = another_worker(box), times_ready(box)
    stop(box.pids()["worker"])
    box.until(lambda: times_ready(box) > before)
    second.terminate()
    assert second.wait(STOPS_WITHIN) == 0
    for run_id in runs:
        assert_whole(box, run_id, commands=3)
        assert count(box, run_id, "run.takeover") == 0


def test_down_in_the_middle_of_work_and_up_again(box: Box, mock: MockAnthropic) -> None:
    def plan(asked: Asked) -> Reply:
        if "talk" not in str(asked.body["messages"][0]):
            return slow_command(asked)
        spoken = sum("talk" in str(other.body["messages"][0]) for other in mock.asked)
        return Reply(text="never heard", delay=60) if spoken == 1 else Reply(text="heard")

    mock.plan = plan
    commanding, pending = box.start("narrow"), box.start("narrow")
    see_lines(box, commanding)
    talking = box.start("dev", "talk")
    box.until(lambda: len(mock.asked) == 2)
    box.down()
    box.up()
    assert box.wait(talking)["output"] == "heard"
    see_lines(box, commanding)
    for run_id in (commanding, pending):
        see_lines(box, run_id)
        let_it_end(box, run_id)
        assert_whole(box, run_id)
    assert [count(box, run_id, "run.takeover") for run_id in (commanding, pending, talking)] == [0, 0, 0]


# --- Redis --------------------------------------------------------------------------------------------------------


def test_redis_killed_in_a_step(box: Box, mock: MockAnthropic) -> None:
    """It comes back empty."""
    worker = box.pids()["worker"]
    run_id = in_a_command(box)
    kill(box.pids()["redis"])
    see_lines(box, run_id, 2)
    let_it_end(box, run_id)
    assert_whole(box, run_id)
    assert box.pids()["worker"] == worker
    assert_works(box, mock)


def test_redis_hung_for_longer_than_anybody_waits_for_it(box: Box, mock: MockAnthropic) -> None:
    pids = box.pids()
    run_id = in_a_command(box)
    os.kill(pids["redis"], signal.SIGSTOP)
    try:
        let_it_end(box, run_id)
        assert_whole(box, run_id)
        again = in_a_command(box)
        time.sleep(11)
        see_lines(box, again)
        let_it_end(box, again)
        assert_whole(box, again)
    finally:
        os.kill(pids["redis"], signal.SIGCONT)
    assert_works(box, mock)
    assert box.pids() == pids


# --- the container ------------------------------------------------------------------------------------------------


def looks_after_itself(asked: Asked) -> Reply:
    """A model that looks at the state of things before it answers."""
    if asked.turn == 1:
        return Reply(tools=[("bash", {"command": "cat ran"})])
    return slow_command(asked)


def kill_first_process(box: Box, run_id: str) -> None:
    kill(int(docker(box, "inspect", "--format", "{{.State.Pid}}", container(run_id))))


def kill_container(box: Box, run_id: str) -> None:
    docker(box, "kill", container(run_id))


def remove_container(box: Box, run_id: str) -> None:
    docker(box, "rm", "-f", container(run_id))


@pytest.mark.parametrize("lose", [kill_container, kill_first_process, remove_container])
def test_a_container_lost_in_a_command_is_told_and_the_command_not_repeated(
    box: Box, mock: MockAnthropic, lose: Callable[[Box, str], None]
) -> None:
    mock.plan = looks_after_itself
    run_id = in_a_command(box)
    lose(box, run_id)
    assert_lost_and_went_on(box, run_id)
    assert "It may have had effects" in mock.asked[1].shown()


def assert_lost_and_went_on(box: Box, run_id: str) -> None:
    assert_numbered(box, run_id)
    calls = [event["data"] for event in box.events(run_id) if event["type"] == "tool.end"]
    assert [call.get("lost", False) for call in calls] == [True, False]
    *lines, last = box.output(run_id).splitlines()
    assert last == "started"  # once
    assert lines == [f"line {n}" for n in range(1, len(lines) + 1)]
    assert count(box, run_id, "sandbox.lost") == 1
    assert_nothing_left(box, run_id)


def test_a_command_that_runs_out_of_memory_is_a_failed_command(box: Box, mock: MockAnthropic) -> None:
    def plan(asked: Asked) -> Reply:
        return Reply(tools=[("bash", {"command": HUNGRY})]) if asked.turn == 0 else looks_after_itself(asked)

    mock.plan = plan
    run_id = box.start("dev")
    see_lines(box, run_id)
    docker(box, "update", "--memory", "64m", "--memory-swap", "64m", container(run_id))
    let_it_end(box, run_id)
    assert_numbered(box, run_id)
    calls = [event["data"] for event in box.events(run_id) if event["type"] == "tool.end"]
    assert [call["exitCode"] for call in calls] == [137, 0]
    assert box.output(run_id) == "line 1\nstarted\n"
    assert count(box, run_id, "sandbox.lost") == 0
    assert_nothing_left(box, run_id)


# --- the disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space left"):
        while True:
            stream.write(bytes(65536))


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def is_refused(box: Box) -> bool:
    try:
        box.start("dev")
    except (ServerSays, NoServer):
        return True
    return False


def is_answered(box: Box, run_id: str) -> bool:
    try:
        box.task(run_id)
    except (ServerSays, NoServer):
        return False
    return True


def test_a_full_disk_stops_nothing_for_good(small_disk: Path, mock: MockAnthropic) -> None:
    """Nothing can be stored, and a process that dies meanwhile is started again all the same."""
    with Box(small_disk, mock) as box:
        box.agent("dev", scale=10)
        run_id = in_a_command(box)
        pids = box.pids()
        fill(small_disk / "ballast")
        box.until(lambda: is_refused(box))
        kill(pids["beat"])
        box.until(lambda: children(pids["supervisor"]) - set(pids.values()))
        (small_disk / "ballast").unlink()
        see_lines(box, run_id)
        let_it_end(box, run_id)
        assert_whole(box, run_id)
        assert len(mock.asked) == 2
        assert box.pids()["worker"] == pids["worker"]
        box.until(lambda: box.pids()["beat"] != pids["beat"])


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


@pytest.fixture
def database() -> Iterator[str]:
    with postgres.cluster(durable=True) as url:
        yield url


@contextlib.contextmanager
def crashed_and_back(url: str) -> Iterator[None]:
    """The server of `url` ends without a word to anybody and recovers; at the end of the block it stops."""
    with psycopg.connect(url) as connection:
        found = connection.execute("SHOW data_directory").fetchone()
    assert found is not None
    pg_ctl(found[0], "restart", "-m", "immediate", "-l", f"{found[0]}/log")
    try:
        yield
    finally:
        pg_ctl(found[0], "stop", "-m", "fast")


def pg_ctl(data: str, *words: str) -> None:
    argv: list[str | Path] = [postgres._programs() / "pg_ctl", "-D", data, "-w", *words]
    subprocess.run(argv, user=postgres._server_user(), cwd="/", stdout=subprocess.DEVNULL, check=True)


def test_a_database_server_that_crashes_loses_nothing(tmp_path: Path, mock: MockAnthropic, database: str) -> None:
    with Box(tmp_path, mock, DATABASE_URL=database) as box:
        box.agent("dev", scale=10)
        run_id = in_a_command(box)
        pids = box.pids()
        with crashed_and_back(database):
            box.until(lambda: is_answered(box, run_id))
            see_lines(box, run_id)
            let_it_end(box, run_id)
            assert_whole(box, run_id)
            assert len(mock.asked) == 2
            assert_works(box, mock)
            assert box.pids() == pids
            box.down()


# --- the engine and the machine -----------------------------------------------------------------------------------


class OwnEngine:
    """A second Docker daemon, with the sandbox's image, that a test may kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/docker.sock"
        self._state = folder / "state"  # what a machine loses when it restarts
        self._bridge = f"aft{os.getpid() % 100000}"
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # Of its own: with none at all the daemon would remove that of the first one.
        subprocess.run(["ip", "link", "add", self._bridge, "type", "bridge"], check=True)
        address = f"198.18.{os.getpid() % 250}.1/30"
        subprocess.run(["ip", "address", "add", address, "dev", self._bridge], check=True)
        self.start()
        with subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE) as save:
            subprocess.run(["docker", "-H", self.url, "load"], stdin=save.stdout, capture_output=True, check=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self.lose_power()
        subprocess.run(["ip", "link", "delete", self._bridge], check=True)

    def start(self, *options: str) -> None:
        """Return when it answers."""
        places: list[str | Path] = [
            "--data-root",
            self.folder / "data",
            "--exec-root",
            self._state,
            "--pidfile",
            self.folder / "pid",
        ]
        network = ["--bridge", self._bridge, "--iptables=false", "--ip-masq=false"]
        # Where nobody takes in orphans, the containerd of a killed daemon would seem alive.
        (self._state / "containerd" / "containerd.pid").unlink(missing_ok=True)
        (self.folder / "pid").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            argv: list[str | Path] = ["dockerd", "-H", self.url, *places, *network, *options]
            self._daemon = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 30
        while subprocess.run(["docker", "-H", self.url, "version"], capture_output=True, check=False).returncode:
            assert self._daemon.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.05)

    @contextlib.contextmanager
    def keeping_containers(self) -> Iterator[None]:
        """Running while the daemon is not, as operators set it up who upgrade it in mid-work."""
        self.stop()
        self.start("--live-restore")
        yield
        self.stop()
        self.start()

    def stop(self) -> None:
        """As a package's upgrade does: its containers are told to stop."""
        assert self._daemon is not None
        self._daemon.terminate()
        self._daemon.wait(30)

    def kill(self) -> None:
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()

    def lose_power(self) -> None:
        """Nothing it started is left, and no mount."""
        self.kill()
        while left := [*self._processes()]:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    kill(pid)
            time.sleep(0.05)
        for mount in sorted(self._mounts(), reverse=True):
            subprocess.run(["umount", "-l", mount], check=True)
        shutil.rmtree(self._state)

    def _processes(self) -> Iterator[int]:
        """Its containerd, and of every container the process that holds it and its first one."""
        for status in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                pid = int(status.parent.name)
                if str(self._state).encode() in status.read_bytes():
                    yield pid
                    yield from children(pid)

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mounts").read_text().splitlines()
        return [place for line in lines if (place := line.split()[1]).startswith(f"{self.folder}/")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnEngine]:
    with OwnEngine(tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, shared_mock: MockAnthropic, engine: OwnEngine) -> Iterator[Box]:
    """An installation on an engine of its own."""
    with Box(tmp_path_factory.mktemp("apart"), shared_mock, DOCKER_HOST=engine.url) as box:
        box.agent("dev", scale=10)
        yield box


def test_an_engine_that_is_restarted_loses_the_command_and_not_the_run(
    apart: Box, mock: MockAnthropic, engine: OwnEngine
) -> None:
    mock.plan = looks_after_itself
    run_id = in_a_command(apart)
    engine.stop()
    apart.wait(run_id, "waiting")
    engine.start()
    assert_lost_and_went_on(apart, run_id)


def test_an_engine_that_is_killed_and_keeps_its_containers_loses_nothing(
    apart: Box, mock: MockAnthropic, engine: OwnEngine
) -> None:
    with engine.keeping_containers():
        run_id = in_a_command(apart)
        engine.kill()
        apart.wait(run_id, "waiting")
        engine.start("--live-restore")
        see_lines(apart, run_id)
        let_it_end(apart, run_id)
        assert_whole(apart, run_id)
        assert count(apart, run_id, "sandbox.lost") == 0


def test_a_machine_that_is_restarted_goes_on_with_its_runs(apart: Box, mock: MockAnthropic, engine: OwnEngine) -> None:
    mock.plan = looks_after_itself
    run_id = in_a_command(apart)
    for pid in apart.pids().values():
        kill(pid)
    engine.lose_power()
    engine.start()
    apart.up()
    assert_lost_and_went_on(apart, run_id)
