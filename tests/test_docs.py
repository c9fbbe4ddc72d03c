"""The pages say what is so: every table of names is held to the code it is about, every example is tried."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, resolve
from typer.main import get_command

import runs.models
from agentfleet.cli import app
from agentfleet.urls import urlpatterns
from agents.manifest import filters, keys, outgoing_table, poll_table, sources
from agents.manifest.values import Table
from agents.models import ApiToken
from agents.spec import AgentSpec, Approvals, Attempts, Breaker, Coalescing, Failure, Limits
from runs import events, lifecycle, prompt, queue, retries, tools
from runs.api.agents import AgentRecord
from runs.api.bodies import NewTask
from runs.api.dead_letters import Letter
from runs.api.records import Task
from runs.llm import keys as model_keys
from runs.llm import scripted
from runs.models import KEEP_THE_SLOT, DeadLetter, Status, WaitReason
from runs.sandbox.base import Engine, Spec
from runs.sandbox.container import run_flags
from runs.sandbox.network import Link
from tests.conftest import DrivenWorker
from tests.making import bash, make_agent, make_workspace, submit
from webhooks.providers import github

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
README, AGENTS, STATES, SANDBOX, SECURITY, DEPLOYMENT, API = (
    ROOT / name
    for name in (
        "README.md", "docs/agents.md", "docs/states.md", "docs/sandbox.md", "docs/security.md", "docs/deployment.md",
        "docs/api.md",
    )
)  # fmt: skip

# Nothing of ours: where programs are found, what Debian calls its release, what we tell Celery.
NOT_OURS = {"PATH", "VERSION_CODENAME", "CELERY_SKIP_CHECKS"}
# Given to commands in sandboxes, and not read by the server.
GIVEN = {
    "HOME", "AL_CREDENTIALS_PATH", "AGENTFLEET_RUN", "AGENTFLEET_AGENT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS",
}  # fmt: skip
# Other words in capitals that are no error codes.
# Inside sandboxes.
# Given to builds of images.
IN_BUILD = {"GIT_SHA", "VERSION"}
OF_GIT = {"GITHUB_TOKEN", "GH_TOKEN", "GIT_TERMINAL_PROMPT", "GIT_CONFIG_COUNT", "GIT_SSH_COMMAND"}
OF_GIT |= {f"GIT_{who}_{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
IN_SANDBOX = {"AGENTFLEET_RECORDS", "AL_ENV_FILE", "AL_SIGNAL_DIR", "GATEWAY_URL", "SHUTDOWN_SECRET"}
# What Docker and iptables call their things.
OF_NETWORKS = {"FORWARD", "INPUT", "IPAM"}
NOT_CODES = {
    *GIVEN,
    *OF_NETWORKS,
    *NOT_OURS,
    *IN_SANDBOX,
    *OF_GIT,
    *IN_BUILD,
    *runs.models.__all__,
    "ALL",
    "GET",
    "POST",
    "UTC",
    "COMMIT",
}

TABLES: dict[str, type[Table]] = {
    "The project's config.toml": keys.ProjectTable,
    "[model] and [models.name]": keys.ModelTable,
    "[local]": keys.LocalTable,
    "[gateway]": keys.GatewayTable,
    "[webhooks.name]": sources.SourceTable,
    "[webhooks.name.scheme]": sources.SchemeTable,
    "[outgoing.name]": outgoing_table.OutgoingTable,
    "The agent's settings": keys.AgentTable,
    "[[schedules]]": keys.ScheduleTable,
    "[[polls]]": poll_table.PollTable,
    "[limits]": keys.LimitsTable,
    "[attempts]": keys.AttemptsTable,
    "[breaker]": keys.BreakerTable,
    "[coalesce]": keys.CoalesceTable,
    "[approvals]": keys.ApprovalsTable,
    "[task]": keys.TaskTable,
    "[build]": keys.BuildTable,
    "[locks]": keys.LocksTable,
    "[hooks]": keys.HooksTable,
    "[[preflight]]": keys.PreflightTable,
    "Front matter of SKILL.md": keys.FrontMatter,
}
DEFAULTS: dict[str, Any] = {
    "[limits]": Limits(),
    "[attempts]": Attempts(),
    "[breaker]": Breaker(),
    "[coalesce]": Coalescing(),
    "[approvals]": Approvals(),
}


# --- reading the pages --------------------------------------------------------------------------------------------


def section(page: Path, heading: str) -> str:
    """What stands under a heading, up to the next of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page.name} has no heading {heading!r}"
    return found[1]


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the section's table, without its head."""
    lines = [line for line in section(page, heading).splitlines() if line.startswith("|")]
    assert len(lines) > 2, f"{page.name} has no table under {heading!r}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def named(text: str) -> list[str]:
    """The words in backticks."""
    return re.findall(r"`([^`]+)`", text)


