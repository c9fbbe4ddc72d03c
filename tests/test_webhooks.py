"""A request at the door: who signed it, what is kept, what it starts."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from agents import clock
from agents.models import Agent
from runs import payloads, queue
from runs.models import DeadLetter, Run
from tests.conftest import Rung
from tests.making import make_agent, make_workspace
from webhooks import refusals
from webhooks.models import Delivery, Source, Trigger

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "a-secret-of-some-length"
PAYLOADS = Path(__file__).parent / "data" / "github"


@pytest.fixture(autouse=True)
def credentials(tmp_path: Path, settings: Any) -> Path:
    settings.HOME = tmp_path
    store_secret(tmp_path, "default", SECRET)
    return tmp_path


def store_secret(home: Path, instance: str, secret: str) -> None:
    place = home / "credentials" / "github_webhook_secret" / instance
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in (home / "credentials", place.parent):
        folder.chmod(0o700)
    file = place / "secret"
    file.touch(mode=0o600)
    file.write_text(secret)


def make_source(name: str = "github", **changes: Any) -> Source:
    return Source.objects.create(workspace=make_workspace(), name=name, provider="github", **changes)


def listen(agent: Agent, source: Source, index: int = 0, **filters: Any) -> Trigger:
    return Trigger.objects.create(agent=agent, source=source, index=index, filters=filters)


def signed(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def payload(name: str = "issues.opened") -> bytes:
    return (PAYLOADS / f"{name}.json").read_bytes()


def post(
    body: bytes, headers: dict[str, str | None] | None = None, *, path: str = "github", event: str = "issues"
) -> Any:
    """Send it as GitHub would; `headers` replace or, with None, remove."""
    kept = {"X-GitHub-Event": event, "X-Hub-Signature-256": signed(body), **(headers or {})}
    sent = {name: value for name, value in kept.items() if value is not None}
    content_type = sent.pop("Content-Type", "application/json")
    return Client().post(f"/webhooks/{path}", data=body, content_type=content_type, headers=sent)


@pytest.mark.postgresql
def test_a_signed_event_is_kept_and_starts_every_agent_that_listens(rung: Rung) -> None:
    source = make_source()
    first, second, other = make_agent("a"), make_agent("b"), make_agent("c")
    listen(first, source, events=["issues"], actions=["opened"])
    listen(second, source)
    listen(other, source, events=["push"])
    answer = post(payload(), {"X-GitHub-Delivery": "guid-1"})
    assert answer.status_code == 200
    runs = list(Run.objects.order_by("agent__name"))
    assert answer.json() == {"ok": True, "matched": 2, "skipped": 0, "runs": [run.pk for run in runs]}
    delivery = Delivery.objects.get()
    assert (delivery.matched, delivery.event, delivery.external_id, delivery.signed) == (2, "issues", "guid-1", True)
    assert [run.agent.name for run in runs] == ["a", "b"]
    assert {(run.trigger, run.caused_by, run.status) for run in runs} == {("webhook", delivery.pk, "pending")}
    assert runs[0].trigger_context["title"] == "Spelling error in the README file"
    assert runs[0].trigger_context["receiptId"] == delivery.pk
    assert payloads.files(runs[0]) == {"trigger.json": payload()}
    assert {bell.subject for bell in rung.bells} == {str(first.pk), str(second.pk)}


def test_two_triggers_of_one_agent_start_it_twice() -> None:
    source, agent = make_source(), make_agent()
    listen(agent, source, 0, events=["issues"])
    listen(agent, source, 1, actions=["opened"])
    assert post(payload()).json()["matched"] == 2


@pytest.mark.postgresql
def test_an_event_that_matches_nothing_is_kept_with_the_reason() -> None:
    listen(make_agent(), make_source(), events=["push"])
    assert post(payload()).json() == {"ok": True, "matched": 0, "skipped": 0, "runs": []}
    delivery = Delivery.objects.get()
    assert (delivery.reason, delivery.outcome, delivery.sender) == ("no trigger matches", "no_match", "Codertocat")
    assert bytes(delivery.body) == payload()
    assert (delivery.context or {})["title"] == "Spelling error in the README file"


@pytest.mark.postgresql
def test_storing_what_matches_nothing_is_one_statement() -> None:
    listen(make_agent(), make_source(), events=["push"])
    post(payload())
    with CaptureQueriesContext(connection) as asked:
        post(payload("issue_comment.created"), event="issue_comment")
    assert [query["sql"].split()[0] for query in asked] == ["INSERT"]
    assert Delivery.objects.count() == 2


@pytest.mark.postgresql
def test_what_has_changed_since_the_last_request_counts_for_the_next() -> None:
    source, agent = make_source(), make_agent()
    body = iter(json.dumps({**json.loads(payload()), "action": f"act {number}"}).encode() for number in range(9))
    assert post(next(body)).json()["matched"] == 0
    listen(agent, source)
    assert post(next(body)).json()["matched"] == 1
    Source.objects.filter(pk=source.pk).update(options={"own": ["Codertocat"]})
    assert post(next(body)).json()["matched"] == 0
    source.refresh_from_db()
    source.options = {}
    source.save(update_fields=["options"])
    assert post(next(body)).json()["matched"] == 1
    agent.webhook_triggers.all().delete()
    assert post(next(body)).json()["matched"] == 0
    source.delete()
    assert post(next(body)).status_code == 404
    make_source("another")
    assert post(next(body)).status_code == 200


def test_a_flood_of_forged_requests_is_counted_and_hardly_written(monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source()
    refusals.write()  # what the tests before it have left
    monkeypatch.setattr(refusals, "EVERY", 3600.0)
    with CaptureQueriesContext(connection) as asked:
        for _ in range(30):
            post(payload(), {"X-Hub-Signature-256": None})
    assert len([query for query in asked if query["sql"].startswith("UPDATE")]) <= 1
    refusals.write()
    source.refresh_from_db()
    assert source.refused_count == 30


@pytest.mark.postgresql
def test_a_delivery_says_of_every_trigger_that_matched_what_came_of_it() -> None:
    source = make_source()
    full, off = make_agent("full", max_work_queue=0), make_agent("off", scale=0)
    for agent in (full, off):
        listen(agent, source)
    listen(full, source, 1)
    assert post(payload()).json()["matched"] == 1
    letter = DeadLetter.objects.get()
    started, kept, skipped = Delivery.objects.get().decisions
    assert started == {"agent": "full", "index": 0, "run": Run.objects.get().pk}
    assert kept == {
        "agent": "full",
        "index": 1,
        "deadLetter": letter.pk,
        "reason": f"{letter.reason}: kept as {letter.pk}",
    }
    assert skipped == {"agent": "off", "index": 0, "reason": "agent off is switched off (scale 0)"}


@pytest.mark.parametrize("state", ["paused", "gone", "off", "fleet"])
def test_an_agent_that_may_not_start_is_counted_as_skipped_and_says_why(state: str) -> None:
    agent = make_agent(scale=0) if state == "off" else make_agent()
    if state == "paused":
        queue.pause(agent)
    if state == "gone":
        Agent.objects.update(active=False)
    if state == "fleet":
        queue.pause_fleet(agent.workspace)
    listen(agent, make_source())
    assert post(payload()).json() == {"ok": True, "matched": 0, "skipped": 1, "runs": []}
    assert ("the fleet is paused" if state == "fleet" else "agent dev") in Delivery.objects.get().reason


@pytest.mark.parametrize(
    "signature", [None, "", "sha256=", "sha256=" + "0" * 64, "sha1=abc", "sha256=" + "ä" * 64, signed(b"else")]
)
def test_an_unsigned_or_forged_request_leaves_nothing_but_a_count(signature: str | None) -> None:
    source = make_source()
    listen(make_agent(), source)
    answer = post(payload(), {"X-Hub-Signature-256": signature})
    assert (answer.status_code, answer.json()) == (401, {"error": "signature validation failed"})
    assert not Delivery.objects.exists()
    assert not Run.objects.exists()
    refusals.write()
    source.refresh_from_db()
    assert source.refused_count == 1
    assert source.refused_at is not None


def test_without_any_secret_everything_is_refused(credentials: Path) -> None:
    (credentials / "credentials" / "github_webhook_secret" / "default" / "secret").unlink()
    make_source()
    assert post(payload()).status_code == 401


def test_a_secret_that_others_can_read_is_not_used(credentials: Path) -> None:
    (credentials / "credentials" / "github_webhook_secret" / "default" / "secret").chmod(0o644)
    make_source()
    assert post(payload()).status_code == 401


def test_an_unsigned_request_is_taken_only_by_a_source_that_says_so() -> None:
    strict, lax = make_source("strict"), make_source("lax", allow_unsigned=True)
    listen(make_agent("a"), strict)
    listen(make_agent("b"), lax)
    answer = post(payload(), {"X-Hub-Signature-256": None})
    assert answer.json()["matched"] == 1
    assert Run.objects.get().agent.name == "b"
    assert not Delivery.objects.get().signed


def test_each_source_answers_to_its_own_secret(credentials: Path) -> None:
    store_secret(credentials, "second", "another-secret")
    listen(make_agent("a"), make_source("one"))
    listen(make_agent("b"), make_source("two", credential="second"))
    body = payload()
    assert post(body, {"X-Hub-Signature-256": signed(body, "another-secret")}).json()["matched"] == 1
    assert Run.objects.get().agent.name == "b"
    assert post(body, {"X-Hub-Signature-256": signed(body, "another-secret")}, path="github/one").status_code == 401


def test_a_secret_counts_from_the_moment_it_is_stored(credentials: Path) -> None:
    make_source()
    body = payload()
    assert post(body, {"X-Hub-Signature-256": signed(body, "rotated-secret")}).status_code == 401
    store_secret(credentials, "default", "rotated-secret")
    assert post(body, {"X-Hub-Signature-256": signed(body, "rotated-secret")}).status_code == 200


def test_a_form_body_is_understood_and_its_payload_reaches_the_sandbox() -> None:
    from urllib.parse import urlencode  # noqa: PLC0415

    listen(make_agent(), make_source())
    body = urlencode({"payload": payload().decode()}).encode()
    answer = post(body, {"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.json()["matched"] == 1
    assert json.loads(payloads.files(Run.objects.get())["trigger.json"]) == json.loads(payload())


@pytest.mark.parametrize("body", [b"", b"{", b"[1, NaN]", b"\xff\xfe", b"[" * 100_000])
def test_a_signed_body_that_is_no_json_is_answered_and_kept(body: bytes) -> None:
    make_source()
    answer = post(body)
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid JSON body"})
    assert Delivery.objects.get().reason == "not understood: invalid JSON body"


@pytest.mark.parametrize("body", [b"null", b"3", b'"text"', b"[]", b"{}", b'{"repository": 5}'])
def test_json_of_another_shape_is_kept_and_starts_nothing(body: bytes) -> None:
    listen(make_agent(), make_source())
    answer = post(body)
    assert (answer.status_code, answer.json()["matched"]) == (200, 0)
    assert Delivery.objects.get().context is None


@pytest.mark.postgresql
def test_text_that_no_database_holds_is_stored_all_the_same() -> None:
    listen(make_agent(), make_source())
    body = json.dumps({**json.loads(payload()), "action": "o\x00pened \ud800"}).encode()
    assert post(body).json()["matched"] == 1
    assert Run.objects.get().trigger_context["action"] == "o\N{REPLACEMENT CHARACTER}pened \N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("path", ["nobody", "github/nobody", "test"])
def test_an_unknown_source_is_named(path: str) -> None:
    make_source()
    answer = post(payload(), path=path)
    assert answer.status_code == 404
    assert answer.json() == {"error": f"unknown webhook source: {path.rpartition('/')[2]}"}


def test_a_provider_without_a_source_is_unknown() -> None:
    assert post(payload()).status_code == 404


def test_only_post_is_answered() -> None:
    make_source()
    assert Client().get("/webhooks/github").status_code == 405


def test_too_large_a_body_is_refused_before_its_signature_is_looked_at() -> None:
    make_source()
    answer = Client().post("/webhooks/github", data=b"x" * (10 * 1024 * 1024 + 1), content_type="application/json")
    assert (answer.status_code, answer.json()) == (413, {"error": "payload too large"})


@pytest.mark.postgresql
def test_a_repeated_delivery_starts_nothing_and_is_answered_with_the_first_ones_runs() -> None:
    listen(make_agent(), make_source())
    first = post(payload()).json()
    second = post(payload()).json()
    assert second == {"ok": True, "matched": 0, "skipped": 0, "runs": first["runs"], "duplicate": True}
    assert Run.objects.count() == 1
    assert [delivery.duplicate_of_id is not None for delivery in Delivery.objects.order_by("pk")] == [False, True]


@pytest.mark.postgresql
def test_a_body_that_started_nothing_may_come_again() -> None:
    agent = make_agent()
    listen(agent, make_source())
    queue.pause(agent)
    assert post(payload()).json()["skipped"] == 1
    queue.resume(agent)
    assert post(payload()).json()["matched"] == 1


@pytest.mark.postgresql
def test_after_the_window_the_same_body_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    listen(make_agent(), make_source())
    post(payload())
    later = clock.now() + timedelta(hours=25)
    monkeypatch.setattr(clock, "now", lambda: later)
    assert post(payload()).json()["matched"] == 1


def test_an_event_whose_body_does_not_say_which_it_is_is_never_a_duplicate() -> None:
    listen(make_agent(), make_source())
    body = json.dumps({"action": "go", "repository": {"full_name": "o/r"}, "sender": {"login": "me"}}).encode()
    assert [post(body, event="repository_dispatch").json()["matched"] for _ in range(2)] == [1, 1]


@pytest.mark.postgresql
def test_the_same_delivery_from_many_threads_starts_one_run() -> None:
    listen(make_agent(), make_source())
    run_parallel(lambda: post(payload()), 6)
    assert Run.objects.count() == 1


def run_parallel(what: Any, count: int) -> None:
    def call() -> None:
        try:
            what()
        finally:
            connection.close()

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_what_proves_something_is_not_kept_among_the_headers() -> None:
    make_source()
    post(payload(), {"Authorization": "Bearer x", "Cookie": "a=b", "User-Agent": "GitHub-Hookshot/1"})
    headers = Delivery.objects.get().headers
    assert headers["user-agent"] == "GitHub-Hookshot/1"
    assert not {"authorization", "cookie", "x-hub-signature-256"} & set(headers)


def test_settings_name_the_same_limit_for_the_port_and_for_the_view(settings: Any) -> None:
    from agentfleet import asgi  # noqa: PLC0415
    from webhooks import views  # noqa: PLC0415

    assert asgi.WEBHOOK_LIMIT == views.LARGEST
    assert settings.DATA_UPLOAD_MAX_MEMORY_SIZE == asgi.LIMIT
