"""The watcher: what is missing becomes one alert, is told once, and is over when it is over.

Rules are driven by the test's clock. What a watcher is for, a worker that is there and deaf, or not there at all,
happens to a real box at the end.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import httpx
import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import QuerySet
from django.test import Client
from django.test.utils import CaptureQueriesContext

from agentfleet.celery import app
from agents import clock, journal
from agents.models import Agent, ApiToken, Schedule
from runs import (
    alerts,
    breaker,
    canaries,
    dashboard,
    images,
    intake,
    lateness,
    notices,
    outgoing,
    queue,
    readiness,
    tasks,
    watch,
)
from runs import worker as worker_module
from runs.models import Alert, Canary, Host, Run, Status, TriggerKind
from tests.box import Box, kill
from tests.conftest import DrivenClock, DrivenWorker, until
from tests.making import make_agent, make_workspace, submit
from tests.test_docs import STATES, first_column
from tests.test_indexes import whole_tables_read
from webhooks.polls import rows as polls

in_rows = pytest.mark.django_db(transaction=True)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Fleet:
    """A watcher that looks when the test says so, with a worker that is seen and hears every canary unless told."""

    def __init__(self, driven_clock: DrivenClock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = driven_clock
        self.clock.stand_at(NOON)
        self.sent: list[tuple[str, int]] = []
        self.hears = True
        self.host = Host.objects.create(pk="h1", name="one", capacity=4, last_seen_at=NOON)
        self.is_there = True
        monkeypatch.setattr(canaries, "publish", self._publish)
        self.watcher = watch.Watcher()

    def _publish(self, numbers: dict[str, int], now: datetime) -> None:
        self.sent += numbers.items()
        if self.hears:
            for queue_name, number in numbers.items():
                canaries.hear(queue_name, number, now)

    def pass_by(self, seconds: float) -> None:
        """So much time, and a look every five seconds of it; over long times a slow watcher's."""
        step = watch.EVERY if seconds <= 120 else 25.0
        for begun in range(0, round(seconds), round(step)):
            self.clock.forward(min(step, seconds - begun))
            if self.is_there:
                Host.objects.filter(pk=self.host.pk).update(last_seen_at=clock.now())
            self.watcher.look()


