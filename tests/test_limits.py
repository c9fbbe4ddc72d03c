"""What a run may spend: each limit with the agent's word, the run's own in its place, and its code."""

from __future__ import annotations

from concurrent.futures import Future
from decimal import Decimal
from typing import Any

import pytest

from agents.spec import ModelSpec
from runs.llm import ModelUnavailable, prices
from runs.models import Run, ToolCall
from tests.conftest import DrivenClock, DrivenWorker, PlayedModel, Points, meanwhile, until
from tests.making import bash, make_agent, said, status, submit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

SONNET = {"provider": "anthropic", "model": "claude-sonnet-4-5"}
TURN = Decimal("0.00045")  # 100 tokens in at $3, 10 out at $15 a million


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-none")


def code_of(run: Run) -> str:
    assert run.status == "failed", run.status
    assert run.error is not None
    return str(run.error["code"])


def on_sonnet(**changes: Any) -> Any:
    return make_agent(**{"models": [SONNET], "sandbox": "lazy", "retry": "never", **changes})


# --- dollars ------------------------------------------------------------------------------------------------------


def test_every_turn_is_counted_in_dollars(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("", status("thinking")), said("done")]
    run = worker.drive(submit(on_sonnet()))
    assert (run.status, run.cost) == ("finished", 2 * TURN)
    assert [event.data["costUsd"] for event in run.events.filter(type="model.turn")] == ["0.000450", "0.000450"]


@pytest.mark.parametrize(("limit", "own"), [("0.0009", None), ("9", Decimal("0.0009")), ("0", Decimal("0.0006"))])
def test_no_request_is_made_once_the_dollars_are_spent(
    worker: DrivenWorker, model: PlayedModel, limit: str, own: Decimal | None
) -> None:
    model.answers = [said("", status(str(turn))) for turn in range(9)]
    run = worker.drive(submit(on_sonnet(limits={"usd": limit}), cost_budget=own))
    assert code_of(run) == "BUDGET_EXCEEDED"
    assert run.error is not None
    assert run.error["message"].startswith("$0.0009 spent of $0.000")
    assert len(model.asked) == 2


def test_a_budget_in_dollars_needs_a_model_with_a_price(worker: DrivenWorker, model: PlayedModel) -> None:
    unheard = {"provider": "anthropic", "model": "nobody-knows-1"}
    run = worker.drive(submit(on_sonnet(models=[unheard], limits={"usd": 1})))
    assert code_of(run) == "PRICE_UNKNOWN"
    assert model.asked == []
    model.answers = [said("done")]
    run = worker.drive(submit(on_sonnet(name="free", models=[unheard]), cost_budget=None))
    assert (run.status, run.cost) == ("finished", Decimal(0))


def test_a_request_that_breaks_off_costs_what_it_sent(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [ModelUnavailable("broken off", lost_requests=1)]
    run = worker.drive(submit(on_sonnet()))
    assert run.wait_reason == "rate_limit"
    assert run.estimated_tokens > 0
    assert run.cost == prices.of_input(ModelSpec(provider="anthropic", model="claude-sonnet-4-5"), run.estimated_tokens)


@pytest.mark.parametrize(
    ("usage", "dollars"),
    [
        ({"input": 1_000_000, "output": 0, "cache_read": 0, "cache_write": 0}, "3"),
        ({"input": 0, "output": 1_000_000, "cache_read": 0, "cache_write": 0}, "15"),
        ({"input": 100_000, "output": 0, "cache_read": 100_000, "cache_write": 0}, "0.03"),
        ({"input": 100_000, "output": 0, "cache_read": 0, "cache_write": 100_000}, "0.375"),
    ],
)
def test_prices_are_those_of_the_list(usage: Any, dollars: str) -> None:
    known = prices.cost(ModelSpec(provider="anthropic", model="claude-sonnet-4-5"), usage)
    assert known is not None
    # Beyond 200,000 tokens of input the vendor asks more.
    assert known == Decimal(dollars) or (usage["input"] > 200_000 and known == 2 * Decimal(dollars))


# --- idleness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "own"), [(60, None), (900, 60), (0, 60)])
def test_a_model_that_says_nothing_for_too_long_ends_the_run(
    worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock, limit: int, own: int | None
) -> None:
    never = Future[Any]()
    model.answers = [never]
    run = submit(on_sonnet(limits={"idle_seconds": limit}), idle_seconds=own)

    def time_passes() -> None:
        until(lambda: model.asked)
        driven_clock.forward(50)
        model.asked[0].progressed()  # a piece of the answer
        driven_clock.forward(50)
        worker.lease_thread.halt_overdue()
        assert not never.cancelled()
        driven_clock.forward(11)
        worker.lease_thread.halt_overdue()

    with meanwhile(time_passes):
        run = worker.drive(run)
    assert code_of(run) == "IDLE_TIMEOUT"
    assert never.cancelled()


def test_a_command_that_prints_is_not_idle(worker: DrivenWorker, points: Points, driven_clock: DrivenClock) -> None:
    two = "echo one; while [ ! -e on ]; do sleep 0.05; done; echo two; while [ ! -e off ]; do sleep 0.05; done"
    agent = make_agent(turns=[{"tools": [bash(two)]}], limits={"idle_seconds": 60}, retry="never")
    run = submit(agent)

    def first_line() -> None:
        driven_clock.forward(50)
        worker.lease_thread.halt_overdue()
        (worker.fake._workspace(run.attempts.get().sandbox_name) / "on").touch()

    def second_line() -> None:
        driven_clock.forward(50)
        worker.lease_thread.halt_overdue()
        driven_clock.forward(11)
        worker.lease_thread.halt_overdue()

    points.after("output 1", first_line)
    points.after("output 2", second_line)
    run = worker.drive(run)
    assert code_of(run) == "IDLE_TIMEOUT"
    assert "".join(event.data["text"] for event in run.events.filter(type="output")) == "one\ntwo\n"


# --- output -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "own"), [(100_000, None), (0, 100_000)])
def test_what_prints_too_much_ends_the_run_and_is_kept_as_far_as_it_came(
    worker: DrivenWorker, limit: int, own: int | None
) -> None:
    endless = "while :; do head -c 10000 /dev/zero | tr '\\0' x; echo; done"
    agent = make_agent(turns=[{"tools": [bash(endless)]}], limits={"output_bytes": limit})
    run = worker.drive(submit(agent, output_limit=own))
    assert code_of(run) == "OUTPUT_LIMIT"
    printed = sum(len(event.data["text"]) for event in run.events.filter(type="output"))
    assert 100_000 < printed <= run.output_bytes
    assert worker.engine.names() == []


def test_output_is_counted_over_all_calls(worker: DrivenWorker) -> None:
    lines = [{"tools": [bash("head -c 600 /dev/zero | tr '\\0' x")]} for _ in range(3)]
    run = worker.drive(submit(make_agent(turns=[*lines, {"text": "done"}], limits={"output_bytes": 1000})))
    assert code_of(run) == "OUTPUT_LIMIT"
    assert run.output_bytes == 1200
    assert ToolCall.objects.filter(state="done").count() == 2  # checked before each call
