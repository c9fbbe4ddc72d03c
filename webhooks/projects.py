"""`apply`, on the server: make the rows match a project's bundle, in one transaction, and say what changed.

It stands in the topmost application because it writes what agents, triggers and sources are in one go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from django.db import transaction
from django.db.models import Q

from agents import clock
from agents.credentials import references
from agents.manifest import export
from agents.models import Agent, AgentFile, AgentVersion, Priority, Workspace
from agents.spec import AgentSpec, ProjectSpec, SourceSpec
from runs import bells, ticks
from webhooks import credentials
from webhooks.models import Source, Trigger


class NameTaken(Exception):
    """An agent or source of that name belongs to another project or was made by hand; the message names all."""


@dataclass
class Changes:
    """What `apply` did: names, in the order of the folder."""

    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    deactivated: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


@transaction.atomic
def apply(workspace: Workspace, project: ProjectSpec) -> Changes:
    """Idempotent. Agents missing from the folder are deactivated, never deleted; other projects' are not touched.

    A project's `scale` caps its workspace: the last project that names one decides.

    Raises NameTaken, and then nothing is applied.
    """
    Workspace.objects.select_for_update(no_key=True).get(pk=workspace.pk)
    refuse_taken_names(workspace, project)
    if project.scale is not None:
        Workspace.objects.filter(pk=workspace.pk).update(scale=project.scale)
    changes = Changes()
    sources = {spec.name: apply_source(workspace, project.name, spec, changes) for spec in project.sources}
    for spec in project.agents:
        agent = apply_agent(workspace, project, spec, changes)
        apply_triggers(agent, spec, sources)
    deactivate_missing(workspace, project, changes)
    references.refer(workspace, credentials.named_by(project))
    return changes


def refuse_taken_names(workspace: Workspace, project: ProjectSpec) -> None:
    agents = Agent.objects.filter(workspace=workspace, name__in=[spec.name for spec in project.agents])
    sources = Source.objects.filter(workspace=workspace, name__in=[spec.name for spec in project.sources])
    taken = [
        f"{kind} {row.name} belongs to {f'project {row.project}' if row.project else 'the admin: it was made there'}"
        for kind, rows in (("agent", agents), ("source", sources))
        for row in rows.exclude(project=project.name)
    ]
    if taken:
        raise NameTaken("; ".join(taken))


def apply_source(workspace: Workspace, project: str, spec: SourceSpec, changes: Changes) -> Source:
    wanted = {"provider": spec.provider, "credential": spec.credential, "allow_unsigned": spec.allow_unsigned}
    source, new = Source.objects.get_or_create(
        workspace=workspace, name=spec.name, defaults={**wanted, "project": project}
    )
    if new or differs(source, {**wanted, "active": True}):
        Source.objects.filter(pk=source.pk).update(**wanted, active=True)
        changes.sources.append(spec.name)
    return source


def apply_agent(workspace: Workspace, project: ProjectSpec, spec: AgentSpec, changes: Changes) -> Agent:
    wanted = {
        "kind": spec.kind,
        "description": spec.description[:500],
        "scale": spec.scale,
        "priority": Priority.named(spec.priority),
        "schedule": spec.schedule,
        "timezone": spec.timezone,
        "task_enabled": spec.task_enabled,
        "queue_size": spec.max_work_queue,
        "claim_key": spec.coalesce.key,
        "coalesce": spec.coalesce.mode,
        "breaker_failures": spec.breaker.failures,
        "active": True,
    }
    agent, new = Agent.objects.get_or_create(
        workspace=workspace, name=spec.name, defaults={**wanted, "project": project.name}
    )
    version = store_version(agent, spec, project.files.get(spec.name, {}))
    if not new and agent.version_id == version.pk and not differs(agent, wanted):
        changes.unchanged.append(spec.name)
        return agent
    retimed = new or (agent.schedule, agent.timezone, agent.active) != (spec.schedule, spec.timezone, True)
    # A changed schedule counts from now: what the old one missed is not the new one's.
    now = clock.now()
    fired = {"schedule_fired_at": now, "schedule_since": now} if retimed else {}
    Agent.objects.filter(pk=agent.pk).update(**wanted, version=version, **fired)
    agent.refresh_from_db()
    ticks.mirror(agent)
    bells.ring_agent(agent.pk)  # a larger scale may let the next in line begin
    (changes.created if new else changes.updated).append(spec.name)
    return agent


def store_version(agent: Agent, spec: AgentSpec, files: Mapping[str, bytes]) -> AgentVersion:
    """The version with exactly this definition and these files; runs pin it."""
    digest = digest_of(spec, files)
    version, new = AgentVersion.objects.get_or_create(agent=agent, digest=digest, defaults={"spec": spec.dump()})
    if new:
        AgentFile.objects.bulk_create(
            AgentFile(version=version, path=path, content=content) for path, content in files.items()
        )
    return version


def digest_of(spec: AgentSpec, files: Mapping[str, bytes]) -> str:
    """Of what the definition says and of its other files: a comment in a settings file makes no new version."""
    whole = hashlib.sha256(json.dumps(spec.dump(), sort_keys=True).encode())
    for path in sorted(files.keys() - export.described(files)):
        whole.update(f"\0{path}\0{hashlib.sha256(files[path]).hexdigest()}".encode())
    return whole.hexdigest()


def apply_triggers(agent: Agent, spec: AgentSpec, sources: Mapping[str, Source]) -> None:
    wanted = [(sources[entry.source].pk, entry.filters) for entry in spec.webhooks]
    known = list(agent.webhook_triggers.order_by("index").values_list("source_id", "filters"))
    if known == wanted:
        return
    agent.webhook_triggers.all().delete()
    Trigger.objects.bulk_create(
        Trigger(agent=agent, source_id=source_id, index=index, filters=filters)
        for index, (source_id, filters) in enumerate(wanted)
    )


def deactivate_missing(workspace: Workspace, project: ProjectSpec, changes: Changes) -> None:
    mine = Agent.objects.filter(workspace=workspace, project=project.name, active=True)
    for agent in mine.exclude(name__in=[spec.name for spec in project.agents]):
        Agent.objects.filter(pk=agent.pk).update(active=False)
        agent.refresh_from_db()
        ticks.mirror(agent)
        changes.deactivated.append(agent.name)
    gone = Source.objects.filter(workspace=workspace, project=project.name)
    gone.exclude(name__in=[spec.name for spec in project.sources]).update(active=False)


class NoProject(Exception):
    """There is no agent and no source of a project of that name."""


def stored(workspace: Workspace, name: str) -> ProjectSpec:
    """The project as it is now: its active agents and sources. The name "" is for what was made in the admin.

    Raises NoProject, and pydantic's ValidationError for a definition that can no longer be read.
    """
    agents = Agent.objects.filter(workspace=workspace, project=name, active=True, version__isnull=False)
    rows = list(agents.select_related("version").order_by("name"))
    specs = {row.name: row.spec for row in rows}
    sources = needed_sources(workspace, name, specs.values())
    if not rows and not sources:
        raise NoProject(f"there is no project {name}" if name else "no agent was made in the admin")
    return ProjectSpec(
        name=name,
        scale=workspace.scale,
        sources=sources,
        agents=tuple(specs.values()),
        files={row.name: files_of(row) for row in rows},
    )


def needed_sources(workspace: Workspace, project: str, specs: Iterable[AgentSpec]) -> tuple[SourceSpec, ...]:
    """The project's own, and whatever else its agents listen to: without them they could not be applied."""
    named = {entry.source for spec in specs for entry in spec.webhooks}
    rows = Source.objects.filter(workspace=workspace).filter(Q(project=project, active=True) | Q(name__in=named))
    return tuple(
        SourceSpec(name=row.name, provider=row.provider, credential=row.credential, allow_unsigned=row.allow_unsigned)
        for row in rows.order_by("name")
    )


def files_of(agent: Agent) -> dict[str, bytes]:
    files = AgentFile.objects.filter(version=agent.version_id).order_by("path")
    return {path: bytes(content) for path, content in files.values_list("path", "content")}


def differs(row: Agent | Source, wanted: Mapping[str, object]) -> bool:
    return any(getattr(row, name) != value for name, value in wanted.items())
