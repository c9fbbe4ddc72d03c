"""What is wrong with a project that could be read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time
from pathlib import PurePosixPath
from string import Formatter
from typing import Any, get_args

from agents import dockerfiles, schedule, storable
from agents.manifest import filters, keys, misfits, polls, preflight
from agents.manifest.lines import Place
from agents.manifest.written import Agent, Fault, Project, defining
from agents.spec import Network, ToolName

PATH_LENGTH = 500 - len(dockerfiles.OF_PROJECT)  # as they are stored, in a place of their own
IN_ADMIN = "-"  # where a name is part of an address, and agents have none because no folder made them

_name = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_credential = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?::[A-Za-z0-9][A-Za-z0-9._-]*)?")
_field = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME_RULE = "use lower-case letters, digits and dashes, at most 63, first a letter or digit, and not the word default"


def argument_faults(project: str, network: str | None) -> Iterator[Fault]:
    if not 0 < len(project) <= 100:
        yield Fault("the project's name", None, "must have 1 to 100 characters")
    if project == IN_ADMIN:
        yield Fault("the project's name", None, f"cannot be {IN_ADMIN}, which stands for what was made in the admin")
    if network is not None and network not in get_args(Network):
        yield Fault("--network", None, f"must be one of {', '.join(get_args(Network))}, not {network}")


def path_faults(files: Iterable[str]) -> Iterator[Fault]:
    """A bundle comes over the network too: no path may lead out of the place it will be unpacked in."""
    for path in files:
        if any(part in {"", ".", ".."} for part in path.split("/")) or storable.text(path) != path:
            yield Fault(storable.text(path), None, "is no plain path inside the project")
        elif len(path) > PATH_LENGTH:
            yield Fault(path, None, f"is a path of more than {PATH_LENGTH} characters")


def project_faults(project: Project) -> Iterator[Fault]:
    yield from project.misfits
    for name in project.names("webhooks"):
        if not _is_name(name):
            yield project.document.fault(("webhooks", name), f"{name} cannot name a source: {_NAME_RULE}")
    for name in project.names("outgoing"):
        if not _is_name(name):
            yield project.document.fault(("outgoing", name), f"{name} cannot name an outgoing webhook: {_NAME_RULE}")


def folder_faults(folders: Mapping[str, Mapping[str, bytes]]) -> Iterator[Fault]:
    by_name: dict[str, str] = {}
    for folder in (folder for folder, files in folders.items() if defining(files)):
        name = PurePosixPath(folder).name
        if not _is_name(name):
            yield Fault(folder, None, f"{name} cannot name an agent: {_NAME_RULE}")
        if name in by_name:
            yield Fault(folder, None, f"{by_name[name]} is an agent of the same name: keep one")
        by_name[name] = folder
    if not by_name:
        wanted = "make a folder in it with SKILL.md and config.toml, or name the folder that holds agents/"
        yield Fault("agents", None, f"there is no agent: {wanted}")


def _is_name(name: str) -> bool:
    return bool(_name.fullmatch(name)) and name != "default"


def agent_faults(agent: Agent, project: Project, *, network: str | None) -> Iterator[Fault]:
    yield from agent.misfits
    yield from _model_faults(agent, project)
    yield from _schedule_faults(agent)
    yield from _credential_faults(agent)
    yield from _tool_faults(agent)
    yield from _coalesce_faults(agent)
    yield from _approval_faults(agent)
    yield from _command_faults(agent)
    yield from preflight.faults(agent)
    yield from polls.faults(agent)
    yield from _json_faults(agent)
    yield from _whole_faults(agent, project, network=network)
    for index, entry in enumerate(agent.table.webhooks):
        for place, message in _entry_faults(entry, project):
            yield agent.settings.fault(("webhooks", index, *place), message)


def _model_faults(agent: Agent, project: Project) -> Iterator[Fault]:
    settings, known = agent.settings, project.names("models")
    for index, name in enumerate(agent.table.models):
        if name not in known:
            have = f"config.toml has {', '.join(known)}" if known else "config.toml has no [models.<name>]"
            message = f"there is no model {name}{keys.question(name, known) or f': {have}'}"
            yield settings.fault(("models", index), message)
    if agent.says("model") and agent.says("models"):
        yield settings.fault(("model",), "the agent has a model of its own and a list of models: keep one")
    has_model = agent.says("model") or agent.says("models") or "model" in project.document.data
    if agent.kind == "model" and not has_model:
        yield settings.fault(("models",), "the agent has no model: add models = [...] with names from config.toml")


def _schedule_faults(agent: Agent) -> Iterator[Fault]:
    settings, table = agent.settings, agent.table
    timezones: list[tuple[Place, str]] = [(("timezone",), table.timezone)]
    named = [(index, entry.timezone) for index, entry in enumerate(table.schedules) if entry.timezone]
    timezones += [(("schedules", index, "timezone"), timezone) for index, timezone in named]
    for place, timezone in timezones:
        if fault := _refused(schedule.check, "@hourly", timezone):
            yield settings.fault(place, fault)
    seen: set[tuple[str, str]] = set()
    for place, entry in _schedules(table):
        if fault := _refused(schedule.check, entry.cron, "UTC"):
            yield settings.fault((*place, "cron"), fault)
            continue
        if fault := _refused(schedule.check_jitter, entry.cron, entry.jitter):
            yield settings.fault((*place, "jitter"), fault)
        if (entry.cron, entry.timezone or table.timezone) in seen:
            yield settings.fault((*place, "cron"), f"{entry.cron} stands here a second time")
        seen.add((entry.cron, entry.timezone or table.timezone))


def _schedules(table: keys.AgentTable) -> Iterator[tuple[Place, keys.ScheduleTable]]:
    """Each with its place, those of one line too."""
    if isinstance(table.schedule, list):
        for index, cron in enumerate(table.schedule):
            yield ("schedule", index), keys.ScheduleTable.model_construct(cron=cron)
    elif table.schedule:
        yield ("schedule",), keys.ScheduleTable.model_construct(cron=table.schedule)
    for index, entry in enumerate(table.schedules):
        yield ("schedules", index), entry


def _refused(check: Callable[..., None], *said: object) -> str:
    try:
        check(*said)
    except schedule.BadSchedule as error:
        return str(error)
    return ""


def _credential_faults(agent: Agent) -> Iterator[Fault]:
    for index, reference in enumerate(agent.table.credentials):
        if not _credential.fullmatch(keys.trimmed(reference)):
            message = f"{reference!r} is no credential: write type or type:instance, as in github_token:bot"
            yield agent.settings.fault(("credentials", index), message)


def _tool_faults(agent: Agent) -> Iterator[Fault]:
    for index, name in enumerate(agent.table.tools or ()):
        if name not in get_args(ToolName):
            yield agent.settings.fault(("tools", index), _no_tool(name))


def _no_tool(name: str) -> str:
    known = get_args(ToolName)
    there_are = keys.question(name, known) or f": there are {', '.join(known)}"
    return f"there is no tool {name}{there_are}"


def _coalesce_faults(agent: Agent) -> Iterator[Fault]:
    said, key = agent.settings.data.get("coalesce"), agent.table.coalesce.key
    if isinstance(said, dict) and "mode" in said and said.get("key", "") == "":
        example = 'coalesce.key = "github://{repo}/issues/{number}"'
        message = f"coalesce.mode does nothing without a key that says what an event is about, as {example} does"
        yield agent.settings.fault(("coalesce", "mode"), message)
    for message in _template_faults(key):
        yield agent.settings.fault(("coalesce", "key"), f"coalesce.key {message}")


def _template_faults(template: str) -> Iterator[str]:
    """What keeps a text with names in braces from being filled in from a trigger's context."""
    try:
        pieces = list(Formatter().parse(template))
    except ValueError:
        yield "has a brace without its partner: write {name}, or {{ and }} for braces that are meant so"
        return
    for _, name, form, conversion in pieces:
        if name is not None and (form or conversion or not _field.fullmatch(name)):
            yield f"has more than a name in the braces of {{{name}}}: use letters, digits and _, first no digit"


