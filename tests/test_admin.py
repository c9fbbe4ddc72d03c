"""The admin: who may do what, what is only read, what hostile text can do there, and how many queries a list costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import PeriodicTask

from agents import clock
from agents.ids import new_id
from agents.models import Agent, AgentVersion, ApiToken, Schedule
from agents.redaction import NOTHING_SECRET
from runs import consumers, events, lifecycle, queue, ticks
from runs.models import Attempt, Event, Host, Message, Run, Status, TriggerKind, WaitReason
from tests.conftest import DrivenWorker
from tests.making import make_agent, make_workspace, submit
from webhooks.models import Delivery, Source, Trigger

pytestmark = pytest.mark.django_db(transaction=True)

EVIL = '</script></textarea><img src=x onerror="hacked()"><script>hacked()</script>\'"'
ASKING: list[dict[str, Any]] = [
    {"tools": [{"name": "ask", "arguments": {"question": "Which one?"}}]},
    {"expect": ["the left one"], "text": "thanks"},
]


@pytest.fixture
def operator(db: None) -> Client:
    return logged_in(User.objects.create_superuser("operator"))


def logged_in(user: User, **options: Any) -> Client:
    client = Client(**options)
    client.force_login(user)
    return client


def staff(*permissions: str) -> Client:
    """Somebody who may come in, with these permissions and no other."""
    user = User.objects.create_user(f"staff{User.objects.count()}", is_staff=True)
    for permission in permissions:
        app, codename = permission.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return logged_in(user)


def page(client: Client, path: str) -> str:
    answer = client.get(f"/admin/{path}")
    assert answer.status_code == 200, f"{path}: {answer.status_code}"
    return str(answer.content.decode())


def status(answer: Any) -> int:
    return int(answer.status_code)


def said(answer: Any) -> str:
    """The messages of the page behind a redirect."""
    return " | ".join(str(message) for message in answer.context["messages"])


def press(client: Client, path: str, **fields: str) -> Any:
    return client.post(f"/admin/{path}", fields, follow=True)


def of_run(run: Run, path: str = "change/") -> str:
    return f"runs/run/{run.pk}/{path}"


def of_agent(agent: Agent, path: str = "change/") -> str:
    return f"agents/agent/{agent.pk}/{path}"


def make_host(**changes: Any) -> Host:
    fields = {"pk": "here", "name": "here", "capacity": 8, "last_seen_at": clock.now(), **changes}
    return Host.objects.create(**fields)


def make_source(**changes: Any) -> Source:
    return Source.objects.create(**{"workspace": make_workspace(), "name": "github", "provider": "github", **changes})


def make_delivery(**changes: Any) -> Delivery:
    fields = {"workspace": make_workspace(), "provider": "github", "event": "issues", "body": b"{}", "digest": "0" * 64}
    return Delivery.objects.create(**{**fields, **changes})


def failed(agent: Agent, code: str = "TIMEOUT", message: str = "too slow") -> Run:
    run = submit(agent)
    now = clock.now()
    Run.objects.filter(pk=run.pk).update(
        status=Status.FAILED, error={"code": code, "message": message}, finished_at=now, started_at=now
    )
    run.refresh_from_db()
    return run


def parked(worker: DrivenWorker, agent: Agent) -> Run:
    run = worker.drive(submit(agent))
    assert run.wait_reason == WaitReason.INPUT
    return run


# --- who may do what --------------------------------------------------------------------------------------------

LISTS = ["", "runs/run/", "agents/agent/", "webhooks/delivery/", "webhooks/source/", "agents/apitoken/", "auth/user/"]


def test_nobody_sees_anything_without_logging_in(db: None) -> None:
    run = submit(make_agent())
    paths = [*LISTS, *(of_run(run, page) for page in ("change/", "facts/", "log/", "message/0/", "cancel/"))]
    for path in [*paths, "runs/run/fleet/"]:
        answer = Client().get(f"/admin/{path}")
        assert (answer.status_code, answer.headers["Location"].split("?")[0]) == (302, "/admin/login/"), path


def test_staff_without_permissions_see_nothing_of_runs() -> None:
    run = failed(make_agent(), message="private words")
    client = staff()
    assert "private words" not in page(client, "")
    paths = [*LISTS[1:], "runs/run/fleet/", of_agent(run.agent)]
    paths += [of_run(run, page) for page in ("change/", "facts/", "log/", "message/0/", "cancel/", "respond/")]
    for path in paths:
        assert client.get(f"/admin/{path}").status_code == 403, path


def test_whoever_may_view_a_run_may_not_act_on_it() -> None:
    run = submit(make_agent())
    client = staff("runs.view_run", "agents.view_agent")
    assert "Cancel" not in page(client, of_run(run))
    assert "Run now" not in page(client, of_agent(run.agent))
    for path in (
        of_run(run, "cancel/"),
        of_run(run, "respond/"),
        *(of_agent(run.agent, p) for p in ("run/", "pause/")),
    ):
        assert client.post(f"/admin/{path}", {"text": "x", "ask_id": "x"}).status_code == 403, path
    run.refresh_from_db()
    assert run.status == Status.PENDING
    assert Run.objects.count() == 1


def test_the_websocket_is_for_those_who_may_see_the_page() -> None:
    watcher, outsider = (User.objects.create_user(name, is_staff=True) for name in ("watcher", "outsider"))
    watcher.user_permissions.add(Permission.objects.get(codename="view_run"))
    may = async_to_sync(consumers.may_watch)
    assert [may(user) for user in (watcher, outsider, AnonymousUser(), None)] == [True, False, False, False]


@pytest.mark.parametrize("what", ["runs/run", "webhooks/delivery", "webhooks/source"])
def test_what_the_program_writes_is_only_read(operator: Client, what: str) -> None:
    made: dict[str, Callable[[], Any]] = {
        "runs/run": lambda: submit(make_agent()),
        "webhooks/delivery": make_delivery,
        "webhooks/source": make_source,
    }
    row = made[what]()
    before = type(row).objects.filter(pk=row.pk).values().get()
    assert operator.get(f"/admin/{what}/add/").status_code == 403
    assert operator.post(f"/admin/{what}/{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert operator.post(f"/admin/{what}/{row.pk}/change/", {"status": "finished", "name": "x"}).status_code in (
        403,
        405,
    )
    operator.post(f"/admin/{what}/", {"action": "delete_selected", "_selected_action": row.pk, "post": "yes"})
    assert type(row).objects.filter(pk=row.pk).values().get() == before


def test_following_a_link_changes_nothing(operator: Client) -> None:
    agent = make_agent()
    run = submit(agent)
    token, _ = ApiToken.issue(make_workspace(), "laptop")
    paths = [of_run(run, "cancel/"), of_run(run, "respond/"), f"agents/apitoken/{token.pk}/revoke/"]
    for path in [*paths, *(of_agent(agent, p) for p in ("run/", "pause/", "resume/"))]:
        assert "csrfmiddlewaretoken" in page(operator, path)
    run.refresh_from_db()
    agent.refresh_from_db()
    token.refresh_from_db()
    assert (run.status, agent.paused, token.revoked_at, Run.objects.count()) == (Status.PENDING, False, None, 1)


def test_a_post_needs_the_forms_token(db: None) -> None:
    run = submit(make_agent())
    client = logged_in(User.objects.create_superuser("operator"), enforce_csrf_checks=True)
    assert client.post(f"/admin/{of_run(run, 'cancel/')}").status_code == 403
    for form in ("cancel", "respond"):
        assert re.search(
            rf'<form id="{form}" method="post"[^>]*><input type="hidden" name="csrf', page(client, of_run(run))
        )
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page(client, of_run(run)))
    assert token is not None
    client.post(f"/admin/{of_run(run, 'cancel/')}", {"csrfmiddlewaretoken": token[1]})
    run.refresh_from_db()
    assert run.status == Status.CANCELED


# --- runs -------------------------------------------------------------------------------------------------------


def test_cancel_stops_a_run_and_says_so(operator: Client) -> None:
    run = submit(make_agent())
    assert said(press(operator, of_run(run, "cancel/"))) == f"Asked {run} to stop"
    run.refresh_from_db()
    assert run.status == Status.CANCELED
    assert "is over already: canceled" in said(press(operator, of_run(run, "cancel/")))


@pytest.mark.postgresql
def test_several_runs_are_cancelled_from_the_list(operator: Client) -> None:
    runs = [submit(make_agent()) for _ in range(1)] + [failed(make_agent("other"))]
    chosen = {"action": "cancel_selected", "_selected_action": [run.pk for run in runs]}
    answer = operator.post("/admin/runs/run/", chosen, follow=True)
    assert said(answer) == "Asked 1 runs to stop; 1 were over already"
    assert Run.objects.get(pk=runs[0].pk).status == Status.CANCELED


def test_an_answer_wakes_the_run(operator: Client, worker: DrivenWorker) -> None:
    run = parked(worker, make_agent(turns=ASKING))
    assert "Which one?" in page(operator, of_run(run))
    assert said(press(operator, of_run(run, "respond/"), text="the left\r\none")) == f"Answered {run}"
    asked = [event["data"] for event in events.fetch(run.pk) if event["type"] == "respond"]
    assert [data["message"] for data in asked] == ["the left\none"]
    assert "waits for no answer" in said(press(operator, of_run(run, "respond/"), text="again"))


def test_the_page_of_a_run_holds_facts_and_no_events(operator: Client, worker: DrivenWorker) -> None:
    agent = make_agent(
        turns=[
            {"text": "spoken words", "tools": [{"name": "bash", "arguments": {"command": "echo pr''inted"}}]},
            *ASKING,
        ]
    )
    run = parked(worker, agent)
    html = page(operator, of_run(run))
    assert "printed" not in html
    assert "spoken words" not in html
    for fact in ("2 of 50", "of 1,000,000", "Which one?", "waits for an answer", run.pk, agent.name):
        assert fact in html, fact
    facts = page(operator, of_run(run, "facts/"))
    assert "Which one?" in facts
    assert "<html" not in facts


def test_what_caused_a_run_is_linked(operator: Client) -> None:
    delivery = make_delivery()
    parent = submit(make_agent("parent"))
    child = lifecycle.create(parent.agent, lifecycle.Cause(TriggerKind.CALL, {}, parent.pk), parent=parent)
    hooked = lifecycle.create(parent.agent, lifecycle.Cause(TriggerKind.WEBHOOK, {}, delivery.pk))
    assert f"/admin/runs/run/{parent.pk}/change/" in page(operator, of_run(child))
    assert f"/admin/webhooks/delivery/{delivery.pk}/change/" in page(operator, of_run(hooked))
    assert f"/admin/runs/run/{hooked.pk}/change/" in page(operator, f"webhooks/delivery/{delivery.pk}/change/")


def test_why_a_run_has_not_started(operator: Client) -> None:
    make_host()
    agent = make_agent()
    first, second = submit(agent), submit(agent)
    assert "about to start" in page(operator, of_run(first))
    Run.objects.filter(pk=first.pk).update(status=Status.PROCESSING, has_slot=True, started_at=clock.now())
    assert "scale 1 in use" in page(operator, of_run(second))
    Host.objects.update(last_seen_at=clock.now() - timedelta(minutes=1))
    assert "no worker is there to take it" in page(operator, of_run(second))
    queue.pause(agent)
    assert "agent dev is paused" in page(operator, of_run(second))


@pytest.mark.postgresql
def test_a_deleted_run_is_gone_from_the_admin(operator: Client) -> None:
    run = submit(make_agent())
    Run.objects.update(delete_requested_at=clock.now())
    assert run.pk not in page(operator, "runs/run/")
    assert status(operator.get(f"/admin/{of_run(run)}")) == 404


def test_what_does_not_exist_is_not_found(operator: Client) -> None:
    for path in ("runs/run/run_0/change/", "runs/run/run_0/log/", "agents/agent/77/change/", "agents/agent/x/run/"):
        assert status(operator.get(f"/admin/{path}")) == 404, path


def test_messages_and_the_whole_log_are_read_on_demand(operator: Client, worker: DrivenWorker) -> None:
    run = parked(worker, make_agent(turns=ASKING))
    parts = operator.get(f"/admin/{of_run(run, 'message/0/')}").json()["parts"]
    assert [part["type"] for part in parts] == ["system", "text"]
    assert operator.get(f"/admin/{of_run(run, 'message/99/')}").json() == {"parts": []}
    answer = operator.get(f"/admin/{of_run(run, 'log/')}")
    lines = b"".join(answer.streaming_content).decode().splitlines()  # type: ignore[attr-defined]
    assert [json.loads(line) for line in lines] == events.fetch(run.pk)
    assert answer.headers["Content-Disposition"].startswith("attachment")


def test_our_pages_let_no_injected_script_run(operator: Client) -> None:
    run = submit(make_agent())
    for path in (of_run(run), of_agent(run.agent), of_run(run, "cancel/")):
        policy = operator.get(f"/admin/{path}").headers["Content-Security-Policy"]
        assert "script-src 'self' 'unsafe-eval';" in policy
        assert "<script>" not in page(operator, path)


@pytest.mark.postgresql
def test_runs_are_found_by_id_and_filter(operator: Client) -> None:
    ours, theirs = submit(make_agent()), failed(make_agent("other"))
    for search in (ours.pk, ours.pk.removeprefix("run_"), ours.pk[:-2], f" {ours.pk} "):
        html = page(operator, f"runs/run/?q={search}")
        assert (ours.pk in html, theirs.pk in html) == (True, False), search
    html = page(operator, f"runs/run/?status__exact=failed&agent__id__exact={theirs.agent_id}")
    assert (ours.pk in html, theirs.pk in html) == (False, True)
    assert "TIMEOUT" in html


# --- agents -----------------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_run_now_starts_one_run_however_often_the_form_is_sent(operator: Client) -> None:
    agent = make_agent()
    form = {"text": "look at\r\nissue 7", "ask_id": "ask_1"}
    first, second = (press(operator, of_agent(agent, "run/"), **form) for _ in range(2))
    run = Run.objects.get()
    assert (run.trigger, run.input, run.agent_id) == (TriggerKind.MANUAL, "look at\nissue 7", agent.pk)
    assert first.redirect_chain == second.redirect_chain == [(f"/admin/{of_run(run)}", 302)]
    assert "open it again" in said(press(operator, of_agent(agent, "run/"), text="another", ask_id="ask_1"))
    press(operator, of_agent(agent, "run/"), text="", ask_id="ask_2")
    assert Run.objects.count() == 2


def test_run_now_says_why_an_agent_refuses(operator: Client) -> None:
    agent = make_agent()
    queue.pause(agent)
    assert said(press(operator, of_agent(agent, "run/"), text="", ask_id="1")) == "agent dev is paused"
    assert not Run.objects.exists()


@pytest.mark.postgresql
def test_pause_and_resume_reach_beats_mirror(operator: Client) -> None:
    agent = make_agent(schedule="0 9 * * *")
    ticks.mirror(agent)
    assert said(press(operator, of_agent(agent, "pause/"))) == "Paused dev"
    assert not PeriodicTask.objects.get(name="default/dev").enabled
    assert "paused" in page(operator, "agents/agent/")
    assert said(press(operator, of_agent(agent, "resume/"))) == "Resumed dev"
    assert PeriodicTask.objects.get(name="default/dev").enabled
    operator.post("/admin/agents/agent/", {"action": "pause_selected", "_selected_action": agent.pk})
    agent.refresh_from_db()
    assert agent.paused
    assert "Mirrors the agent&#x27;s schedule" in page(operator, "django_celery_beat/periodictask/")


def test_the_page_of_an_agent_shows_its_definition(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock.now().replace(year=2026, month=11, day=20, hour=12, minute=0)
    monkeypatch.setattr(clock, "now", lambda: now)
    agent = make_agent(
        instructions="Count the sheep.",
        schedule="30 8 * * *",
        timezone="Europe/Berlin",
        params={"herd": "north"},
        limits={"turns": 7, "wall_seconds": 0, "tokens": 500},
    )
    Trigger.objects.create(agent=agent, source=make_source(), index=0, filters={"events": ["issues"]})
    html = page(operator, of_agent(agent))
    for words in (
        "Count the sheep.",
        "north",
        "7 turns, no limit of time, 500 tokens",
        "issues",
        "scripted:script.yaml",
    ):
        assert words in html, words
    assert re.findall(r"2026-11-\d\d 08:30:00", html) == [f"2026-11-{day} 08:30:00" for day in range(21, 26)]


WRITTEN = {
    "description": "finds things", "instructions": "Find\r\nit.", "provider": "anthropic", "model": "claude-x",
    "schedule": "0 9 * * mon-fri", "timezone": "Europe/Berlin", "scale": "2", "turns": "5", "wall_seconds": "60",
    "tokens": "1000",
}  # fmt: skip


@pytest.mark.postgresql
def test_an_agent_is_made_and_changed_here(operator: Client) -> None:
    make_workspace()
    press(operator, "agents/agent/add/", name="finder", **WRITTEN)
    agent = Agent.objects.get(name="finder")
    assert (agent.project, agent.scale, agent.schedules.get().cron) == ("", 2, "0 9 * * mon-fri")
    assert agent.spec.instructions == "Find\nit."
    assert [(model.provider, model.model) for model in agent.spec.models] == [("anthropic", "claude-x")]
    assert agent.spec.limits.wall_seconds == 60
    assert PeriodicTask.objects.filter(name="default/finder", enabled=True).exists()
    press(operator, of_agent(agent, "edit/"), **{**WRITTEN, "turns": "6"})
    agent.refresh_from_db()
    assert (agent.spec.limits.turns, AgentVersion.objects.filter(agent=agent).count()) == (6, 2)


def test_editing_keeps_what_the_form_does_not_show(operator: Client) -> None:
    agent = make_agent(params={"kept": True}, tools=["bash"], turns=[{"text": "hi"}])
    press(operator, of_agent(agent, "edit/"), **WRITTEN)
    agent.refresh_from_db()
    assert (agent.spec.params, agent.spec.tools) == ({"kept": True}, ("bash",))
    assert agent.version is not None
    assert [file.path for file in agent.version.files.all()] == ["script.yaml"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"name": "taken"}, "there is an agent taken already"),
        ({"name": "default"}, "reserved"),
        ({"name": "No Good"}, "Use lower-case letters"),
        ({"schedule": "every day"}, "is no cron expression"),
        ({"timezone": "Mars/Phobos"}, "there is no time zone"),
        ({"timezone": "Mars/Phobos", "schedule": ""}, "there is no time zone"),
        ({"scale": "-1"}, "greater than or equal to 0"),
    ],
)
def test_a_faulty_agent_is_not_stored(operator: Client, changes: dict[str, str], fault: str) -> None:
    make_agent("taken")
    answer = press(operator, "agents/agent/add/", **{"name": "new", **WRITTEN, **changes})
    assert fault in answer.content.decode()
    assert Agent.objects.count() == 1


def test_a_folders_agent_is_not_edited_here(operator: Client) -> None:
    agent = make_agent()
    Agent.objects.update(project="fleet")
    assert "Edit" not in page(operator, of_agent(agent))
    for method in (operator.get, operator.post):
        assert method(f"/admin/{of_agent(agent, 'edit/')}", WRITTEN).status_code == 404
    assert operator.post(f"/admin/{of_agent(agent)}", WRITTEN).status_code == 405
    assert operator.post(f"/admin/{of_agent(agent, 'delete/')}", {"post": "yes"}).status_code == 403
    assert AgentVersion.objects.filter(agent=agent).count() == 1


# --- tokens -----------------------------------------------------------------------------------------------------


def test_a_tokens_value_is_shown_once_and_its_hash_never(operator: Client) -> None:
    workspace = make_workspace()
    answer = press(operator, "agents/apitoken/add/", workspace=str(workspace.pk), name="laptop")
    value = re.search(r"af_[\w-]{43}", answer.content.decode())
    assert value is not None
    token = ApiToken.find(value[0])
    assert token is not None
    assert "no-store" in answer.headers["Cache-Control"]
    assert not answer.cookies.get("messages")
    for path in ("agents/apitoken/", f"agents/apitoken/{token.pk}/change/", "", f"agents/apitoken/{token.pk}/history/"):
        html = page(operator, path)
        assert (value[0] in html, token.digest in html) == (False, False), path
    press(operator, f"agents/apitoken/{token.pk}/revoke/")
    assert ApiToken.find(value[0]) is None
    assert "was revoked before" in said(press(operator, f"agents/apitoken/{token.pk}/revoke/"))
    assert operator.post(f"/admin/agents/apitoken/{token.pk}/delete/", {"post": "yes"}).status_code == 403


# --- deliveries and the front page ------------------------------------------------------------------------------


def test_a_large_body_is_cut_and_says_so(operator: Client) -> None:
    delivery = make_delivery(body=b"x" * (256 * 1024) + b"END OF IT", signed=False)
    html = page(operator, f"webhooks/delivery/{delivery.pk}/change/")
    assert "[… 9 bytes left out …]" in html
    assert "END OF IT" not in html


def test_deliveries_say_what_came_of_them(operator: Client) -> None:
    first = make_delivery(outcome="started", matched=2, skipped=1)
    make_delivery(outcome="duplicate", duplicate_of=first)
    make_delivery(outcome="skipped", skipped=1, reason="agent dev is paused")
    make_delivery(reason="no trigger matches")
    html = page(operator, "webhooks/delivery/")
    for words in ("started", "matched 2, skipped 1", "duplicate", "agent dev is paused", "no trigger matches"):
        assert words in html


def test_a_source_without_signatures_is_red(operator: Client) -> None:
    make_source(allow_unsigned=True, refused_count=12_345, refused_at=clock.now())
    html = page(operator, "webhooks/source/")
    assert re.search(r"text-red-700[^>]*>\s*unsigned allowed", html)
    assert "12,345" in html


@pytest.mark.postgresql
def test_the_front_page_says_what_runs_what_waits_and_why(operator: Client, worker: DrivenWorker) -> None:
    make_host(pk="gone", name="old box", last_seen_at=clock.now() - timedelta(hours=2))
    Host.objects.filter(pk=worker.host_id).update(name="box one")
    parked(worker, make_agent("asker", turns=ASKING))
    busy = make_agent("busy")
    at_work = submit(busy)
    events.append(at_work.pk, [events.New("model.start", {"text": "secret words"})], redactor=NOTHING_SECRET)
    Run.objects.filter(pk=at_work.pk).update(status=Status.PROCESSING, has_slot=True, started_at=clock.now())
    submit(busy)
    submit(busy)
    limited = submit(make_agent("limited"))
    Run.objects.filter(pk=limited.pk).update(
        status=Status.WAITING,
        wait_reason=WaitReason.RATE_LIMIT,
        has_slot=True,
        wake_at=clock.now() + timedelta(hours=1),
    )
    failed(make_agent("broken"), "BUDGET_EXCEEDED", "all spent")
    make_agent("nightly", schedule="0 3 * * *", timezone="Europe/Berlin")
    make_agent("bad-cron", schedule="0 0 30 2 *")
    make_source(refused_count=3, refused_at=clock.now())
    for html in (page(operator, ""), page(operator, "runs/run/fleet/")):
        for words in (
            "model.start", "Which one?", "2 pending: scale 1 in use", "model&#x27;s rate limit until",
            "BUDGET_EXCEEDED", "all spent", "03:00 Europe/Berlin", "box one", "silent: it takes no new work",
            "3 refused in all",
        ):  # fmt: skip
            assert words in html, words
        assert "secret words" not in html


def test_an_empty_fleet_says_that_nothing_will_start(operator: Client) -> None:
    assert "No worker has been heard of: nothing will start." in page(operator, "")


# --- hostile text -----------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """What a browser would make elements of."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.hostile: list[str] = []
        self._script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._script = tag == "script"
        if any(name.startswith("on") for name, _ in attrs) or ("src", "x") in attrs:
            self.hostile.append(f"<{tag} {attrs}>")

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        if self._script and "hacked" in data:
            self.hostile.append(data)


