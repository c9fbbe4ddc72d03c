"""The signal that every wait of a step also waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from runs.halt import Halt, Halted, Why


def later(what: Callable[..., Any], *args: Any, after: float = 0.1) -> threading.Timer:
    timer = threading.Timer(after, what, args)
    timer.start()
    return timer


def test_nothing_happens_until_it_is_set() -> None:
    halt = Halt()
    halt.check()
    halt.sleep(0.01)
    assert halt.why is None


def test_the_first_reason_stays() -> None:
    halt = Halt()
    halt.set(Why.LOST)
    halt.set(Why.CANCEL)
    with pytest.raises(Halted, match="lost") as caught:
        halt.check()
    assert caught.value.why is Why.LOST


def test_of_many_who_set_it_together_one_is_first_and_listeners_hear_once() -> None:
    for _ in range(50):
        halt, heard, gate = Halt(), threading.Semaphore(0), threading.Barrier(len(Why))
        halt.listen(heard.release)

        def come(why: Why, halt: Halt = halt, gate: threading.Barrier = gate) -> None:
            gate.wait()
            halt.set(why)

        threads = [threading.Thread(target=come, args=(why,)) for why in Why]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert halt.why is not None
        assert (heard.acquire(blocking=False), heard.acquire(blocking=False)) == (True, False)


def test_a_sleep_lasts_as_long_as_it_says() -> None:
    began = time.monotonic()
    Halt().sleep(0.2)
    assert time.monotonic() - began >= 0.2


def test_a_sleep_ends_when_it_is_set() -> None:
    halt = Halt()
    later(halt.set, Why.STOPPING)
    began = time.monotonic()
    with pytest.raises(Halted) as caught:
        halt.sleep(60)
    assert caught.value.why is Why.STOPPING
    assert time.monotonic() - began < 30


def test_after_it_was_set_nothing_is_waited_for() -> None:
    halt = Halt()
    halt.set(Why.DEADLINE)
    with pytest.raises(Halted):
        halt.sleep(60)
    with pytest.raises(Halted):
        halt.wait_first(Future())


def test_many_sleepers_wake_together() -> None:
    halt, woken = Halt(), list[Why]()

    def sleep() -> None:
        try:
            halt.sleep(60)
        except Halted as halted:
            woken.append(halted.why)

    threads = [threading.Thread(target=sleep) for _ in range(20)]
    for thread in threads:
        thread.start()
    halt.set(Why.CANCEL)
    for thread in threads:
        thread.join(10)
    assert woken == [Why.CANCEL] * 20


# --- listeners ----------------------------------------------------------------------------------------------------


def test_a_listener_is_called_once_when_it_is_set() -> None:
    halt, heard = Halt(), list[str]()
    halt.listen(lambda: heard.append("a"))
    halt.listen(lambda: heard.append("b"))
    assert heard == []
    halt.set(Why.CANCEL)
    halt.set(Why.LOST)
    assert heard == ["a", "b"]


def test_who_listens_too_late_is_called_at_once() -> None:
    halt, heard = Halt(), list[str]()
    halt.set(Why.CANCEL)
    halt.listen(lambda: heard.append("late"))
    assert heard == ["late"]


def test_a_listener_taken_back_is_not_called() -> None:
    halt, heard = Halt(), list[str]()

    def listener() -> None:
        heard.append("a")

    halt.listen(listener)
    halt.ignore(listener)
    halt.ignore(listener)
    halt.set(Why.CANCEL)
    halt.ignore(listener)
    assert heard == []


def test_a_listener_may_ask_and_listen_again() -> None:
    halt, heard = Halt(), list[Why | None]()
    halt.listen(lambda: halt.listen(lambda: heard.append(halt.why)))
    halt.set(Why.CANCEL)
    assert heard == [Why.CANCEL]


def test_waits_leave_no_listener_behind() -> None:
    halt, done = Halt(), Future[int]()
    done.set_result(1)
    for _ in range(100):
        halt.sleep(0)
        halt.wait_first(done)
    assert halt._listeners == []


# --- futures ------------------------------------------------------------------------------------------------------


def test_the_first_future_that_is_done_ends_the_wait() -> None:
    slow, quick = Future[int](), Future[int]()
    later(quick.set_result, 3)
    Halt().wait_first(slow, quick)
    assert (slow.done(), quick.result(0)) == (False, 3)


@pytest.mark.parametrize("end", ["result", "exception", "cancel"])
def test_a_future_is_done_however_it_ends(end: str) -> None:
    future = Future[int]()
    ends: dict[str, Callable[[], Any]] = {
        "result": lambda: future.set_result(1),
        "exception": lambda: future.set_exception(ValueError("no")),
        "cancel": future.cancel,
    }
    later(ends[end])
    Halt().wait_first(future)
    assert future.done()


def test_what_is_done_already_is_not_waited_for() -> None:
    done = Future[int]()
    done.set_result(1)
    Halt().wait_first(Future(), done)


def test_being_set_ends_the_wait_and_leaves_the_futures_going() -> None:
    halt, future = Halt(), Future[int]()
    later(halt.set, Why.LOST)
    with pytest.raises(Halted):
        halt.wait_first(future)
    future.set_result(1)
    assert future.result(0) == 1


def test_a_future_that_is_done_wins_over_the_halt() -> None:
    halt, done = Halt(), Future[int]()
    done.set_result(1)
    halt.set(Why.CANCEL)
    halt.wait_first(done)
