"""A payload is tried: what it would start and what agents would be told, while nothing is stored or started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from agents.models import ApiToken
from runs import prompt, queue
from runs.models import Run, TriggerKind
from tests.conftest import DrivenWorker, Rung
from tests.making import make_agent
from tests.test_dead_letters import Api, code
from tests.test_deliveries import SECRET, page_of, received
from tests.test_trigger_waits import waiting_run
from tests.test_webhooks import listen, make_source, payload, store_secret
from webhooks.models import Delivery, Source

pytestmark = [pytest.mark.django_db(transaction=True)]


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


def rows() -> dict[str, list[Any]]:
    """Everything there is, but for when a token or a session was used last."""
    others = [model for model in apps.get_models() if model is not ApiToken and model.__name__ != "Session"]
    return {model.__name__: list(model._default_manager.order_by("pk").values()) for model in others}


def simulate(api: Api, **asked: Any) -> Any:
    status, said = api("POST", "webhooks/simulate", {"source": "github", "event": "issues", **asked})
    assert status == 200, said
    return said


def opened() -> Any:
    return json.loads(payload())


@pytest.mark.postgresql
def test_a_simulation_tells_what_would_start_and_stores_nothing(api: Api, rung: Rung) -> None:
    source = make_source()
    listen(make_agent("a", instructions="# A\nFix !`date` what is reported."), source, events=["issues"])
    listen(make_agent("b"), source, events=["push"])
    before = rows()
    said = simulate(api, payload=opened())
    assert rows() == before
    assert rung.bells == []
    assert (said["event"], said["guard"], said["fault"]) == ("issues", None, "")
    assert [(one["agent"], one["matched"]) for one in said["triggers"]] == [("a", True), ("b", False)]
    assert said["triggers"][1]["filters"][0]["sentence"] == "events: none of push in issues"
    assert list(said["prompts"]) == ["a"]
    assert "Fix !`date` what is reported." in said["prompts"]["a"]
    assert '"title":"Spelling error in the README file"' in said["prompts"]["a"]


def test_the_prompt_is_the_one_that_a_run_is_given(api: Api) -> None:
    agent = make_agent()
    listen(agent, make_source())
    foretold = simulate(api, body=payload().decode())["prompts"]["dev"]
    delivery = received()
    run = Run.objects.get()
    given = prompt.build(agent.spec, prompt.Trigger(TriggerKind.WEBHOOK, run.trigger_context))
    told = "\n\n".join(part["text"] for body in given for part in body["parts"])
    (before, context, after), (told_before, told_context, told_after) = parts(foretold), parts(told)
    assert (before, after) == (told_before, told_after)
    others = {"receiptId": delivery.pk, "timestamp": run.trigger_context["timestamp"]}
    assert {**context, **others} == told_context
    assert context["receiptId"] == "dlv_simulated"


def parts(text: str) -> tuple[str, dict[str, Any], str]:
    """What stands before the event, the event, and the rest. PostgreSQL keeps its keys in another order."""
    before, _, rest = text.partition("<webhook-trigger>\n")
    event, _, after = rest.partition("\n")
    return before, json.loads(event), after


def test_what_stands_against_it_is_told_and_no_prompt(api: Api) -> None:
    listen(make_agent(), make_source(options={"own": ["Codertocat"]}))
    said = simulate(api, payload=opened())
    assert (said["guard"]["outcome"], said["prompts"]) == ("own", {})
    assert said["guard"]["reason"] == "Codertocat is ourselves"


def test_a_rate_that_is_used_up_is_told(api: Api) -> None:
    listen(make_agent(), make_source(options={"rate": "1/1h"}))
    assert simulate(api, payload=opened())["guard"] is None
    received()
    before = rows()
    said = simulate(api, payload=opened())
    assert said["guard"]["outcome"] == "held"
    assert said["guard"]["held_until"] is not None
    assert rows() == before


def test_an_agent_that_takes_nothing_says_why(api: Api) -> None:
    agent = make_agent()
    listen(agent, make_source())
    queue.pause(agent)
    [one] = simulate(api, payload=opened())["triggers"]
    assert (one["matched"], one["reason"]) == (True, "agent dev is paused")


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ({"body": "no json"}, "not understood: invalid JSON body"),
        ({"payload": {}}, "no repository.full_name"),
        ({"payload": {}, "event": "ping"}, "ping"),
        ({"payload": {}, "event": "", "headers": {"X-GitHub-Event": "ping"}}, "ping"),
    ],
)
def test_what_is_no_event_says_why(api: Api, asked: dict[str, Any], fault: str) -> None:
    make_source()
    status, said = api("POST", "webhooks/simulate", {"source": "github", "event": "issues", **asked})
    assert (status, said["event"], said["fault"]) == (200, None, fault)


def test_what_cannot_be_simulated_is_refused(api: Api) -> None:
    make_source()
    Source.objects.create(workspace=Source.objects.get().workspace, name="linear", provider="linear")
    for asked, fault in (
        ({"source": "nobody", "payload": {}}, (404, "SOURCE_NOT_FOUND")),
        ({"source": "linear", "event": "issues", "payload": {}}, (400, "VALIDATION_ERROR")),
        ({"source": "github"}, (400, "VALIDATION_ERROR")),
        ({"source": "github", "payload": {}, "body": "{}"}, (400, "VALIDATION_ERROR")),
    ):
        assert code(api("POST", "webhooks/simulate", asked)) == fault, asked


# --- in the admin -----------------------------------------------------------------------------------------------


def of_source(source: Source) -> str:
    return f"/admin/webhooks/source/{source.pk}/simulate/"


@pytest.mark.parametrize("as_file", [True, False])
def test_an_operator_pastes_or_uploads_a_payload_and_sees_what_it_would_do(
    operator: Client,
    as_file: bool,
) -> None:
    source = make_source()
    listen(make_agent(instructions="Mind the spelling."), source, events=["issues"])
    listen(make_agent("other"), source, actions=["closed"])
    assert "Simulate" in operator.get(of_source(source)).content.decode()
    before = rows()
    given = {"file": SimpleUploadedFile("issue.json", payload())} if as_file else {"payload": payload().decode()}
    html = operator.post(of_source(source), {"event": "issues", **given}).content.decode()
    assert rows() == before
    assert "What dev would be told" in html
    assert "Mind the spelling." in html
    assert "What other would be told" not in html
    assert "✗ actions: none of closed in opened" in html


def test_a_delivery_is_tried_again_with_what_came(operator: Client) -> None:
    source = make_source()
    delivery = received(headers={"X-GitHub-Delivery": "guid-1"})
    listen(make_agent(), source, events=["issues"])
    form = operator.get(page_of(delivery, "simulate/")).context["form"]
    assert form.initial["event"] == "issues"
    assert "x-github-delivery: guid-1" in form.initial["headers"]
    html = operator.post(page_of(delivery, "simulate/"), form.initial).content.decode()
    assert "What dev would be told" in html
    assert (Delivery.objects.count(), Run.objects.count()) == (1, 0)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({}, "Paste a payload, or choose a file."),
        ({"payload": "{}", "headers": "no colon"}, "Write one header a line"),
    ],
)
def test_a_form_that_says_too_little_is_given_back(
    operator: Client,
    given: dict[str, str],
    fault: str,
) -> None:
    assert fault in operator.post(of_source(make_source()), given).content.decode()


def test_hostile_text_stays_text_in_a_simulation(operator: Client) -> None:
    evil = "<script>hacked()</script>"
    source = make_source()
    listen(make_agent(instructions=evil), source)
    payload = json.dumps({**opened(), "action": evil})
    html = operator.post(of_source(source), {"event": "issues", "payload": payload}).content.decode()
    assert "&lt;script&gt;hacked()" in html
    assert evil not in html


def test_whoever_may_only_look_at_a_source_tries_nothing(db: None) -> None:
    source = make_source()
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_source"))
    client = Client()
    client.force_login(user)
    assert client.get(f"/admin/webhooks/source/{source.pk}/change/").status_code == 200
    assert client.get(of_source(source)).status_code == 403


def test_a_run_that_waits_for_such_an_event_is_named_and_goes_on_waiting(api: Api, worker: DrivenWorker) -> None:
    (run,) = waiting_run(worker, event="issues")
    listen(run.agent, make_source(), events=["issues"])
    before = rows()
    said = simulate(api, payload=opened())
    assert rows() == before
    assert (said["resumed"], said["triggers"][0]["resumes"], said["prompts"]) == ({"waiter": run.pk}, run.pk, {})