def first_column(page: Path, heading: str) -> list[str]:
    return [name for row in rows(page, heading) for name in named(row[0])]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- reading the code ---------------------------------------------------------------------------------------------


def nodes(*folders: str) -> Iterator[ast.AST]:
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            if "migrations" not in file.parts:
                yield from ast.walk(ast.parse(file.read_text()))


def constant(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def variables_read() -> set[str]:
    """The environment variables that the server, the command line and the machine's preparation ask for."""
    found = {name for pair in model_keys.ENVIRONMENT.values() for name in pair}
    for node in nodes("agentfleet", "agents", "runs", "webhooks"):
        if isinstance(node, ast.Call) and node.args:
            asks = ast.unparse(node.func) in {"env", "env_int", "env_bool", "env_list"}
            if asks or re.fullmatch(r"(os\.environ|env)\.(get|setdefault)", ast.unparse(node.func)):
                found.add(constant(node.args[0]))
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            found.add(constant(node.slice))
    found |= set(re.findall(r"\$\{([A-Z_]+):-", (ROOT / ".ci/machine").read_text()))
    return found - NOT_OURS - {""}


def emitted() -> list[tuple[str, set[str]]]:
    """The type of every event the code makes, with those keys of its data that stand beside it."""
    found = []
    for node in nodes("agentfleet", "runs", "webhooks"):
        if isinstance(node, ast.Call) and re.fullmatch(r"(events\.)?New", ast.unparse(node.func)):
            data = node.args[1] if len(node.args) > 1 else None
            beside = data.keys if isinstance(data, ast.Dict) else []
            found.append((constant(node.args[0]), {constant(key) for key in beside} - {""}))
    return found


def codes_used() -> set[str]:
    """Every constant that looks like an error code, wherever one may come from."""
    words = {constant(node) for node in nodes("runs", "webhooks")}
    words |= {constant(node) for node in ast.walk(ast.parse((ROOT / "agentfleet/asgi.py").read_text()))}
    shaped = {word for word in words if re.fullmatch(r"[A-Z]{2,}(_[A-Z]+)*", word)}
    return shaped - variables_read() - NOT_CODES


def api_paths() -> dict[str, set[str]]:
    """Each path under /api/v1/, as the pages write it, with its methods."""
    found: dict[str, set[str]] = {}
    for path, view in flattened(urlpatterns, ""):
        if path.startswith("api/v1/"):
            methods = {"get", "post", "put", "patch", "delete"}
            kept = {method.upper() for method in methods if hasattr(view.cls, method)} if hasattr(view, "cls") else None
            found[re.sub(r"<\w+:(\w+)>", r"{\1}", path.removeprefix("api/v1/"))] = {"GET"} if kept is None else kept
    return found


def flattened(patterns: list[Any], before: str) -> Iterator[tuple[str, Any]]:
    for entry in patterns:
        path = f"{before}{entry.pattern}"
        if isinstance(entry, URLResolver):
            yield from flattened(entry.url_patterns, path)
        elif isinstance(entry, URLPattern):
            yield path, entry.callback


# --- README -------------------------------------------------------------------------------------------------------


def test_every_make_target_is_in_the_readme_and_none_that_is_not_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", section(README, "Start"))) == targets
    everywhere = {word for page in PAGES for word in re.findall(r"`make ([a-z]+)", page.read_text())}
    assert everywhere <= targets


def test_every_command_of_the_command_line_exists() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    said = {word for page in PAGES for word in re.findall(r"(?:bin/|`)agentfleet ([a-z][a-z-]*)", page.read_text())}
    assert said - commands == set()


def test_every_stop_on_the_walk_is_where_it_says() -> None:
    stops = re.findall(r"`([\w/]+\.py)` `(\w+)`", README.read_text())
    assert len(stops) > 10
    missing = [stop for stop in stops if not re.search(rf"\bdef {stop[1]}\(", (ROOT / stop[0]).read_text())]
    assert missing == []


# --- every page ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_ours_that_is_named_exists(page: Path) -> None:
    ours = r"`((?:agentfleet|runs|webhooks|tests|static|templates|examples|docs)/[\w./-]+\.\w+)`"
    assert [name for name in re.findall(ours, page.read_text()) if not (ROOT / name).is_file()] == []


def test_every_test_that_is_named_exists() -> None:
    tests = {node.name for node in nodes("tests") if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    said = {name for page in PAGES for name in re.findall(r"`(test_[a-z0-9_]+)`", page.read_text())}
    assert len(said) > 20
    assert said - tests == set()


# --- docs/agents.md -----------------------------------------------------------------------------------------------


def test_every_table_a_folder_may_hold_has_its_section() -> None:
    assert set(TABLES.values()) == set(Table.__subclasses__())


@pytest.mark.parametrize("heading", TABLES)
def test_every_key_of_a_folder_is_told_and_no_other(heading: str) -> None:
    assert sorted(first_column(AGENTS, heading)) == sorted(keys.known(TABLES[heading]))


@pytest.mark.parametrize(
    ("heading", "later"),
    [
        ("The agent's settings", keys.LATER_IN_AGENT),
        ("The project's config.toml", keys.LATER_IN_PROJECT),
        ("[local]", keys.LATER_IN_LOCAL),
        ("[gateway]", keys.LATER_IN_GATEWAY),
    ],
)
def test_what_is_not_yet_carried_out_is_said_to_be(heading: str, later: frozenset[str]) -> None:
    told = {name for row in rows(AGENTS, heading) if "warned: not yet" in row[-1] for name in named(row[0])}
    assert told == later


def test_defaults_are_those_of_the_definition() -> None:
    spec = AgentSpec(name="any")
    for heading, table in DEFAULTS.items():
        told = {named(row[0])[0]: row[2] for row in rows(AGENTS, heading)}
        assert told == {field.name: in_a_cell(getattr(table, field.name)) for field in fields(table)}, heading
    said = {name: row[2].strip("`") for row in rows(AGENTS, "The agent's settings") for name in named(row[0])}
    for key in ("timezone", "scale", "priority", "sandbox", "kind", "retry", "overlap", "memory", "cpus"):
        assert said[key] == str(getattr(spec, key)), key
    assert said["maxWorkQueueSize"] == f"the project's, else {spec.max_work_queue}"
    projects = {name: row[2] for row in rows(AGENTS, "The project's config.toml") for name in named(row[0])}
    locks = {name: row[2] for row in rows(AGENTS, "[locks]") for name in named(row[0])}
    assert projects["maxReruns"] == str(spec.max_reruns)
    assert projects["maxCallDepth"] == str(spec.max_call_depth)
    assert projects["defaultWaitTimeout"] == str(spec.trigger_wait_seconds)
    assert projects["resourceLockTimeout"] == locks["seconds"] == str(spec.lock_seconds)
    assert locks["one_at_a_time"] == str(spec.one_lock).lower()


def in_a_cell(default: Any) -> str:
    """A default as the tables write it."""
    if isinstance(default, tuple):
        return ", ".join(map(in_a_cell, default)) or "none"
    return (f"`{default}`" if default else "none") if isinstance(default, str) else str(default)


def test_every_failure_that_may_be_tried_again_is_told_with_its_codes() -> None:
    code = re.compile(r"[A-Z]+(?:_[A-Z0-9]+)+|TIMEOUT")
    told = {named(kind)[0]: code.findall(codes) for kind, codes in rows(AGENTS, "Failures")}
    assert sorted(told) == sorted(get_args(Failure))
    for kind, codes in told.items():
        assert {retries.kind_of(code) for code in codes} == {kind}
    assert {code for kind in told for code in told[kind] if kind != "work"} == set(retries.KINDS)


def test_every_filter_and_every_key_of_an_event_is_told() -> None:
    table = {named(row[0])[0]: set(named(row[1])) for row in rows(AGENTS, "Webhooks") if named(row[0])}
    events_told = {name: told for name, told in table.items() if name in github.EVENTS}
    assert events_told == {name: set(shape.keys) for name, shape in github.EVENTS.items()}
    filters_told = {name: told for name, told in table.items() if name not in events_told}
    assert filters_told == {name: set(known) for name, known in filters.FILTERS.items()}


def test_every_tool_is_told_with_its_arguments() -> None:
    told = {}
    for row in rows(AGENTS, "Tools"):
        arguments = re.findall(r"`(\w+)`(?: = ([^,]+))?", row[1])
        told[named(row[0])[0]] = dict(arguments)
    there = {
        tool.name: {
            name: "" if field.is_required() or field.default is None else str(field.default).lower()
            for name, field in tool.arguments.model_fields.items()
        }
        for tool in tools.ALL.values()
    }
    assert told == there


def test_every_key_of_a_script_is_told() -> None:
    assert first_column(AGENTS, "The scripted model") == [field.name for field in fields(scripted.Turn)]
    assert all(field.default is not MISSING for field in fields(scripted.Turn)), "the page calls none of them required"


def test_the_blocks_of_a_prompt_are_told_in_their_order() -> None:
    told = [re.findall(r"<([a-z-]+)>", row[0]) for row in rows(AGENTS, "What the model is shown")]
    reasons = (("webhook", ""), ("poll", ""), ("call", ""), ("manual", "Do this."))
    for reason, (kind, words) in zip(told[-1], reasons, strict=True):
        [body] = prompt.build(AgentSpec(name="any"), prompt.Trigger(kind, {}, words))
        blocks = re.findall(r"^<([a-z-]+)>$", body["parts"][1]["text"], re.MULTILINE)
        assert blocks == [*(name for [name] in told[:-1]), reason]


# --- docs/states.md -----------------------------------------------------------------------------------------------


def test_statuses_and_transitions_are_those_of_the_lifecycle() -> None:
    assert first_column(STATES, "Statuses") == list(Status)
    told = {named(verb)[0]: (frozenset(named(old)), *named(new)) for verb, old, new, _ in rows(STATES, "Transitions")}
    assert told == lifecycle.TRANSITIONS


def test_every_reason_to_wait_is_told_and_what_becomes_of_the_slot() -> None:
    told = {name: row[2] for row in rows(STATES, "Reasons to wait") for name in named(row[0])}
    assert told == {reason: "kept" if reason in KEEP_THE_SLOT else "freed" for reason in WaitReason}


def test_every_event_is_told_and_no_other() -> None:
    types = [kind for kind, _ in emitted()]
    assert "" not in types, "an event's type has to be written where it is made"
    assert set(first_column(STATES, "Events")) == set(types)


def test_an_events_data_is_as_told() -> None:
    told = {named(row[0])[0]: set(named(row[1])) for row in rows(STATES, "Events")}
    for kind, beside in emitted():
        assert beside <= told[kind], kind


@pytest.mark.django_db(transaction=True)
def test_a_run_tells_of_itself_as_told(worker: DrivenWorker) -> None:
    told = {named(row[0])[0]: set(named(row[1])) for row in rows(STATES, "Events")}
    status = {"name": "set_status", "arguments": {"text": "looking"}}
    ask = {"name": "ask", "arguments": {"question": "Which one?"}}
    turns: list[dict[str, Any]] = [{"text": "look", "tools": [status, bash("echo hi; exit 3"), ask]}, {"text": "done"}]
    run = worker.drive(submit(make_agent(turns=turns)))
    queue.respond(run, "the second")
    assert worker.drive(run).status == Status.FINISHED
    happened = events.fetch(run.pk)
    assert {"tool.end", "output", "ask", "respond", "run.resumed"} <= {event["type"] for event in happened}
    for event in happened:
        assert set(event["data"]) <= told[event["type"]], event


def test_every_error_code_is_told_and_no_other() -> None:
    told = [*first_column(STATES, "Errors of runs"), *first_column(API, "Errors")]
    assert len(told) == len(set(told))
    assert set(told) == codes_used() | {"EXIT_nn"}  # the last has a program's own number in it


# --- docs/sandbox.md ----------------------------------------------------------------------------------------------


def test_the_contract_of_a_sandbox_is_told_verb_by_verb() -> None:
    assert set(first_column(SANDBOX, "The contract")) == Engine.__abstractmethods__


def test_what_a_container_is_given_is_told() -> None:
    spec = Spec(name="any", image="any")
    link = Link("any", {"any": "any"}, ["any"], ["any"])
    flags = {flag.partition("=")[0] for flag in run_flags(spec, "host", link) if flag.startswith("--")}
    assert set(first_column(SANDBOX, "What a container is given")) == flags
    said = section(SANDBOX, "What a container is given")
    assert f"{spec.pids}, {spec.memory}, {spec.cpus}" in said
    assert [name for name in GIVEN if name not in SANDBOX.read_text()] == []


# --- docs/deployment.md -------------------------------------------------------------------------------------------


def test_every_environment_variable_is_told_and_no_other() -> None:
    assert set(first_column(DEPLOYMENT, "Environment variables")) == variables_read()


# --- docs/api.md --------------------------------------------------------------------------------------------------


def test_every_path_of_the_api_is_told_with_its_methods() -> None:
    told = {named(row[0])[0]: set(row[1].split(", ")) for row in rows(API, "Paths")}
    assert told == api_paths()


def test_every_field_of_a_task_is_told() -> None:
    [fields_told] = re.findall(r"^A task has (.*?)\. Statuses", API.read_text(), re.MULTILINE | re.DOTALL)
    assert named(fields_told.replace("(null for now)", "")) == list(Task.Meta.fields)


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("Agents", AgentRecord.Meta.fields),
        ("Starting a task", list(NewTask().fields)),
        ("Dead letters", Letter.Meta.fields),
    ],
)
def test_every_field_of_an_agent_a_request_and_a_dead_letter_is_told(heading: str, names: Sequence[str]) -> None:
    beside_examples = re.sub(r"^```.*?^```", "", section(API, heading), flags=re.MULTILINE | re.DOTALL)
    assert set(names) - set(re.findall(r"\w+", " ".join(named(beside_examples)))) == set()