def assert_inert(html: str, path: str) -> None:
    assert Tags(html).hostile == [], path


def hostile_rows() -> list[str]:
    """Rows with EVIL wherever somebody else's text can stand; the paths of every page that shows them."""
    make_host(name=EVIL)
    agent = make_agent(
        description=EVIL,
        instructions=EVIL,
        params={EVIL: EVIL},
        credentials=[EVIL],
        image=EVIL,
        hooks_pre=[EVIL],
        models=[{"provider": EVIL, "model": EVIL}],
    )
    Agent.objects.filter(pk=agent.pk).update(description=EVIL, project=EVIL[:100])
    Schedule.objects.create(agent=agent, cron=EVIL[:100], timezone=EVIL[:64])
    source = make_source(name=EVIL[:63], project=EVIL, refused_count=1, refused_at=clock.now())
    Trigger.objects.create(agent=agent, source=source, index=0, filters={EVIL: [EVIL]})
    context = {"title": EVIL, EVIL: EVIL}
    delivery = make_delivery(
        source=source,
        event=EVIL,
        external_id=EVIL,
        reason=EVIL,
        context=context,
        headers={EVIL: EVIL},
        body=EVIL.encode(),
    )
    agent.refresh_from_db()
    shown = {"output": EVIL, "input": EVIL, "question": EVIL, "status_text": EVIL, "caused_by": EVIL[:64]}
    asking, broken, working = (submit(agent, tags=[EVIL]) for _ in range(3))
    for run in (asking, broken, working):
        events.append(run.pk, [events.New("output", {"text": EVIL})], redactor=NOTHING_SECRET)
        attempt = Attempt.objects.create(run=run, image=EVIL, sandbox_id=EVIL)
        Message.objects.create(
            attempt=attempt, position=0, body={"role": "user", "parts": [{"type": "text", "text": EVIL}]}
        )
    Run.objects.update(trigger_context=context, host="here", **shown)
    Run.objects.filter(pk=asking.pk).update(status=Status.WAITING, wait_reason=WaitReason.INPUT)
    error = {"code": EVIL, "message": EVIL}
    Run.objects.filter(pk=broken.pk).update(status=Status.FAILED, error=error, finished_at=clock.now())
    Run.objects.filter(pk=working.pk).update(status=Status.PROCESSING, has_slot=True, started_at=clock.now())
    token, _ = ApiToken.issue(make_workspace(), EVIL)
    return [
        *LISTS,
        *(
            of_run(run, path)
            for run in (asking, broken, working)
            for path in ("change/", "facts/", "cancel/", "respond/")
        ),
        *(of_agent(agent, path) for path in ("change/", "run/", "pause/")),
        f"webhooks/delivery/{delivery.pk}/change/",
        f"webhooks/source/{source.pk}/change/",
        f"agents/apitoken/{token.pk}/revoke/",
        f"agents/apitoken/{token.pk}/change/",
        f"runs/run/?q={EVIL}",
        f"agents/agent/?q={EVIL}",
    ]


