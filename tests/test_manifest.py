"""Project folders become ProjectSpec, or one list of everything that is wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from contextlib import suppress
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agents.manifest import Fault, Faulty, Reading, left_behind, parse, read_folder
from agents.manifest.keys import AgentTable, ProjectTable, known
from agents.manifest.lines import nearest, read_yaml, toml_lines
from agents.manifest.values import Table
from agents.spec import (
    AgentSpec,
    Approvals,
    Attempts,
    Breaker,
    Coalescing,
    Limits,
    ModelSpec,
    ScheduleSpec,
    SignatureScheme,
    SourceSpec,
    ToolName,
    WebhookSpec,
)

PROJECTS = Path(__file__).parent / "data" / "projects"
ANTHROPIC = ModelSpec(provider="anthropic", model="claude-opus-4-20250514", thinking="medium")
NANO = ModelSpec(provider="openai", model="gpt-5.4-nano")


def read(name: str, *, network: str | None = None) -> Reading:
    return parse(read_folder(PROJECTS / name), project=name, network=network)


def agent_of(reading: Reading, name: str) -> AgentSpec:
    return next(agent for agent in reading.project.agents if agent.name == name)


def make_files(
    settings: str = "",
    *,
    project: str = "",
    skill: str = "Do it.\n",
    more: dict[str, str] | None = None,
) -> dict[str, bytes]:
    """A sound project of the current format with one agent, dev, and what is added to it."""
    texts = {
        "config.toml": f'{project}\n[model]\nprovider = "scripted"\nmodel = "turns.json"\n'
        '[webhooks.github]\ntype = "github"\n',
        "agents/dev/SKILL.md": skill,
        "agents/dev/config.toml": settings,
    }
    return {path: text.encode() for path, text in (texts | (more or {})).items()}


def dev(files: dict[str, bytes], *, network: str | None = "gateway") -> AgentSpec:
    return agent_of(parse(files, project="p", network=network), "dev")


def faults(files: dict[str, bytes], *, network: str | None = "gateway", project: str = "p") -> list[str]:
    with pytest.raises(Faulty) as caught:
        parse(files, project=project, network=network)
    return [str(fault) for fault in caught.value.faults]


def warnings(files: dict[str, bytes]) -> list[str]:
    return [str(warning) for warning in parse(files, project="p", network="gateway").warnings]


# The three generations


def test_the_first_generation_is_read() -> None:
    reading = read("first", network="open")

    assert [agent.name for agent in reading.project.agents] == ["dev", "planner", "reviewer"]
    assert reading.project.name == "first"
    assert reading.project.scale is None
    assert reading.project.sources == (SourceSpec(name="github", provider="github", credential="main"),)
    assert agent_of(reading, "dev") == AgentSpec(
        name="dev",
        instructions="---\n# Turn a labelled issue into a pull request\n\nTake the lock on the issue first.\n",
        models=(ANTHROPIC,),
        schedules=(ScheduleSpec(cron="0 * * * *"),),
        webhooks=(
            WebhookSpec(
                source="github",
                filters={
                    "events": ["issues"],
                    "actions": ["labeled"],
                    "labels": ["ready"],
                    "orgs": ["example"],
                    "author": "somebody",
                },
            ),
        ),
        params={"org": "example", "triggerLabel": "ready", "since": "2026-03-19"},
        credentials=("github_token", "git_ssh:bot"),
        scale=2,
        limits=Limits(wall_seconds=1800),
        network="open",
        max_work_queue=40,
        preflight=(
            {
                "provider": "git-clone",
                "required": False,
                "params": {"repo": "example/site", "dest": "/tmp/site", "depth": 1},  # noqa: S108 - only text
            },
        ),
    )


def test_an_agents_own_model_replaces_the_projects_whole() -> None:
    planner = agent_of(read("first", network="open"), "planner")

    assert planner.models == (
        ModelSpec(provider="openai", model="gpt-5.4", thinking="xhigh", base_url="https://models.example.com/v1"),
    )
    assert planner.instructions == "Write a plan under the issue.\n"  # from PLAYBOOK.md
    assert planner.limits.wall_seconds == 600
    assert planner.webhooks[0].filters == {"events": "issue_comment", "actions": ["created"]}  # no empty list


def test_agents_at_the_top_of_an_old_project_are_found() -> None:
    reviewer = agent_of(read("first", network="open"), "reviewer")

    assert reviewer.models == (ANTHROPIC,)
    assert reviewer.limits.wall_seconds == 1200  # [local] timeout
    assert reviewer.credentials == ("github_token:proggy-al", "aws_credentials")
    assert len(reviewer.webhooks) == 2


def test_the_second_generation_is_read() -> None:
    reading = read("second")

    assert reading.project.scale == 10
    assert reading.project.sources == (SourceSpec(name="github", provider="github", allow_unsigned=True),)
    assert reading.project.agents == (
        AgentSpec(
            name="responder",
            description="Mends what the last build broke",
            instructions="Find the run that failed.\n\n---\nThen mend it.\n",
            models=(ModelSpec(provider="anthropic", model="claude-opus-4-20250514", thinking="high"), NANO),
            schedules=(ScheduleSpec(cron="30 6 * * 1-5"),),
            webhooks=(
                WebhookSpec(
                    source="github",
                    filters={"events": "workflow_run", "conclusions": ["failure"], "branches": ["main"]},
                ),
            ),
            params={
                "org": "example",
                "since": "2026-03-19",
                "at": "2026-03-19T08:30:00+00:00",
                "quiet": True,
                "nothing": None,
                "nested": {"numbers": [1, 2.5]},
            },
            credentials=("github_token", "git_ssh"),
            scale=3,
            limits=Limits(wall_seconds=3600),
            network="open",
            hooks_pre=("git --version",),
            hooks_post=("rm -rf /tmp/site",),
            lock_seconds=900,
        ),
    )


def test_the_current_generation_is_read() -> None:
    reading = read("current", network="open")

    assert reading.project.scale == 20
    assert reading.project.sources == (
        SourceSpec(name="birds", provider="twitter", credential="MyBot"),
        SourceSpec(name="github", provider="github"),
    )
    assert agent_of(reading, "dev") == AgentSpec(
        name="dev",
        description="Works on issues that are ready",
        instructions="\n# Work on the issue\n",
        models=(ModelSpec(provider="openai", model="gpt-5.4-mini"),),
        webhooks=(
            WebhookSpec(
                source="github",
                filters={
                    "events": ["issues"],
                    "actions": ["labeled"],
                    "labels": ["ready-for-dev"],
                    "orgs": ["example"],
                    "author": "somebody",
                },
            ),
        ),
        params={"org": "example", "triggerLabel": "ready-for-dev"},
        credentials=("github_token", "git_ssh"),
        scale=5,
        limits=Limits(wall_seconds=3600),
        network="open",
        max_work_queue=10,
    )
    assert agent_of(reading, "fixer").scale == 2  # defaultAgentScale
    assert agent_of(reading, "fixer").limits == Limits()


def test_our_own_keys_are_read() -> None:
    assert agent_of(read("current", network="open"), "night") == AgentSpec(
        name="night",
        description="Works while we sleep",
        instructions="Add one test that was missing.\n",
        models=(
            ModelSpec(provider="openai", model="gpt-5.4-mini"),
            ModelSpec(provider="openai", model="gpt-5.4"),
        ),
        schedules=(ScheduleSpec(cron="0 */3 * * *"),),
        timezone="Europe/Zurich",
        scale=2,
        priority="low",
        limits=Limits(
            turns=20, wall_seconds=7200, idle_seconds=300, tokens=0, usd=Decimal("2.5"), output_bytes=1_000_000
        ),
        retry="always",
        attempts=Attempts(most=3, delay_seconds=30, longest_delay_seconds=300, after=("machinery", "model")),
        breaker=Breaker(failures=2, probe_seconds=60),
        coalesce=Coalescing(key="github://{repo}/issues/{number}", mode="skip"),
        overlap="queue",
        approvals=Approvals(ask="on-miss", allow=("read", "bash:git status*"), expires_seconds=3600),
        image="example/tests:1",
        sandbox="lazy",
        network="none",
        tools=("bash", "read"),
        task_enabled=False,
    )


def test_a_command_agent_needs_neither_instructions_nor_a_model() -> None:
    script = agent_of(read("current", network="open"), "script")

    assert (script.kind, script.image, script.scale, script.models) == ("command", "example/script:1", 0, ())
    assert script.command == ("/opt/agent", "--once")


def test_a_command_may_be_a_text_for_the_shell() -> None:
    assert dev(make_files("kind = 'command'\ncommand = 'cd app && make'")).command == "cd app && make"


@pytest.mark.parametrize("name", ["first", "second", "current", "fleet", "fleet-0.13"])
def test_what_was_read_survives_being_stored(name: str) -> None:
    for agent in read(name, network="open").project.agents:
        assert AgentSpec.load(agent.dump()) == agent


def test_every_file_of_an_agents_folder_is_kept() -> None:
    files = read("first", network="open").project.files

    assert set(files) == {"dev", "planner", "reviewer"}
    assert set(files["dev"]) == {"ACTIONS.md", "agent-config.toml", "templates/pull-request.md"}
    assert files["dev"]["templates/pull-request.md"] == b"Closes the issue.\n"


def test_a_project_may_mix_the_generations() -> None:
    more = {
        "agents/old/agent-config.toml": 'schedule = "@daily"',
        "agents/mid/SKILL.md": "---\nmetadata:\n  schedule: '@daily'\n---\nText",
    }

    reading = parse(make_files(more=more), project="p", network="none")

    assert [(agent.name, crons(agent)) for agent in reading.project.agents] == [
        ("dev", ""),
        ("mid", "@daily"),
        ("old", "@daily"),
    ]
    assert "agents/old: the agent has no instructions" in map(str, reading.warnings)


@pytest.mark.parametrize(
    ("settings", "project", "seconds"),
    [
        ("", "", 900),
        ("", "local.timeout = 5", 5),
        ("timeout = 6", "local.timeout = 5", 6),
        ("timeout = 6\nlimits.wall_seconds = 7", "local.timeout = 5", 7),
        ("timeout = 0", "local.timeout = 5", 0),
    ],
)
def test_the_nearest_word_on_time_counts(settings: str, project: str, seconds: int) -> None:
    assert dev(make_files(settings, project=project)).limits.wall_seconds == seconds


def test_the_projects_image_and_queue_size_are_defaults() -> None:
    project = 'webhookQueueSize = 3\nlocal.image = "example/base:1"'

    plain = dev(make_files(project=project))
    own = dev(make_files('maxWorkQueueSize = 0\nimage = "example/own:1"', project=project))

    assert (plain.max_work_queue, plain.image) == (3, "example/base:1")
    assert (own.max_work_queue, own.image) == (0, "example/own:1")


def test_the_projects_reruns_are_those_of_its_agents() -> None:
    assert dev(make_files(project="maxReruns = 3")).max_reruns == 3
    assert dev(make_files()).max_reruns == 10


def test_schedules_stand_in_one_line_or_in_tables_of_their_own() -> None:
    tables = "[[schedules]]\ncron = '@every 1h'\njitter = '5m'\nmissed = 'all'\nmissed_within = 7200\n"
    assert dev(make_files(f"schedule = ['@daily', '0 9 * * *']\ntimezone = 'Asia/Tokyo'\n{tables}")).schedules == (
        ScheduleSpec(cron="@daily"),
        ScheduleSpec(cron="0 9 * * *"),
        ScheduleSpec(cron="@every 1h", jitter_seconds=300, missed="all", missed_seconds=7200),
    )


def crons(agent: AgentSpec) -> str:
    return " ".join(said.cron for said in agent.schedules)


def outline(agent: AgentSpec) -> tuple[Any, ...]:
    """Model, thinking, schedule, events, scale, seconds, queue."""
    [model] = agent.models
    events = [event for entry in agent.webhooks for event in entry.filters["events"]]
    seconds = agent.limits.wall_seconds
    return (model.model, model.thinking, crons(agent), events, agent.scale, seconds, agent.max_work_queue)


def test_the_public_fleet_is_read_as_it_is_today() -> None:
    reading = read("fleet", network="open")

    assert reading.project.scale == 20
    assert {agent.name: outline(agent) for agent in reading.project.agents} == {
        "dev": ("gpt-5.4-mini", None, "", ["issues"], 5, 3600, 100),
        "e2e-coverage-improver": ("gpt-5.4-mini", None, "0 */3 * * *", [], 1, 3600, 1),
        "gh-actions-responder": ("gpt-5.4", None, "", ["workflow_run"], 1, 900, 1),
        "mintlify-fixer": ("gpt-5.4-nano", None, "", ["deployment_status"], 1, 900, 1),
        "planner": ("gpt-5.4", None, "", ["issues", "issue_comment"], 8, 900, 100),
        "reviewer": ("gpt-5.4-mini", None, "", ["check_suite"], 10, 900, 10),
        "unit-coverage-improver": ("gpt-5.4-mini", None, "0 */3 * * *", [], 1, 3600, 1),
    }
    assert {agent.credentials for agent in reading.project.agents} == {("github_token", "git_ssh")}
    assert agent_of(reading, "gh-actions-responder").webhooks[0].filters == {
        "events": ["workflow_run"],
        "actions": ["completed"],
        "conclusions": ["failure"],
        "branches": ["main"],
    }


def test_the_public_fleet_is_read_as_it_was_with_0_13() -> None:
    reading = read("fleet-0.13", network="open")

    opus = "claude-opus-4-20250514"
    assert {agent.name: outline(agent) for agent in reading.project.agents} == {
        "dev": (opus, "medium", "0 * * * *", ["issues"], 2, 1800, 100),
        "gh-actions-responder": (opus, "medium", "", ["workflow_run"], 1, 900, 100),
        "mintlify-fixer": (opus, "medium", "", ["deployment_status"], 1, 900, 100),
        "planner": (opus, "xhigh", "0 * * * *", ["issues"], 1, 600, 100),
        "reviewer": (opus, "medium", "0 * * * *", ["pull_request", "check_suite"], 2, 1800, 100),
    }
    assert agent_of(reading, "gh-actions-responder").params == {"issueLabel": "ci"}


# Front matter


def test_front_matter_that_is_no_mapping_counts_as_none() -> None:
    assert dev(make_files(skill="---\njust words\n---\nDo it.\n")).instructions == "Do it.\n"


def test_front_matter_with_windows_line_ends_is_read() -> None:
    agent = dev(make_files('kind = "model"\r\nscale = 4', skill="---\r\ndescription: Works\r\n---\r\nDo it.\r\n"))

    assert (agent.description, agent.instructions, agent.scale) == ("Works", "Do it.\r\n", 4)


def test_front_matter_that_is_never_closed_is_a_fault() -> None:
    assert faults(make_files(skill="\n---\ndescription: Works\nDo it.\n")) == [
        "agents/dev/SKILL.md:2: cannot be read as YAML: the front matter opened with --- is never closed by another"
    ]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("description: &a x\nlicense: *a", ":3: cannot be read as YAML: aliases are not read: write out what *a"),
        ("license: x\nname: y\nlicense: z", ":4: cannot be read as YAML: license stands here a second time"),
        ("license: x\non: push", ":3: cannot be read as YAML: the key on is not text: put it in quotes"),
        ("license: 2026-02-31", ": cannot be read as YAML: day is out of range for month"),
        ("license: " + "[" * 60 + "]" * 60, ":2: cannot be read as YAML: it is nested more than 50 deep"),
        ("license: " + "[" * 100_000, ":2: cannot be read as YAML: it is nested more than 50 deep"),
        ("license: !!int x", ": cannot be read as YAML: "),
    ],
)
def test_yaml_that_would_hurt_or_surprise_is_refused(yaml: str, message: str) -> None:
    [fault] = faults(make_files(skill=f"---\n{yaml}\n---\n"))

    assert fault.startswith(f"agents/dev/SKILL.md{message}")


def test_settings_in_two_places_are_a_fault() -> None:
    [fault] = faults(make_files(skill="---\nmetadata:\n  scale: 1\n---\nText"))

    assert fault.startswith("agents/dev/SKILL.md:2: the agent has settings here and in config.toml")


# Faults


def test_every_fault_of_a_folder_is_told_at_once() -> None:
    with pytest.raises(Faulty) as caught:
        read("broken")

    assert str(caught.value).splitlines() == (PROJECTS / "broken.txt").read_text().splitlines()
    assert caught.value.faults[0].file == "agents/Dev"


def test_a_fault_names_file_and_line() -> None:
    assert str(Fault("agents/dev/config.toml", 12, "is wrong")) == "agents/dev/config.toml:12: is wrong"
    assert str(Fault("agents/dev", None, "is wrong")) == "agents/dev: is wrong"


BRACES = "coalesce.key has more than a name in the braces of {}: use letters, digits and _, first no digit"
PATTERN = "'{}' is no pattern: write a tool's name, or bash:<command>, in which * stands for anything"
IDLE = "{} does nothing for kind command: no model calls tools in its runs"
NO_PARTNER = "coalesce.key has a brace without its partner: write {name}, or {{ and }} for braces that are meant so"
NO_KEY = (
    "coalesce.mode does nothing without a key that says what an event is about, "
    'as coalesce.key = "github://{repo}/issues/{number}" does'
)
NO_COMMAND = "kind command needs command, the program it runs: a text for the shell, or a list of its words"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("schedul = 'x'", "unknown key schedul: did you mean schedule?"),
        ("max_work_queue_size = 1", "unknown key max_work_queue_size: did you mean maxWorkQueueSize?"),
        ("task.enable = true", "unknown key task.enable: did you mean enabled?"),
        ("zzz = 1", "unknown key zzz"),
        ("scale = true", "scale must be a whole number, not true or false"),
        ("scale = 1.0", "scale must be a whole number, not a number"),
        ("scale = 1979-05-27", "scale must be a whole number, not a date or time"),
        ("scale = 99999999999", "scale must be 2147483647 or less"),
        ("limits.turns = -1", "limits.turns must be 0 or more"),
        ("tools = 'bash'", "tools must be a list, not text"),
        ("tools = [1]", "tools[0] must be text, not a number"),
        ("tools = ['bash', 'Read']", "there is no tool Read: did you mean read?"),
        (
            "tools = ['fly']",
            f"there is no tool fly: there are {', '.join(get_args(ToolName))}",
        ),
        ("image = ''", "image must not be empty"),
        ("limits.usd = '2.50'", "limits.usd must be a number, not text"),
        ("limits.usd = -0.5", "limits.usd must be 0 or more"),
        ("limits.usd = 100001", "limits.usd must be 100000 or less"),
        ("limits.usd = nan", "limits.usd must be a finite number"),
        ("attempts.most = 0", "attempts.most must be 1 or more"),
        ("attempts.after = ['weather']", "attempts.after[0] must be machinery, timeout, model or work"),
        ("attempts.delay_second = 3", "unknown key attempts.delay_second: did you mean delay_seconds?"),
        ("breaker.probe_seconds = 0", "breaker.probe_seconds must be 1 or more"),
        ("retry = true", "retry must be safe, always or never"),
        ("overlap = 'replace'", "overlap must be skip or queue"),
        ("coalesce.key = '" + "k" * 201 + "'", "coalesce.key must have at most 200 characters"),
        ("coalesce = {key = '', mode = 'skip'}", NO_KEY),
        ("coalesce.key = '{repo'", NO_PARTNER),
        ("coalesce.key = 'repo}'", NO_PARTNER),
        ("coalesce.key = '{}'", BRACES.format("{}")),
        ("coalesce.key = '{0}'", BRACES.format("{0}")),
        ("coalesce.key = '{number:>5}'", BRACES.format("{number}")),
        ("coalesce.key = '{number!r}'", BRACES.format("{number}")),
        ("coalesce.key = '{issue.number}'", BRACES.format("{issue.number}")),
        ('coalesce.key = "a\\u0000"', "coalesce.key holds a character that cannot be stored, such as NUL"),
        ("approvals.ask = 'never'", "approvals.ask must be off, on-miss or always"),
        ("approvals.allow = ['reed']", "there is no tool reed: did you mean read?"),
        ("approvals.allow = ['bash:']", PATTERN.format("bash:")),
        ("approvals.allow = ['read:*.md']", PATTERN.format("read:*.md")),
        ("command = 'make'", 'only kind = "command" runs a command: add it, or remove the command'),
        ("kind = 'command'", NO_COMMAND),
        ("kind = 'command'; command = ' '", NO_COMMAND),
        ("kind = 'command'; command = []", NO_COMMAND),
        ("kind = 'command'; command = [1]", "command must be text, for the shell, or a list of texts, its words"),
        ("schedule = '" + "1," * 60 + "'", "schedule must have at most 100 characters"),
        ("schedule = 5", "schedule must be text, or a list of texts"),
        ("schedule = ['@daily', 'daily']", "'daily' is no cron expression: Wrong number of fields"),
        ("schedule = ['@daily', '@daily']", "@daily stands here a second time"),
        ("[[schedules]]; cron = '@daily'; crn = 1", "unknown key schedules[0].crn: did you mean cron?"),
        ("[[schedules]]; cron = '@daily'; timezone = 'Mars'", "there is no time zone 'Mars'"),
        ("[[schedules]]; cron = '@daily'; missed = 'none'", "schedules[0].missed must be skip, latest or all"),
        ("[[schedules]]; cron = '@daily'; jitter = 'soon'", "'soon' is no length of time: write 90s, 15m, 1h30m or 2d"),
        (
            "[[schedules]]; cron = '* * * * *'; jitter = '1m'",
            "jitter must be shorter than the time between two ticks of * * * * *",
        ),
        ("params = []", "params must be a table, not a list"),
        ("kind = 'robot'", "kind must be model or command"),
        ("model.provider = 'x'", "model.model is missing"),
        ("preflight = [{params = {}}]", "preflight[0].provider is missing"),
        ("timezone = ''", "there is no time zone ''"),
        ("params.n = 0x" + "f" * 20, "params.n is a number too large to keep"),
        ('params.a = [{b = "\\u0000"}]', "params.a[0].b holds a character that cannot be stored, such as NUL"),
        (
            "sandbox = 'process'",
            "sandbox cannot be process here: only the server's setting allows that; use eager or lazy",
        ),
    ],
)
def test_a_setting_that_does_not_fit_is_a_fault(settings: str, message: str) -> None:
    *before, last = settings.split("; ")
    lines = "\n".join([*before, last])
    assert faults(make_files(lines)) == [f"agents/dev/config.toml:{len(before) + 1}: {message}"]


def test_braces_and_names_of_any_case_are_good_in_a_key() -> None:
    key = "{{literally}} {repo}#{number} {receiptId}"

    assert dev(make_files(f"coalesce.key = '{key}'")).coalesce == Coalescing(key=key)


def test_a_list_that_does_not_fit_leaves_the_rest_checked() -> None:
    found = faults(make_files("models = [1]\n[[preflight]]\nzzz = 1\nparams = 2\n[hooks]\npre = 1\n"))

    assert found == [
        "agents/dev/config.toml:1: models[0] must be text, not a number",
        "agents/dev/config.toml:2: preflight[0].provider is missing",
        "agents/dev/config.toml:3: unknown key preflight[0].zzz",
        "agents/dev/config.toml:4: preflight[0].params must be a table, not a number",
        "agents/dev/config.toml:6: hooks.pre must be a list, not a number",
    ]


def test_a_model_nobody_defined_is_a_fault_that_lists_the_others() -> None:
    named = '[models.deep]\nprovider = "openai"\nmodel = "x"\n'

    assert faults(make_files("models = ['quick']")) == [
        "agents/dev/config.toml:1: there is no model quick: config.toml has no [models.<name>]"
    ]
    assert faults(make_files("models = ['quick']", project=named)) == [
        "agents/dev/config.toml:1: there is no model quick: config.toml has deep"
    ]


def test_an_agent_without_any_model_is_a_fault() -> None:
    files = make_files("models = []") | {"config.toml": b""}

    assert faults(files) == [
        "agents/dev/config.toml:1: the agent has no model: add models = [...] with names from config.toml"
    ]


def test_a_model_of_its_own_beside_a_list_is_a_fault() -> None:
    project = '[models.deep]\nprovider = "openai"\nmodel = "x"\n'
    settings = 'models = ["deep"]\n[model]\nprovider = "openai"\nmodel = "y"\n'

    assert faults(make_files(settings, project=project)) == [
        "agents/dev/config.toml:2: the agent has a model of its own and a list of models: keep one"
    ]


def test_an_agent_that_nothing_can_start_is_a_fault_unless_it_is_off() -> None:
    [fault] = faults(make_files("[task]\nenabled = false"))

    assert fault.startswith("agents/dev/config.toml:1: nothing can start this agent")
    assert not dev(make_files("scale = 0\n[task]\nenabled = false")).task_enabled


def test_a_folder_without_agents_is_a_fault() -> None:
    [fault] = faults({"config.toml": b"", "agents/README.md": b"", "agents/notes/a.txt": b""})

    assert fault.startswith("agents: there is no agent")


def test_two_agents_of_one_name_are_a_fault() -> None:
    [fault] = faults(make_files(more={"dev/agent-config.toml": ""}))

    assert fault == "dev: agents/dev is an agent of the same name: keep one"


@pytest.mark.parametrize("name", ["default", "Dev", "-dev", "dev_2", "d" * 64, "dév"])
def test_a_folder_that_cannot_name_an_agent_is_a_fault(name: str) -> None:
    [fault] = faults(make_files(more={f"agents/{name}/SKILL.md": "Text"}))

    assert fault.startswith(f"agents/{name}: {name} cannot name an agent")


def test_broken_toml_is_told_with_its_line_and_does_not_hide_other_files() -> None:
    files = make_files(
        "scale = \n", more={"agents/other/SKILL.md": "---\nschedule: */5 * * * *\n---\n"}, project="x = 1 1"
    )

    assert faults(files) == [
        "agents/dev/config.toml:1: cannot be read as TOML: Invalid value",
        "agents/other/SKILL.md:2: cannot be read as YAML: text that begins with * needs quotes around it",
        "config.toml:1: cannot be read as TOML: Expected newline or end of document after a statement",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a = 1\nb = '\xff'", ":2: is not UTF-8 text"),
        (b"a = [", ":1: cannot be read as TOML: "),
        (b"a = " + b"[" * 5000, ": cannot be read as TOML: it is nested more than 50 deep"),
        (b"[" + b".".join([b"a"] * 5000) + b"]", ": cannot be read as TOML: it is nested more than 50 deep"),
        (b"a = " + b"1" * 5000, ":1: cannot be read as TOML: Exceeds the limit"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_fault(text: bytes, message: str) -> None:
    [fault] = faults(make_files() | {"agents/dev/config.toml": text})

    assert fault.startswith(f"agents/dev/config.toml{message}")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "agents/dev/../../x", "agents//x", "agents/dev/a\x00"])
def test_a_path_that_leads_out_of_the_project_is_a_fault(path: str) -> None:
    assert any("is no plain path inside the project" in fault for fault in faults(make_files(more={path: ""})))


def test_what_the_caller_gives_is_checked_too() -> None:
    assert faults(make_files(), network="wide") == [
        "--network: must be one of none, gateway, allowlist, open, not wide"
    ]
    assert faults(make_files(), project="") == ["the project's name: must have 1 to 100 characters"]


_words = st.sampled_from(["type", "github", "scale", "@daily", "models", "x", "", "default"])
_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.text(max_size=5) | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def settings_of(table: type[Table]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(sorted(known(table))), _anything, max_size=5)


@given(settings=settings_of(AgentTable), project=settings_of(ProjectTable))
def test_whatever_a_folder_says_is_read_or_told(settings: dict[str, Any], project: dict[str, Any]) -> None:
    """Nothing but Faulty comes out of `parse`, and what is read can be stored."""
    skill = f"---\n{yaml.safe_dump({'metadata': settings}, allow_unicode=True)}\n---\nText"
    files = make_files(as_toml(settings), more={"agents/other/SKILL.md": skill, "config.toml": as_toml(project)})
    with suppress(Faulty):
        for agent in parse(files, project="p", network="open").project.agents:
            assert AgentSpec.load(json.loads(json.dumps(agent.dump(), allow_nan=False))) == agent


def as_toml(table: dict[str, Any]) -> str:
    return "".join(f"{key} = {as_toml_value(value)}\n" for key, value in table.items())


def as_toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {as_toml_value(item)}' for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml_value, value)) + "]"
    return str(value) if isinstance(value, date | float) else json.dumps(value or "")


# The trap of TOML


@pytest.mark.parametrize(
    ("settings", "line", "where"),
    [
        ("[model]\nprovider = 'a'\nmodel = 'b'\nscale = 2", 4, "model"),
        ("[[webhooks]]\nsource = 'github'\nevents = 'push'\ntimeout = 5", 4, "webhooks"),
        ("[limits]\nturns = 1\nschedule = '@daily'", 3, "limits"),
        ("[runtime]\ntype = 'ssh'\nscale = 2", 3, "runtime"),
    ],
)
def test_a_setting_below_a_table_is_told_where_it_belongs(settings: str, line: int, where: str) -> None:
    [fault] = faults(make_files(settings))

    assert fault.startswith(f"agents/dev/config.toml:{line}: ")
    assert f"means nothing inside {where}: it belongs at the top level" in fault


def test_the_trap_is_seen_in_the_projects_file_too() -> None:
    project = "[webhooks]\nscale = 4\n[telemetry.headers]\nmaxReruns = 3\n"
    [first, second] = faults(make_files(project=project))

    assert first.startswith("config.toml:2: scale means nothing inside webhooks")
    assert second.startswith("config.toml:4: maxReruns means nothing inside telemetry.headers")


def test_a_setting_among_the_parameters_is_a_warning() -> None:
    assert warnings(make_files("[params]\nschedule = '@daily'")) == [
        "agents/dev/config.toml:2: schedule is a parameter here; as a setting it stands above [params]"
    ]


# Webhooks


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("repository", "repos"),
        ("repo", "repos"),
        ("event", "events"),
        ("organization", "orgs"),
        ("lables", "labels"),
        ("sender", "senders"),
        ("path", "paths"),
        ("not_repository", "not_repos"),
        ("not_lables", "not_labels"),
    ],
)
def test_a_filter_nearly_right_is_a_fault_with_a_suggestion(key: str, meant: str) -> None:
    settings = f"[[webhooks]]\nsource = 'github'\nactions = 'opened'\n{key} = 'x'"

    assert faults(make_files(settings)) == [f"agents/dev/config.toml:4: unknown filter {key}: did you mean {meant}?"]


def test_a_filter_of_old_folders_is_left_out_with_a_warning() -> None:
    files = make_files("[[webhooks]]\nsource = 'github'\nevents = 'push'\nteams = ['core']")

    assert dev(files).webhooks == (WebhookSpec(source="github", filters={"events": "push"}),)
    assert warnings(files) == [
        "agents/dev/config.toml:4: github webhooks have no filter teams: it is left out, so the entry matches more"
    ]


@pytest.mark.parametrize("rest", ["", "events = []"])
def test_an_entry_that_would_lose_its_every_filter_is_a_fault(rest: str) -> None:
    [fault] = faults(make_files(f"[[webhooks]]\nsource = 'github'\nteams = ['core']\n{rest}"))

    assert fault.startswith(
        "agents/dev/config.toml:1: github has no filter teams, and without it the entry would match everything"
    )


def test_an_entry_without_filters_is_a_warning() -> None:
    files = make_files("[[webhooks]]\nsource = 'github'")

    assert dev(files).webhooks == (WebhookSpec(source="github"),)
    assert warnings(files) == [
        "agents/dev/config.toml:1: the entry has no filter: everything that comes from github starts the agent"
    ]


@pytest.mark.parametrize("value", ["1", "[1]", "true", "{a = 1}", "['a', 2]"])
def test_a_filter_is_text_or_a_list_of_texts(value: str) -> None:
    assert faults(make_files(f"[[webhooks]]\nsource = 'github'\nlabels = {value}")) == [
        "agents/dev/config.toml:3: labels must be text or a list of texts"
    ]


def test_an_entry_needs_a_source_that_is_there() -> None:
    found = faults(make_files("[[webhooks]]\nevents = 'push'\n[[webhooks]]\nsource = 1\n[[webhooks]]\nsource = 'x'"))

    assert found == [
        "agents/dev/config.toml:1: the entry needs a source, the name of a [webhooks.<name>]",
        "agents/dev/config.toml:4: the entry needs a source, the name of a [webhooks.<name>]",
        "agents/dev/config.toml:6: there is no webhook source x: config.toml has github",
    ]


def test_other_providers_have_filters_of_their_own() -> None:
    project = "[webhooks.docs]\ntype = 'mintlify'\n[webhooks.lin]\ntype = 'linear'\nlinear_webhook_secret = 'team'\n"
    settings = "[[webhooks]]\nsource = 'docs'\nprojects = ['site']\n[[webhooks]]\nsource = 'lin'\norganizations = 'o'"
    files = make_files(settings, project=project)

    reading = parse(files, project="p", network="none")

    assert [entry.filters for entry in dev(files).webhooks] == [{"projects": ["site"]}, {"organizations": "o"}]
    assert not reading.warnings
    assert [source.credential for source in reading.project.sources] == ["default", "default", "team"]


@pytest.mark.parametrize("key", ["allowUnsigned", "allow_unsigned"])
def test_unsigned_webhooks_are_a_warning_in_plain_words(key: str) -> None:
    reading = parse(make_files(project=f"[webhooks.a]\ntype = 'github'\n{key} = true"), project="p", network="none")

    assert reading.project.sources[0].allow_unsigned
    assert "anybody who can reach this server may start the agents that listen to a" in str(reading.warnings[0])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("not_senders = ['bot']", "the entry says only what it does not want: all else that comes from github starts"),
        ("branches = ['main']", "branches asks nothing of events that have none: without events those start the agent"),
        ("events = ['issues']\npaths = ['docs/**']", "only pushes say which paths they change: no event of this entry"),
    ],
)
def test_an_entry_that_says_less_than_it_seems_to_is_a_warning(entry: str, message: str) -> None:
    [warning] = warnings(make_files(f"[[webhooks]]\nsource = 'github'\n{entry}"))

    assert message in warning


@pytest.mark.parametrize("entry", ["events = 'push'\nbranches = 'main'\npaths = ['docs/']", "senders = 'ann'"])
def test_an_entry_that_says_enough_is_no_warning(entry: str) -> None:
    assert warnings(make_files(f"[[webhooks]]\nsource = 'github'\n{entry}\nnot_labels = ['wip']")) == []


HOOK = "[webhooks.hook]\ntype = 'generic'\n"


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("match.data.kind = 'invoice'", {"match.data.kind": "invoice"}),
        (
            "match = { 'data.kind' = 'invoice', data.amount = 5 }",
            {"match.data.kind": "invoice", "match.data.amount": "5"},
        ),
        ("[webhooks.match]\ndata.live = true\ntags = ['a', 1]", {"match.data.live": "true", "match.tags": ["a", "1"]}),
        ("'match.data.kind' = 'invoice'", {"match.data.kind": "invoice"}),
        ("not_match.data.kind = ['a']", {"not_match.data.kind": ["a"]}),
        ("match.kind = ''\nsenders = []\nevents = 'x'", {"events": "x"}),
    ],
)
def test_what_a_body_must_hold_is_kept_path_by_path(written: str, kept: dict[str, Any]) -> None:
    files = make_files(f"[[webhooks]]\nsource = 'hook'\n{written}", project=HOOK)

    assert dev(files).webhooks == (WebhookSpec(source="hook", filters=kept),)


@pytest.mark.parametrize(
    ("written", "line", "message"),
    [
        ("match = 'x'", 3, 'match must be a table: write match.data.kind = "invoice"'),
        ("match.a = 1979-05-27", 3, "match.a must be text, a number, true or false, or a list of these"),
        ("match.a = [{}]", 3, "match.a must be text, a number, true or false, or a list of these"),
        ("match = {}", 3, 'match must be a table: write match.data.kind = "invoice"'),
    ],
)
def test_a_body_can_be_asked_for_plain_values(written: str, line: int, message: str) -> None:
    files = make_files(f"[[webhooks]]\nsource = 'hook'\n{written}", project=HOOK)

    assert faults(files) == [f"agents/dev/config.toml:{line}: {message}"]


def test_only_a_body_that_nobody_has_described_is_asked_by_path() -> None:
    assert faults(make_files("[[webhooks]]\nsource = 'github'\nevents = 'issues'\nmatch.action = 'opened'")) == [
        "agents/dev/config.toml:4: match.action asks what a body holds: github has filters of its own"
    ]


@pytest.mark.parametrize("pattern", ["''", "'/'", "'!'"])
def test_a_pattern_that_means_no_path_is_a_fault(pattern: str) -> None:
    [fault] = faults(make_files(f"[[webhooks]]\nsource = 'github'\nnot_paths = ['docs/**', {pattern}]"))

    assert fault == f"agents/dev/config.toml:3: not_paths: {pattern} is no pattern of paths: write docs/** or *.py"


# Sources


def source_of(written: str) -> SourceSpec:
    return parse(make_files(project=f"[webhooks.a]\n{written}"), project="p", network="none").project.sources[0]


def test_a_source_says_what_guards_it() -> None:
    assert source_of(
        "type = 'github'\nown = 'robo[bot]'\nrate = '100/1h'\nsender_rate = 'off'\nidentical = '2/90s'\n"
        "duplicate_window = '3d'"
    ) == SourceSpec(
        name="a",
        provider="github",
        own=("robo[bot]",),
        rate="100/1h",
        sender_rate="",
        identical="2/90s",
        duplicate_seconds=3 * 86_400,
    )
    assert source_of("type = 'github'\nown = ['a', 'b']\nduplicate_seconds = 0").own == ("a", "b")
    assert source_of("type = 'github'") == SourceSpec(name="a", provider="github")


def test_a_source_says_how_its_sender_signs() -> None:
    stripe = source_of(
        "type = 'hmac'\n[webhooks.a.scheme]\nheader = 'Stripe-Signature'\nseparator = ','\nsignature_key = 'v1'\n"
        "timestamp_key = 't'\nsigned = '{timestamp}.{body}'\ntolerance = '10m'"
    )

    assert stripe.scheme == SignatureScheme(
        header="Stripe-Signature",
        separator=",",
        signature_key="v1",
        timestamp_key="t",
        signed="{timestamp}.{body}",
        tolerance_seconds=600,
    )


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("type = 'gitea'", "webhooks.a.type must be github, gitlab, sentry,"),
        ("type = 'github'\nrate = '10'", "'10' is no rate: '' is no length of time"),
        ("type = 'github'\nrate = 'ten/1m'", "'ten/1m' is no rate: write a count and a time, such as 60/10m, or off"),
        ("type = 'github'\nidentical = '0/1m'", "'0/1m' is no rate: write a count and a time, such as 60/10m, or off"),
        ("type = 'github'\nidentical = '5/1y'", "'5/1y' is no rate: '1y' is no length of time"),
        ("type = 'github'\nsender_rate = '5/30d'", "'5/30d' is no rate: its time must be from 1s to 7d"),
        ("type = 'github'\nduplicate_window = 'long'", "'long' is no length of time"),
        ("type = 'github'\nown = 1", "webhooks.a.own must be a list"),
        ("type = 'github'\nsenders_rate = ''", "unknown key webhooks.a.senders_rate: did you mean sender_rate?"),
        ("type = 'github'\nscheme.header = 'X'", "scheme is for type hmac: the others sign in ways that are known"),
        ("type = 'hmac'", "type hmac needs a table scheme that says how it is signed"),
        ("type = 'hmac'\nscheme.haeder = 'X'", "unknown key webhooks.a.scheme.haeder: did you mean header?"),
        ("type = 'hmac'\nscheme.prefix = 'X'", "webhooks.a.scheme.header is missing"),
        ("type = 'hmac'\nscheme = { header = 'X', signed = '{id}' }", "scheme.signed must hold {body}"),
        (
            "type = 'hmac'\nscheme = { header = 'X', signed = '{timestamp}{body}' }",
            "scheme.signed holds {timestamp}: say where it is, timestamp_header or timestamp_key",
        ),
        (
            "type = 'hmac'\nscheme = { header = 'X', signed = '{id}{body}' }",
            "scheme.signed holds {id}: say where it is, id_header",
        ),
        ("type = 'hmac'\nscheme = { header = 'X', separator = ',' }", "scheme.separator and signature_key go together"),
        ("type = 'hmac'\nscheme = { header = 'X', timestamp_key = 't' }", "scheme.timestamp_key needs separator and"),
    ],
)
def test_a_source_that_does_not_fit_is_a_fault(written: str, message: str) -> None:
    found = faults(make_files(project=f"[webhooks.a]\n{written}"))

    assert any(message in fault for fault in found), found


# The network


def test_imported_agents_that_say_nothing_about_the_network_are_named_and_refused() -> None:
    with pytest.raises(Faulty) as caught:
        read("current")

    assert [fault.file for fault in caught.value.faults] == ["agents/dev/config.toml", "agents/fixer/config.toml"]
    assert all("says nothing about the network" in fault.message for fault in caught.value.faults)


@pytest.mark.parametrize(
    ("settings", "project", "asked", "network"),
    [
        ("", "", "open", "open"),
        ("", "network = 'none'", None, "none"),
        ("", "network = 'none'", "open", "none"),
        ("network = 'allowlist'", "network = 'none'", "open", "allowlist"),
        ("kind = 'model'", "", None, "gateway"),
        ("kind = 'model'", "", "open", "gateway"),
        ("kind = 'model'", "network = 'open'", None, "open"),
    ],
)
def test_the_folders_word_on_the_network_counts_before_ours_and_the_callers(
    settings: str, project: str, asked: str | None, network: str
) -> None:
    assert dev(make_files(settings, project=project), network=asked).network == network


# What the seed says for a whole project, and an agent for itself


def test_a_project_speaks_for_its_agents_and_an_agent_for_itself() -> None:
    project = """
