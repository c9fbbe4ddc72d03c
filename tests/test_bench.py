"""What the bench makes of its measurements: percentiles, floors, targets, lines of JSON, the time a webhook was due."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from bench import load, memory
from bench.__main__ import NAMES, main, verdict
from bench.figures import AtLeastOfFloor, AtMost, Figure, percentile, table

LATENCY = Figure(figure="latency", unit="ms", n=3, p50=10.0, p95=20.0, target=(AtMost("p50", 10), AtMost("p95", 30)))


def rate(value: float, floor: float) -> Figure:
    return Figure(figure="rate", unit="runs/s", n=40, value=value, floor=floor, target=(AtLeastOfFloor(0.85),))


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [
        ([7.0], 50, 7.0),
        ([7.0], 95, 7.0),
        ([4.0, 1.0, 3.0, 2.0], 50, 2.0),
        ([5.0, 1.0, 3.0, 2.0, 4.0], 50, 3.0),
        ([float(number) for number in range(100, 0, -1)], 95, 95.0),
        ([float(number) for number in range(1, 21)], 95, 19.0),
        ([float(number) for number in range(1, 51)], 95, 48.0),
    ],
)
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(samples: list[float], share: int, expected: float) -> None:
    assert percentile(samples, share) == expected


def test_samples_become_a_figure_with_both_percentiles() -> None:
    figure = Figure.of_samples("latency", "ms", [30.0, 10.0, 20.0], AtMost("p50", 20))
    assert (figure.n, figure.p50, figure.p95, figure.ok) == (3, 20.0, 30.0, True)


def test_a_target_is_kept_at_its_very_limit_and_missed_beyond_it() -> None:
    assert LATENCY.ok is True
    missed = Figure.of_samples("latency", "ms", [10.0, 30.1], *LATENCY.target)
    assert missed.p50 == 10.0
    assert missed.ok is False


@pytest.mark.parametrize(("value", "ok"), [(3.4, True), (3.39, False), (4.2, True)])
def test_a_share_of_the_floor_must_be_left(value: float, ok: bool) -> None:
    assert rate(value, floor=4.0).ok is ok


def test_a_line_holds_what_applies_and_nothing_else() -> None:
    assert json.loads(rate(3.456789, floor=4.0).line()) == {
        "figure": "rate",
        "unit": "runs/s",
        "n": 40,
        "value": 3.46,
        "floor": 4.0,
        "target": "value >= 0.85 x floor",
        "ok": True,
    }
    line = LATENCY.line()
    assert "\n" not in line
    assert list(json.loads(line)) == ["figure", "unit", "n", "p50", "p95", "target", "ok"]
    assert json.loads(line)["target"] == "p50 <= 10, p95 <= 30"


def test_a_figure_for_comparison_is_bound_to_nothing() -> None:
    beside = rate(1.0, floor=4.0).beside("_postgresql")
    assert beside.facts() == {"figure": "rate_postgresql", "unit": "runs/s", "n": 40, "value": 1.0, "floor": 4.0}
    assert beside.ok is None


def test_the_bench_passes_if_all_that_was_wanted_is_there_and_no_target_missed() -> None:
    beside = rate(1.0, floor=4.0).beside("_postgresql")
    assert verdict([LATENCY, beside], ["latency", "rate_postgresql"]) == 0
    assert verdict([LATENCY, rate(1.0, floor=4.0)], ["latency", "rate"]) == 1
    assert verdict([LATENCY], ["latency", "rate"]) == 1


def test_a_figure_nobody_knows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(["--only", "speed"])
    assert refusal.value.code == 2
    said = capsys.readouterr().err
    assert [name for name in NAMES if name not in said] == []


def test_the_table_says_which_target_was_missed() -> None:
    header, kept, missed = table([LATENCY, rate(1.0, floor=4.0)]).splitlines()
    assert header.split()[0] == "figure"
    assert kept.endswith("yes")
    assert missed.endswith("MISSED")


def test_a_send_that_waited_for_its_turn_is_timed_from_when_it_was_due() -> None:
    stop, takes, sends = threading.Event(), 0.02, 6

    def send(number: int) -> None:
        time.sleep(takes)
        if number == sends - 1:
            stop.set()

    delays = load.open_loop(send, rate=200, stop=stop, senders=1)
    behind = [((number + 1) * takes - number / 200) * 1000 for number in range(sends)]
    assert len(delays) >= sends
    assert all(delay >= least for delay, least in zip(delays, behind, strict=False))


def test_what_a_send_raised_is_not_lost() -> None:
    stop = threading.Event()

    def send(number: int) -> None:
        stop.set()
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        load.open_loop(send, rate=1000, stop=stop)


def test_webhooks_are_signed_and_differ_by_their_number() -> None:
    first, second = load.push(1, "secret"), load.push(2, "secret")
    assert first.body != second.body
    assert first.headers["X-GitHub-Delivery"] != second.headers["X-GitHub-Delivery"]
    assert first.headers["X-Hub-Signature-256"] != second.headers["X-Hub-Signature-256"]
    assert 11_000 <= len(first.body) < 12_000
    assert load.issue_opened(1, "secret").body != load.issue_opened(2, "secret").body


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """A child of this process and a child of its own."""
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        grandchild = int(shell.stdout.readline())
        yield shell.pid, grandchild
        os.kill(grandchild, signal.SIGKILL)


def test_a_named_process_and_its_children_count_under_its_name_alone(family: tuple[int, int]) -> None:
    child, _ = family
    assert memory.family(child) == set(family)
    assert memory.family(os.getpid()) >= set(family)
    assert not memory.family(os.getpid(), {child}).intersection(family)
    sizes = memory.by_name({"supervisor": os.getpid(), "web": child})
    assert sizes["supervisor"] > sizes["web"] > 0
