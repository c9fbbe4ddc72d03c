"""A project as a folder again, in the current generation: what `parse` makes of it is the same project.

Only what differs from the defaults is written, in the order of the definition, and no comments. Pure, as `parse` is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from decimal import Decimal
from typing import Any

import tomli_w
import yaml

from agents import dockerfiles, rates
from agents.manifest import filters, outgoing, shared
from agents.manifest.written import TEST_SCRIPT, defining
from agents.spec import AgentSpec, ModelSpec, PollSpec, ProjectSpec, ScheduleSpec, SourceSpec

WIDE = 10**6  # characters of a line: text is not folded

# Field of a definition → the key that says it. What is not here has a way of its own, in `_settings` or in `files_of`.
PLAIN = {
    "kind": "kind",
    "timezone": "timezone",
    "params": "params",
    "credentials": "credentials",
    "scale": "scale",
    "priority": "priority",
    "limits": "limits",
    "retry": "retry",
    "attempts": "attempts",
    "breaker": "breaker",
    "coalesce": "coalesce",
    "overlap": "overlap",
    "max_reruns": "maxReruns",
    "approvals": "approvals",
    "command": "command",
    "image": "image",
    "build_args": "build_args",
    "memory": "memory",
    "cpus": "cpus",
    "sandbox": "sandbox",
    "tools": "tools",
    "max_work_queue": "maxWorkQueueSize",
    "max_call_depth": "maxCallDepth",
    "trigger_wait_seconds": "defaultWaitTimeout",
    "preflight": "preflight",
}
# Two fields that share a table: field → table and key.
PAIRED = {
    "task_enabled": ("task", "enabled"),
    "lock_seconds": ("locks", "seconds"),
    "one_lock": ("locks", "one_at_a_time"),
    "hooks_pre": ("hooks", "pre"),
    "hooks_post": ("hooks", "post"),
}


# Of a schedule: field → key.
SCHEDULE = {
    "cron": "cron",
    "timezone": "timezone",
    "jitter_seconds": "jitter",
    "missed": "missed",
    "missed_seconds": "missed_within",
}


# Of a poll: field → key.
POLL = {"every_seconds": "every"}


def described(files: Mapping[str, bytes]) -> set[str]:
    """Those of an agent's files that say nothing beside its definition: comments and the order of keys."""
    return {*defining(files), *({"SKILL.md", "config.toml"} & files.keys())}


def files_of(project: ProjectSpec) -> dict[str, bytes]:
    """Path to content, in a fixed order."""
    names = _model_names(model for agent in project.agents for model in agent.models)
    others = {spec.name: _others(project.files.get(spec.name, {})) for spec in project.agents}
    common = _common(list(others.values()))
    whole = {"config.toml": _toml(_project_settings(project, names)), **_root(common)}
    for spec in project.agents:
        folder = f"agents/{spec.name}"
        own = {path: content for path, content in others[spec.name].items() if path not in common}
        inner = _settings_files(spec, _settings(spec, names, has_script=TEST_SCRIPT in own)) | own
        whole |= {f"{folder}/{path}": content for path, content in sorted(inner.items())}
    return whole


def _others(files: Mapping[str, bytes]) -> dict[str, bytes]:
    left_out = described(files)
    return {path: files[path] for path in sorted(files) if path not in left_out}


def _common(folders: list[dict[str, bytes]]) -> dict[str, bytes]:
    """What a project gives to all its agents: shared files, and skills that all have alike."""
    if not folders:
        return {}
    first, *rest = folders
    alike = {path for path, content in first.items() if all(folder.get(path) == content for folder in rest)}
    unlike = {shared.skill_of(path) for folder in folders for path in folder if path not in alike}
    return {
        path: first[path]
        for path in sorted(alike)
        if path.startswith((f"{shared.SHARED}/", dockerfiles.OF_PROJECT))
        or (shared.skill_of(path) and shared.skill_of(path) not in unlike)
    }


def _root(common: Mapping[str, bytes]) -> dict[str, bytes]:
    return {path.removeprefix(dockerfiles.OF_PROJECT): content for path, content in common.items()}


def _project_settings(project: ProjectSpec, names: Mapping[ModelSpec, str]) -> dict[str, Any]:
    scale = {} if project.scale is None else {"scale": project.scale}
    models = {name: _model(model) for model, name in names.items()}
    sources = {source.name: _source(source) for source in sorted(project.sources, key=lambda source: source.name)}
    tables = {"models": models, "webhooks": sources, "outgoing": outgoing.written(project)}
    return scale | {name: table for name, table in tables.items() if table}


def _model_names(models: Iterable[ModelSpec]) -> dict[ModelSpec, str]:
    """One name for each, after the model's own."""
    names: dict[ModelSpec, str] = {}
    for model in sorted(set(models), key=repr):
        name = plain = re.sub(r"[^a-z0-9]+", "-", model.model.lower()).strip("-") or "model"
        number = 1
        while name in names.values():
            number += 1
            name = f"{plain}-{number}"
        names[model] = name
    return names


