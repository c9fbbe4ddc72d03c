"""Deliveries on the command line, through REST: listed, explained, replayed, and payloads tried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from typer.testing import CliRunner

from agentfleet import cli, deliveries_cli
from agentfleet.client import ServerSays
from runs.models import Run
from tests.making import make_agent
from tests.test_dead_letters import Api
from tests.test_deliveries import SECRET, received
from tests.test_webhooks import listen, make_source, payload, store_secret
from webhooks.models import Delivery

pytestmark = [pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def served(db: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Any) -> None:
    """The command line asks through Django's test client."""
    settings.HOME = tmp_path
    store_secret(tmp_path, "default", SECRET)
    api = Api()

    class Through:
        @classmethod
        def here(cls) -> Through:
            return cls()

        def call(self, method: str, path: str, body: Any = None, params: Any = None) -> Any:
            query = f"?{urlencode(params, doseq=True)}" if params else ""
            status, value = api(method, f"{path}{query}", body)
            if status != 200:
                raise ServerSays(value["error"]["code"], value["error"]["message"])
            return value

    monkeypatch.setattr(deliveries_cli, "Client", Through)


def said(*words: str, typed: bytes | None = None, code: int = 0) -> str:
    done = CliRunner().invoke(cli.app, list(words), input=typed)
    assert done.exit_code == code, done.output
    return done.output


def test_deliveries_are_listed_and_one_is_told_with_its_reasons() -> None:
    source = make_source()
    listen(make_agent(), source, events=["push"])
    delivery = received()
    listed = said("deliveries")
    assert delivery.pk in listed
    assert "no_match" in listed
    assert delivery.pk not in said("deliveries", "--outcome", "started")
    assert [one["id"] for one in json.loads(said("deliveries", "--source", "github", "--json"))] == [delivery.pk]
    told = said("deliveries", delivery.pk)
    assert "dev 1 on github: no match" in told
    assert "- events: none of push in issues" in told


def test_an_unknown_delivery_is_said() -> None:
    done = CliRunner().invoke(cli.app, ["deliveries", "dlv_0/../x"])
    assert isinstance(done.exception, ServerSays)


def test_several_are_replayed_by_one_command() -> None:
    source = make_source()
    first, second = received(), received()
    listen(make_agent(), source)
    told = said("replay-delivery", second.pk, first.pk)
    runs = list(Run.objects.order_by("pk").values_list("pk", flat=True))
    assert told.splitlines() == [f"{first.pk}: {runs[0]}", f"{second.pk}: {runs[1]}"]
    assert "no such delivery" in said("replay-delivery", "dlv_0", code=1)


@pytest.mark.parametrize("piped", [True, False])
def test_a_payload_is_tried_from_a_file_or_a_pipe(tmp_path: Path, piped: bool) -> None:
    listen(make_agent(instructions="Mind the spelling."), make_source(), actions=["opened"])
    file = tmp_path / "issue.json"
    file.write_bytes(payload())
    if piped:
        told = said("simulate", "github", "-", "--header", "X-GitHub-Event=issues", typed=payload())
    else:
        told = said("simulate", "github", str(file), "--event", "issues")
    assert "dev 1 on github: matches" in told
    assert "+ actions: one of opened in opened" in told
    assert "Mind the spelling." in told
    assert (Run.objects.count(), Delivery.objects.count()) == (0, 0)
