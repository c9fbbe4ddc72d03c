"""Several projects in one workspace: what they share, and what only one of them can have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from django.test import Client

from agents.manifest import parse
from agents.models import Agent
from agents.spec import AgentSpec, ProjectSpec, SignatureScheme, SourceSpec, WebhookSpec
from runs.models import Run
from tests.making import make_agent, make_workspace
from webhooks import projects
from webhooks.models import Source
from webhooks.projects import NameTaken

pytestmark = pytest.mark.django_db


def apply(project: str, agent: str, *, credential: str | None = "default") -> projects.Changes:
    """A project with one agent, which listens to the project's source `github` unless `credential` is None."""
    listens = credential is not None
    sources = (SourceSpec(name="github", provider="github", credential=credential),) if credential is not None else ()
    spec = AgentSpec(name=agent, webhooks=(WebhookSpec(source="github"),) if listens else ())
    return projects.apply(make_workspace(), ProjectSpec(name=project, sources=sources, agents=(spec,)))


def test_two_projects_that_write_a_source_alike_share_it() -> None:
    assert apply("one", "first").sources == ["github"]
    assert apply("two", "second").sources == []
    source = Source.objects.get()
    assert source.project == "one"
    assert set(source.triggers.values_list("agent__name", flat=True)) == {"first", "second"}


def test_a_source_that_is_another_elsewhere_is_refused_with_a_way_out() -> None:
    apply("one", "first")
    with pytest.raises(NameTaken, match=r"source github belongs to project one, where its credential is another: wr"):
        apply("two", "second", credential="mine")
    assert not Agent.objects.filter(name="second").exists()


def test_a_shared_source_stays_as_long_as_anybody_listens_to_it() -> None:
    apply("one", "first")
    apply("two", "second")
    apply("one", "first", credential=None)
    assert list(Source.objects.values_list("project", "active")) == [("two", True)]
    apply("two", "second", credential=None)
    assert list(Source.objects.values_list("project", "active")) == [("two", False)]


def test_a_source_that_its_project_has_dropped_is_to_be_had() -> None:
    apply("one", "first")
    apply("one", "first", credential=None)
    assert apply("two", "second", credential="mine").sources == ["github"]
    assert list(Source.objects.values_list("project", "credential", "active")) == [("two", "mine", True)]


def test_an_agent_of_another_project_or_of_the_admin_is_refused_with_a_way_out() -> None:
    apply("one", "first")
    with pytest.raises(NameTaken, match=r"agent first belongs to project one: .*apply with --project one"):
        apply("two", "first")
    apply("one", "other")
    with pytest.raises(NameTaken, match="agents first, other belong to project one: "):
        taken = (AgentSpec(name="first"), AgentSpec(name="other"))
        projects.apply(make_workspace(), ProjectSpec(name="two", agents=taken))
    make_agent("by-hand")
    with pytest.raises(NameTaken, match="agent by-hand belongs to the admin, where it was made: rename yours"):
        apply("two", "by-hand")


def test_a_project_that_is_not_there_is_said_with_those_that_are() -> None:
    apply("one", "first")
    apply("two", "second")
    with pytest.raises(projects.NoProject, match="there is no project three; there are: one, two"):
        projects.stored(make_workspace(), "three")


def test_what_a_source_says_of_guards_and_signatures_is_kept_shown_and_shared_alike() -> None:
    scheme = SignatureScheme(header="X-Signature", encoding="base64")
    said = SourceSpec(name="hook", provider="hmac", own=("robo",), sender_rate="", identical="2/1m", scheme=scheme)

    def put(project: str, spec: SourceSpec) -> list[str]:
        agents = (AgentSpec(name=f"{project}-agent", webhooks=(WebhookSpec(source="hook"),)),)
        return projects.apply(make_workspace(), ProjectSpec(name=project, sources=(spec,), agents=agents)).sources

    assert put("one", said) == ["hook"]
    assert put("one", said) == []
    assert projects.stored(make_workspace(), "one").sources == (said,)
    assert put("two", said) == []
    with pytest.raises(NameTaken, match="where its duplicate_seconds, own is another"):
        put("two", replace(said, own=(), duplicate_seconds=5))
    assert put("one", replace(said, own=())) == ["hook"]
    assert "own" not in Source.objects.get().options


@pytest.mark.parametrize(("kind", "sender", "started"), [("paid", "ann", 1), ("void", "ann", 0), ("paid", "robo", 0)])
def test_what_a_folder_says_of_filters_decides_what_starts(
    client: Client, kind: str, sender: str, started: int
) -> None:
    files = {
        "config.toml": b"[webhooks.shop]\ntype = 'generic'\nallow_unsigned = true\n",
        "agents/dev/config.toml": b"kind = 'command'\ncommand = 'true'\n[[webhooks]]\nsource = 'shop'\n"
        b"match.data.kind = 'paid'\nnot_senders = ['robo']\n",
    }
    projects.apply(make_workspace(), parse(files, project="p").project)
    event = {"type": "invoice", "data": {"kind": kind}, "sender": sender}

    answer = client.post("/webhooks/generic", event, content_type="application/json")

    assert (answer.status_code, answer.json()["matched"]) == (200, started)
    assert Run.objects.count() == started