def test_hostile_text_is_text_on_every_page(operator: Client) -> None:
    seen = 0
    for path in hostile_rows():
        html = operator.get(f"/admin/{path}", follow=True).content.decode()
        assert_inert(html, path)
        seen += "hacked()" in html
    assert seen > 15  # the text is there, and does nothing
    run = Run.objects.first()
    assert run is not None
    answer = operator.get(f"/admin/{of_run(run, 'message/0/')}")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_probe_for_hostile_text_works() -> None:
    assert Tags(EVIL).hostile


# --- what a list costs ------------------------------------------------------------------------------------------


def many_runs(agent: Agent, count: int) -> None:
    now = clock.now()
    runs = Run.objects.bulk_create(
        Run(
            pk=new_id("run"), workspace_id=agent.workspace_id, agent=agent, trigger="manual", output="o" * 100,
            status=Status.FAILED, error={"code": "E", "message": "m"}, finished_at=now, started_at=now, last_event=1,
        )
        for _ in range(count)
    )  # fmt: skip
    Event.objects.bulk_create(Event(run=run, number=1, type="output", data={"text": "t" * 100}) for run in runs)


def cost(client: Client, path: str) -> list[str]:
    with CaptureQueriesContext(
        connection,
    ) as captured:
        page(client, path)
    return [query["sql"] for query in captured.captured_queries]


