"""Folders to begin with, and the doctor's look at a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from django.conf import LazySettings
from typer.testing import CliRunner

from agentfleet import cli, doctor, new_agent
from agentfleet.doctor import project as project_doctor
from agentfleet.folders import InTheWay
from agents.manifest import Faulty, Reading, parse, read_folder
from tests.making import make_workspace
from tests.test_doctor import DeadEngine, Engine

TEMPLATES = [template.value for template in cli.Template]


def read(project: Path) -> Reading:
    return parse(read_folder(project), project="p")


# --- new agent --------------------------------------------------------------------------------------------------


def test_there_is_a_folder_for_every_template() -> None:
    assert sorted(path.name for path in new_agent.TEMPLATES.iterdir() if path.is_dir()) == sorted(TEMPLATES)


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_written_applies_as_it_is(tmp_path: Path, template: str) -> None:
    project = tmp_path / "mine"

    done = CliRunner().invoke(cli.app, ["new", "agent", "first", str(project), "--template", template])

    assert done.exit_code == 0, done.output
    reading = read(project)
    [spec] = reading.project.agents
    assert reading.warnings == ()
    assert (spec.name, [model.provider for model in spec.models]) == ("first", ["anthropic"])
    assert spec.description
    for word in ("rlock", "runlock", "al-status", "al-rerun"):
        assert word in spec.instructions


@pytest.mark.parametrize("template", ["dev", "reviewer", "devops"])
def test_those_that_talk_to_github_listen_to_it_and_bring_its_tools(tmp_path: Path, template: str) -> None:
    new_agent.make(tmp_path, "one", template)

    [spec] = read(tmp_path).project.agents
    assert [entry.source for entry in spec.webhooks] == ["github"]
    assert (spec.network, spec.credentials) == ("open", ("github_token", "git_ssh"))
    assert b"github-cli" in read(tmp_path).project.files["one"]["Dockerfile"]


def test_a_projects_own_model_and_source_are_used_and_its_settings_left_alone(tmp_path: Path) -> None:
    settings = '[models.fast]\nprovider = "scripted"\nmodel = "x"\n[webhooks.hub]\ntype = "github"\n'
    (tmp_path / "config.toml").write_text(settings)

    made = new_agent.make(tmp_path, "one", "dev")

    [spec] = read(tmp_path).project.agents
    assert [model.provider for model in spec.models] == ["scripted"]
    assert [entry.source for entry in spec.webhooks] == ["hub"]
    assert (tmp_path / "config.toml").read_text() == settings
    assert tmp_path / "config.toml" not in made.written


def test_a_project_without_a_source_gets_an_agent_that_runs_by_its_schedule(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[model]\nprovider = "scripted"\nmodel = "x"\n')

    made = new_agent.make(tmp_path, "one", "reviewer")

    [spec] = read(tmp_path).project.agents
    assert (spec.webhooks, [said.cron for said in spec.schedules]) == ((), ["*/20 * * * *"])
    assert "config.toml has no [webhooks.<name>] of type github: it runs by its schedule" in made.notes


def test_nothing_is_written_over_what_is_there(tmp_path: Path) -> None:
    new_agent.make(tmp_path, "one", "dev")
    before = read_folder(tmp_path)

    with pytest.raises(InTheWay, match="agents/one is there already"):
        new_agent.make(tmp_path, "one", "custom")

    assert read_folder(tmp_path) == before


@pytest.mark.parametrize("name", ["Big", "a_b", "default"])
def test_a_name_that_no_agent_may_have_writes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(Faulty, match=f"{name} cannot name an agent"):
        new_agent.make(tmp_path / "p", name, "custom")

    assert not (tmp_path / "p").exists()


def test_a_link_that_leads_away_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "agents").symlink_to(tmp_path / "elsewhere")

    with pytest.raises((InTheWay, Faulty)):
        new_agent.make(tmp_path / "p", "one", "custom")

    assert list((tmp_path / "elsewhere").iterdir()) == []


# --- doctor --project -------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, settings: LazySettings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with nothing in it, whose engine answers and has every image."""
    monkeypatch.setattr(Engine, "has_image", lambda engine, image: None if "gone" in image else image, raising=False)
    settings.SANDBOX_ENGINE = f"{Engine.__module__}.{Engine.__name__}"
    settings.CREDENTIAL_STORES = ["agents.credentials.files.FileStore", project_doctor.ROWS]
    settings.HOME = tmp_path / "home"
    monkeypatch.setenv("DATABASE_URL", "the test's own")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    return tmp_path / "home"