class Curl:
    """One `curl` of a page, with the status that its comment promises."""

    _words = argparse.ArgumentParser()
    _words.add_argument("-s", action="store_true")
    _words.add_argument("-N", action="store_true")
    _words.add_argument("-H", action="append", default=[])
    _words.add_argument("-X")
    _words.add_argument("--json")
    _words.add_argument("url")

    def __init__(self, text: str) -> None:
        self.text, _, promised = text.strip().partition("  # ")
        self.status = int(promised) if promised else None

    def asked(self, **given: str) -> tuple[str, str, str, dict[str, str]]:
        """Method, path, body and headers, with `given` in place of the shell's variables."""
        text = re.sub(r"\$([A-Z]+)", lambda name: given.get(name[1], ""), self.text.replace("\\\n", " "))
        said = self._words.parse_args(shlex.split(text)[1:])
        method = said.X or ("GET" if said.json is None else "POST")
        return method, said.url, said.json or "", dict(header.split(": ", 1) for header in said.H)


def curls() -> list[Curl]:
    block = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
    command = re.compile(r"^curl .*?(?=^curl |\Z)", re.MULTILINE | re.DOTALL)
    blocks = [text for page in PAGES for text in block.findall(page.read_text())]
    return [Curl(text) for whole in blocks for text in command.findall(whole)]