@pytest.mark.postgresql
@pytest.mark.parametrize("path", ["runs/run/", "agents/agent/", "webhooks/delivery/", "", "runs/run/fleet/"])
def test_a_list_costs_the_same_however_many_rows_there_are(operator: Client, path: str) -> None:
    source = make_source()

    def more(prefix: str, agents: int, runs: int) -> None:
        for number in range(agents):
            agent = make_agent(f"{prefix}-{number}", schedule="0 9 * * *")
            many_runs(agent, runs)
            submit(agent)
            parked_run = submit(agent)
            Run.objects.filter(pk=parked_run.pk).update(status=Status.WAITING, wait_reason=WaitReason.INPUT)
            make_delivery(source=source, body=b"b" * 1000)

    more("few", 2, 1)
    page(operator, path)
    few = cost(operator, path)
    more("many", 20, 10)
    many = cost(operator, path)
    assert len(many) == len(few) <= 20, many


@pytest.mark.postgresql
def test_no_list_reads_big_texts(operator: Client) -> None:
    many_runs(make_agent(), 200)
    make_delivery(source=make_source())
    for path in ("runs/run/", "agents/agent/", "", "runs/run/fleet/"):
        for sql in cost(operator, path):
            assert "runs_message" not in sql
            assert not re.search(r'"runs_event"\."data"|"runs_run"\."(output|input|trigger_context)"', sql), sql
    for sql in cost(operator, "webhooks/delivery/"):
        assert not re.search(r'"webhooks_delivery"\."(body|headers|context)"', sql), sql


