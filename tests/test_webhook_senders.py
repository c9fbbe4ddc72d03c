"""Every provider at the real door: what its sender is answered, and what is kept."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest
from django.test import Client, RequestFactory

from agentfleet import asgi
from agents import clock
from runs import payloads, queue
from runs.lifecycle import Cause
from runs.models import Run, TriggerKind
from tests.making import make_agent, make_workspace
from tests.signing import PUBLIC_KEY, SECRET, SIGNERS, STRIPE, TOKENS, secret_of
from webhooks import views
from webhooks.models import Delivery, Source, Trigger
from webhooks.providers import PROVIDERS

pytestmark = pytest.mark.django_db

EXAMPLES = Path(__file__).parent / "data" / "github" / "examples.json.xz"
BODIES: dict[str, Any] = {
    "sentry": {"action": "created", "data": {}},
    "linear": {"action": "create", "type": "Project", "organizationId": "o", "data": {}},
    "mintlify": {"status": "failed"},
    "slack": {"type": "event_callback", "event_id": "Ev1", "event": {"type": "app_mention", "text": "help"}},
    "discord": {"type": 2, "id": "1", "data": {"name": "fix"}},
    "twitter": {"for_user_id": "1", "tweet_create_events": [{"text": "help"}]},
    "gitlab": {"project": {"path_with_namespace": "acme/shop"}},
}
HEADERS = {
    "github": {"X-GitHub-Event": "watch"},
    "sentry": {"Sentry-Hook-Resource": "issue"},
    "gitlab": {"X-Gitlab-Event": "Push Hook"},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, settings: Any) -> Path:
    settings.HOME = tmp_path
    return tmp_path


def make_source(home: Path, provider: str, name: str = "", *, secret: str = "", **changes: Any) -> Source:
    kind = PROVIDERS[provider].secret_credential
    if kind:
        store(home, kind, PROVIDERS[provider].secret_fields[0], secret or secret_of(provider))
    if provider == "hmac":
        changes.setdefault("options", {"scheme": scheme_of(STRIPE)})
    return Source.objects.create(workspace=make_workspace(), name=name or provider, provider=provider, **changes)


def scheme_of(scheme: Any) -> dict[str, Any]:
    return {name: getattr(scheme, name) for name in scheme.__dataclass_fields__}


def store(home: Path, kind: str, field: str, value: str) -> None:
    place = home
    for step in ("credentials", kind, "default"):
        place /= step
        place.mkdir(mode=0o700, exist_ok=True)
    (place / field).touch(mode=0o600)
    (place / field).write_text(value)


def post(path: str, body: bytes, headers: dict[str, str]) -> Any:
    return Client().post(f"/webhooks/{path}", data=body, content_type="application/json", headers=headers)


def signed(provider: str, body: bytes) -> dict[str, str]:
    return {**HEADERS.get(provider, {}), **(SIGNERS | TOKENS)[provider](body, clock.now())}


@pytest.mark.parametrize("provider", [*SIGNERS, *TOKENS])
def test_what_a_provider_signs_is_kept_without_what_proves_it_and_what_it_does_not_is_refused(
    provider: str, home: Path
) -> None:
    source = make_source(home, provider)
    body = json.dumps(BODIES.get(provider, {"repository": {"full_name": "o/r"}})).encode()
    headers = signed(provider, body)
    for name in (SIGNERS | TOKENS)[provider](body, clock.now()):
        assert post(provider, body, {**headers, name: "forged"}).status_code == 401
    assert not Delivery.objects.exists()
    answer = post(provider, body, headers)
    assert (answer.status_code, answer.json()["ok"]) == (200, True)
    delivery = Delivery.objects.get()
    assert (delivery.source, (delivery.context or {})["source"], delivery.signed) == (source, provider, True)
    proofs = {value for name, value in headers.items() if re.search("signature|token|authorization", name)}
    assert proofs
    assert not proofs & set(delivery.headers.values())


def test_slack_and_discord_shake_hands_and_nothing_is_kept(home: Path) -> None:
    for provider, asks, expected in (
        ("slack", {"type": "url_verification", "challenge": "3eZbrw1aB"}, {"challenge": "3eZbrw1aB"}),
        ("discord", {"type": 1}, {"type": 1}),
    ):
        source = make_source(home, provider)
        body = json.dumps(asks).encode()
        assert post(provider, body, {}).status_code == 401
        answer = post(provider, body, signed(provider, body))
        assert (answer.status_code, answer.json()) == (200, expected)
        source.refresh_from_db()
        assert source.handshake_count == 1
        assert source.handshake_at is not None
    assert not Delivery.objects.exists()


def test_a_command_of_discord_is_answered_as_discord_wants_it(home: Path) -> None:
    make_source(home, "discord")
    body = json.dumps(BODIES["discord"]).encode()
    assert post("discord", body, signed("discord", body)).json()["type"] == 5


def test_twitters_challenge_is_answered_under_either_name_of_its_secret(home: Path) -> None:
    source = make_source(home, "twitter")
    token = SIGNERS["twitter"](b"challenge", clock.now())["x-twitter-webhooks-signature"]
    for path in ("twitter", "twitter/twitter"):
        answer = Client().get(f"/webhooks/{path}", {"crc_token": "challenge"})
        assert (answer.status_code, answer.json()) == (200, {"response_token": token})
    (home / "credentials" / "x_twitter_api" / "default" / "consumer_secret").unlink()
    assert Client().get("/webhooks/twitter", {"crc_token": "challenge"}).status_code == 405
    store(home, "x_twitter_api", "api_secret", SECRET)
    assert Client().get("/webhooks/twitter", {"crc_token": "challenge"}).json() == {"response_token": token}
    source.refresh_from_db()
    assert source.handshake_count == 3


def test_each_source_with_a_scheme_of_its_own_takes_what_is_signed_in_it(home: Path) -> None:
    stripe = make_source(home, "hmac", "stripe")
    shop = make_source(
        home, "hmac", "shop", options={"scheme": {"header": "X-Shop-Hmac", "prefix": "sha256=", "event": "topic"}}
    )
    body = json.dumps({"type": "invoice.paid", "topic": "orders/create"}).encode()
    digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert post("hmac", body, {"X-Shop-Hmac": f"sha256={digest}"}).status_code == 200
    assert post("hmac", body, signed("hmac", body)).status_code == 200
    assert post("hmac/stripe", body, {"X-Shop-Hmac": f"sha256={digest}"}).status_code == 401
    kept = [(delivery.source, delivery.event) for delivery in Delivery.objects.order_by("pk")]
    assert kept == [(shop, "orders/create"), (stripe, "invoice.paid")]


def test_requests_by_hand_are_taken_only_where_the_source_allows_it(home: Path) -> None:
    source = make_source(home, "test")
    assert post("test", b"{}", {}).status_code == 401
    Source.objects.filter(pk=source.pk).update(allow_unsigned=True)
    assert post("test", b'{"event": "issues", "repo": "o/r"}', {}).status_code == 200
    delivery = Delivery.objects.get()
    assert (delivery.event, (delivery.context or {})["repo"], delivery.signed) == ("issues", "o/r", False)


def test_an_old_and_a_new_secret_are_both_taken_while_they_are_changed(home: Path) -> None:
    make_source(home, "generic", secret="new-token\nold-token\n")
    for token, status in (("new-token", 200), ("old-token", 200), ("new-token\\nold-token", 401), ("", 401)):
        assert post("generic", b"{}", {"Authorization": f"Bearer {token}"}).status_code == status


def test_a_key_that_is_no_key_refuses_and_does_not_fail(home: Path) -> None:
    make_source(home, "discord", secret=f"{PUBLIC_KEY[:-2]}zz")
    body = json.dumps({"type": 1}).encode()
    assert post("discord", body, signed("discord", body)).status_code == 401


def test_the_payload_reaches_the_sandbox_whole_or_as_a_note_that_is_json(home: Path) -> None:
    Trigger.objects.create(agent=make_agent(), source=make_source(home, "github"), index=0)
    for size, whole in ((1000, True), (payloads.LARGEST, False)):
        body = json.dumps({"repository": {"full_name": "o/r"}, "padding": "x" * size}).encode()
        assert post("github", body, signed("github", body)).json()["matched"] == 1
        run = Run.objects.latest("pk")
        given = payloads.files(run)["trigger.json"]
        note = {"truncated": True, "bytes": len(body), "context": run.trigger_context}
        assert given == body if whole else json.loads(given) == note


def test_a_context_that_is_too_large_is_left_out_of_the_note() -> None:
    cause = Cause(TriggerKind.CALL, {"text": "x" * payloads.LARGEST})
    run, _ = queue.submit(make_agent(), cause)
    note = json.loads(payloads.files(run)["trigger.json"])
    assert note == {"truncated": True, "bytes": len(json.dumps(run.trigger_context))}


def test_a_body_that_drips_is_answered_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_WITHIN", 0.05)
    sent: list[Any] = []

    async def drip() -> Any:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/webhooks/github", "query_string": b"", "headers": []}
    asyncio.run(asyncio.wait_for(asgi.application(scope, drip, send), timeout=60))
    assert (sent[0]["status"], json.loads(sent[1]["body"])) == (408, {"error": "failed to read request body"})


def test_every_example_of_githubs_payloads_is_taken_and_told(home: Path) -> None:
    """All of @octokit/webhooks-examples, through the door with a real signature."""
    make_source(home, "github")
    examples = json.loads(lzma.decompress(EXAMPLES.read_bytes()))
    assert len(examples) > 400
    for event, value in examples:
        body = json.dumps(value).encode()
        signature = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        headers = {"X-GitHub-Event": event, "X-Hub-Signature-256": signature}
        # the view itself: what stands before it costs more than it does, and is the same for all of them
        request = RequestFactory().post("/", data=body, content_type="application/json", headers=headers)
        answer = views.receive(request, "github")
        assert (answer.status_code, json.loads(answer.content)["ok"]) == (200, True), event
        delivery = Delivery.objects.latest("pk")
        if delivery.context is None:
            assert delivery.reason == ("ping" if event == "ping" else "no repository.full_name")
            assert event == "ping" or "repository" not in value
        else:
            assert_sensible(delivery.context, event, value)


def assert_sensible(context: dict[str, Any], event: str, value: Any) -> None:
    """Each example of an event with a number, a page or a branch is told of it."""
    assert (context["event"], context["repo"]) == (event, value["repository"]["full_name"])
    assert context["sender"] == value.get("sender", {}).get("login", "unknown")
    about = value.get(event, {})
    if event in {"issues", "pull_request", "discussion", "milestone"} and "number" in about:
        assert context["number"] == about["number"]
    if "html_url" in value.get("comment", about):
        assert context["url"]
    if event in {"push", "workflow_run", "check_suite", "pull_request"}:
        assert "branch" in context
    if about.get("conclusion"):
        assert context["conclusion"] == about["conclusion"]
