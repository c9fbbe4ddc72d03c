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

pytestmark = pytest.mark.timeout(240)

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
if command -v gh >/dev/null; then gh --version; fi
setenv PATH "/tmp/played:$PATH"
"""
# None of them calls another, but all of them can be called.
FOREMAN = """\
# Foreman

```sh
call=$(echo "Plan issue 7" | al-call planner | jq -r .callId)
al-wait "$call"
```
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
    """All of them in one project, with a model that runs their instructions' commands.

    The Dockerfiles of the older forms say what those of today say.
    """
    shutil.copytree(AGENTS / "current", project)
    with_older_forms(project)
    (project / "agents/foreman").mkdir()
    (project / "agents/foreman/SKILL.md").write_text(FOREMAN)
    (project / "agents/foreman/config.toml").write_text('models = ["medium"]\n')
    put(project / "agents/dev/config.toml", "maxReruns = 1\n")
    put(project / "config.toml", "maxReruns = 0\n")
    for agent in (project / "agents").iterdir():
        (agent / "script.yaml").write_text(yaml.safe_dump({"turns": turns(instructions(agent))}))
    return project


def with_older_forms(project: Path) -> None:
    for form in ("0.14", "0.13"):
        for agent in sorted((AGENTS / form / "agents").iterdir()):
            named = project / "agents" / name_in(form, agent.name)
            shutil.copytree(agent, named, ignore=shutil.ignore_patterns("Dockerfile"))
    with (project / "config.toml").open("a") as config:
        config.write('\n[model]\nprovider = "openai"\nmodel = "gpt-5.4"\n')
    for file in [project / "config.toml", *project.glob("agents/*/agent-config.toml")]:
        text = re.sub(r'provider = ".*"', 'provider = "scripted"', file.read_text())
        file.write_text(re.sub(r'(?m)^model = ".*"', 'model = "script.yaml"', text))


def put(file: Path, before: str) -> None:
    file.write_text(before + file.read_text())


def name_in(form: str, agent: str) -> str:
    """A name is one agent's, so those of the older forms get another."""
    return f"{agent}-{form.replace('.', '-')}"


def instructions(agent: Path) -> str:
    file = next(agent / name for name in ("SKILL.md", "ACTIONS.md") if (agent / name).exists())
    return file.read_text()


def turns(text: str) -> list[dict[str, Any]]:
    blocks = [PLAYED, *re.findall(r"(?ms)^```sh\n(.*?)^```$", text)]
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
BUILT = {"dev", "planner", "reviewer", "gh-actions-responder", "mintlify-fixer", "unit-coverage-improver"}


@pytest.fixture(scope="module")
def runs(box: Box) -> dict[str, str]:
    """Agent -> its run, which is over. Those that need what another one locks or answers come after it."""
    runs = {agent: started(box, agent) for agent in HELD if agent != "dev-0-14"}
    for agent, later in (("dev", "dev-0-14"), ("planner", "foreman")):
        box.wait(runs[agent], within=200)  # its image is built first
        for again in reruns(box, runs[agent]):
            box.wait(again)
        runs[later] = started(box, later)
    for agent, run in runs.items():
        task = box.wait(run, within=120)
        assert (task["status"], agent) == ("finished", agent), box.story(run)
    return runs


def started(box: Box, agent: str) -> str:
    """By a person: only then a run is followed by another."""
    return str(box.client.call("POST", f"agents/{agent}/run", {"input": "go"})["taskId"])


def reruns(box: Box, run: str) -> list[str]:
    return [again for (again,) in box.rows("SELECT id FROM runs_run WHERE rerun_of_id = ?", run)]


@pytest.mark.box
def test_each_runs_in_what_its_dockerfile_says(box: Box, runs: dict[str, str]) -> None:
    assert {agent for agent, run in runs.items() if "gh version" in box.output(run)} == BUILT
    images = box.rows("SELECT tag, state FROM runs_imagebuild")
    project = {"fleet"}  # on which all of them stand
    assert {tag.partition("/")[2].partition(":")[0] for tag, _ in images} == BUILT | project
    assert {state for _, state in images} == {"built"}


@pytest.mark.box
def test_they_take_their_locks_and_say_what_they_do(box: Box, runs: dict[str, str]) -> None:
    for agent, key in HELD.items():
        output = box.output(runs[agent])
        kind = re.sub(r"-0-1\d$", "", agent)
        assert output.count('{"ok":true,"resourceKey":' + json.dumps(key) + "}") == bool(key), output
        assert output.count('"expiresAt":') == (kind in HEARTBEATS), output
        assert "skip it" not in output
        assert "gh " in output
        assert box.rows("SELECT status_text FROM runs_run WHERE id = ?", runs[agent]) == [(STATUS.get(kind, ""),)]
    assert "cloned /workspace/repo\n/workspace/repo\n" in box.output(runs["mintlify-fixer-0-13"])
    assert box.rows("SELECT key FROM runs_lock") == []
    failed = [event for run in runs.values() for event in box.events(run) if event["data"].get("exitCode")]
    assert failed == []


@pytest.mark.box
def test_one_that_asks_for_it_is_run_again(box: Box, runs: dict[str, str]) -> None:
    asked = dict(box.rows("SELECT id, rerun_requested FROM runs_run"))
    assert {agent for agent, run in runs.items() if asked[run]} == {agent for agent, key in HELD.items() if key}
    (again,) = reruns(box, runs["dev"])
    assert box.task(again)["status"] == "finished"
    first, second = (re.sub(r"\d{13}", "<time>", box.output(run)) for run in (runs["dev"], again))
    assert first == second
    assert not reruns(box, again)


@pytest.mark.box
def test_one_that_is_called_does_the_same_and_its_caller_is_told(box: Box, runs: dict[str, str]) -> None:
    ((called, status),) = box.rows("SELECT id, status FROM runs_run WHERE trigger = 'call'")
    assert status == "finished"
    assert box.output(called) == box.output(runs["planner"])
    (told,) = re.findall(r"^\{.*\}$", box.output(runs["foreman"]), re.MULTILINE)
    assert list(json.loads(told).values()) == [{"status": "completed"}]