def keep(home: Path, kind: str, field: str = "token") -> None:
    folder = home / "credentials" / kind / "default"
    folder.mkdir(parents=True)
    (folder / field).write_text("any value at all\n")
    (folder / field).chmod(0o600)
    for place in (folder, folder.parent, home / "credentials"):
        place.chmod(0o700)


def project(folder: Path, *, settings: str = "", top: str = "") -> Path:
    files = {
        "config.toml": f'{top}\n[model]\nprovider = "anthropic"\nmodel = "claude-sonnet-4-5"\n',
        "agents/dev/SKILL.md": "Do it.\n",
        "agents/dev/config.toml": f'network = "none"\n{settings}\n',
    }
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def test_every_fault_is_told_with_its_place_and_the_key_that_was_meant(tmp_path: Path, home: Path) -> None:
    folder = project(tmp_path / "p", settings='scedule = "@daily"\ncpus = 0\ncredentials = ["a b"]')

    told = project_doctor.examine(folder, home)

    assert [(check.word, check.says.partition(" (")[0]) for check in told] == [
        ("WRONG", "agents/dev/config.toml:2: unknown key scedule: did you mean schedule?"),
        ("WRONG", "agents/dev/config.toml:3: cpus must be more than 0"),
        (
            "WRONG",
            "agents/dev/config.toml:4: 'a b' is no credential: write type or type:instance, as in github_token:bot",
        ),
    ]


@pytest.mark.django_db
def test_what_is_missing_on_this_machine_is_named_with_the_mend(tmp_path: Path, home: Path) -> None:
    make_workspace()
    folder = project(tmp_path / "p", settings='credentials = ["github_token"]\nimage = "gone:1"', top="telemetry = 1")

    told = {check.name: check for check in project_doctor.examine(folder, home)}

    assert told["folder"].ok
    assert told["warning"].word == "note"
    assert told["warning"].says == "config.toml:1: telemetry: accepted, but not yet carried out"
    assert "agentfleet creds add github_token" in told["credentials"].says
    assert "dev cannot run without a key for anthropic" in told["model keys"].says
    assert told["images"].says == "dev: there is no image gone:1 on this host: build it or pull it"
    assert [told[name].ok for name in ("credentials", "model keys", "images")] == [False, False, False]


@pytest.mark.django_db
def test_a_folder_whose_agents_have_all_they_need_is_well(tmp_path: Path, home: Path) -> None:
    make_workspace()
    keep(home, "anthropic_key")
    keep(home, "github_token")
    folder = project(tmp_path / "p", settings='credentials = ["github_token"]\nimage = "al-agent:latest"')

    told = project_doctor.examine(folder, home)

    assert {check.word for check in told} == {"ok"}, told


@pytest.mark.django_db
def test_an_engine_that_is_down_is_a_line_like_any_other(
    tmp_path: Path, home: Path, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_workspace()
    settings.SANDBOX_ENGINE = f"{DeadEngine.__module__}.{DeadEngine.__name__}"
    monkeypatch.setattr(DeadEngine, "has_image", DeadEngine.prepare_image, raising=False)
    folder = project(tmp_path / "p", settings='image = "some:1"')

    [images] = [check for check in project_doctor.examine(folder, home) if check.name == "images"]

    assert not images.ok
    assert "No such image" in images.says


def test_a_look_makes_no_database(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    folder = project(tmp_path / "p", settings='credentials = ["github_token"]')

    told = [check.name for check in project_doctor.examine(folder, home) if not check.ok]

    assert told == ["credentials", "model keys"]
    assert not home.exists()


def test_the_command_says_it_in_its_exit_code(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTFLEET_HOME", str(home))
    monkeypatch.setattr(doctor, "adopt_environment", lambda home: None)
    folder = project(tmp_path / "p", settings="colour = 1")

    done = CliRunner().invoke(cli.app, ["doctor", "--project", str(folder), "--json"])

    assert done.exit_code == 1
    [check] = json.loads(done.output)
    assert check["says"].startswith("agents/dev/config.toml:2: unknown key colour")
