"""Reads project folders, in the seed's three generations and with our own keys, into ProjectSpec.

Reading never stops at the first fault: what a folder has wrong is told at once, each with file and line.
Pure but for `read_folder` and `left_behind`, and free of Django: the command line and the server ask the same words.
Source of the formats: spec/action-llama.md 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, time
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar, get_args

from agents.manifest import cautions, checks, filters, images, keys, outgoing, shared
from agents.manifest.folder import left_behind, read_folder
from agents.manifest.poll_table import PollTable
from agents.manifest.sources import SourceTable
from agents.manifest.written import (
    Agent,
    Fault,
    Faulty,
    Project,
    agent_folders,
    attempt,
    in_order,
    read_agent,
    read_project,
)
from agents.spec import (
    AgentSpec,
    Approvals,
    Attempts,
    Breaker,
    Coalescing,
    Limits,
    ModelSpec,
    Network,
    PollSpec,
    ProjectSpec,
    ScheduleSpec,
    SignatureScheme,
    SourceSpec,
    ToolName,
    WebhookSpec,
)

__all__ = ["Fault", "Faulty", "Reading", "left_behind", "parse", "read_folder"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class Reading:
    project: ProjectSpec
    warnings: tuple[Fault, ...]


def parse(files: Mapping[str, bytes], *, project: str, network: str | None = None) -> Reading:
    """The project that `files` describe. `network` is for imported agents whose folder says nothing about theirs.

    Raises Faulty with every fault there is.
    """
    faults = [*checks.argument_faults(project, network), *checks.path_faults(files)]
    whole = attempt(partial(read_project, files), faults)
    folders = agent_folders(files)
    read = [attempt(partial(read_agent, folder, inner), faults) for folder, inner in folders.items()]
    agents = sorted((agent for agent in read if agent is not None), key=attrgetter("name"))
    if whole is None:
        raise Faulty(faults)
    faults += [*checks.project_faults(whole), *checks.folder_faults(folders), *shared.faults(files)]
    faults += outgoing.faults(whole, [agent.name for agent in agents])
    for agent in agents:
        faults += checks.agent_faults(agent, whole, network=network)
    if faults:
        raise Faulty(faults)
    warnings = [*cautions.project_warnings(whole, files), *outgoing.warnings(whole), *images.warnings(files)]
    for agent in agents:
        warnings += cautions.agent_warnings(agent, whole, network=network)
    given = {agent.name: images.with_project(shared.files_for(agent.files, files), files) for agent in agents}
    return Reading(_project_spec(whole, agents, given, name=project, network=network), in_order(warnings))


def _project_spec(
    project: Project,
    agents: Iterable[Agent],
    given: Mapping[str, dict[str, bytes]],
    *,
    name: str,
    network: str | None,
) -> ProjectSpec:
    return ProjectSpec(
        name=name,
        scale=project.table.scale,
        sources=tuple(_source(name, source) for name, source in sorted(project.table.webhooks.items())),
        outgoing=outgoing.specs(project),
        agents=tuple(_agent_spec(agent, project, given[agent.name], network=network) for agent in agents),
        files=dict(given),
    )


def _source(name: str, table: SourceTable) -> SourceSpec:
    return SourceSpec(
        name=name,
        provider=table.type,
        credential=table.credential,
        allow_unsigned=table.allow_unsigned,
        own=tuple(table.own),
        rate=table.rate,
        sender_rate=table.sender_rate,
        identical=table.identical,
        duplicate_seconds=table.duplicate_seconds,
        scheme=SignatureScheme(**table.scheme.model_dump()) if table.scheme else None,
    )


def _agent_spec(agent: Agent, project: Project, files: Mapping[str, bytes], *, network: str | None) -> AgentSpec:
    table = agent.table
    return AgentSpec(
        name=agent.name,
        description=_first(table.description, agent.about.description, otherwise=""),
        kind=agent.kind,
        instructions=agent.instructions,
        models=_models(agent, project),
        schedules=_schedules(table),
        timezone=table.timezone,
        webhooks=tuple(_webhook(entry, project) for entry in table.webhooks),
        polls=tuple(map(_poll, table.polls)),
        params=_plain(table.params),
        credentials=tuple(map(keys.trimmed, table.credentials)),
        scale=agent.scale(project),
        priority=table.priority,
        limits=_limits(agent, project),
        image=_first(table.image, project.table.local.image, otherwise=None),
        build_args=_build_args(project.table) | _build_args(table),
        memory=_first(table.memory, project.table.local.memory, otherwise=AgentSpec.memory),
        cpus=_first(table.cpus, project.table.local.cpus, otherwise=AgentSpec.cpus),
        sandbox=table.sandbox,
        network=_network(agent, project, network=network),
        tools=None if table.tools is None else tuple(name for name in get_args(ToolName) if name in table.tools),
        task_enabled=table.task.enabled,
        max_work_queue=_first(table.max_work_queue, project.table.queue_size, otherwise=AgentSpec.max_work_queue),
        retry=table.retry,
        attempts=Attempts(**table.attempts.model_dump(exclude_none=True)),
        breaker=Breaker(**table.breaker.model_dump(exclude_none=True)),
        coalesce=Coalescing(**table.coalesce.model_dump()),
        overlap=table.overlap,
        max_reruns=_first(table.max_reruns, project.table.max_reruns, otherwise=AgentSpec.max_reruns),
        lock_seconds=_lock_seconds(table, project.table),
        one_lock=_first(table.locks.one_at_a_time, project.table.locks.one_at_a_time, otherwise=AgentSpec.one_lock),
        max_call_depth=_first(table.max_call_depth, project.table.max_call_depth, otherwise=AgentSpec.max_call_depth),
        trigger_wait_seconds=_first(
            table.trigger_wait, project.table.trigger_wait, otherwise=AgentSpec.trigger_wait_seconds
        ),
        approvals=Approvals(**table.approvals.model_dump(exclude_none=True)),
        command=agent.command,
        preflight=tuple(_plain(step.model_dump()) for step in table.preflight),
        hooks_pre=tuple(table.hooks.pre),
        hooks_post=tuple(table.hooks.post),
        skills=shared.skills(files),
    )


def _schedules(table: keys.AgentTable) -> tuple[ScheduleSpec, ...]:
    crons = [table.schedule] if isinstance(table.schedule, str) else table.schedule
    plain = [ScheduleSpec(cron=cron) for cron in crons if cron]
    full = (
        ScheduleSpec(
            cron=entry.cron,
            timezone=entry.timezone,
            jitter_seconds=entry.jitter,
            missed=entry.missed,
            missed_seconds=_first(entry.missed_within, otherwise=ScheduleSpec.missed_seconds),
        )
        for entry in table.schedules
    )
    return (*plain, *full)


def _poll(entry: PollTable) -> PollSpec:
    said = entry.model_dump()
    return PollSpec(every_seconds=said.pop("every"), **said)


def _build_args(table: keys.AgentTable | keys.ProjectTable) -> dict[str, str]:
    return table.build_args | table.build.args


def _lock_seconds(own: keys.AgentTable, project: keys.ProjectTable) -> int:
    """`resourceLockTimeout` and, before it, `[gateway] lockTimeout` are the seed's words for a whole project."""
    return _first(
        own.locks.seconds,
        project.locks.seconds,
        project.lock_seconds,
        project.gateway.lock_timeout,
        otherwise=AgentSpec.lock_seconds,
    )


