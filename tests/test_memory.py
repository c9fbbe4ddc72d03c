"""What agents remember between runs, through the tool and in the admin."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from agents.models import Agent, Workspace
from runs import memory
from runs.calls import outcome
from runs.models import Memory, Run, Status, ToolCall
from tests.conftest import DrivenWorker
from tests.making import make_agent, submit

pytestmark = pytest.mark.django_db(transaction=True)


def asks(action: str, **arguments: Any) -> dict[str, Any]:
    return {"name": "memory", "arguments": {"action": action, **arguments}}


def results(worker: DrivenWorker, agent: Agent, *calls: dict[str, Any]) -> list[tuple[str, bool]]:
    """What a run of the agent that makes these calls is told: text, and whether it is an error."""
    run = worker.drive(submit(with_turns(agent, [{"tools": list(calls)}, {"text": "done"}])))
    assert run.status == Status.FINISHED, run.error
    rows = ToolCall.objects.filter(attempt__run=run).order_by("position", "index")
    return [(row.result, row.is_error) for row in rows]


def with_turns(agent: Agent, turns: list[Any]) -> Agent:
    assert agent.version is not None
    agent.version.files.update_or_create(
        path="script.yaml", defaults={"content": yaml.safe_dump({"turns": turns}).encode()}
    )
    return agent


def remember(run: Run, name: str, content: str, scope: memory.Scope = "agent") -> None:
    memory.write(run, scope, name, content)


def test_what_one_run_writes_a_later_one_reads(worker: DrivenWorker) -> None:
    agent = make_agent(tools=["memory"])

    [written] = results(worker, agent, asks("write", name="deploys", content="on Fridays never"))
    [(text, failed)] = results(worker, agent, asks("read", name="deploys"))

    assert (written, failed) == (("ok", False), False)
    assert text.endswith("]\non Fridays never")
    assert Memory.objects.get().run == Run.objects.order_by("pk").first()


def test_writing_again_replaces_and_deleting_removes(worker: DrivenWorker) -> None:
    agent = make_agent(tools=["memory"])

    told = results(
        worker,
        agent,
        asks("write", name="a", content="old"),
        asks("write", name="a", content="new"),
        asks("read", name="a"),
        asks("list"),
        asks("delete", name="a"),
        asks("delete", name="a"),
    )

    assert told[2][0].endswith("\nnew")
    assert told[3][0].startswith("a (3 bytes, ")
    assert told[4:] == [("ok", False), ("the agent's memory has no 'a': it is empty", True)]
    assert not Memory.objects.exists()


def test_agents_share_the_workspaces_memory_and_keep_their_own(worker: DrivenWorker) -> None:
    one, two = make_agent("one", tools=["memory"]), make_agent("two", tools=["memory"])
    results(
        worker, one, asks("write", name="own", content="1"), asks("write", name="ours", content="2", scope="workspace")
    )

    own, ours = results(worker, two, asks("read", name="own"), asks("read", name="ours", scope="workspace"))

    assert own == ("the agent's memory has no 'own': it is empty", True)
    assert ours[0].endswith("\n2")


def test_another_workspaces_memory_is_never_seen() -> None:
    run = submit(make_agent())
    theirs = Workspace.objects.create(name="theirs")
    Memory.objects.create(workspace=theirs, name="secret plan", content="plan")

    assert memory.search(run, "workspace", "plan") == []
    assert list(memory.listed(run, "workspace")) == []
    with pytest.raises(memory.NoMemory, match="it is empty"):
        memory.read(run, "workspace", "secret plan")


@pytest.mark.postgresql
def test_a_search_wants_every_word_in_whatever_case_and_shows_the_newest_first() -> None:
    run = submit(make_agent())
    remember(run, "first", "The Café serves the API team.")
    remember(run, "api of the second", "x" * 500 + " a café in the middle " + "y" * 500)
    remember(run, "third", "An API without the other word.")

    found = memory.search(run, "agent", "CAFÉ api")

    assert [hit.memory.name for hit in found] == ["api of the second", "first"]
    assert "a café in the middle" in found[0].excerpt
    assert found[0].excerpt.startswith("…")
    assert found[0].excerpt.endswith("…")
    assert len(found[0].excerpt) < 300
    assert found[1].excerpt == "The Café serves the API team."


@pytest.mark.postgresql
@pytest.mark.parametrize("query", ["100%", "a_b", "\\"])
def test_signs_that_mean_something_to_a_database_are_looked_for_as_they_are(query: str) -> None:
    run = submit(make_agent())
    remember(run, "plain", "1000 axb")
    remember(run, "signs", f"here: {query}")

    assert [hit.memory.name for hit in memory.search(run, "agent", query)] == ["signs"]


def test_limits_are_said_in_the_error(worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGEST_ENTRY", 10)
    monkeypatch.setattr(memory, "LARGEST_SCOPE", 16)
    monkeypatch.setattr(memory, "MOST_ENTRIES", 2)

    told = results(
        worker,
        make_agent(tools=["memory"]),
        asks("write", name="a", content="ééééé"),
        asks("write", name="b", content="éééééé"),
        asks("write", name="b", content="1234567"),
        asks("write", name="b", content="123456"),
        asks("write", name="b", content="654321"),
        asks("write", name="c", content=""),
    )

    assert [failed for _, failed in told] == [False, True, True, False, False, True]
    assert told[1][0].startswith("an entry holds at most 10 bytes")
    assert told[2][0].startswith("the agent's memory holds 16 bytes and no more")
    assert told[5][0].startswith("the agent's memory holds 2 entries and no more")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (asks("read"), "memory: read needs name"),
        (asks("write", name="a"), "memory: write needs content"),
        (asks("search"), "memory: search needs query"),
        (asks("write", name=" a", content=""), "memory: a name is one line of visible characters"),
    ],
)
def test_what_is_missing_is_named(worker: DrivenWorker, call: dict[str, Any], message: str) -> None:
    [(text, failed)] = results(worker, make_agent(tools=["memory"]), call)

    assert failed
    assert text.startswith(message)


def test_secrets_are_not_remembered(worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary-0123456789abcdef")
    models = [{"provider": "scripted", "model": "script.yaml"}, {"provider": "anthropic", "model": "any"}]
    agent = make_agent(tools=["memory"], models=models)

    results(worker, agent, asks("write", name="a", content="key: sk-canary-0123456789abcdef"))

    assert "canary" not in Memory.objects.get().content
    assert Memory.objects.get().content.startswith("key: ")


@pytest.mark.postgresql
def test_a_write_that_was_not_stored_as_done_leaves_nothing(
    worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = with_turns(
        make_agent(tools=["memory"]), [{"tools": [asks("write", name="a", content="1")]}, {"text": "ok"}]
    )
    kept, seen = outcome.store_result, []

    def store(*args: Any, **kwargs: Any) -> None:
        kept(*args, **kwargs)
        seen.append(Memory.objects.count())
        raise RuntimeError("the database went away")

    monkeypatch.setattr(outcome, "store_result", store)
    run = worker.drive(submit(agent))

    assert run.status == Status.FAILED
    assert seen == [1]
    assert not Memory.objects.exists()


def test_people_read_and_delete_memories_and_cannot_write_them(client: Client) -> None:
    client.force_login(User.objects.create_superuser("root"))
    run = submit(make_agent())
    remember(run, "note", "<b>bold</b>")
    row = Memory.objects.get()

    assert "note" in client.get(reverse("admin:runs_memory_changelist")).content.decode()
    page = client.get(reverse("admin:runs_memory_change", args=[row.pk])).content.decode()
    assert "&lt;b&gt;bold" in page
    assert "<b>bold" not in page
    assert client.get(reverse("admin:runs_memory_add")).status_code == 403
    client.post(reverse("admin:runs_memory_change", args=[row.pk]), {"name": "other"})
    assert Memory.objects.get().name == "note"
    client.post(reverse("admin:runs_memory_delete", args=[row.pk]), {"post": "yes"})
    assert not Memory.objects.exists()
