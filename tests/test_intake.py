"""What becomes of an event: a run in the line, nothing, or a dead letter; and who of the line is next."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from agents import clock
from agents.models import Agent, AgentEvent, Priority
from agents.redaction import NOTHING_SECRET
from runs import intake, lifecycle, queue
from runs.intake import AlreadyReplayed, Coalesced, QueueFull
from runs.leases import Lease
from runs.lifecycle import Cause
from runs.models import Alert, DeadLetter, Host, Run, TriggerKind
from tests.conftest import DrivenClock, DrivenWorker
from tests.making import ask, make_agent, make_workspace, submit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

ISSUE = "github://{repo}/issues/{number}"


@pytest.fixture(autouse=True)
def here(db: None) -> None:
    Host.objects.create(pk="here", name="here", last_seen_at=clock.now())


def event(agent: Agent, number: int = 42, **context: Any) -> intake.Delivered:
    """An event about an issue, as a webhook brings it."""
    context = {"repo": "acme/app", "number": number, **context}
    with transaction.atomic():
        return intake.deliver(agent, Cause(TriggerKind.WEBHOOK, context, f"dlv_{number}"))


def claim(agent: Agent) -> Lease | None:
    return lifecycle.claim(agent.pk, owner="somebody", host_id="here")


def claimed(agent: Agent) -> Run:
    lease = claim(agent)
    assert lease is not None
    return Run.objects.get(pk=lease.run_id)


def statuses(agent: Agent) -> list[str]:
    return list(Run.objects.filter(agent=agent).order_by("pk").values_list("status", flat=True))


def about(mode: str, **changes: Any) -> Agent:
    """An agent whose events are about issues."""
    return make_agent(coalesce={"key": ISSUE, "mode": mode}, **changes)


# --- the size of the line -----------------------------------------------------------------------------------------


def test_what_finds_no_place_in_line_is_kept_as_a_dead_letter() -> None:
    agent = make_agent(max_work_queue=2)
    became = [event(agent, number) for number in range(5)]  # one may start at once, two stand in line
    assert [found.run is not None for found in became] == [True, True, True, False, False]
    assert "the line of agent dev is full: it takes 2 beyond" in became[3].reason
    letters = list(DeadLetter.objects.order_by("pk"))
    assert [letter.trigger_context["number"] for letter in letters] == [3, 4]
    assert [letter.caused_by for letter in letters] == ["dlv_3", "dlv_4"]
    assert {letter.code for letter in letters} == {"QUEUE_FULL"}
    alert = Alert.objects.get()
    assert (alert.kind, alert.subject) == ("dead_letters", str(agent.pk))


def test_who_asks_in_person_is_told_that_the_line_is_full() -> None:
    agent = make_agent(max_work_queue=0)
    submit(agent)
    with pytest.raises(QueueFull, match="takes 0 beyond"):
        submit(agent)
    assert not DeadLetter.objects.exists()


def test_an_agent_without_a_line_still_takes_what_may_start_at_once() -> None:
    agent = make_agent(max_work_queue=0, scale=2)
    assert [event(agent, number).run is not None for number in range(3)] == [True, True, False]
    claimed(agent)
    assert event(agent, 3).run is None
    claimed(agent)
    assert event(agent, 4).run is None


def test_a_dead_letter_is_replayed_once() -> None:
    agent = make_agent(max_work_queue=0)
    first = event(agent, 1).run
    letter = event(agent, 2).dead_letter
    assert first is not None
    assert letter is not None
    with pytest.raises(QueueFull):
        queue.replay(letter)
    assert DeadLetter.objects.get().replayed_at is None
    queue.cancel(first)
    run = queue.replay(letter)
    assert (run.trigger, run.caused_by, run.trigger_context["number"]) == ("webhook", "dlv_2", 2)
    assert run.trigger_context["deadLetter"] == letter.pk
    with pytest.raises(AlreadyReplayed, match=run.pk):
        queue.replay(letter)
    assert Alert.objects.get().cleared_at is not None


def test_a_dead_letter_of_a_paused_agent_waits() -> None:
    agent = make_agent(max_work_queue=0)
    event(agent, 1)
    letter = event(agent, 2).dead_letter
    assert letter is not None
    queue.pause(agent)
    with pytest.raises(queue.AgentRefuses, match="paused"):
        queue.replay(DeadLetter.objects.get(pk=letter.pk))


# --- events about the same thing ----------------------------------------------------------------------------------


def test_runs_of_one_claim_key_are_at_work_one_after_the_other() -> None:
    agent = about("queue", scale=3)
    first, second, other = event(agent).run, event(agent).run, event(agent, 7).run
    assert first is not None
    assert second is not None
    assert claimed(agent) == first
    assert claimed(agent) == other  # the second has to wait for the first, and lets others pass
    assert claim(agent) is None
    lease = Lease(first.pk, "somebody", 1)
    lifecycle.finish(lease, "done", redactor=NOTHING_SECRET)
    assert claimed(agent) == second


def test_no_two_runs_of_a_claim_key_can_be_at_work() -> None:
    agent = about("queue", scale=2)
    event(agent)
    second = event(agent).run
    assert second is not None
    claimed(agent)
    with pytest.raises(IntegrityError), transaction.atomic():
        Run.objects.filter(pk=second.pk).update(status="processing")


def test_where_events_are_skipped_a_second_one_starts_nothing_until_the_first_is_over() -> None:
    agent = about("skip")
    first = event(agent).run
    assert first is not None
    assert event(agent).reason == f"agent dev: {first.pk} is at github://acme/app/issues/42 already"
    claimed(agent)
    assert event(agent).run is None
    assert event(agent, 7).run is not None
    noted = AgentEvent.objects.filter(agent=agent, type="event.skipped")
    assert [note.data["times"] for note in noted] == [2]
    lifecycle.finish(Lease(first.pk, "somebody", 1), "done", redactor=NOTHING_SECRET)
    assert event(agent).run is not None
    with pytest.raises(Coalesced) as known:
        submit(agent, claim_key="github://acme/app/issues/42")
    assert known.value.run_id == Run.objects.get(claim_key__endswith="42", status="pending").pk


def test_where_events_replace_the_latest_stands_in_line() -> None:
    agent = about("replace")
    first, second = event(agent, title="old").run, event(agent, title="newer").run
    assert first is not None
    assert second is not None
    assert statuses(agent) == ["canceled", "pending"]
    assert claimed(agent) == second
    third, fourth = event(agent).run, event(agent).run
    assert third is not None
    assert fourth is not None
    # One that has begun is left to end; what stands behind it is replaced.
    assert statuses(agent) == ["canceled", "processing", "canceled", "pending"]


def test_an_event_that_lacks_what_the_key_needs_has_none() -> None:
    agent = about("skip")
    with transaction.atomic():
        runs = [intake.deliver(agent, Cause(TriggerKind.WEBHOOK, {"repo": "acme/app"})).run for _ in range(2)]
    assert [run.claim_key for run in runs if run is not None] == ["", ""]


@pytest.mark.parametrize("mode", ["skip", "replace", "queue"])
def test_events_in_the_same_moment_keep_the_rule(mode: str) -> None:
    agent = about(mode, max_work_queue=3)
    together(lambda _: event(agent), 12)
    alive = Run.objects.filter(agent=agent, status="pending").count()
    assert alive == {"skip": 1, "replace": 1, "queue": 4}[mode]
    assert DeadLetter.objects.count() == (8 if mode == "queue" else 0)


def together(what: Callable[[int], Any], times: int) -> list[Any]:
    def alone(number: int) -> Any:
        try:
            return what(number)
        finally:
            connection.close()

    with ThreadPoolExecutor(times) as threads:
        return list(threads.map(alone, range(times)))


# --- who is next --------------------------------------------------------------------------------------------------


def test_priorities_go_before_age_and_age_before_starvation(driven_clock: DrivenClock) -> None:
    agent = make_agent(scale=100)
    low = submit(agent, priority=Priority.LOW)
    normal = submit(agent, priority=Priority.NORMAL)
    high = submit(agent, priority=Priority.HIGH)
    assert [claimed(agent), claimed(agent), claimed(agent)] == [high, normal, low]
    low = submit(agent, priority=Priority.LOW)
    driven_clock.forward(29 * 60)
    early = submit(agent, priority=Priority.HIGH)
    driven_clock.forward(2 * 60)
    Host.objects.update(last_seen_at=clock.now())
    late = submit(agent, priority=Priority.HIGH)
    assert [claimed(agent), claimed(agent), claimed(agent)] == [early, low, late]


def test_a_session_is_at_work_once() -> None:
    agent = make_agent(scale=3)
    first, second = (submit(agent, session_key="chat 1") for _ in range(2))
    other = submit(agent, session_key="chat 2")
    assert [claimed(agent), claimed(agent)] == [first, other]
    assert claim(agent) is None
    lifecycle.finish(Lease(first.pk, "somebody", 1), "done", redactor=NOTHING_SECRET)
    assert claimed(agent) == second


def test_a_parked_run_keeps_its_claim_key_and_its_session(worker: DrivenWorker) -> None:
    agent = make_agent(turns=[{"tools": [ask("Which?")]}, {"text": "done"}], scale=2)
    first = submit(agent, claim_key="issue 1", session_key="chat 1")
    assert worker.drive(first).status == "waiting"
    second = submit(agent, claim_key="issue 1")
    third = submit(agent, session_key="chat 1")
    assert claim(agent) is None
    queue.respond(first, "this one")
    assert worker.drive(first).status == "finished"
    assert {Run.objects.get(pk=run.pk).status for run in (second, third)} == {"waiting"}  # they have begun, and ask


def test_the_fleets_cap_holds_over_all_agents() -> None:
    make_workspace(scale=2)
    agents = [make_agent(name, scale=2) for name in ("a", "b")]
    for agent in agents:
        submit(agent)
        submit(agent)
    assert [claim(agent) is not None for agent in (*agents, *agents)] == [True, True, False, False]
