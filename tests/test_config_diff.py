"""A run keeps the definition it began with, and people see what its agent has become since."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from agents.manifest import parse
from agents.models import Agent, AgentFile, ApiToken
from runs import definitions, facts, queue
from runs.models import Run, Status, WaitReason
from tests.conftest import DrivenWorker
from tests.making import ask, make_workspace, submit
from webhooks import projects

pytestmark = pytest.mark.django_db(transaction=True)

TURNS: list[Any] = [{"tools": [ask("Go on?")]}, {"expect": ["yes"], "text": "as of old"}]


def bundle(
    instructions: str = "Do it.\nSlowly.\n",
    *,
    turns: list[Any] = TURNS,
    settings: str = "",
    more: dict[str, str] | None = None,
) -> dict[str, bytes]:
    """A project with one agent; `settings` goes on top of its config.toml, `more` are files of its folder."""
    files = {
        "config.toml": '[model]\nprovider = "scripted"\nmodel = "script.yaml"\n',
        "agents/dev/SKILL.md": instructions,
        "agents/dev/config.toml": f'{settings}\nnetwork = "none"\n',
        "agents/dev/script.yaml": yaml.safe_dump({"turns": turns}),
    }
    files |= {f"agents/dev/{name}": text for name, text in (more or {}).items()}
    return {path: text.encode() for path, text in files.items()}


def apply(files: dict[str, bytes]) -> projects.Changes:
    return projects.apply(make_workspace(), parse(files, project="p").project)


def waiting(worker: DrivenWorker) -> Run:
    """A run in the middle of its work."""
    run = worker.drive(submit(Agent.objects.get()))
    assert (run.status, run.wait_reason) == (Status.WAITING, WaitReason.INPUT), run.error
    return run


@pytest.fixture
def page(client: Client) -> Any:
    client.force_login(User.objects.create_superuser("root"))

    def get(run: Run) -> str:
        return client.get(reverse("admin:runs_run_definition", args=[run.pk])).content.decode()

    return get


def test_a_run_goes_on_with_the_definition_it_began_with(worker: DrivenWorker, page: Any, client: Client) -> None:
    apply(bundle())
    run = waiting(worker)
    assert "It is the one the agent has now" in page(run)

    new = bundle("Do it.\nFast.\n", turns=[{"text": "as of new"}], settings="limits.turns = 7")
    assert apply(new).updated == ["dev"]
    queue.respond(run, "yes")
    run = worker.drive(run)
    later = worker.drive(submit(Agent.objects.get()))

    assert (run.output, later.output) == ("as of old", "as of new")
    shown = page(run)
    assert '<span class="af-bad">-Slowly.</span>' in shown
    assert '<span class="af-good">+Fast.</span>' in shown
    assert "limits.turns" in shown
    assert "script.yaml" in shown
    assert "SKILL.md" in shown
    [fact] = [fact for fact in facts.facts(run, []) if fact.label == "Definition"]
    assert fact.note == "the agent has another one now"
    assert "It is the one the agent has now" in page(later)
    _, token = ApiToken.issue(make_workspace(), "any")
    told = {
        one.pk: client.get(f"/api/v1/tasks/{one.pk}", headers={"Authorization": f"Bearer {token}"}).json()["task"]
        for one in (run, later)
    }
    assert [told[one.pk]["definition"]["current"] for one in (run, later)] == [False, True]
    assert told[run.pk]["definition"]["digest"] != told[later.pk]["definition"]["digest"]


def test_what_changed_only_in_words_about_the_definition_is_no_change(worker: DrivenWorker) -> None:
    apply(bundle())
    run = waiting(worker)

    changes = apply(bundle(settings="# a comment"))

    assert changes.unchanged == ["dev"]
    assert definitions.is_current(Run.objects.get(pk=run.pk))


def test_every_field_and_file_is_compared(worker: DrivenWorker) -> None:
    apply(
        bundle(
            settings='params = {a = 1, b = "x", gone = true}', more={"kept.txt": "1", "old.txt": "1", "both.txt": "1"}
        )
    )
    run = waiting(worker)
    apply(
        bundle(
            settings='params = {a = 2, b = "x", list = [1]}', more={"kept.txt": "1", "new.txt": "2", "both.txt": "2"}
        )
    )
    run = Run.objects.get(pk=run.pk)

    assert run.version is not None
    assert run.agent.version is not None
    fields = definitions.fields(run.version, run.agent.version)
    files = definitions.files(run.version, run.agent.version)

    assert [(one.place, one.before, one.after) for one in fields] == [
        ("params.a", "1", "2"),
        ("params.gone", "true", None),
        ("params.list", None, json.dumps([1], indent=2)),
    ]
    assert [(one.place, one.lines[1:]) for one in files if one.place.endswith(".txt")] == [
        ("both.txt", ("-1", "+2")),
        ("new.txt", ("+2",)),
        ("old.txt", ("-1",)),
    ]


def test_what_a_definition_holds_is_shown_and_never_obeyed(worker: DrivenWorker, page: Any) -> None:
    apply(bundle())
    run = waiting(worker)
    apply(bundle("<script>alert(1)</script>\nDo.", more={"<img src=x>": "<b>bold</b>\n"}))

    shown = page(run)

    for danger in ("<script>alert", "<img src=x", "<b>bold"):
        assert danger not in shown
    assert "+&lt;b&gt;bold&lt;/b&gt;" in shown


def test_files_that_have_no_lines_are_told_by_their_size(worker: DrivenWorker) -> None:
    apply(bundle())
    run = waiting(worker)
    large = "x\n" * definitions.LARGEST
    apply(bundle(more={"large.txt": large, "many.txt": "x\n" * (definitions.MOST_LINES + 1)}))
    run = Run.objects.get(pk=run.pk)
    assert run.agent.version is not None
    AgentFile.objects.create(version=run.agent.version, path="binary", content=b"\0\1")

    assert run.version is not None
    files = {one.place: one for one in definitions.files(run.version, run.agent.version)}

    assert (files["large.txt"].after, files["large.txt"].lines) == (f"{len(large)} bytes", ())
    assert (files["binary"].after, files["binary"].lines) == ("2 bytes", ())
    assert "too many to compare" in files["many.txt"].lines[0]


def test_a_run_that_has_not_started_has_no_definition_yet(page: Any) -> None:
    apply(bundle())
    run = submit(Agent.objects.get())

    assert definitions.record(run) is None
    assert "The run has not started" in page(run)