def test_every_curl_goes_where_somebody_answers() -> None:
    assert len(curls()) > 15
    for curl in curls():
        method, path, _, _ = curl.asked(RUN="run_1", LETTER="ded_1")
        match = resolve(urlsplit(path).path)
        assert not hasattr(match.func, "cls") or hasattr(match.func.cls, method.lower()), curl.text


@pytest.mark.django_db(transaction=True)
def test_every_curl_is_answered_as_promised(worker: DrivenWorker) -> None:
    _, token = ApiToken.issue(make_workspace(), "examples", is_operators=True)
    question = {"name": "ask", "arguments": {"question": "Which one?"}}
    agent = make_agent("hello", turns=[{"tools": [question]}, {"text": "thanks"}])
    promised = [curl for curl in curls() if curl.status is not None]
    assert len(promised) > 15
    for curl in promised:
        run = submit(agent)
        if "/respond" in curl.text:
            run = worker.drive(run)
        letter = DeadLetter.objects.create(workspace=agent.workspace, agent=agent, code="ANY", reason="", trigger="api")
        method, path, body, headers = curl.asked(TOKEN=token, RUN=run.pk, LETTER=letter.pk)
        answer = Client().generic(method, path, body, content_type="application/json", headers=headers)
        assert answer.status_code == curl.status, (curl.text, answer.content)