def _model(model: ModelSpec) -> dict[str, Any]:
    said = {"provider": model.provider, "model": model.model}
    if model.thinking:
        said["thinkingLevel"] = model.thinking
    if model.auth_type != ModelSpec.auth_type:
        said["authType"] = model.auth_type
    return said if model.base_url is None else said | {"baseUrl": model.base_url}


def _source(source: SourceSpec) -> dict[str, Any]:
    said: dict[str, Any] = {"type": source.provider}
    if source.credential != SourceSpec.credential:
        said["credential"] = source.credential
    if source.allow_unsigned:
        said["allowUnsigned"] = True
    # a rate that is none by choice is a word: nothing written is the default
    return said | {name: rates.OFF if value == "" else value for name, value in source.options.items()}


def _settings(spec: AgentSpec, names: Mapping[ModelSpec, str], *, has_script: bool) -> dict[str, Any]:
    """The network is always said: nothing else decides it, wherever this is applied."""
    unsaid = AgentSpec(name=spec.name)
    said: dict[str, Any] = {"network": spec.network}
    if spec.models:
        said["models"] = [names[model] for model in spec.models]
    if has_script:
        said["kind"] = spec.kind
    for field, key in PLAIN.items():
        if getattr(spec, field) != getattr(unsaid, field):
            said[key] = _written(getattr(spec, field), getattr(unsaid, field))
    for field, (table, key) in PAIRED.items():
        if getattr(spec, field) != getattr(unsaid, field):
            said.setdefault(table, {})[key] = _written(getattr(spec, field), None)
    said |= schedules(spec)
    if spec.polls:
        said["polls"] = [{POLL.get(name, name): value for name, value in _said_of(poll)} for poll in spec.polls]
    if spec.webhooks:
        said["webhooks"] = [{"source": entry.source, **filters.nested(entry.filters)} for entry in spec.webhooks]
    return said


def schedules(spec: AgentSpec) -> dict[str, Any]:
    """In the shortest form: a text, a list of texts, or tables; nothing where there is none."""
    plain = all(said == ScheduleSpec(cron=said.cron) for said in spec.schedules)
    if plain and spec.schedules:
        crons = [said.cron for said in spec.schedules]
        return {"schedule": crons[0] if len(crons) == 1 else crons}
    tables = [{SCHEDULE[name]: value for name, value in _said(entry)} for entry in spec.schedules]
    return {"schedules": tables} if tables else {}


def _said(entry: ScheduleSpec) -> Iterator[tuple[str, Any]]:
    unsaid = ScheduleSpec(cron="")
    for name in SCHEDULE:
        if (value := getattr(entry, name)) != getattr(unsaid, name):
            yield name, value


def _said_of(poll: PollSpec) -> Iterator[tuple[str, Any]]:
    """In the order of the definition."""
    unsaid = PollSpec(name="")
    for field in fields(poll):
        if (value := getattr(poll, field.name)) != getattr(unsaid, field.name):
            yield field.name, value


def _written(value: Any, unsaid: Any) -> Any:
    """As a settings file writes it; of a table, what differs from `unsaid`."""
    if hasattr(value, "__dataclass_fields__"):
        pairs = ((field.name, getattr(value, field.name), getattr(unsaid, field.name)) for field in fields(value))
        return {name: _written(inner, None) for name, inner, default in pairs if inner != default}
    if isinstance(value, tuple):
        return [_written(item, None) for item in value]
    return float(value) if isinstance(value, Decimal) else value


def _settings_files(spec: AgentSpec, settings: dict[str, Any]) -> dict[str, bytes]:
    """SKILL.md and config.toml; settings that TOML cannot hold stand in the front matter, as YAML."""
    about: dict[str, Any] = {"description": spec.description} if spec.description else {}
    if _has_null(settings):
        return {"SKILL.md": _skill(about | {"metadata": settings}, spec.instructions)}
    written = {"config.toml": _toml(settings)}
    if spec.kind == "model" or about or spec.instructions:
        written["SKILL.md"] = _skill(about, spec.instructions)
    return written


def _skill(about: dict[str, Any], instructions: str) -> bytes:
    looks_like_one = instructions.lstrip("\ufeff").lstrip().startswith("---") or instructions.startswith("\ufeff")
    if not about and not looks_like_one:
        return instructions.encode()
    return f"---\n{_yaml(about) if about else ''}---\n{instructions}".encode()


def _yaml(about: dict[str, Any]) -> str:
    """Letters as they are, unless it holds one of the few that PyYAML writes so and reads otherwise."""
    written = yaml.safe_dump(about, allow_unicode=True, sort_keys=False, width=WIDE)
    if yaml.safe_load(written) == about:
        return written
    return yaml.safe_dump(about, sort_keys=False, width=WIDE)


def _has_null(value: Any) -> bool:
    return value is None or any(map(_has_null, _inner(value)))


def _inner(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield from value.values() if isinstance(value, dict) else value


def _toml(settings: dict[str, Any]) -> bytes:
    return tomli_w.dumps(settings).encode()