@pytest.mark.postgresql
def test_a_list_of_runs_counts_no_further_than_it_shows(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.tables.COUNTED", 100)
    many_runs(make_agent(), 200)
    html = page(operator, "runs/run/")
    assert "and more: filter, or search by id" in html
    assert len(re.findall(r'class="action-select', html)) <= 51
    counts = [sql for sql in cost(operator, "runs/run/") if "COUNT(" in sql]
    assert counts
    assert all("LIMIT" in sql for sql in counts), counts
    assert status(operator.get("/admin/runs/run/?p=99", follow=True)) == 200


def test_an_agent_whose_definition_cannot_be_read_hides_nobody_else(operator: Client) -> None:
    agent, well = make_agent("sick"), make_agent("well")
    run = submit(agent)
    submit(well)
    AgentVersion.objects.filter(agent=agent).update(spec=[])
    for path in ("", "agents/agent/", f"agents/agent/{agent.pk}/change/", "runs/run/", f"runs/run/{run.pk}/change/"):
        assert operator.get(f"/admin/{path}").status_code == 200, path
    _, token = ApiToken.issue(make_workspace(), "test")
    for path in ("agents", "agents/sick", "tasks", f"tasks/{run.pk}", f"tasks/{run.pk}/context"):
        answer = Client().get(f"/api/v1/{path}", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200, path
