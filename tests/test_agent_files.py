"""What of an agent's folder lies in its sandbox."""

from __future__ import annotations

import json

import pytest

from agents.models import AgentFile
from runs import agent_files, outfit
from runs.models import Attempt
from tests.making import make_agent, submit

pytestmark = pytest.mark.django_db


def files(stored: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    agent = make_agent(**changes)  # type: ignore[arg-type]
    assert agent.version is not None
    for path, content in stored.items():
        AgentFile.objects.create(version=agent.version, path=path, content=content)
    run = submit(agent)
    run.version = agent.version
    return agent_files.files(run, agent.spec)


def test_its_own_files_are_there_and_what_it_is_made_and_played_from_is_not() -> None:
    stored = {
        "SKILL.md": b"a",
        "shared/x.bin": b"\0",
        "Dockerfile": b"b",
        ".project/Dockerfile": b"c",
        "script.yaml": b"d",
    }
    assert {**files(stored), "agent-config.json": b""} == {
        "SKILL.md": b"a",
        "shared/x.bin": b"\0",
        "agent-config.json": b"",
    }


def test_one_without_a_folder_finds_its_instructions_all_the_same() -> None:
    assert files({}, instructions="Be good.")["SKILL.md"] == b"Be good."


def test_instructions_of_the_first_generation_keep_their_name() -> None:
    assert sorted(files({"ACTIONS.md": b"a"})) == ["ACTIONS.md", "agent-config.json"]


def test_its_settings_are_written_as_the_seed_writes_them() -> None:
    found = files(
        {},
        params={"depth": 2},
        schedule="@daily",
        credentials=["github_token:bot"],
        models=[{"provider": "anthropic", "model": "m", "thinking": "low"}],
        webhooks=[{"source": "github", "filters": {"events": ["issues"]}}],
    )
    told = json.loads(found["agent-config.json"])
    assert told["model"] == {"provider": "anthropic", "model": "m", "authType": "api_key", "thinkingLevel": "low"}
    assert told["webhooks"] == [{"source": "github", "events": ["issues"]}]
    assert (told["name"], told["params"], told["timeout"], told["scale"]) == ("dev", {"depth": 2}, 900, 1)
    assert (told["credentials"], told["schedule"]) == (["github_token:bot"], "@daily")


def test_what_happened_hides_a_file_of_that_name() -> None:
    agent = make_agent()
    assert agent.version is not None
    AgentFile.objects.create(version=agent.version, path="trigger.json", content=b"mine")
    run = submit(agent)
    run.version, run.trigger_context = agent.version, {"event": "push"}
    spec = outfit.spec_of(run, Attempt(run=run), agent.spec, "image")
    assert spec.files["trigger.json"] == b'{"event": "push"}'