def _models(agent: Agent, project: Project) -> tuple[ModelSpec, ...]:
    """Its own model, else those it names, else the project's one."""
    own = agent.table.model or (None if agent.table.models else project.table.model)
    chosen = [own] if own else [project.table.models[name] for name in agent.table.models]
    return tuple(ModelSpec(**model.model_dump()) for model in chosen)


def _webhook(entry: Mapping[str, Any], project: Project) -> WebhookSpec:
    source = entry["source"]
    return WebhookSpec(source=source, filters=filters.effective(entry, project.table.webhooks[source].type))


def _limits(agent: Agent, project: Project) -> Limits:
    """`timeout` is the seed's word for `limits.wall_seconds`, `[local] timeout` its default for a whole project."""
    seconds = _first(agent.table.timeout, project.table.local.timeout, otherwise=Limits().wall_seconds)
    return Limits(**{"wall_seconds": seconds} | agent.table.limits.model_dump(exclude_none=True))


def _network(agent: Agent, project: Project, *, network: str | None) -> Network:
    """The folder's word, else the caller's."""
    said = agent.network(project) or network
    return next(word for word in get_args(Network) if word == said)


def _first(*values: Value | None, otherwise: Value) -> Value:
    return next((value for value in values if value is not None), otherwise)


def _plain(value: Any) -> Any:
    """As JSON holds it: dates and times become ISO text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, date | time) else value