@pytest.fixture
def fleet(db: None, driven_clock: DrivenClock, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    return Fleet(driven_clock, monkeypatch)


def scheduled(cron: str = "10 12 * * *", *, turns: list[Any] | None = None, **changes: Any) -> Agent:
    """An agent with a schedule that counts from noon; it is due at ten past."""
    agent = make_agent(schedule=cron, turns=turns)
    move(agent, since=NOON, fired_at=NOON)
    return change(agent, **changes)


def move(agent: Agent, **changes: Any) -> None:
    """Change its schedule."""
    Schedule.objects.filter(agent=agent).update(**changes)


def change(agent: Agent, **changes: Any) -> Agent:
    if changes:
        Agent.objects.filter(pk=agent.pk).update(**changes)
    return Agent.objects.get(pk=agent.pk)


def end(runs: QuerySet[Run]) -> None:
    runs.update(status=Status.CANCELED, finished_at=clock.now(), has_slot=False, lease_owner="")


def standing() -> list[tuple[str, str]]:
    return sorted(Alert.objects.filter(cleared_at=None).values_list("kind", "subject"))


# --- schedules ----------------------------------------------------------------------------------------------------


@pytest.mark.postgresql
@in_rows
def test_a_tick_nobody_fires_is_late_once_its_grace_is_over_and_until_it_is_fired(fleet: Fleet) -> None:
    agent = scheduled()
    fleet.pass_by(655)
    assert standing() == []
    fleet.pass_by(300)
    assert standing() == [("schedule.late", str(agent.pk))]
    assert Alert.objects.count() == 1
    assert "agent dev was due at 2026-11-20 12:10:00 UTC" in Alert.objects.get().message
    run = submit(agent, scheduled_for=NOON + 10 * MINUTE)
    move(agent, fired_at=run.scheduled_for)
    fleet.pass_by(5)
    assert standing() == []


@in_rows
@pytest.mark.parametrize("why", [{"paused_at": NOON}, {"scale": 0}, {"active": False}])
def test_an_agent_that_may_not_start_is_not_late(fleet: Fleet, why: dict[str, Any]) -> None:
    agent = scheduled(**why)
    fleet.pass_by(900)
    assert standing() == []
    assert lateness.expected_by(agent) is None


@pytest.mark.postgresql
@in_rows
def test_a_tick_that_was_fired_and_left_neither_run_nor_reason_is_late(fleet: Fleet) -> None:
    """The next time moves on, and nothing happens: nobody would see it from the times alone."""
    agent = scheduled()
    move(agent, fired_at=NOON + 10 * MINUTE)
    fleet.pass_by(900)
    assert standing() == [("schedule.late", str(agent.pk))]
    assert "neither a run nor a reason" in Alert.objects.get().message
    journal.note(agent, "tick.skipped", {"reason": "scale 1 in use"}, tick=NOON + 10 * MINUTE)
    fleet.pass_by(5)
    assert standing() == []


@in_rows
def test_a_moment_that_is_no_tick_needs_no_run(fleet: Fleet) -> None:
    """Whatever counts from now on stores the time of day; so does a new schedule in place of another."""
    move(scheduled("0 15 * * *"), since=NOON - 9 * MINUTE, fired_at=NOON - 7 * MINUTE)
    fleet.pass_by(120)
    assert standing() == []


@in_rows
def test_ticks_before_the_schedule_counts_are_of_no_concern(fleet: Fleet) -> None:
    move(scheduled("*/10 * * * *"), fired_at=NOON - 60 * MINUTE)
    fleet.pass_by(600)
    assert standing() == []


@in_rows
def test_a_schedule_that_cannot_be_read_any_more_is_late(fleet: Fleet) -> None:
    agent = scheduled()
    move(agent, timezone="Europe/Atlantis")
    fleet.pass_by(70)
    assert standing() == [("schedule.late", str(agent.pk))]
    assert "Europe/Atlantis" in Alert.objects.get().message


@in_rows
def test_what_really_fires_schedules_is_never_late(fleet: Fleet, worker: DrivenWorker) -> None:
    """A minute's schedule while its one slot is taken, and while it is free."""
    agent = scheduled("* * * * *", turns=[{"text": "done"}])
    busy = at_work(agent, fleet.host, progress_at=NOON + timedelta(days=1))
    for minute in range(15):
        if minute == 10:
            end(Run.objects.filter(pk=busy.pk))
        fleet.pass_by(60)
        work_off(worker)
        assert standing() == [], minute
    assert Run.objects.filter(trigger=TriggerKind.SCHEDULE, status=Status.FINISHED).count() == 5


def work_off(worker: DrivenWorker) -> None:
    worker._handed.clear()
    worker.sweep()
    while worker.answer_one():
        pass


@in_rows
def test_deleting_the_run_of_a_tick_does_not_make_the_tick_late(fleet: Fleet, worker: DrivenWorker) -> None:
    scheduled(turns=[{"text": "done"}])
    fleet.pass_by(600)
    work_off(worker)
    queue.delete(Run.objects.get(status=Status.FINISHED), force=False)
    assert not Run.objects.exists()
    fleet.pass_by(300)
    assert standing() == []


@in_rows
def test_ticks_that_passed_while_the_agent_was_paused_are_not_late_afterwards(
    fleet: Fleet, worker: DrivenWorker
) -> None:
    agent = scheduled()
    queue.pause(agent)
    fleet.pass_by(900)
    work_off(worker)
    queue.resume(agent)
    fleet.pass_by(300)
    assert standing() == []


@in_rows
def test_a_watcher_that_has_just_begun_accuses_nobody_and_absolves_nobody(fleet: Fleet) -> None:
    """The worker may be starting with it; and another web's watcher may know more."""
    agent = scheduled()
    fleet.pass_by(600)
    fleet.clock.forward(3600)
    fleet.watcher.look()
    assert standing() == [], "the machine has slept: so has the worker"
    fleet.pass_by(70)
    assert standing() == [("schedule.late", str(agent.pk))]
    watch.Watcher().look()
    assert standing() == [("schedule.late", str(agent.pk))]


@in_rows
def test_the_time_a_tick_is_expected_by_stands_beside_the_schedule(client: Client, driven_clock: DrivenClock) -> None:
    driven_clock.stand_at(NOON)
    scheduled()
    _, token = ApiToken.issue(make_workspace(), "test")
    asked = client.get("/api/v1/agents/dev", headers={"authorization": f"Bearer {token}"})
    assert asked.json()["agent"]["expected_by"] == "2026-11-20T12:11:00.000Z"
    driven_clock.forward(3600)
    asked = client.get("/api/v1/agents/dev", headers={"authorization": f"Bearer {token}"})
    assert asked.json()["agent"]["expected_by"] == "2026-11-20T12:11:00.000Z", "late, and it shows"


# --- workers and queues -------------------------------------------------------------------------------------------


@in_rows
def test_a_fleet_without_a_worker_is_deaf_until_one_is_seen(fleet: Fleet) -> None:
    make_agent()
    fleet.is_there = False
    fleet.pass_by(55)
    assert standing() == []
    fleet.pass_by(10)
    assert standing() == [("fleet.deaf", "fleet")]
    fleet.is_there = True
    fleet.pass_by(5)
    assert standing() == []


@in_rows
def test_a_fleet_with_nothing_to_do_needs_no_worker(fleet: Fleet) -> None:
    fleet.is_there = False
    fleet.pass_by(300)
    assert standing() == []


@in_rows
def test_a_canary_goes_through_every_real_queue_twice_a_minute(fleet: Fleet) -> None:
    fleet.pass_by(95)
    assert fleet.sent == [(name, number) for number in (1, 2, 3, 4) for name in ("fleet", "host.h1")]
    row = Canary.objects.get(pk="host.h1")
    assert (row.number, row.heard_number, row.milliseconds) == (4, 4, 0)


@pytest.mark.postgresql
@in_rows
def test_two_watchers_send_one_canary(fleet: Fleet) -> None:
    second = watch.Watcher()
    for watcher in (fleet.watcher, second):
        watcher.look()
    assert fleet.sent == [("fleet", 1), ("host.h1", 1)]


@pytest.mark.postgresql
@in_rows
def test_a_worker_that_lives_and_hears_nothing_is_found_out(fleet: Fleet) -> None:
    fleet.pass_by(60)
    fleet.hears = False
    fleet.pass_by(95)
    assert standing() == []
    fleet.pass_by(60)
    assert standing() == [("queue.deaf", "fleet"), ("queue.deaf", "host.h1")]
    fleet.hears = True
    fleet.pass_by(35)
    assert standing() == []


@in_rows
def test_a_worker_whose_threads_are_all_busy_is_not_called_deaf(fleet: Fleet) -> None:
    make_agent()
    agent = Agent.objects.get()
    for _ in range(fleet.host.capacity):
        at_work(agent, fleet.host)
    fleet.hears = False
    fleet.pass_by(300)
    assert standing() == []


@pytest.mark.postgresql
@in_rows
def test_a_canary_of_before_a_pause_says_nothing(fleet: Fleet) -> None:
    """Redis keeps nothing over a restart of the box."""
    fleet.hears = False
    fleet.pass_by(60)
    fleet.clock.forward(7200)
    fleet.hears = True
    fleet.pass_by(5)
    assert standing() == []
    row = Canary.objects.get(pk="host.h1")
    assert row.number == row.heard_number


@in_rows
def test_a_canary_that_overtakes_others_speaks_for_them_and_an_old_one_takes_nothing_back(fleet: Fleet) -> None:
    fleet.hears = False
    fleet.pass_by(95)
    now = clock.now()
    canaries.hear("host.h1", 3, now - timedelta(milliseconds=250))
    canaries.hear("host.h1", 2, now)
    canaries.hear("host.h1", 99, now)
    row = Canary.objects.get(pk="host.h1")
    assert (row.heard_number, row.milliseconds) == (3, 250)


@pytest.mark.postgresql
@in_rows
def test_nothing_is_kept_of_a_host_that_is_gone_for_a_day(fleet: Fleet) -> None:
    fleet.hears = False
    fleet.pass_by(300)
    alerts.begin(alerts.ENGINE_DOWN, "h1", "down")
    fleet.is_there = False
    fleet.pass_by(90)
    assert ("queue.deaf", "host.h1") in standing()
    fleet.clock.forward(86400)
    fleet.watcher.look()
    assert [row.pk for row in Canary.objects.all()] == ["fleet"]
    assert standing() == [("queue.deaf", "fleet")]


@in_rows
def test_a_broker_that_is_away_stops_no_other_rule(driven_clock: DrivenClock) -> None:
    """The tests' Redis is nobody's address: this is the real way of sending."""
    driven_clock.stand_at(NOON)
    agent = scheduled()
    Host.objects.create(pk="h1", name="one", capacity=4, last_seen_at=NOON + 60 * MINUTE)
    watcher = watch.Watcher()
    for _ in range(150):
        driven_clock.forward(watch.EVERY)
        watcher.look()
    assert standing() == [("queue.deaf", "fleet"), ("queue.deaf", "host.h1"), ("schedule.late", str(agent.pk))]


@in_rows
def test_a_broker_that_hangs_holds_the_watcher_no_longer_than_some_seconds(
    monkeypatch: pytest.MonkeyPatch, silent_server: int
) -> None:
    monkeypatch.setattr(app.conf, "broker_url", f"redis://127.0.0.1:{silent_server}/0")
    Host.objects.create(pk="h1", name="one", capacity=4, last_seen_at=clock.now())
    began = time.monotonic()
    watch.Watcher().look()
    assert time.monotonic() - began < 10
    assert Canary.objects.filter(number=1).count() == 2


@in_rows
def test_a_worker_that_hears_its_own_canary_says_how_its_engine_is(
    worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_current", worker)
    own = f"host.{worker.host_id}"
    Canary.objects.create(queue=own, number=2)
    worker.fake.down = True
    tasks.hear_canary("fleet", 1, clock.now().isoformat())
    assert standing() == [], "any worker may hear the fleet's"
    tasks.hear_canary(own, 1, clock.now().isoformat())
    assert standing() == [("engine.down", worker.host_id)]
    assert Canary.objects.get(pk=own).heard_number == 1
    worker.fake.down = False
    tasks.hear_canary(own, 2, clock.now().isoformat())
    assert standing() == []


# --- runs ---------------------------------------------------------------------------------------------------------


def at_work(agent: Agent, host: Host, **changes: Any) -> Run:
    run = submit(agent)
    fields = {"status": Status.PROCESSING, "has_slot": True, "host": host, "started_at": clock.now(), **changes}
    Run.objects.filter(pk=run.pk).update(**fields)
    return run


@pytest.mark.postgresql
@in_rows
def test_a_run_that_shows_nothing_is_silent_until_it_does(fleet: Fleet) -> None:
    run = at_work(make_agent(), fleet.host)
    fleet.pass_by(600)
    assert standing() == []
    fleet.pass_by(10)
    assert standing() == [("run.silent", run.pk)]
    Run.objects.filter(pk=run.pk).update(progress_at=clock.now())
    fleet.pass_by(5)
    assert standing() == []


@in_rows
def test_a_run_that_waits_or_is_over_is_not_silent(fleet: Fleet) -> None:
    agent = make_agent(scale=3)
    at_work(agent, fleet.host, status=Status.WAITING, wait_reason="input", has_slot=False)
    at_work(agent, fleet.host, status=Status.FINISHED, has_slot=False, finished_at=NOON)
    fleet.pass_by(900)
    assert standing() == []


@pytest.mark.postgresql
@in_rows
def test_a_line_that_does_not_move_though_there_is_room_is_stuck_until_it_moves(fleet: Fleet) -> None:
    agent = make_agent()
    run = submit(agent)
    fleet.pass_by(620)
    assert standing() == []
    fleet.pass_by(40)
    assert standing() == [("line.stuck", str(agent.pk))]
    assert run.pk in Alert.objects.get().message
    end(Run.objects.filter(pk=run.pk))
    fleet.pass_by(5)
    assert standing() == []


def slot_taken(agent: Agent, host: Host) -> None:
    at_work(agent, host, progress_at=NOON + timedelta(days=1))


def is_paused(agent: Agent, host: Host) -> None:
    change(agent, paused_at=NOON)


def is_broken(agent: Agent, host: Host) -> None:
    change(agent, broken_at=NOON, probe_at=NOON + timedelta(days=1))


def host_full(agent: Agent, host: Host) -> None:
    Host.objects.filter(pk=host.pk).update(capacity=0)


def key_at_work(agent: Agent, host: Host) -> None:
    change(agent, scale=2)
    at_work(agent, host, claim_key="k", progress_at=NOON + timedelta(days=1))
    Run.objects.filter(status=Status.PENDING).update(claim_key="k")


@in_rows
@pytest.mark.parametrize("reason", [slot_taken, is_paused, is_broken, host_full, key_at_work])
def test_a_line_that_waits_for_a_reason_is_not_stuck(fleet: Fleet, reason: Callable[[Agent, Host], None]) -> None:
    agent = make_agent()
    submit(agent)
    reason(agent, fleet.host)
    fleet.pass_by(900)
    assert standing() == []


@in_rows
def test_a_long_line_that_moves_is_not_stuck_whenever_it_is_looked_at(fleet: Fleet) -> None:
    """Between the end of one and the claim of the next there is room for a moment."""
    agent = make_agent()
    for _ in range(60):
        submit(agent)
    for run in Run.objects.order_by("pk"):
        fleet.pass_by(20)
        end(Run.objects.filter(pk=run.pk))
    assert not Alert.objects.exists()


# --- what it costs ------------------------------------------------------------------------------------------------


@in_rows
def test_a_look_costs_the_same_however_many_agents_there_are(fleet: Fleet) -> None:
    def cost() -> int:
        fleet.watcher.look()
        with CaptureQueriesContext(connection) as captured:
            fleet.watcher.look()
        return len(captured)

    make_agent("first", schedule="0 9 * * *")
    few = cost()
    for number in range(20):
        submit(make_agent(f"agent-{number}", schedule="0 9 * * *"))
    assert cost() == few <= 20


@in_rows
def test_a_look_reads_no_table_whole(fleet: Fleet) -> None:
    submit(scheduled("* * * * *"))
    fleet.pass_by(900)
    assert standing() != []
    assert whole_tables_read(fleet.watcher.look) == []
    assert whole_tables_read(readiness.look_at_database) == []


# --- telling ------------------------------------------------------------------------------------------------------


class Receiver:
    """A chat's webhook: remembers what it was sent, and answers with `status`."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(json.loads(body))
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def _answer(self) -> None:
                receiver.asked.append(f"{self.command} {self.path}")
                self.send_response(receiver.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it is called with
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook/very-secret"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def states(self) -> list[tuple[str, str]]:
        return [(message["kind"], message["state"]) for message in self.got]


@pytest.fixture
def receiver(settings: LazySettings) -> Iterator[Receiver]:
    with Receiver() as receiver:
        settings.NOTIFY_URL = receiver.url
        settings.PUBLIC_URL = "https://fleet.example.org/"
        yield receiver


@pytest.fixture
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


@pytest.mark.postgresql
@in_rows
def test_an_alert_is_told_once_when_it_begins_and_once_when_it_is_over(
    receiver: Receiver, driven_clock: DrivenClock
) -> None:
    driven_clock.stand_at(NOON)
    agent = make_agent()
    alerts.begin("schedule.late", str(agent.pk), "agent dev is late")
    for _ in range(3):
        notices.tell_alerts()
    assert receiver.got == [
        {
            "text": "agentfleet: agent dev is late",
            "kind": "schedule.late",
            "subject": str(agent.pk),
            "state": "raised",
            "message": "agent dev is late",
            "url": f"https://fleet.example.org/admin/agents/agent/{agent.pk}/change/",
            "raised_at": "2026-11-20T12:00:00.000Z",
            "over_at": None,
        }
    ]
    driven_clock.forward(60)
    alerts.end("schedule.late", str(agent.pk))
    for _ in range(3):
        notices.tell_alerts()
    assert receiver.states == [("schedule.late", "raised"), ("schedule.late", "over")]
    assert (receiver.got[1]["text"], receiver.got[1]["over_at"]) == (
        "agentfleet: over: agent dev is late",
        "2026-11-20T12:01:00.000Z",
    )


@in_rows
def test_what_is_over_before_it_was_told_is_told_in_its_order(receiver: Receiver) -> None:
    alerts.begin("dead_letters", "1", "one")
    alerts.end("dead_letters", "1")
    for _ in range(3):
        notices.tell_alerts()
    assert receiver.states == [("dead_letters", "raised"), ("dead_letters", "over")]


@in_rows
@pytest.mark.parametrize("status", [500, 404, 302])
def test_a_receiver_that_refuses_is_asked_again_each_time_later_and_no_redirect_is_followed(
    receiver: Receiver, driven_clock: DrivenClock, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    driven_clock.stand_at(NOON)
    receiver.status = status
    alerts.begin("fleet.deaf", "fleet", "no worker")
    asked = []
    for _ in range(60):
        before = len(receiver.asked)
        notices.tell_alerts()
        asked.append(len(receiver.asked) > before)
        driven_clock.forward(5)
    assert [number * 5 for number, yes in enumerate(asked) if yes] == [0, 10, 30, 70, 150]
    assert set(receiver.asked) == {"POST /hook/very-secret"}
    assert "very-secret" not in caplog.text
    assert f"HTTP {status}" in caplog.text
    receiver.status = 204
    driven_clock.forward(3600)
    notices.tell_alerts()
    alert = Alert.objects.get()
    assert (alert.notified_at, alert.tries, alert.next_try_at) == (clock.now(), 0, None)


@pytest.mark.postgresql
@in_rows
def test_of_two_watchers_one_tells(receiver: Receiver) -> None:
    alerts.begin("fleet.deaf", "fleet", "no worker")
    [mine] = notices.untold(clock.now())
    [theirs] = notices.untold(clock.now())
    assert notices.take(mine)
    assert not notices.take(theirs)


@in_rows
def test_a_receiver_that_hangs_is_left_and_the_rest_of_the_round_with_it(
    settings: LazySettings, silent_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "WITHIN", 0.2)
    settings.NOTIFY_URL = f"http://127.0.0.1:{silent_server}/"
    for number in range(5):
        alerts.begin("dead_letters", str(number), "one")
    notices.tell_alerts()
    assert sorted(Alert.objects.values_list("tries", flat=True)) == [0, 0, 0, 0, 1]


@in_rows
@pytest.mark.parametrize("address", ["http://127.0.0.1:1/", "ftp://nowhere/", "no address", "http://[", "http://a\n"])
def test_an_address_nobody_answers_at_raises_nothing(settings: LazySettings, address: str) -> None:
    settings.NOTIFY_URL = address
    alerts.begin("fleet.deaf", "fleet", "no worker")
    notices.tell_alerts()
    assert Alert.objects.get().tries == 1


@in_rows
def test_without_an_address_an_alert_is_a_line_of_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    alerts.begin("fleet.deaf", "fleet", "no worker")
    notices.tell_alerts()
    notices.tell_alerts()
    assert [record.getMessage() for record in caplog.records] == ["alert raised: no worker"]


@in_rows
def test_the_heartbeat_is_sent_only_while_all_is_well(
    receiver: Receiver, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.HEARTBEAT_URL = receiver.url
    monkeypatch.setattr(notices, "HEARTBEAT_EVERY", 0.0)
    told = {"report": readiness.Report({"database": readiness.Check(False)})}
    monkeypatch.setattr(readiness, "now", lambda: told["report"])
    teller = notices.Teller()
    teller.tell()
    assert receiver.asked == []
    told["report"] = readiness.Report({"database": readiness.Check(True)})
    teller.tell()
    assert receiver.asked == ["GET /hook/very-secret"]
    monkeypatch.setattr(notices, "HEARTBEAT_EVERY", 60.0)
    teller.tell()
    assert len(receiver.asked) == 1


# --- readyz -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ask(db: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, Any]]]:
    """GET /readyz, with nothing known from before."""
    monkeypatch.setattr(readiness, "_readiness", readiness.Readiness())

    def ask(token: str = "") -> tuple[int, dict[str, Any]]:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        answer = Client().get("/readyz", headers=headers)
        return answer.status_code, answer.json()

    return ask


Ask = Callable[..., tuple[int, dict[str, Any]]]


def broker_answers() -> dict[str, readiness.Check]:
    return {"broker": readiness.Check(True, {"milliseconds": 0.1})}


def with_parts(monkeypatch: pytest.MonkeyPatch, database: Any = None, broker: Any = None) -> None:
    parts = readiness.PARTS
    names, ours = [names for names, _ in parts], [look for _, look in parts]
    changed = zip(names, [database or ours[0], broker or broker_answers], strict=True)
    monkeypatch.setattr(readiness, "PARTS", tuple(changed))
    monkeypatch.setattr(readiness, "_readiness", readiness.Readiness())


@pytest.mark.postgresql
@in_rows
def test_a_fleet_that_works_is_ready_and_how_is_told_to_those_with_a_token(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_parts(monkeypatch)
    a_host_that_hears()
    _, token = ApiToken.issue(make_workspace(), "test")
    names = ("database", "broker", "canary", "engine", "schedules")
    plain = {"status": "ok", "checks": {name: {"ok": True} for name in names}}
    assert ask() == (200, plain)
    assert ask("af_wrong") == (200, plain)
    status, told = ask(token)
    assert (status, told["status"]) == (200, "ok")
    assert set(told["checks"]["canary"]["age_seconds"]) == {"fleet", "host.h1"}
    assert told["checks"]["database"]["milliseconds"] >= 0
    assert "secret-name" not in json.dumps(told)


def a_host_that_hears() -> None:
    now = clock.now()
    Host.objects.create(pk="h1", name="secret-name", capacity=4, last_seen_at=now)
    for name in ("fleet", "host.h1"):
        Canary.objects.create(queue=name, number=1, sent_at=now, heard_number=1, heard_at=now)


def a_deaf_queue() -> None:
    long_ago = clock.now() - timedelta(seconds=100)
    Canary.objects.filter(pk="host.h1").update(number=2, sent_at=long_ago)


def nothing_sent_any_more() -> None:
    """As when no watcher watches, or when nothing can be written."""
    long_ago = clock.now() - timedelta(seconds=200)
    Canary.objects.filter(pk="host.h1").update(sent_at=long_ago, heard_at=long_ago)


def an_engine_down() -> None:
    alerts.begin(alerts.ENGINE_DOWN, "h1", "down")


def a_late_schedule() -> None:
    alerts.begin(alerts.SCHEDULE_LATE, "1", "late")


@in_rows
@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (a_deaf_queue, "canary"),
        (nothing_sent_any_more, "canary"),
        (an_engine_down, "engine"),
        (a_late_schedule, "schedules"),
    ],
)
def test_what_is_wrong_fails_its_own_check(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, fault: Callable[[], None], check: str
) -> None:
    with_parts(monkeypatch)
    a_host_that_hears()
    fault()
    status, told = ask()
    assert (status, told["status"]) == (503, "failing")
    assert [name for name, said in told["checks"].items() if not said["ok"]] == [check]


@in_rows
def test_a_fleet_that_has_begun_is_ready_once_a_first_message_was_heard(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_parts(monkeypatch)
    monkeypatch.setattr(readiness, "FRESH", 0.0)
    a_host_that_hears()
    Canary.objects.update(heard_at=None, heard_number=0)
    assert ask()[1]["checks"]["canary"] == {"ok": False}
    canaries.hear("fleet", 1, clock.now())
    assert ask()[0] == 200


@in_rows
def test_a_fleet_without_a_worker_is_not_ready(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with_parts(monkeypatch)
    _, told = ask()
    assert [name for name, said in told["checks"].items() if not said["ok"]] == ["canary", "engine"]


@in_rows
def test_a_broker_that_is_away_fails_its_check_and_no_other(ask: Ask) -> None:
    a_host_that_hears()
    status, told = ask()
    assert status == 503
    assert [name for name, said in told["checks"].items() if not said["ok"]] == ["broker"]


@in_rows
def test_a_broker_that_hangs_is_told_within_seconds(ask: Ask, settings: LazySettings, silent_server: int) -> None:
    settings.REDIS_URL = f"redis://127.0.0.1:{silent_server}/0"
    began = time.monotonic()
    _, told = ask()
    assert time.monotonic() - began < 5
    assert not told["checks"]["broker"]["ok"]
    assert told["checks"]["database"]["ok"]


@in_rows
def test_a_database_that_hangs_is_told_within_seconds_and_asked_once(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    comes_back = threading.Event()
    asked = []

    def hang() -> dict[str, readiness.Check]:
        asked.append(1)
        comes_back.wait(60)
        return readiness.look_at_database()

    with_parts(monkeypatch, database=hang)
    monkeypatch.setattr(readiness, "FRESH", 0.0)
    _, token = ApiToken.issue(make_workspace(), "test")
    try:
        for _ in range(2):
            began = time.monotonic()
            status, told = ask(token)
            assert time.monotonic() - began < 5
            assert (status, told["checks"]["database"]) == (503, {"ok": False})
            assert told["checks"]["broker"] == {"ok": True}
        assert len(asked) == 1, "a thread for each question would pile up"
    finally:
        comes_back.set()
    until(lambda: ask()[1]["checks"]["database"]["ok"])


@in_rows
def test_whoever_asks_without_pause_costs_one_look_a_second(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def look() -> dict[str, readiness.Check]:
        looks.append(time.monotonic())
        return readiness.look_at_database()

    with_parts(monkeypatch, database=look)
    began = time.monotonic()
    for _ in range(40):
        ask()
    assert len(looks) <= 1 + (time.monotonic() - began) / readiness.FRESH


@in_rows
def test_nothing_is_changed_by_asking(ask: Ask) -> None:
    assert Client().post("/readyz").status_code == 405


# --- pages --------------------------------------------------------------------------------------------------------


@in_rows
def test_an_alert_stands_on_the_front_page_and_leads_to_what_it_is_about(worker: DrivenWorker) -> None:
    operator = Client()
    operator.force_login(User.objects.create_superuser("operator"))
    assert "Alerts</h2>" not in operator.get("/admin/").content.decode()
    agent = make_agent()
    alerts.begin("schedule.late", str(agent.pk), "agent <b>dev</b> is late")
    page = operator.get("/admin/").content.decode()
    assert "Alerts</h2>" in page
    assert "agent &lt;b&gt;dev&lt;/b&gt; is late" in page
    listed = operator.get("/admin/runs/alert/?state=standing").content.decode()
    for html in (page, listed):
        assert f'href="/admin/agents/agent/{agent.pk}/change/"' in html
    alert = Alert.objects.get()
    assert operator.get(f"/admin/runs/alert/{alert.pk}/change/").status_code == 200
    assert operator.get("/admin/runs/alert/add/").status_code == 403
    assert operator.post(f"/admin/runs/alert/{alert.pk}/delete/", {"post": "yes"}).status_code == 403
    alerts.end("schedule.late", str(agent.pk))
    assert "is late" not in operator.get("/admin/").content.decode()
    assert "is late" in operator.get("/admin/runs/alert/?state=over").content.decode()


def test_every_kind_of_alert_is_told() -> None:
    kinds = {value for name, value in vars(alerts).items() if name.isupper()} | {
        breaker.KIND,
        intake.DEAD_LETTERS,
        images.FAILED,
        outgoing.FAILED,
        polls.FAILING,
    }
    assert set(first_column(STATES, "Alerts")) == kinds
    assert set(dashboard.PAGES) <= kinds


# --- the real thing -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, told: Receiver) -> Iterator[Box]:
    """What dies stays dead, and patience is short."""
    box = Box(
        tmp_path_factory.mktemp("watched"),
        restart=False,
        AGENTFLEET_SCHEDULE_GRACE="5",
        AGENTFLEET_CANARY_EVERY="2",
        AGENTFLEET_CANARY_WITHIN="6",
        AGENTFLEET_NOTIFY_URL=told.url,
    )
    every_ten_seconds = 'schedule = "*/10 * * * * *"\ntools = ["set_status"]\n'
    box.define("tick", turns=[{"text": "done"}], extra=every_ten_seconds)
    with box:
        box.apply()
        yield box


def ready(box: Box) -> dict[str, Any]:
    token = json.loads((box.home / "client.json").read_text())["token"]
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.get(f"{box.client.url}/readyz", headers=headers, timeout=10, trust_env=False)
    checks: dict[str, Any] = answer.json()["checks"]
    assert answer.status_code == (200 if all(check["ok"] for check in checks.values()) else 503)
    return checks


def is_ready(box: Box) -> bool:
    return all(check["ok"] for check in ready(box).values())


def frozen_outside_a_write(box: Box, pid: int) -> bool:
    """SQLite has one writer: frozen at it, the worker would hold up everybody's writes, the watcher's too."""
    os.kill(pid, signal.SIGSTOP)
    with closing(sqlite3.connect(box.home / "agentfleet.sqlite3", timeout=2)) as opened:
        try:
            opened.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            return False
        opened.rollback()
    return True


def standing_in(box: Box) -> set[str]:
    return {kind for (kind,) in box.rows("SELECT kind FROM runs_alert WHERE cleared_at IS NULL")}


def logs(box: Box) -> Callable[[], str]:
    return lambda: "\n".join(
        f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted((box.home / "logs").glob("*.log"))
    )


@pytest.mark.box
@pytest.mark.engine
@pytest.mark.timeout(180)
def test_a_frozen_worker_fails_the_canary_until_it_goes_on(box: Box) -> None:
    box.until(lambda: is_ready(box), 30, logs(box))
    heard = ready(box)["canary"]["age_seconds"]
    assert {name.partition(".")[0] for name in heard} == {"fleet", "host"}
    pid = box.pids()["worker"]
    box.until(lambda: frozen_outside_a_write(box, pid))
    try:
        box.until(lambda: "queue.deaf" in standing_in(box), 40, logs(box))
        assert not ready(box)["canary"]["ok"]
        assert ready(box)["broker"]["ok"]
    finally:
        os.kill(pid, signal.SIGCONT)
    box.until(lambda: "queue.deaf" not in standing_in(box) and is_ready(box), 60, logs(box))


@pytest.mark.box
@pytest.mark.engine
@pytest.mark.timeout(180)
def test_a_schedule_nobody_fires_is_told_once_and_once_when_it_goes_on(box: Box, told: Receiver) -> None:
    box.until(lambda: is_ready(box), 60, logs(box))
    box.until(lambda: not box.rows("SELECT 1 FROM runs_alert WHERE clear_notified_at IS NULL"), 30, logs(box))
    told.got.clear()
    for role in ("beat", "worker"):
        kill(box.pids()[role])
    box.until(lambda: ("schedule.late", "raised") in told.states, 60, logs(box))
    assert not ready(box)["schedules"]["ok"]
    box.worker()
    box.until(lambda: ("schedule.late", "over") in told.states, 60, logs(box))
    assert [state for kind, state in told.states if kind == "schedule.late"] == ["raised", "over"]
    [message] = [one for one in told.got if one["kind"] == "schedule.late" and one["state"] == "raised"]
    assert "agent tick was due at" in message["message"]
    assert message["url"].startswith(box.client.url)
    assert httpx.get(message["url"], trust_env=False).status_code == 302, "the login, and then the agent's page"
