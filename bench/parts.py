"""The figures, each measured in an installation of its own over the full path: delivery row, queue, lease, container.

A part yields its figures as they are ready, on the database that `env` names (none: SQLite, synchronous=FULL).
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench import claims, containers, load, locks, memory, page
from bench import deliveries as bench_deliveries
from bench.containers import Removals
from bench.figures import AtLeastOfFloor, AtMost, Figure, Unmeasured
from bench.installation import SECRET, installation
from bench.model import Model
from tests.box import Box

log = logging.getLogger("bench")

SCALE = 4
RATE = 20.0  # webhooks a second, while runs start and end
GONE_WITHIN = 30.0  # seconds that one idle run's container has
PAUSE = 0.3  # seconds after a container is gone: its volume goes then, and idle means that nothing is going on
ON_NEW_ISSUES = '[[webhooks]]\nsource = "github"\nevents = ["issues"]\nactions = ["opened"]\n'


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of each."""

    webhooks: int = 50
    warm_ups: int = 3
    runs: int = 40
    rounds: int = 3
    rest: float = 30.0  # seconds between the last burst and the look at the memory
    lines: int = 50
    waiting: int = 300  # runs at one time
    in_line: int = 10_000
    claims: int = 500
    lock_clients: int = 50
    lock_seconds: float = 8.0
    delivery_seconds: float = 15.0


QUICK = Sizes(
    webhooks=5,
    warm_ups=1,
    runs=8,
    rounds=1,
    rest=2.0,
    lines=10,
    waiting=20,
    in_line=1000,
    claims=50,
    lock_clients=10,
    lock_seconds=0.5,
    delivery_seconds=1.5,
)

Part = Callable[[Sizes, Mapping[str, str]], Generator[Figure, None, None]]