def _approval_faults(agent: Agent) -> Iterator[Fault]:
    for index, pattern in enumerate(agent.table.approvals.allow):
        name, colon, command = pattern.partition(":")
        if name not in get_args(ToolName):
            message = _no_tool(name)
        elif colon and (name != "bash" or not command.strip()):
            message = (
                f"{pattern!r} is no pattern: write a tool's name, or bash:<command>, in which * stands for anything"
            )
        else:
            continue
        yield agent.settings.fault(("approvals", "allow", index), message)


def _command_faults(agent: Agent) -> Iterator[Fault]:
    settings = agent.settings
    kind, command = settings.data.get("kind", "model"), settings.data.get("command", "")
    if kind == "model" and command:
        yield settings.fault(("command",), 'only kind = "command" runs a command: add it, or remove the command')
    if kind == "command" and _is_blank(command):
        message = "kind command needs command, the program it runs: a text for the shell, or a list of its words"
        yield settings.fault(("command",) if "command" in settings.data else ("kind",), message)


def _is_blank(command: Any) -> bool:
    words = command if isinstance(command, list) else [command]
    return not words or (isinstance(words[0], str) and not words[0].strip())


def _json_faults(agent: Agent) -> Iterator[Fault]:
    table = agent.table
    places: list[tuple[Place, Any]] = [
        (("params",), table.params),
        (("command",), table.command),
        (("coalesce", "key"), table.coalesce.key),
        (("approvals", "allow"), table.approvals.allow),
    ]
    places += [(("preflight", index, "params"), step.params) for index, step in enumerate(agent.table.preflight)]
    for place, value in places:
        for inner, message in _unlike_json(value, place):
            yield agent.settings.fault(inner, f"{misfits.dotted(inner)} {message}")


