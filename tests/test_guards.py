"""What keeps events from starting too much, and what is held until there is room."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection

from agents.models import Agent
from agents.redaction import NOTHING_SECRET
from runs import agent_calls, lifecycle, queue
from runs.agent_calls import Refused
from runs.lifecycle import Cause
from runs.models import Attempt, DeadLetter, Run, TriggerKind
from tests.conftest import DrivenClock
from tests.making import make_agent, make_workspace
from webhooks import dispatch, held, listeners
from webhooks.models import Delivery, Source, Trigger
from webhooks.providers.base import Event
from webhooks.received import PATH, Outcome, Received

pytestmark = pytest.mark.django_db(transaction=True)

numbers = itertools.count(1)


@pytest.fixture
def agent() -> Agent:
    return make_agent(max_work_queue=1000)


def heard_by(agent: Agent, name: str = "hooks", **options: Any) -> Source:
    """A source that the agent listens to; `options` are its guards."""
    unlimited = {"sender_rate": "", "identical": ""}
    source = Source.objects.create(
        workspace=make_workspace(), name=name, provider="test", allow_unsigned=True, options={**unlimited, **options}
    )
    Trigger.objects.create(agent=agent, source=source, index=agent.webhook_triggers.count())
    return source


def comes(source: Source, sender: str = "ann", *, hops: int = 0, signed: bool = True, **said: Any) -> Outcome:
    """An event with another title than any before, unless it is `said`."""
    title = said.pop("title", f"title {next(numbers)}")
    body = f'{{"event": "issues", "sender": "{sender}", "title": "{title}"}}'.encode()
    event = Event(event="issues", context={"sender": sender, "title": title}, hops=hops, **said)

    def anew() -> Outcome:
        known, headers = listeners.table(), {PATH: f"/webhooks/test/{source.name}"}
        if not (sources := known.of("test", source.name)):
            known.check()
        received = Received(provider="test", headers=headers, body=body, sources=sources, signed=signed, known=known)
        return dispatch.dispatch(received, event)

    return listeners.currently(anew)


def outcomes() -> list[str]:
    return list(Delivery.objects.order_by("pk").values_list("outcome", flat=True))


# --- ourselves, and circles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", ["fleet-bot", "Fleet-Bot[bot]"])
def test_what_we_did_ourselves_starts_nothing_and_is_kept(agent: Agent, sender: str) -> None:
    source = heard_by(agent, own=["fleet-bot"])
    assert comes(source, sender).matched == 0
    assert comes(source, "ann").matched == 1
    assert outcomes() == ["own", "started"]
    assert Delivery.objects.earliest("pk").reason == f"{sender} is ourselves"


@pytest.mark.postgresql
def test_a_chain_of_causes_is_counted_over_what_is_sent_and_cut_where_it_is_too_long(
    agent: Agent, settings: Any
) -> None:
    settings.MAX_HOPS = 3
    source = heard_by(agent)
    other = make_agent("other")
    (run_id,) = comes(source, hops=2).runs
    caller = Attempt.objects.create(run_id=run_id, number=1)
    called = agent_calls.run_of(agent_calls.call(caller, "other", "go on", redactor=NOTHING_SECRET))
    chain = Run.objects.get(pk=called)
    assert [Run.objects.get(pk=run_id).hops, chain.hops, chain.root] == [2, 3, run_id]
    beyond = Attempt.objects.create(run=chain, number=1)
    make_agent("third")
    with pytest.raises(Refused, match="a chain of 4 runs has led to this, 3 are the most"):
        agent_calls.call(beyond, "third", "and on", redactor=NOTHING_SECRET)
    assert comes(source, hops=4).matched == 0
    assert outcomes() == ["started", "loop"]
    assert Run.objects.filter(agent=other).count() == 1


@pytest.mark.postgresql
def test_one_run_sets_off_so_many_and_no_more(agent: Agent, settings: Any, driven_clock: DrivenClock) -> None:
    settings.MAX_RUNS_PER_ROOT = 3
    root = lifecycle.create(agent, Cause(TriggerKind.MANUAL))
    made = together(lambda _: queue.submit(agent, Cause(TriggerKind.CALL, {}, root.pk)), 8)
    refusals = [refused for refused in made if isinstance(refused, queue.AgentRefuses)]
    assert (len(refusals), {refused.code for refused in refusals}) == (5, {"FORK_STORM"})
    assert Run.objects.filter(root=root.pk).count() == 3
    driven_clock.forward(24 * 3600 + 1)
    assert queue.submit(agent, Cause(TriggerKind.CALL, {}, Run.objects.filter(root=root.pk)[0].pk))[0].root == root.pk


def test_an_event_of_too_long_a_chain_becomes_a_dead_letter_that_a_replay_does_not_let_through(
    agent: Agent, settings: Any
) -> None:
    source = heard_by(agent)
    agent.queue_size = 0
    agent.save()
    comes(source)
    assert comes(source, hops=3).skipped == 1
    letter = DeadLetter.objects.get()
    Run.objects.all().delete()
    settings.MAX_HOPS = 2
    with pytest.raises(queue.AgentRefuses, match="a chain of 3 runs") as refused:
        queue.replay(letter)
    assert refused.value.code == "HOPS_EXCEEDED"
    settings.MAX_HOPS = 3
    assert queue.replay(letter).hops == 3


# --- the same again -----------------------------------------------------------------------------------------------


def test_of_events_that_say_the_same_so_many_start_something(agent: Agent, driven_clock: DrivenClock) -> None:
    source = heard_by(agent, identical="2/10m")
    for _ in range(3):
        comes(source, title="it is down")
    assert comes(source, title="it is up").matched == 1
    assert outcomes() == ["started", "started", "limited", "started"]
    driven_clock.forward(601)
    assert comes(source, title="it is down").matched == 1


def test_a_source_that_says_nothing_has_limits_all_the_same(agent: Agent) -> None:
    source = heard_by(agent)
    Source.objects.filter(pk=source.pk).update(options={})
    assert [comes(source, title="it is down").matched for _ in range(6)] == [1, 1, 1, 1, 1, 0]


def test_an_id_that_came_before_is_a_duplicate_of_its_source_alone_and_only_if_it_was_signed(agent: Agent) -> None:
    source, other = heard_by(agent), heard_by(agent, "more")
    assert comes(source, external_id="1", signed=False).matched == 1
    first = comes(source, external_id="1")
    again = comes(source, external_id="1")
    assert (again.duplicate, list(again.runs)) == (True, list(first.runs))
    assert again.delivery.duplicate_of == first.delivery
    assert comes(other, external_id="1").matched == 1
    Source.objects.filter(pk=source.pk).update(options={**source.options, "duplicate_seconds": 0})
    assert comes(source, external_id="1").matched == 1
    assert outcomes() == ["started", "started", "duplicate", "started", "started"]


# --- too many at once ---------------------------------------------------------------------------------------------


def test_what_is_too_much_of_one_sender_is_held_and_taken_in_its_order(agent: Agent, driven_clock: DrivenClock) -> None:
    source = heard_by(agent, sender_rate="2/10m")
    came = [comes(source).delivery for _ in range(5)]
    assert comes(source, "bob").matched == 1
    assert outcomes() == ["started", "started", "held", "held", "held", "started"]
    held.take_due()
    assert outcomes().count("held") == 3
    driven_clock.forward(601)
    comes(source)  # there is room, and others were first
    held.take_due()
    held.take_due()
    assert outcomes() == ["started", "started", "started", "started", "held", "started", "held"]
    assert causes() == [came[0].pk, came[1].pk, Delivery.objects.get(sender="bob").pk, came[2].pk, came[3].pk]
    driven_clock.forward(601)
    held.take_due()
    assert outcomes() == ["started"] * 7
    assert Run.objects.count() == 7
    assert not Delivery.objects.filter(held_until__isnull=False).exists()


def test_the_rate_of_a_source_counts_all_its_senders(agent: Agent, driven_clock: DrivenClock) -> None:
    source = heard_by(agent, rate="2/1h")
    for sender in ("ann", "bob", "carl", "dora"):
        comes(source, sender)
    assert outcomes() == ["started", "started", "held", "held"]
    driven_clock.forward(3601)
    held.take_due()
    assert outcomes() == ["started"] * 4


def test_what_is_held_is_decided_as_things_are_when_it_is_taken(agent: Agent, driven_clock: DrivenClock) -> None:
    source = heard_by(agent, sender_rate="1/1m")
    for _ in range(3):
        comes(source)
    driven_clock.forward(61)
    queue.pause(agent)
    held.take_due()
    assert Run.objects.count() == 1
    assert outcomes() == ["started", "skipped", "skipped"]
    assert "paused" in Delivery.objects.latest("pk").reason


def test_what_is_held_for_a_source_that_is_gone_says_so(agent: Agent, driven_clock: DrivenClock) -> None:
    source = heard_by(agent, sender_rate="1/1m")
    comes(source)
    comes(source)
    Source.objects.filter(pk=source.pk).update(active=False)
    driven_clock.forward(61)
    held.take_due()
    assert outcomes() == ["started", "skipped"]
    assert "its source is gone" in Delivery.objects.latest("pk").reason


@pytest.mark.postgresql
def test_many_workers_take_what_is_held_once_and_no_more_than_there_is_room_for(
    agent: Agent, driven_clock: DrivenClock
) -> None:
    source = heard_by(agent, sender_rate="4/10m")
    together(lambda _: comes(source), 8)
    assert outcomes().count("started") == 4
    driven_clock.forward(601)
    together(lambda _: held.take_due(), 6)
    held.take_due()
    assert outcomes() == ["started"] * 8
    assert sorted(causes()) == sorted(Delivery.objects.values_list("pk", flat=True))


# --- once more ----------------------------------------------------------------------------------------------------


def test_a_replay_is_decided_anew_as_a_delivery_of_its_own(agent: Agent) -> None:
    source = heard_by(agent, sender_rate="1/10m", identical="1/10m")
    queue.pause(agent)
    first = comes(source, unique=True).delivery
    queue.resume(agent)
    for _ in range(2):  # neither a duplicate nor too much: somebody wants it
        replay = dispatch.again(first)
        assert (replay.matched, replay.delivery.replay_of, replay.delivery.outcome) == (1, first, "started")
    assert Run.objects.count() == 2
    assert Delivery.objects.get(pk=first.pk).outcome == "skipped"


def test_a_replay_of_what_is_held_takes_it_out_of_its_turn(agent: Agent, driven_clock: DrivenClock) -> None:
    source = heard_by(agent, sender_rate="1/10m")
    comes(source)
    waiting = comes(source).delivery
    assert (dispatch.again(waiting).delivery, Delivery.objects.count()) == (waiting, 2)
    driven_clock.forward(601)
    held.take_due()
    assert causes().count(waiting.pk) == 1


def test_a_replay_for_a_source_that_is_gone_says_so(agent: Agent) -> None:
    source = heard_by(agent)
    delivery = comes(source).delivery
    source.delete()
    with pytest.raises(dispatch.CannotRead, match="its source is gone"):
        dispatch.again(Delivery.objects.get(pk=delivery.pk))


def causes() -> list[str]:
    return list(Run.objects.order_by("pk").values_list("caused_by", flat=True))


def together(what: Any, times: int) -> list[Any]:
    """What each gave or raised."""

    def alone(number: int) -> Any:
        try:
            return what(number)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            return error
        finally:
            connection.close()

    with ThreadPoolExecutor(times) as threads:
        return list(threads.map(alone, range(times)))