def webhook_to_model(sizes: Sizes, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """A signed webhook sent → the run's first request at the model, with nothing else going on."""
    with Model() as model, installation(env, model) as box, Removals() as removals:
        box.agent("triage", extra=ON_NEW_ISSUES)
        delays = [_webhook_to_model(box, model, removals, number) for number in range(sizes.warm_ups + sizes.webhooks)]
    yield Figure.of_samples("webhook_to_model", "ms", delays[sizes.warm_ups :], AtMost("p50", 40), AtMost("p95", 80))


def _webhook_to_model(box: Box, model: Model, removals: Removals, number: int) -> float:
    """Milliseconds; comes back when the run is finished and its container gone."""
    webhook, url = load.issue_opened(number, SECRET), box.client.url
    sent_at = time.time()
    answer = webhook.send(url)
    began_at = model.run_began()
    load.finished(box, *answer["runs"])
    removals.wait(1, within=GONE_WITHIN)
    time.sleep(PAUSE)
    return (began_at - sent_at) * 1000


def throughput(sizes: Sizes, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """Minimal runs a second, beside the engine's bare loop at the same parallelism; then what stays in memory."""
    with Model() as model, installation(env, model) as box:
        warm_up(box)
        yield _throughput(box, sizes)
        log.info("resting for %.0f s", sizes.rest)
        time.sleep(sizes.rest)
        yield idle_memory(box)


def _throughput(box: Box, sizes: Sizes) -> Figure:
    floors, ours = [], []
    for number in range(sizes.rounds):
        floors.append(containers.floor(sizes.runs, parallel=SCALE))
        ours.append(sizes.runs / load.burst(box, "minimal", sizes.runs))
        log.info("round %d: %.2f runs/s, floor %.2f", number + 1, ours[-1], floors[-1])
    if standing := containers.left():
        raise Unmeasured(f"{len(standing)} containers were left standing")
    return Figure(
        figure="throughput",
        unit="runs/s",
        n=sizes.runs,
        value=statistics.median(ours),
        floor=statistics.median(floors),
        target=(AtLeastOfFloor(0.85),),
    )


def idle_memory(box: Box) -> Figure:
    pids = box.pids()
    return Figure(figure="idle_memory", unit="MB", n=len(pids), value=_megabytes(pids), target=(AtMost("value", 500),))


def _megabytes(pids: Mapping[str, int]) -> float:
    """Everything `up` started, and itself. A database server that it did not start is not counted."""
    parts = memory.by_name(pids)
    for name, size in parts.items():
        log.info("%-12s %6.1f MB", name, size / 1e6)
    return sum(parts.values()) / 1e6


def waiting(sizes: Sizes, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """What stays of many runs that wait for a person at one time: memory in all, and threads of the worker."""
    ask = {"name": "ask", "arguments": {"question": "Does anybody answer?"}}
    with installation(env) as box:
        box.agent("asker", turns=[{"tools": [ask]}, {"text": "Answered."}], scale=SCALE, extra='tools = ["ask"]\n')
        log.info("%d threads in the worker before", memory.threads(box.pids()["worker"]))
        run_ids = [_parked(box) for _ in range(sizes.waiting)]
        for run_id in run_ids:
            box.wait(run_id, "waiting")
        log.info("resting for %.0f s", sizes.rest)
        time.sleep(sizes.rest)
        pids = box.pids()
        yield Figure(
            figure="waiting_memory",
            unit="MB",
            n=len(run_ids),
            value=_megabytes(pids),
            target=(AtMost("value", 700),),
        )
        threads = memory.threads(pids["worker"])
        yield Figure(
            figure="waiting_threads", unit="threads", n=len(run_ids), value=threads, target=(AtMost("value", 100),)
        )


def _parked(box: Box) -> str:
    """A run that is on its way to its question, with no long line behind it."""
    run_id = box.start("asker")
    box.until(lambda: box.client.call("GET", "agents/asker")["agent"]["pending"] <= SCALE)
    return run_id


def ack_under_load(sizes: Sizes, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """Signed webhooks of 11 KB at a steady rate through a whole burst, each timed from when it was due to its answer.

    They are pushes, and the source's one trigger wants new issues: each becomes a delivery row and matches nothing,
    so the burst stays what it is.
    """
    with Model() as model, installation(env, model) as box:
        warm_up(box)
        delays = _acks_through_a_burst(box, sizes.runs)
    yield Figure.of_samples("ack_under_load", "ms", delays, AtMost("p95", 100))


def _acks_through_a_burst(box: Box, runs: int) -> list[float]:
    url, stop = box.client.url, threading.Event()

    def send(number: int) -> None:
        answer = load.push(number, SECRET).send(url)
        if answer["matched"] != 0:
            raise Unmeasured(f"a push was answered {answer}")

    with ThreadPoolExecutor(1) as aside:
        acks = aside.submit(load.open_loop, send, rate=RATE, stop=stop)
        try:
            took = load.burst(box, "minimal", runs)
        finally:
            stop.set()
    log.info("%.2f runs/s meanwhile", runs / took)
    return acks.result()


def line_to_page(sizes: Sizes, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """A line printed in the container → on the run's page in a browser that has been watching since before."""
    printing = f'i=0; while [ $i -lt {sizes.lines} ]; do i=$((i+1)); echo "stamp $(date +%s%N)"; sleep 0.2; done'
    ask = {"name": "ask", "arguments": {"question": "Does anybody watch?"}}
    bash = {"name": "bash", "arguments": {"command": printing}}
    turns = [{"tools": [ask]}, {"tools": [bash]}, {"text": "Printed."}]
    with Model() as model, installation(env, model) as box:
        warm_up(box)
        box.agent("printer", turns=turns)
        with page.logged_in_page(box) as watched:
            run_id = box.start("printer")
            box.wait(run_id, "waiting")
            page.watch(watched, box, run_id)
            box.client.call("POST", f"tasks/{run_id}/respond", {"message": "yes"})
            load.finished(box, run_id)
            page.wait_for_state(watched, "over")
            delays = page.delays(watched)
    if len(delays) != sizes.lines:
        raise Unmeasured(f"{len(delays)} of {sizes.lines} lines were seen on the page")
    yield Figure.of_samples("line_to_page", "ms", delays, AtMost("p95", 300))


def warm_up(box: Box) -> None:
    """Add the agent `minimal`, whose runs are two turns and one echo, and run it.

    A worker loads its model libraries soon after its start, and meanwhile everything else in it goes in jerks.
    """
    box.agent("minimal", scale=SCALE, extra=ON_NEW_ISSUES)
    load.burst(box, "minimal", SCALE)


def claim_in_long_line(sizes: Sizes, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """A claim where ten thousand runs stand in line, of every priority, some of them of one claim key."""
    yield from claims.long_line(sizes.in_line, sizes.claims, env)


def lock_pairs(sizes: Sizes, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """Locks through the gateway, each answered when it is on the disk."""
    yield from locks.pairs(sizes.lock_clients, sizes.lock_seconds, env)


def deliveries(sizes: Sizes, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """Webhooks that no agent wants, beside a bare insert of the same row by the same server."""
    yield from bench_deliveries.unmatched(sizes.delivery_seconds, env)


def deliveries_during_runs(sizes: Sizes, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    yield from bench_deliveries.while_runs_go_on(sizes.runs, env)


def deliveries_into_full_line(sizes: Sizes, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    yield from bench_deliveries.into_a_full_line(sizes.delivery_seconds, env)


def matching(_sizes: Sizes, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    yield from bench_deliveries.matching(env)


PARTS: dict[Part, tuple[str, ...]] = {
    webhook_to_model: ("webhook_to_model",),
    throughput: ("throughput", "idle_memory"),
    ack_under_load: ("ack_under_load",),
    line_to_page: ("line_to_page",),
    waiting: ("waiting_memory", "waiting_threads"),
    claim_in_long_line: ("claim_in_long_line",),
    lock_pairs: ("lock_pairs", "lock_latency", "lock_contention"),
    deliveries: ("deliveries",),
    deliveries_during_runs: ("deliveries_during_runs",),
    deliveries_into_full_line: ("deliveries_into_full_line",),
    matching: ("matching",),
}