maxTriggerDepth = 5
maxReruns = 4
defaultWaitTimeout = 60
resourceLockTimeout = 120
build.args = {GO = "1.24", NODE = "20"}
locks = {one_at_a_time = true}
local = {memory = "2g", cpus = 1}
"""
    own = """
maxCallDepth = 1
maxReruns = 2
defaultWaitTimeout = 30
locks = {seconds = 7, one_at_a_time = false}
memory = "512M"
cpus = 0.5
build_args = {NODE = "22"}
"""
    silent, spoken = dev(make_files(project=project)), dev(make_files(own, project=project))

    assert (silent.max_call_depth, silent.max_reruns, silent.trigger_wait_seconds) == (5, 4, 60)
    assert (silent.lock_seconds, silent.one_lock, silent.memory, silent.cpus) == (120, True, "2g", 1.0)
    assert silent.build_args == {"GO": "1.24", "NODE": "20"}
    assert (spoken.max_call_depth, spoken.max_reruns, spoken.trigger_wait_seconds) == (1, 2, 30)
    assert (spoken.lock_seconds, spoken.one_lock, spoken.memory, spoken.cpus) == (7, False, "512M", 0.5)
    assert spoken.build_args == {"GO": "1.24", "NODE": "22"}


@pytest.mark.parametrize(
    ("project", "seconds"),
    [
        ("", 1800),
        ("gateway.lockTimeout = 10", 10),
        ("gateway.lockTimeout = 10\nresourceLockTimeout = 20", 20),
        ("gateway.lockTimeout = 10\nresourceLockTimeout = 20\nlocks.seconds = 30", 30),
    ],
)
def test_the_newest_word_for_how_long_locks_last_wins(project: str, seconds: int) -> None:
    assert dev(make_files(project=project)).lock_seconds == seconds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("memory = '1m'", "memory must be a size of at least 6m, such as 512m or 4g"),
        ("memory = 'much'", "memory must be a size of at least 6m, such as 512m or 4g"),
        ("cpus = 0", "cpus must be more than 0"),
        ("locks.seconds = 0", "locks.seconds must be 1 or more"),
        ("locks.one = true", "unknown key locks.one"),
        ("build.args.GO = 1", "build.args.GO must be text, not a number"),
        ("lock.seconds = 3", "unknown key lock: did you mean locks?"),
    ],
)
def test_limits_of_sandboxes_and_locks_are_checked(settings: str, message: str) -> None:
    assert faults(make_files(settings)) == [f"agents/dev/config.toml:1: {message}"]


def test_a_test_script_stands_in_the_models_place() -> None:
    files = {"agents/dev/config.toml": b"", "agents/dev/test-script.sh": b"exit 42\n"}

    spec = dev(files)

    assert (spec.kind, spec.models) == ("command", ())
    assert "test-script.sh" in spec.command
    assert faults(files | {"agents/dev/config.toml": b"kind = 'model'"}) != []


def test_a_projects_shared_files_reach_each_agent_and_its_own_win() -> None:
    more = {"shared/a.md": "ours", "shared/b.md": "ours", "agents/dev/shared/b.md": "mine", "sharedish/c": "no"}

    files = parse(make_files(more=more), project="p", network="none").project.files["dev"]

    assert {path: content for path, content in files.items() if path.startswith("shared")} == {
        "shared/a.md": b"ours",
        "shared/b.md": b"mine",
    }


def test_an_agent_of_an_old_project_may_be_called_shared() -> None:
    files = make_files(more={"shared/agent-config.toml": "", "shared/ACTIONS.md": "Text"})

    read = parse(files, project="p", network="none").project

    assert [agent.name for agent in read.agents] == ["dev", "shared"]
    assert "shared/ACTIONS.md" not in read.files["dev"]


# Warnings


def test_known_features_that_nothing_carries_out_are_warnings() -> None:
    assert [str(warning) for warning in read("current", network="gateway").warnings] == [
        "agents/dev/config.toml:3: no provider of its models (openai) can be asked yet: its runs will fail",
        "agents/fixer/config.toml:1: no provider of its models (openai) can be asked yet: its runs will fail",
        "agents/fixer/config.toml:10: runtime: accepted, but not yet carried out",
        "agents/night/config.toml:2: no provider of its models (openai) can be asked yet: its runs will fail",
        "config.toml:3: historyRetentionDays: accepted, but not yet carried out",
    ]


def test_a_network_that_cannot_be_had_yet_is_a_warning_whoever_asks_for_it() -> None:
    told = "network allowlist cannot be had yet: the agent's runs will fail"

    asked = parse(make_files(), project="p", network="allowlist").warnings
    assert [str(warning) for warning in asked] == [f"agents/dev/config.toml: {told}"]
    assert warnings(make_files("network = 'allowlist'")) == [f"agents/dev/config.toml:1: {told}"]
    assert warnings(make_files("network = 'open'")) == []


def test_an_agent_whose_second_model_can_be_asked_is_no_warning() -> None:
    project = "[models.a]\nprovider='openai'\nmodel='x'\n[models.b]\nprovider='anthropic'\nmodel='y'\n"

    assert warnings(make_files("models = ['a', 'b']", project=project)) == []
    assert "no provider of its models (openai)" in str(warnings(make_files("models = ['a']", project=project)))


@pytest.mark.parametrize(
    ("settings", "place", "message"),
    [
        ("retry = 'never'\nattempts.most = 3", 2, 'attempts.most does nothing beside retry = "never"'),
        ("overlap = 'queue'", 1, "overlap does nothing without a schedule: it is about its ticks"),
        ("approvals.allow = ['read']", 1, 'approvals.allow does nothing without approvals.ask = "on-miss"'),
        ("kind = 'command'\ncommand = 'make'\ntools = ['read']", 3, IDLE.format("tools")),
        ("kind = 'command'\ncommand = 'make'\napprovals.ask = 'always'", 3, IDLE.format("approvals")),
        ("kind = 'command'\ncommand = 'make'\nmodel = {provider = 'x', model = 'y'}", 3, IDLE.format("model")),
    ],
)
def test_a_setting_that_another_one_makes_idle_is_a_warning(settings: str, place: int, message: str) -> None:
    assert warnings(make_files(settings)) == [f"agents/dev/config.toml:{place}: {message}"]


def test_settings_that_go_together_are_no_warning() -> None:
    settings = "schedule = '@daily'\noverlap = 'queue'\nretry = 'always'\nattempts.most = 3\n"

    assert warnings(make_files(f"{settings}approvals = {{ask = 'on-miss', allow = ['read', 'bash:ls *']}}")) == []
    assert warnings(make_files("kind = 'command'\ncommand = ['make', 'all']")) == []


def test_features_of_a_whole_project_are_warnings() -> None:
    project = (
        "telemetry = 3\n[local]\nmemory = '4g'\ncpus = 2\nenabled = true\n[agents.dev]\nscale = 2\n[cloud]\na = 1\n"
    )

    assert warnings(make_files(project=project)) == [
        "config.toml:1: telemetry: accepted, but not yet carried out",
        "config.toml:5: local.enabled: accepted, but not yet carried out",
        "config.toml:6: agents: accepted, but not yet carried out",
        "config.toml:8: cloud: accepted, but not yet carried out",
    ]


def test_files_that_do_not_count_are_warnings() -> None:
    more = {"agents/dev/agent-config.toml": "", "agents/dev/ACTIONS.md": "Text", "agents/notes/a.txt": ""}

    assert warnings(make_files(more=more)) == [
        "agents/dev/SKILL.md: is not read, because agent-config.toml is there",
        "agents/dev/config.toml: is not read, because agent-config.toml is there",
        "agents/notes: holds neither SKILL.md nor agent-config.toml, so it is no agent",
    ]


def test_more_at_once_than_the_project_may_is_a_warning() -> None:
    assert warnings(make_files("scale = 3", project="scale = 2")) == [
        "agents/dev/config.toml:1: scale is more than the 2 that the whole project may run at once"
    ]


# Reading a folder


def write(folder: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def refused(folder: Path) -> list[str]:
    with pytest.raises(Faulty) as caught:
        read_folder(folder)
    return [str(fault) for fault in caught.value.faults]


def test_what_belongs_to_the_project_is_read(tmp_path: Path) -> None:
    write(tmp_path, "config.toml", "agents/dev/SKILL.md", "agents/dev/a/b.sh", "shared/x.md")
    write(tmp_path, ".git/config", ".al/state.db", ".env.toml", ".env", "agents/dev/.env.local")
    write(tmp_path, "node_modules/a/b.js", "agents/dev/__pycache__/x.pyc", "agents/.hidden/SKILL.md")

    assert read_folder(tmp_path) == dict.fromkeys(
        ["agents/dev/SKILL.md", "agents/dev/a/b.sh", "config.toml", "shared/x.md"], b"x"
    )


def test_a_machines_own_settings_are_not_read_and_that_is_told(tmp_path: Path) -> None:
    assert left_behind(tmp_path) == ()
    write(tmp_path, ".env.toml")

    [warning] = left_behind(tmp_path)

    assert str(warning).startswith(".env.toml: is not read, since it belongs to this machine alone")


def test_a_missing_folder_is_told_in_a_sentence(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere") == [f"{tmp_path / 'nowhere'}: there is no such folder"]


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    write(tmp_path, "shared/notes.md")
    write(tmp_path, "agents/dev/SKILL.md")
    (tmp_path / "agents/dev/notes.md").symlink_to("../../shared/notes.md")
    (tmp_path / "agents/dev/shared").symlink_to("../../shared")

    files = read_folder(tmp_path)

    assert files["agents/dev/notes.md"] == files["agents/dev/shared/notes.md"] == b"x"


def test_a_link_that_leaves_the_folder_or_leads_nowhere_is_a_fault(tmp_path: Path) -> None:
    project = tmp_path / "project"
    write(tmp_path, "secret", "project/.env.toml", "project/.git/config", "project/a/SKILL.md")
    targets = {
        "b-out": "../secret",
        "c-absolute": "/etc/hostname",
        "d-folder": "..",
        "e-env": ".env.toml",
        "f-git": ".git",
        "g-gone": "nothing",
        "h-self": "h-self",
        "a/up": "..",
    }
    for name, target in targets.items():
        (project / name).symlink_to(target)

    assert refused(project) == [
        "a/up: is a link to a folder that it is in",
        "b-out: is a link that leaves the folder: put a copy of its target here",
        "c-absolute: is a link that leaves the folder: put a copy of its target here",
        "d-folder: is a link that leaves the folder: put a copy of its target here",
        "e-env: is a link to something that stays on this machine",
        "f-git: is a link to something that stays on this machine",
        "g-gone: is a link that leads nowhere",
        "h-self: is a link that leads nowhere",
    ]


def test_a_pipe_is_a_fault_and_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert refused(tmp_path) == ["pipe: is not a regular file"]


def test_a_file_that_is_too_large_is_a_fault(tmp_path: Path) -> None:
    write(tmp_path, "fits.bin", content=bytes(4 * 2**20))
    write(tmp_path, "large.bin", content=bytes(4 * 2**20 + 1))

    [fault] = refused(tmp_path)

    assert fault.startswith("large.bin: has 4194305 bytes")


def test_a_project_that_is_too_large_is_a_fault_at_the_file_that_overflows_it(tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path, name, content=bytes(4 * 2**20))
    assert len(read_folder(tmp_path)) == 4
    write(tmp_path, "e", "f")

    [fault] = refused(tmp_path)

    assert fault.startswith("e: takes the project over 16777216 bytes")


# Lines

_VALUES = [
    "1",
    '"a # b"',
    "'''\n[fake]\nkey0 = 1\n'''",
    '"""\n[[fake]]\nkey1 = "x" \\""" \n"""""',
    "[\n  1, # key2 = ]\n  [2],\n]",
    '{ key0 = "}", b = [1] }',
    '"\\"" # [fake]',
]
_keys = st.lists(st.tuples(st.sampled_from(['"a b"', "'c.d'", "key", "a-1"]), st.sampled_from(_VALUES)), max_size=4)
_sections = st.lists(st.tuples(st.sampled_from(["table", "entry", "inner"]), _keys), max_size=5)


