"""After a failure: another attempt, the breaker, another run. Whose decision each is, and what is kept."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from agents import clock
from agents.models import Agent, AgentEvent, AgentVersion
from agents.redaction import NOTHING_SECRET
from runs import leases, lifecycle, queue, retries
from runs.leases import Lease, LeaseLost
from runs.llm import ModelError
from runs.models import Alert, Attempt, Message, Run, SandboxState, ToolCall, TriggerKind
from runs.sandbox.base import SandboxError
from tests.conftest import DrivenClock, DrivenWorker, PlayedModel, Points
from tests.making import ask, bash, make_agent, said, status, submit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]


def reload(run: Run) -> Run:
    return Run.objects.get(pk=run.pk)


def types(run: Run) -> list[str]:
    return list(run.events.order_by("number").values_list("type", flat=True))


def fails(message: str = "no luck", code: str = "SANDBOX_ERROR") -> SandboxError:
    error = SandboxError(message)
    error.code = code
    return error


def after_its_pause(worker: DrivenWorker, driven_clock: DrivenClock, run: Run, seconds: float = 13) -> Run:
    driven_clock.forward(seconds)
    worker.sweep()
    return worker.drive(run)


# --- another attempt ----------------------------------------------------------------------------------------------


def test_a_failure_of_the_machinery_is_followed_by_another_attempt(
    worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock
) -> None:
    driven_clock.stand_at(clock.now())
    agent = make_agent(sandbox="lazy")
    model.answers = [said("first", status("thinking")), fails(), said("done")]
    run = worker.drive(submit(agent))
    assert (run.status, run.wait_reason, run.has_slot) == ("waiting", "retry", True)
    first = run.attempts.get(number=1)
    assert first.error == {"code": "SANDBOX_ERROR", "message": "no luck"}
    assert first.ended_at is not None
    assert run.wake_at is not None
    assert timedelta(seconds=8) <= run.wake_at - clock.now() <= timedelta(seconds=12)
    run = after_its_pause(worker, driven_clock, run)
    assert (run.status, run.output) == ("finished", "done")
    second = run.attempts.get(number=2)
    # Each attempt has a transcript of its own, and the first one's is kept.
    assert [Message.objects.filter(attempt=attempt).count() for attempt in (first, second)] == [3, 2]
    failed = run.events.get(type="attempt.failed")
    assert (failed.data["attempt"], failed.data["code"]) == (1, "SANDBOX_ERROR")
    assert run.turns == 2  # what was spent counts over all attempts


def test_no_attempt_follows_one_that_may_have_had_effects(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("", bash("echo hi")), fails()]
    run = worker.drive(submit(make_agent()))
    assert run.status == "failed"
    assert run.error is not None
    assert run.error["code"] == "SANDBOX_ERROR"
    assert run.attempts.count() == 1


def test_an_agent_may_say_that_its_work_can_be_repeated(
    worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock
) -> None:
    model.answers = [said("", bash("echo hi")), fails(), said("", bash("echo hi")), said("done")]
    run = worker.drive(submit(make_agent(retry="always")))
    old = run.attempts.get(number=1)
    assert (old.sandbox_state, old.has_workspace) == (SandboxState.GONE, False)  # its sandbox went with it
    run = after_its_pause(worker, driven_clock, run)
    assert run.status == "finished"
    assert ToolCall.objects.filter(attempt__run=run, name="bash").count() == 2
    assert worker.engine.names() == []


@pytest.mark.parametrize(
    ("changes", "code", "again"),
    [
        ({}, "SANDBOX_LOST", True),
        ({}, "ENGINE_DOWN", True),
        ({}, "TIMEOUT", True),
        ({}, "IDLE_TIMEOUT", True),
        ({}, "MODEL_UNAVAILABLE", False),
        ({}, "EXIT_1", False),
        ({}, "BUDGET_EXCEEDED", False),
        ({}, "WORKER_LOST", False),
        ({"retry": "never"}, "SANDBOX_LOST", False),
        ({"attempts": {"most": 1}}, "SANDBOX_LOST", False),
        ({"attempts": {"after": ["model", "work"]}}, "MODEL_UNAVAILABLE", True),
        ({"attempts": {"after": ["model", "work"]}}, "EXIT_1", True),
        ({"attempts": {"after": ["model", "work"]}}, "SANDBOX_LOST", False),
    ],
)
def test_which_failures_are_followed_by_another_attempt(changes: dict[str, Any], code: str, again: bool) -> None:
    agent = make_agent(**changes)
    attempt = Attempt.objects.create(run=submit(agent), number=1)
    assert (retries.delay(attempt.run, agent.spec, attempt, code) is not None) is again


def test_the_pause_doubles_up_to_its_cap_with_jitter() -> None:
    agent = make_agent(attempts={"most": 9, "delay_seconds": 10, "longest_delay_seconds": 60})
    run = submit(agent)
    for number, seconds in [(1, 10), (2, 20), (3, 40), (4, 60), (5, 60)]:
        attempt = Attempt.objects.create(run=run, number=number)
        pauses = {retries.delay(run, agent.spec, attempt, "SANDBOX_LOST") for _ in range(20)}
        assert all(seconds * 0.8 <= pause.total_seconds() <= seconds * 1.2 for pause in pauses if pause is not None)
        assert len(pauses) > 1


def test_a_caller_who_says_how_long_it_may_take_waits_for_one_attempt(
    worker: DrivenWorker, driven_clock: DrivenClock
) -> None:
    run = submit(make_agent(turns=[{"tools": [status("thinking")]}, {"text": "done"}]), wall_seconds=60)
    worker.answer_one()
    driven_clock.forward(61)
    run = worker.drive(run)
    assert (run.status, run.error and run.error["code"]) == ("failed", "TIMEOUT")


def test_the_next_attempt_has_its_own_time(worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock) -> None:
    agent = make_agent(sandbox="lazy", limits={"wall_seconds": 100}, attempts={"delay_seconds": 1000})
    model.answers = [said("", status("thinking")), said("done")]
    run = submit(agent)
    worker.answer_one()
    driven_clock.forward(101)
    run = worker.drive(run)
    assert (run.status, run.wait_reason) == ("waiting", "retry")
    run = after_its_pause(worker, driven_clock, run, 1201)
    assert run.status == "finished"


def test_a_canceled_run_is_not_tried_again(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [fails()]
    run = worker.drive(submit(make_agent(sandbox="lazy")))
    assert run.wait_reason == "retry"
    queue.cancel(run)
    assert reload(run).status == "canceled"
    assert not Attempt.objects.filter(run=run, ended_at=None).exists()


def test_a_worker_killed_between_two_attempts_loses_none(
    worker: DrivenWorker, model: PlayedModel, points: Points, driven_clock: DrivenClock
) -> None:
    agent = make_agent(sandbox="lazy")
    model.answers = [fails(), said("done")]
    run = submit(agent)
    points.after("attempt.failed 1", worker.rung.bells.clear)
    run = worker.drive(run)
    assert [attempt.number for attempt in run.attempts.order_by("number")] == [1, 2]
    assert after_its_pause(worker, driven_clock, run).status == "finished"


# --- the breaker --------------------------------------------------------------------------------------------------


def fail_times(worker: DrivenWorker, model: PlayedModel, agent: Agent, times: int) -> None:
    for _ in range(times):
        model.answers = [ModelError("no key", code="MODEL_AUTHENTICATION")]
        assert worker.drive(submit(agent)).status == "failed"


def forget(worker: DrivenWorker) -> None:
    """Every bell is lost, and what was handed over a moment ago may be handed over again."""
    worker.rung.bells.clear()
    worker._handed.clear()


def test_an_agent_that_fails_again_and_again_holds_its_line_and_says_so(
    worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock
) -> None:
    agent = make_agent(breaker={"failures": 3, "probe_seconds": 600}, sandbox="lazy")
    fail_times(worker, model, agent, 3)
    agent.refresh_from_db()
    assert agent.broken
    alert = Alert.objects.get(kind="agent.broken", cleared_at=None)
    assert "failed 3 times in a row, last with MODEL_AUTHENTICATION" in alert.message
    run = worker.drive(submit(agent))
    worker.sweep()
    assert reload(run).status == "pending"  # kept, not refused


def test_a_broken_agent_tries_one_run_and_waits_twice_as_long_for_the_next(
    worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock
) -> None:
    agent = make_agent(breaker={"failures": 3, "probe_seconds": 600}, sandbox="lazy", scale=5)
    fail_times(worker, model, agent, 3)
    runs = [submit(agent) for _ in range(3)]
    forget(worker)
    driven_clock.forward(601)
    model.answers = [ModelError("no key", code="MODEL_AUTHENTICATION")]
    worker.sweep()
    assert sorted(reload(run).status for run in runs) == ["failed", "pending", "pending"]
    forget(worker)
    driven_clock.forward(1100)
    worker.sweep()
    assert sorted(reload(run).status for run in runs) == ["failed", "pending", "pending"]
    forget(worker)
    driven_clock.forward(101)
    model.answers = [said("done"), said("done")]
    worker.sweep()
    worker.drive(runs[-1])
    assert sorted(reload(run).status for run in runs) == ["failed", "finished", "finished"]
    agent.refresh_from_db()
    assert (agent.broken, agent.failures_in_a_row, agent.probe_at) == (False, 0, None)
    assert Alert.objects.get(kind="agent.broken").cleared_at is not None
    noted = AgentEvent.objects.filter(agent=agent).order_by("pk").values_list("type", flat=True)
    assert list(noted) == ["breaker.opened", "breaker.probe", "breaker.closed"]  # two probes, counted


def test_one_word_resets_the_breaker(worker: DrivenWorker, model: PlayedModel) -> None:
    agent = make_agent(breaker={"failures": 1}, sandbox="lazy")
    fail_times(worker, model, agent, 1)
    run = submit(agent)
    queue.reset_breaker(agent)
    model.answers = [said("done")]
    assert worker.drive(run).status == "finished"


def test_success_between_failures_and_a_cancel_do_not_break_an_agent(worker: DrivenWorker, model: PlayedModel) -> None:
    agent = make_agent(breaker={"failures": 2}, sandbox="lazy")
    fail_times(worker, model, agent, 1)
    queue.cancel(submit(agent))
    model.answers = [said("done")]
    worker.drive(submit(agent))
    fail_times(worker, model, agent, 1)
    agent.refresh_from_db()
    assert (agent.broken, agent.failures_in_a_row) == (False, 1)


def test_a_breaker_of_zero_never_opens(worker: DrivenWorker, model: PlayedModel) -> None:
    agent = make_agent(breaker={"failures": 0}, sandbox="lazy")
    fail_times(worker, model, agent, 4)
    agent.refresh_from_db()
    assert not agent.broken


# --- another run --------------------------------------------------------------------------------------------------

RERUN = {"name": "rerun", "arguments": {}}


def chain(agent: Agent) -> list[tuple[str, int]]:
    return list(Run.objects.filter(agent=agent).order_by("pk").values_list("trigger", "rerun_number"))


def test_a_run_with_more_to_do_is_followed_by_others_up_to_the_limit(worker: DrivenWorker) -> None:
    agent = make_agent(turns=[{"tools": [RERUN]}, {"text": "there is more"}], max_reruns=2)
    first = submit(agent, input="all of it", tags=["nightly"])
    worker.drive(first)
    assert chain(agent) == [("manual", 0), ("rerun", 1), ("rerun", 2)]
    last = Run.objects.filter(agent=agent).latest("pk")
    assert (last.status, last.input, last.tags) == ("finished", "all of it", ["nightly"])
    assert last.rerun_of is not None
    assert last.rerun_of.rerun_of == first
    assert last.trigger_context == {"rerun": 2, "of": 2}


@pytest.mark.parametrize("trigger", [TriggerKind.WEBHOOK, TriggerKind.API, TriggerKind.CALL])
def test_what_an_event_or_a_caller_started_is_not_repeated(worker: DrivenWorker, trigger: TriggerKind) -> None:
    agent = make_agent(turns=[{"tools": [RERUN]}, {"text": "there is more"}])
    run = worker.drive(submit(agent, trigger))
    assert run.status == "finished"
    assert len(chain(agent)) == 1


def test_a_run_that_fails_after_asking_for_another_is_not_followed(worker: DrivenWorker, model: PlayedModel) -> None:
    agent = make_agent(sandbox="lazy")
    model.answers = [said("", RERUN), ModelError("no key", code="MODEL_AUTHENTICATION")]
    assert worker.drive(submit(agent)).status == "failed"
    assert len(chain(agent)) == 1


def test_a_paused_agent_is_not_run_again(worker: DrivenWorker, model: PlayedModel) -> None:
    agent = make_agent(sandbox="lazy")
    model.answers = [said("", RERUN), said("done")]
    run = submit(agent)
    worker.answer_one()
    queue.pause(agent)
    assert worker.drive(run).status == "finished"
    assert len(chain(agent)) == 1


def test_a_finish_that_is_rolled_back_leaves_no_rerun(worker: DrivenWorker, model: PlayedModel) -> None:
    agent = make_agent(sandbox="lazy")
    model.answers = [said("", RERUN)]
    run = submit(agent)
    worker.answer_one()
    worker.answer_one()
    assert reload(run).rerun_requested
    lease = leases.take(run.pk, "somebody else")
    assert lease is not None
    with pytest.raises(LeaseLost):
        lifecycle.finish(Lease(run.pk, worker.owner, lease.epoch - 1), "late", redactor=NOTHING_SECRET)
    assert len(chain(agent)) == 1


def test_an_agent_whose_definition_cannot_be_read_fails_its_runs_and_breaks(worker: DrivenWorker) -> None:
    agent = make_agent(breaker={"failures": 2})
    AgentVersion.objects.filter(agent=agent).update(spec=[])
    well = make_agent("well", turns=[{"text": "done"}])
    runs = [submit(agent) for _ in range(3)]
    assert worker.drive(submit(well)).status == "finished"
    worker.sweep()
    assert [reload(run).status for run in runs] == ["failed", "failed", "pending"]
    error = reload(runs[0]).error
    assert error is not None
    assert error["code"] == "CORRUPT"
    assert "the definition of agent dev cannot be read" in error["message"]
    assert Alert.objects.filter(kind="agent.broken", subject=str(agent.pk)).exists()


def test_a_run_that_has_begun_keeps_the_definition_it_can_read(worker: DrivenWorker) -> None:
    agent = make_agent(turns=[{"tools": [ask("Which?")]}, {"text": "done"}])
    run = worker.drive(submit(agent))
    agent.version = AgentVersion.objects.create(agent=agent, digest="0" * 64, spec=[])
    agent.save()
    queue.respond(run, "this one")
    assert worker.drive(run).status == "finished"
