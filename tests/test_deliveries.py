"""What was received is seen, explained and replayed: over REST, in the admin and on the front page."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from agents import clock
from agents.ids import first_id
from agents.models import Agent, Workspace
from runs import queue
from runs.models import Run
from tests.conftest import DrivenWorker
from tests.making import make_agent
from tests.test_dead_letters import Api, code, make_room, overflow
from tests.test_webhooks import listen, make_source, payload, post, store_secret
from webhooks import retention
from webhooks.models import Delivery, DeliveryOutcome, Source

pytestmark = [pytest.mark.django_db(transaction=True)]

SECRET = "a-secret-of-some-length"


@pytest.fixture(autouse=True)
def credentials(tmp_path: Path, settings: Any) -> None:
    settings.HOME = tmp_path
    store_secret(tmp_path, "default", SECRET)


@pytest.fixture
def api(db: None) -> Api:
    return Api()


@pytest.fixture
def operator(db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    return client


def received(body: bytes = b"", **sent: Any) -> Delivery:
    """The delivery of an issue that was opened, unless told otherwise."""
    assert post(body or payload(), **sent).status_code == 200
    delivery = Delivery.objects.order_by("-pk").first()
    assert delivery is not None
    return delivery


def switch_off(source: Source) -> None:
    Source.objects.filter(pk=source.pk).update(active=False)


# --- over REST --------------------------------------------------------------------------------------------------


def test_a_delivery_is_told_whole_and_without_what_proves_something(api: Api) -> None:
    agent = make_agent()
    listen(agent, make_source(), events=["issues"])
    delivery = received(headers={"X-GitHub-Delivery": "guid-1", "Cookie": "session=1"})
    status, told = api("GET", f"deliveries/{delivery.pk}")
    run = Run.objects.get()
    assert status == 200
    assert told["delivery"]["outcome"] == "started"
    assert told["delivery"]["decisions"] == [{"agent": "dev", "index": 0, "run": run.pk}]
    assert (told["runs"], told["delivery"]["external_id"]) == ([run.pk], "guid-1")
    assert told["headers"]["x-github-event"] == "issues"
    assert not {"x-hub-signature-256", "cookie"} & set(told["headers"])
    assert told["body"] == {"text": payload().decode(), "bytes": len(payload()), "cut": False}


def test_each_trigger_is_told_with_the_filter_that_failed(api: Api) -> None:
    source = make_source()
    listen(make_agent("a"), source, events=["issues"], actions=["opened"])
    listen(make_agent("b"), source, events=["issues"], actions=["closed"], repos=["nobody/nothing"])
    _, told = api("GET", f"deliveries/{received().pk}")
    hit, missed = told["now"]["triggers"]
    assert (hit["agent"], hit["matched"], hit["reason"]) == ("a", True, "")
    assert (missed["agent"], missed["matched"]) == ("b", False)
    assert {one["filter"]: (one["had"], one["passed"]) for one in missed["filters"]} == {
        "events": (["issues"], True),
        "actions": (["opened"], False),
        "repos": (["Codertocat/Hello-World"], False),
    }
    assert "actions" in missed["reason"]
    assert "repos" in missed["reason"]


def test_a_delivery_is_explained_with_the_triggers_there_are_now(api: Api) -> None:
    agent, source = make_agent(), make_source()
    trigger = listen(agent, source, events=["push"])
    delivery = received()
    trigger.delete()
    listen(agent, source, events=["issues"])
    queue.pause(agent)
    [now] = api("GET", f"deliveries/{delivery.pk}")[1]["now"]["triggers"]
    assert (now["matched"], now["reason"]) == (True, "agent dev is paused")


@pytest.mark.parametrize("body", [b"\xff\xfe no text", b"x" * (256 * 1024) + b"END"])
def test_a_body_is_shown_as_it_may_be(api: Api, body: bytes) -> None:
    make_source()
    post(body)
    _, told = api("GET", f"deliveries/{Delivery.objects.get().pk}")
    assert told["delivery"]["outcome"] == "not_understood"
    assert told["body"]["bytes"] == len(body)
    assert told["body"]["cut"] is (len(body) > 100)
    assert ("text" in told["body"]) is (len(body) > 100)
    assert "END" not in json.dumps(told["body"])
    assert told["now"]["fault"].startswith("not understood")


def test_deliveries_are_listed_newest_first_and_found_by_what_became_of_them(api: Api) -> None:
    listen(make_agent(), make_source(), events=["issues"])
    make_source("other")
    started, nothing = received(), received(event="milestone", path="github/other")
    assert [one["id"] for one in api("GET", "deliveries")[1]["deliveries"]] == [nothing.pk, started.pk]
    for query, found in (
        ("outcome=started", [started.pk]),
        ("outcome=started&outcome=no_match", [nothing.pk, started.pk]),
        ("outcome=held", []),
        ("source=other", [nothing.pk]),
        ("event=issues", [started.pk]),
        ("sender=Codertocat", [nothing.pk, started.pk]),
        ("sender=somebody", []),
        (f"limit=1&cursor={nothing.pk}", [started.pk]),
    ):
        assert [one["id"] for one in api("GET", f"deliveries?{query}")[1]["deliveries"]] == found, query
    assert code(api("GET", "deliveries?outcome=lost")) == (400, "VALIDATION_ERROR")


def test_another_workspaces_deliveries_do_not_exist() -> None:
    make_source()
    delivery = received()
    stranger = Api(Workspace.objects.create(name="elsewhere"))
    assert stranger("GET", "deliveries") == (200, {"deliveries": [], "next_cursor": None})
    assert code(stranger("GET", f"deliveries/{delivery.pk}")) == (404, "DELIVERY_NOT_FOUND")
    assert code(stranger("POST", f"deliveries/{delivery.pk}/replay")) == (404, "DELIVERY_NOT_FOUND")
    assert stranger("POST", "deliveries/replay", {"ids": [delivery.pk]})[1]["deliveries"][0]["ok"] is False
    assert Delivery.objects.count() == 1


# --- replay -----------------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_a_replay_starts_what_the_triggers_of_now_start_and_is_a_delivery_of_its_own(api: Api) -> None:
    agent, source = make_agent(), make_source()
    delivery = received()
    assert delivery.outcome == DeliveryOutcome.NO_MATCH
    listen(agent, source, events=["issues"])
    status, said = api("POST", f"deliveries/{delivery.pk}/replay")
    run = Run.objects.get()
    assert (status, said["ok"], said["matched"], said["skipped"], said["runs"]) == (200, True, 1, 0, [run.pk])
    again = Delivery.objects.get(pk=said["replay"])
    assert (again.replay_of, again.outcome, run.caused_by) == (delivery, "started", again.pk)
    assert bytes(again.body) == payload()
    assert api("GET", f"deliveries/{delivery.pk}")[1]["replays"] == [again.pk]


def test_what_has_started_runs_is_replayed_all_the_same(api: Api) -> None:
    listen(make_agent(), make_source())
    delivery = received()
    assert api("POST", f"deliveries/{delivery.pk}/replay")[1]["matched"] == 1
    assert Run.objects.count() == 2


def test_what_cannot_be_read_again_is_not_replayed_and_says_why(api: Api) -> None:
    source = make_source()
    delivery = received()
    switch_off(source)
    answer = api("POST", f"deliveries/{delivery.pk}/replay")
    assert code(answer) == (409, "CANNOT_REPLAY")
    assert "switched off" in answer[1]["error"]["message"]
    assert Delivery.objects.count() == 1


def test_many_are_replayed_in_the_order_in_which_they_came(api: Api) -> None:
    source = make_source()
    first, second = received(), received()
    listen(make_agent(), source)
    status, said = api("POST", "deliveries/replay", {"ids": [second.pk, "dlv_0", first.pk, second.pk]})
    assert status == 200
    assert [(one["id"], one["ok"], one["matched"]) for one in said["deliveries"]] == [
        ("dlv_0", False, 0), (first.pk, True, 1), (second.pk, True, 1),
    ]  # fmt: skip
    started = [run.trigger_context["receiptId"] for run in Run.objects.order_by("pk")]
    assert started == [one["replay"] for one in said["deliveries"][1:]]
    assert code(api("POST", "deliveries/replay", {"ids": []})) == (400, "VALIDATION_ERROR")


def test_a_receipt_is_replayed_where_other_programs_look_for_it(api: Api) -> None:
    source = make_source()
    delivery = received()
    listen(make_agent(), source)
    headers = {"Authorization": f"Bearer {api.token}"}
    said = Client().post(f"/api/webhooks/{delivery.pk}/replay", headers=headers).json()
    assert (said["ok"], said["matched"], said["skipped"]) == (True, 1, 0)
    assert Delivery.objects.get(pk=said["replayReceiptId"]).replay_of == delivery
    assert Client().post("/api/webhooks/dlv_0/replay", headers=headers).status_code == 404
    assert Client().post(f"/api/webhooks/{delivery.pk}/replay").status_code == 401


# --- in the admin -----------------------------------------------------------------------------------------------


def page_of(delivery: Delivery, path: str = "change/") -> str:
    return f"/admin/webhooks/delivery/{delivery.pk}/{path}"


def test_the_page_of_a_delivery_says_what_came_of_each_trigger_then_and_now(operator: Client) -> None:
    source = make_source()
    agent = make_agent()
    listen(agent, source, 0, events=["issues"])
    listen(agent, source, 1, actions=["closed"])
    overflow(agent)
    delivery = received()
    make_room(agent)
    html = operator.get(page_of(delivery)).content.decode()
    assert f"{delivery.decisions[0]['reason']}: kept as" in html
    assert f"/admin/runs/deadletter/{delivery.decisions[0]['deadLetter']}/change/" in html
    assert "✓ events: one of issues in issues" in html
    assert "✗ actions: none of closed in opened" in html


def test_an_operator_replays_a_delivery_and_comes_to_the_new_one(operator: Client) -> None:
    source = make_source()
    delivery = received()
    listen(make_agent(), source)
    assert operator.get(page_of(delivery, "replay/")).status_code == 200
    assert Run.objects.count() == 0
    answer = operator.post(page_of(delivery, "replay/"))
    again = Delivery.objects.get(replay_of=delivery)
    assert (answer.status_code, answer.headers["Location"]) == (302, page_of(again))
    assert Run.objects.get().caused_by == again.pk
    assert page_of(again) in operator.get(page_of(delivery)).content.decode()


def test_many_are_replayed_from_the_list_and_each_says_what_came_of_it(operator: Client) -> None:
    source, gone = make_source(), make_source("gone")
    first, second, lost = received(path="github/github"), received(path="github/github"), received(path="github/gone")
    listen(make_agent(), source)
    switch_off(gone)
    many = {"action": "replay_selected", "_selected_action": [lost.pk, second.pk, first.pk]}
    answer = operator.post("/admin/webhooks/delivery/", many, follow=True)
    told = " ".join(map(str, answer.context["messages"]))
    assert "Replayed 3: 2 times 1 run; 1 times it cannot be replayed" in told
    assert list(Delivery.objects.exclude(replay_of=None).order_by("pk").values_list("replay_of", flat=True)) == [
        first.pk, second.pk,
    ]  # fmt: skip


def test_whoever_may_only_look_replays_nothing() -> None:
    listen(make_agent(), make_source())
    delivery = received()
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_delivery"))
    client = Client()
    client.force_login(user)
    assert client.get(page_of(delivery)).status_code == 200
    for path in ("replay/", "simulate/"):
        assert client.post(page_of(delivery, path)).status_code == 403
    client.post("/admin/webhooks/delivery/", {"action": "replay_selected", "_selected_action": [delivery.pk]})
    assert Delivery.objects.count() == 1


def test_the_front_page_counts_what_should_have_started_something(operator: Client) -> None:
    agent, source = make_agent(), make_source()
    listen(agent, source)
    title = "Deliveries of the last day that started nothing"
    received()
    assert title not in operator.get("/admin/").content.decode()
    Agent.objects.filter(pk=agent.pk).update(scale=0)
    received(headers={"X-GitHub-Delivery": "another"}, event="milestone")
    post(b"no json")
    html = operator.get("/admin/").content.decode()
    assert title in html
    for outcome in ("skipped", "not_understood"):
        assert f"?outcome__exact={outcome}&amp;source__id__exact={source.pk}" in html
        listed = operator.get(f"/admin/webhooks/delivery/?outcome__exact={outcome}").content.decode()
        assert [one.pk in listed for one in Delivery.objects.order_by("pk")] == [
            one.outcome == outcome for one in Delivery.objects.order_by("pk")
        ]


# --- for how long -----------------------------------------------------------------------------------------------


def days_ago(delivery: Delivery, days: int) -> str:
    """Its id, and what refers to it, as if it had come then."""
    pk = first_id("dlv", clock.now() - timedelta(days=days)) + delivery.pk[-16:]
    Run.objects.filter(caused_by=delivery.pk).update(caused_by=pk)
    Delivery.objects.filter(pk=delivery.pk).update(id=pk)
    return pk


@pytest.mark.postgresql
def test_deliveries_go_when_their_days_are_over_but_for_those_of_live_runs(worker: DrivenWorker) -> None:
    agent, source = make_agent(), make_source(options={"rate": "1/1d"})
    listen(agent, source, events=["issues"])
    live = days_ago(received(), 20)
    held = days_ago(received(payload() + b" "), 20)
    assert Delivery.objects.get(pk=held).outcome == DeliveryOutcome.HELD
    Delivery.objects.filter(pk=held).update(held_until=clock.now() + timedelta(days=1))
    old, young = days_ago(received(event="milestone"), 15), days_ago(received(event="milestone"), 13)
    Delivery.objects.filter(pk=young).update(duplicate_of=old, replay_of=old)
    queue.pause(agent)  # so that its run stays in line
    worker.sweep()
    assert list(Delivery.objects.order_by("pk").values_list("pk", flat=True)) == sorted([live, held, young])
    kept = Delivery.objects.get(pk=young)
    assert (kept.duplicate_of, kept.replay_of) == (None, None)
    queue.cancel(Run.objects.get())
    assert retention.purge() == 1
    assert not Delivery.objects.filter(pk=live).exists()
    assert Run.objects.get().trigger_context["title"] == "Spelling error in the README file"


def test_many_go_a_few_at_a_time_and_their_bodies_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    make_source()
    for _ in range(3):
        days_ago(received(), 15)
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    with CaptureQueriesContext(connection) as captured:
        assert [retention.purge() for _ in range(3)] == [2, 1, 0]
    assert not any('"body"' in query["sql"] for query in captured.captured_queries)


def test_where_nothing_is_to_go_nothing_goes(worker: DrivenWorker, settings: Any) -> None:
    make_source()
    days_ago(received(), 4000)
    settings.DELIVERY_RETENTION_DAYS = 0
    worker.sweep()
    assert Delivery.objects.count() == 1
