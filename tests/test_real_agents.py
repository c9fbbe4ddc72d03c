"""The agents of a public fleet, in the three forms they have had, do here what they did where they come from.

Their folders are made anew from what is known of them. A scripted model does what they are told: it runs the commands
of their own instructions, block by block, in real sandboxes beside the real gateway. GitHub is played by a program.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents import private_files
from agents.manifest import parse, read_folder
from tests.box import Box

AGENTS = Path(__file__).parent / "data" / "real-agents"
FORMS = {"current": 7, "0.14": 3, "0.13": 5}
CREDENTIALS = {
    "github_token": {"token": "ghp_canary0123456789"},
    "git_ssh": {"username": "Fleet", "email": "fleet@example.com"},
}
# What their images bring, told by what they are asked to do. The clone of a repository is a folder.
PLAYED = """\
mkdir /tmp/played
printf '%s\\n' '#!/bin/sh' 'echo "gh $*"' >/tmp/played/gh
printf '%s\\n' '#!/bin/sh' 'for place; do :; done' 'mkdir "$place" && echo "cloned $place"' >/tmp/played/git
chmod +x /tmp/played/*
gh --version
setenv PATH "/tmp/played:$PATH"
"""


# --- read -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_their_folders_are_read_with_a_warning_only_for_what_nobody_carries_out(form: str) -> None:
    reading = parse(read_folder(AGENTS / form), project=form, network="gateway")
    assert len(reading.project.agents) == FORMS[form]
    told = [str(warning) for warning in reading.warnings if "no provider of its models" not in str(warning)]
    runtime = "agents/e2e-coverage-improver/config.toml:11: runtime: accepted, but not yet carried out"
    assert told == ([runtime] if form == "current" else [])
    for agent in reading.project.agents:
        assert agent.credentials == ("github_token", "git_ssh")
        assert agent.instructions.startswith("# ")
        assert "Dockerfile" in reading.project.files[agent.name] or agent.name == "e2e-coverage-improver"


# --- and run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with Box(tmp_path_factory.mktemp("real-agents")) as box:
        for kind, fields in CREDENTIALS.items():
            place = box.home / "credentials" / kind / "default"
            for folder in (place.parent.parent, place.parent, place):
                folder.mkdir(mode=0o700, exist_ok=True)
            for name, value in fields.items():
                private_files.write(place / name, f"{value}\n")
        box.cli("apply", str(scripted(tmp_path_factory.mktemp("real") / "fleet")), "--network", "gateway")
        yield box


def scripted(project: Path) -> Path:
    """All of them in one project, with a model that runs their instructions' commands; only `dev` has its own image."""
    shutil.copytree(AGENTS / "current", project, ignore=shutil.ignore_patterns("Dockerfile"))
    shutil.copy(AGENTS / "current/agents/dev/Dockerfile", project / "agents/dev")
    models = (project / "config.toml").read_text() + '\n[model]\nprovider = "openai"\nmodel = "gpt-5.4"\n'
    (project / "config.toml").write_text(models)
    for form in ("0.14", "0.13"):
        for agent in sorted((AGENTS / form / "agents").iterdir()):
            named = project / "agents" / name_in(form, agent.name)
            shutil.copytree(agent, named, ignore=shutil.ignore_patterns("Dockerfile"))
    for file in [project / "config.toml", *project.glob("agents/*/agent-config.toml")]:
        text = re.sub(r'provider = ".*"', 'provider = "scripted"', file.read_text())
        file.write_text(re.sub(r'(?m)^model = ".*"', 'model = "script.yaml"', text))
    for agent in (project / "agents").iterdir():
        (agent / "script.yaml").write_text(yaml.safe_dump({"turns": turns(instructions(agent))}))
    return project


def name_in(form: str, agent: str) -> str:
    """A name is one agent's, so those of the older forms get another."""
    return f"{agent}-{form.replace('.', '-')}"


def instructions(agent: Path) -> str:
    file = next(agent / name for name in ("SKILL.md", "ACTIONS.md") if (agent / name).exists())
    return file.read_text()


def turns(text: str) -> list[dict[str, Any]]:
    blocks = [PLAYED.replace("gh --version\n", "command -v gh >/dev/null && gh --version; true\n")]
    blocks += re.findall(r"(?ms)^```sh\n(.*?)^```$", text)
    calls = [{"tools": [{"name": "bash", "arguments": {"command": block}}]} for block in blocks]
    return [*calls, {"text": "Done."}]


HELD = {
    "dev": "github://acme/app/issues/42",
    "planner": "github://acme/app/issues/7",
    "reviewer": "github://acme/app/pulls/9",
    "gh-actions-responder": "github://acme/app/workflows/ci.yml",
    "dev-0-14": "github://acme/app/issues/42",
    "dev-0-13": "github issue acme/app#42",
    "reviewer-0-13": "github pr acme/app#9",
    "mintlify-fixer": "",
    "mintlify-fixer-0-13": "",
    "e2e-coverage-improver": "",
    "unit-coverage-improver": "",
}
HEARTBEATS = {"dev", "reviewer", "gh-actions-responder"}
STATUS = {"gh-actions-responder": "mended", "mintlify-fixer": "pull request opened"}


@pytest.mark.box
def test_they_take_their_locks_say_what_they_do_and_ask_to_be_run_again(box: Box) -> None:
    first = {agent: box.start(agent) for agent in HELD if agent != "dev-0-14"}
    box.wait(first["dev"], within=200)  # its image is built first
    runs = {**first, "dev-0-14": box.start("dev-0-14")}  # which wants the same lock
    for agent, run in runs.items():
        task = box.wait(run, within=120)
        assert (task["status"], agent) == ("finished", agent), box.story(run)
        output, key = box.output(run), HELD[agent]
        kind = re.sub(r"-0-1\d$", "", agent)
        assert output.count('{"ok":true,"resourceKey":' + json.dumps(key) + "}") == bool(key), output
        assert output.count('"expiresAt":') == (kind in HEARTBEATS), output
        assert "skip it" not in output
        assert "gh " in output
        ((status, rerun),) = box.rows("SELECT status_text, rerun_requested FROM runs_run WHERE id = ?", run)
        assert status == STATUS.get(kind, "")
        assert bool(rerun) == bool(key)
    assert "gh version" in box.output(runs["dev"])
    assert "cloned /workspace/repo\n/workspace/repo\n" in box.output(runs["mintlify-fixer-0-13"])
    assert box.rows("SELECT key FROM runs_lock") == []
    failed = [event for run in runs.values() for event in box.events(run) if event["data"].get("exitCode")]
    assert failed == []
