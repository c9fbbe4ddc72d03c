"""What the server has becomes a folder, and that folder changes nothing when it is applied."""

from __future__ import annotations

from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from agentfleet import cli, folders
from agentfleet.client import ServerSays
from agents.manifest import export, keys, parse, read_folder
from agents.models import Agent, AgentVersion, ApiToken, Workspace
from agents.spec import (
    AgentSpec,
    Approvals,
    Attempts,
    Breaker,
    Coalescing,
    Failure,
    Limits,
    ModelSpec,
    ProjectSpec,
    ScheduleSpec,
    SignatureScheme,
    SourceSpec,
    ToolName,
    WebhookSpec,
)
from tests.making import make_workspace
from webhooks import projects

PROJECTS = Path(__file__).parent / "data" / "projects"

# --- any definition ---------------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
lines = texts.map(lambda text: " ".join(text.split()))
counts = st.integers(0, 2**31 - 1)
ones = st.integers(1, 2**31 - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
tables = st.dictionaries(words, json_values, max_size=4)
models = st.builds(
    ModelSpec,
    provider=st.sampled_from(["anthropic", "scripted"]),
    model=words,
    thinking=st.sampled_from([None, "off", "high"]),
    auth_type=st.sampled_from(["api_key", "oauth_token"]),
    base_url=st.none() | words,
)
dollars = st.decimals(0, 100_000, places=6).map(lambda amount: Decimal(str(float(amount))))
limits = st.builds(
    Limits, turns=counts, wall_seconds=counts, idle_seconds=counts, tokens=counts, usd=dollars, output_bytes=counts
)
webhooks = st.builds(
    WebhookSpec,
    source=st.just("github"),
    filters=st.fixed_dictionaries({"events": st.just("push")}, optional={"labels": st.lists(words, min_size=1)}),
) | st.builds(
    WebhookSpec,
    source=st.just("hook"),
    filters=st.dictionaries(
        st.sampled_from(["match.data.kind", "match.data.live", "not_match.id", "not_senders"]),
        words | st.lists(words, min_size=1, max_size=2),
    ),
)
steps = st.fixed_dictionaries(
    {"provider": st.just("shell"), "required": st.booleans(), "params": st.fixed_dictionaries({"command": words})}
)


def in_order(names: list[str]) -> tuple[str, ...]:
    return tuple(name for name in get_args(ToolName) if name in names)


specs = st.builds(
    AgentSpec,
    name=st.just("dev"),
    description=lines,
    instructions=texts,
    models=st.lists(models, min_size=1, max_size=3, unique=True).map(tuple),
    schedules=st.lists(
        st.builds(
            ScheduleSpec,
            cron=st.sampled_from(["@daily", "*/5 * * * *", "@every 90s"]),
            timezone=st.sampled_from(["", "Asia/Kolkata"]),
            jitter_seconds=st.sampled_from([0, 30]),
            missed=st.sampled_from(["skip", "latest", "all"]),
            missed_seconds=st.sampled_from([0, 600, 86_400]),
        ),
        unique_by=lambda said: said.cron,
        max_size=3,
    ).map(tuple),
    timezone=st.sampled_from(["UTC", "Europe/Berlin"]),
    webhooks=st.lists(webhooks, max_size=2).map(tuple),
    params=tables,
    credentials=st.lists(st.sampled_from(["github_token", "git_ssh:bot"]), max_size=2).map(tuple),
    scale=counts,
    priority=st.sampled_from(["high", "normal", "low"]),
    limits=limits,
    retry=st.sampled_from(["safe", "always", "never"]),
    attempts=st.builds(
        Attempts,
        most=st.integers(1, 100),
        delay_seconds=counts,
        longest_delay_seconds=counts,
        after=st.lists(st.sampled_from(get_args(Failure)), unique=True).map(tuple),
    ),
    breaker=st.builds(Breaker, failures=counts, probe_seconds=ones),
    coalesce=st.builds(
        Coalescing, key=st.just("github://{repo}/{number}"), mode=st.sampled_from(["queue", "skip", "replace"])
    ),
    overlap=st.sampled_from(["skip", "queue"]),
    max_reruns=counts,
    approvals=st.builds(
        Approvals,
        ask=st.sampled_from(["off", "on-miss", "always"]),
        allow=st.lists(st.sampled_from(["read", "bash:git *"]), max_size=2).map(tuple),
        expires_seconds=ones,
    ),
    image=st.none() | words,
    build_args=st.dictionaries(words, texts, max_size=2),
    memory=st.sampled_from(["4g", "512m"]),
    cpus=st.floats(0.01, 1024),
    sandbox=st.sampled_from(["eager", "lazy"]),
    network=st.sampled_from(["none", "gateway", "allowlist", "open"]),
    tools=st.none() | st.lists(st.sampled_from(get_args(ToolName)), unique=True).map(in_order),
    max_work_queue=counts,
    lock_seconds=ones,
    one_lock=st.booleans(),
    max_call_depth=counts,
    trigger_wait_seconds=ones,
    preflight=st.lists(steps, max_size=2).map(tuple),
    hooks_pre=st.lists(texts, max_size=2).map(tuple),
    hooks_post=st.lists(texts, max_size=2).map(tuple),
)
commands = st.builds(
    lambda spec, command: replace(spec, kind="command", command=command, models=()),
    specs,
    words.filter(str.strip) | st.lists(words.filter(str.strip), min_size=1, max_size=3).map(tuple),
)
named = st.lists(words, max_size=2).map(tuple)
rates = st.sampled_from(["", "1/1s", "60/10m", "5/10m"])
heads = st.from_regex(r"[A-Za-z-]{1,20}", fullmatch=True)
guards: dict[str, Any] = {
    "own": named,
    "rate": rates,
    "sender_rate": rates,
    "identical": rates,
    "duplicate_seconds": counts,
}
sources = st.builds(
    SourceSpec,
    name=st.just("other"),
    provider=st.sampled_from(["gitlab", "generic"]),
    credential=words,
    allow_unsigned=st.booleans(),
    **guards,
) | st.builds(
    SourceSpec,
    name=st.just("other"),
    provider=st.just("hmac"),
    scheme=st.builds(
        SignatureScheme,
        header=heads,
        algorithm=st.sampled_from(["sha1", "sha256", "sha512"]),
        encoding=st.sampled_from(["hex", "base64"]),
        prefix=texts,
        timestamp_header=heads,
        signed=st.sampled_from(["{body}", "{timestamp}.{body}"]),
        tolerance_seconds=counts,
        event_header=texts,
        event=words,
    ),
    **guards,
)
GITHUB = SourceSpec(name="github", provider="github", credential="main", allow_unsigned=True)
HOOK = SourceSpec(name="hook", provider="generic")


def again(project: ProjectSpec) -> ProjectSpec:
    return parse(export.files_of(project), project=project.name).project


def normal(project: ProjectSpec) -> ProjectSpec:
    """Without the settings files, which may be written in other words."""
    files = {
        name: {path: content for path, content in inner.items() if path not in export.described(inner)}
        for name, inner in project.files.items()
    }
    return replace(project, files=files)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(specs | commands, sources)
def test_any_definition_is_read_back_as_it_was(spec: AgentSpec, source: SourceSpec) -> None:
    said = (GITHUB, HOOK, source)
    project = ProjectSpec(name="p", scale=3, sources=said, agents=(spec,), files={"dev": {"a/b.txt": b"\0"}})

    back = again(project)

    assert normal(back) == project
    digests = {projects.digest_of(read.agents[0], read.files["dev"]) for read in (project, back)}
    assert len(digests) == 1


def test_every_field_of_a_definition_is_exported() -> None:
    known = {field.name for field in fields(AgentSpec)}
    apart = {"name", "description", "instructions", "models", "webhooks", "network", "skills", "schedules", "polls"}

    assert {*export.PLAIN, *export.PAIRED} | apart == known
    assert set(export.PLAIN.values()) <= keys.known(keys.AgentTable)


@pytest.mark.parametrize("text", ["---\nnot: settings\n---\nDo it.", "\ufeffDo it.", "\n\n---\n", "", "Do\r\nit."])
def test_instructions_that_look_like_front_matter_stay_instructions(text: str) -> None:
    spec = AgentSpec(name="dev", instructions=text, models=(ModelSpec(provider="scripted", model="x"),))

    assert again(ProjectSpec(name="p", agents=(spec,))).agents == (spec,)


def test_a_script_that_stands_in_the_models_place_and_one_that_does_not_are_told_apart() -> None:
    files = {
        "config.toml": b'[model]\nprovider = "scripted"\nmodel = "x"\n',
        "agents/script/config.toml": b'network = "none"\n',
        "agents/script/test-script.sh": b"exit 0\n",
        "agents/model/config.toml": b'kind = "model"\n',
        "agents/model/SKILL.md": b"Do it.\n",
        "agents/model/test-script.sh": b"exit 0\n",
    }
    project = parse(files, project="p").project

    assert [agent.kind for agent in project.agents] == ["model", "command"]
    assert normal(again(project)) == normal(project)


# --- shared files -----------------------------------------------------------------------------------------------


def test_what_all_agents_have_alike_is_written_once() -> None:
    skill = b"---\nname: s\ndescription: For it.\n---\nDo.\n"
    files = {
        "config.toml": b'network = "none"\n[model]\nprovider = "scripted"\nmodel = "x"\n',
        "Dockerfile": b"FROM al-agent:latest\nRUN true\n",
        "shared/all.md": b"all",
        "skills/s/SKILL.md": skill,
        "agents/a/SKILL.md": b"A",
        "agents/b/SKILL.md": b"B",
        "agents/b/shared/own.md": b"own",
        "agents/b/skills/t/SKILL.md": skill.replace(b"name: s", b"name: t"),
    }
    project = parse(files, project="p").project

    written = export.files_of(project)

    assert {path for path in written if not path.endswith("config.toml")} == set(files) - {"config.toml"}
    assert normal(again(project)) == normal(project)


# --- over REST and the command line -----------------------------------------------------------------------------


def apply(files: dict[str, bytes], name: str) -> projects.Changes:
    return projects.apply(make_workspace(), parse(files, project=name, network="open").project)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("generation", ["first", "second", "current", "fleet", "fleet-0.13"])
def test_applying_what_was_exported_changes_nothing(generation: str) -> None:
    made = apply(read_folder(PROJECTS / generation), "p")
    versions = AgentVersion.objects.count()

    changes = apply(export.files_of(projects.stored(make_workspace(), "p")), "p")

    assert (changes.unchanged, changes.updated, changes.created, changes.deactivated, changes.sources) == (
        made.created,
        [],
        [],
        [],
        [],
    )
    assert AgentVersion.objects.count() == versions


@pytest.fixture
def rest(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client with a token; the command line asks through it."""
    _, token = ApiToken.issue(make_workspace(), "any")

    class Through:
        @classmethod
        def here(cls) -> Through:
            return cls()

        def call(self, method: str, path: str, body: Any = None) -> Any:
            answer = client.generic(method, f"/api/v1/{path}", headers={"Authorization": f"Bearer {token}"})
            value = answer.json()
            if answer.status_code != 200:
                raise ServerSays(value["error"]["code"], value["error"]["message"])
            return value

    monkeypatch.setattr(cli, "Client", Through)
    return client


@pytest.mark.django_db(transaction=True)
def test_the_command_writes_an_empty_folder_and_refuses_another(rest: Client, tmp_path: Path) -> None:
    apply(read_folder(PROJECTS / "current"), "mine")
    folder = tmp_path / "mine"

    first = CliRunner().invoke(cli.app, ["export", str(folder)])
    written = read_folder(folder)
    (folder / "config.toml").write_text("scale = 1\n")
    second = CliRunner().invoke(cli.app, ["export", str(folder)])

    assert (first.exit_code, apply(written, "mine").updated) == (0, [])
    assert isinstance(second.exception, folders.InTheWay)
    assert (folder / "config.toml").read_text() == "scale = 1\n"
    assert CliRunner().invoke(cli.app, ["export", str(folder), "--force"]).exit_code == 0
    assert read_folder(folder) == written


@pytest.mark.django_db(transaction=True)
def test_agents_made_in_the_admin_are_exported_under_a_dash(rest: Client, tmp_path: Path) -> None:
    spec = AgentSpec(name="clicked", instructions="Do.", models=(ModelSpec(provider="scripted", model="x"),))
    projects.apply_agent(make_workspace(), ProjectSpec(name="", agents=(spec,)), spec, projects.Changes())
    apply(read_folder(PROJECTS / "current"), "other")

    done = CliRunner().invoke(cli.app, ["export", str(tmp_path / "out"), "--project", "-"])

    assert done.exit_code == 0, done.output
    assert parse(read_folder(tmp_path / "out"), project="p").project.agents == (spec,)


@pytest.mark.django_db(transaction=True)
def test_what_is_not_there_is_said(rest: Client, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["export", str(tmp_path / "nothing")])

    assert isinstance(done.exception, ServerSays)
    assert str(done.exception) == "there is no project nothing"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.django_db(transaction=True)
def test_deactivated_agents_and_other_workspaces_are_left_out(rest: Client) -> None:
    files = read_folder(PROJECTS / "current")
    apply(files, "mine")
    Agent.objects.filter(name="night").update(active=False)
    theirs = Workspace.objects.create(name="theirs")
    projects.apply(theirs, parse(files, project="mine", network="open").project)

    written = export.files_of(projects.stored(make_workspace(), "mine"))

    assert not any(path.startswith("agents/night/") for path in written)
    with pytest.raises(projects.NoProject):
        projects.stored(theirs, "other")