def _whole_faults(agent: Agent, project: Project, *, network: str | None) -> Iterator[Fault]:
    """What only the agent as a whole can have wrong."""
    table = agent.table
    starts_itself = agent.has_schedule or agent.says("webhooks") or agent.says("polls")
    if not (starts_itself or table.task.enabled or agent.scale(project) == 0):
        message = "nothing can start this agent: give it a schedule, webhooks or polls, or leave [task] enabled"
        yield agent.settings.fault(("task",), message)
    if agent.kind == "model" and defining(agent.files) == ["config.toml"]:
        yield Fault(f"{agent.folder}/SKILL.md", None, "is missing: it holds the agent's instructions")
    if network is None and agent.network(project) is None and "network" not in project.document.data:
        remedy = 'add network = "gateway" (or none, or open), or apply with --network open'
        yield agent.settings.fault((), f"the agent says nothing about the network: {remedy}")


def _entry_faults(entry: Mapping[str, Any], project: Project) -> Iterator[keys.Misfit]:
    source, sources = entry.get("source"), project.names("webhooks")
    if not isinstance(source, str):
        yield ("source",) if "source" in entry else (), "the entry needs a source, the name of a [webhooks.<name>]"
    elif source not in sources:
        have = f"has {', '.join(sources)}" if sources else "has no [webhooks.<name>]"
        yield ("source",), f"there is no webhook source {source}: config.toml {have}"
    elif provider := project.provider(source):
        yield from filters.faults(entry, provider)


def _unlike_json(value: Any, place: Place) -> Iterator[keys.Misfit]:
    """Places of values that JSON, or a database that stores it, cannot hold."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _unlike_json(item, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unlike_json(item, (*place, index))
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, "must be a finite number"
    elif isinstance(value, int) and abs(value) >= 2**63:
        yield place, "is a number too large to keep"
    elif isinstance(value, str) and storable.text(value) != value:
        yield place, "holds a character that cannot be stored, such as NUL"
    elif not isinstance(value, str | int | float | date | time | None):
        yield place, "is a kind of value that params cannot hold"