def written_out(sections: list[tuple[str, list[tuple[str, str]]]]) -> tuple[str, dict[tuple[str | int, ...], int]]:
    """A TOML document and the line of every key in it, counted while it is written."""
    lines: list[str] = ["# key = 1", ""]
    expected: dict[tuple[str | int, ...], int] = {}
    entries = 0
    for number, (kind, pairs) in enumerate(sections):
        place: tuple[str | int, ...] = (f"table{number}",)
        header = f"[ table{number} ]"
        if kind == "entry":
            place, header, entries = ("list", entries), "[[list]] # more", entries + 1
        elif kind == "inner" and entries:
            place, header = ("list", entries - 1, f"inner{number}"), f'[list . "inner{number}"]'
        lines.append(header)
        expected[place] = len(lines)
        for index, (key, value) in enumerate(pairs):
            expected[(*place, f"k{index}", key.strip("'\""))] = len(lines) + 1
            lines += f"  k{index} . {key} = {value}".split("\n")
    return "\n".join(lines), expected


@given(sections=_sections)
def test_each_key_of_a_toml_document_has_its_line(sections: list[tuple[str, list[tuple[str, str]]]]) -> None:
    text, expected = written_out(sections)
    tomllib.loads(text)

    lines = toml_lines(text)

    assert {place: lines.get(place) for place in expected} == expected
    assert not any("fake" in place for place in lines)


def places(value: Any, place: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    pairs = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list):
        pairs = list(enumerate(value))
    return {(*place, key) for key, _ in pairs}.union(*(places(inner, (*place, key)) for key, inner in pairs))


def test_each_place_of_a_yaml_document_has_its_line() -> None:
    data, lines = read_yaml("a:\n  - b: 1\n    c: [2, 3]\n  - x\nd: {e: 4}\n", first=10)

    assert lines.keys() == places(data)
    assert lines[("a", 0, "c", 1)] == 12
    assert lines[("a", 1)] == 13
    assert lines[("d", "e")] == 14


def test_reading_needs_no_django() -> None:
    code = "import sys, agents.manifest; sys.exit('django' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], cwd=PROJECTS.parents[2], check=True)


def test_a_place_without_a_line_has_that_of_what_is_around_it() -> None:
    lines = toml_lines("a = 1\nb = [{c = 1}]\n")

    assert nearest(lines, ("b", 0, "c")) == 2
    assert nearest(lines, ("z",)) is None


def test_a_definition_stored_before_the_line_had_a_limit_is_read() -> None:
    stored = {**AgentSpec(name="dev").dump(), "max_work_queue": None}
    assert AgentSpec.load(stored).max_work_queue == 100
