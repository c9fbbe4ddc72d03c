"""`apply`, on the server: make the rows match a project's bundle, in one transaction, and say what changed.

It stands in the topmost application because it writes what agents, triggers and sources are in one go.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction
from django.db.models import Q

from agents import clock
from agents.credentials import references
from agents.manifest import export
from agents.models import Agent, AgentFile, AgentVersion, Priority, Schedule, Workspace
from agents.spec import AgentSpec, ProjectSpec, SourceSpec
from runs import alerts, bells, ticks
from webhooks import credentials, outgoing
from webhooks.models import Source, Trigger
from webhooks.polls import rows as polls


class NameTaken(Exception):
    """An agent or source of that name is another project's or was made by hand; the message names a way out."""


@dataclass
class Changes:
    """What `apply` did: names, in the order of the folder."""

    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    deactivated: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    outgoing: list[str] = field(default_factory=list)


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
    changes.outgoing = outgoing.apply(workspace, project)
    references.refer(workspace, credentials.named_by(project))
    return changes


def refuse_taken_names(workspace: Workspace, project: ProjectSpec) -> None:
    taken = [*taken_agents(workspace, project), *taken_sources(workspace, project)]
    if taken := [*taken, *outgoing.taken(workspace, project)]:
        raise NameTaken("; ".join(taken))


def taken_agents(workspace: Workspace, project: ProjectSpec) -> Iterator[str]:
    rows = Agent.objects.filter(workspace=workspace, name__in=[spec.name for spec in project.agents])
    taken = rows.exclude(project=project.name).order_by("project", "name")
    for _, group in itertools.groupby(taken, key=lambda row: row.project):
        first, *others = group
        names = ", ".join(row.name for row in (first, *others))
        verb = f"agents {names} belong" if others else f"agent {names} belongs"
        renamed = f"rename one of the two, or, if only the folder has a new name, apply with --project {first.project}"
        yield f"{verb} to {owner(first)}: {renamed if first.project else 'rename yours'}"


def taken_sources(workspace: Workspace, project: ProjectSpec) -> Iterator[str]:
    """What another project says in the same words is shared with it, and what it has dropped is to be had."""
    wanted = {spec.name: settings_of(spec) for spec in project.sources}
    for row in Source.objects.filter(workspace=workspace, name__in=wanted).exclude(project=project.name):
        if not row.project:
            yield f"source {row.name} belongs to {owner(row)}: rename yours, or delete that one"
        elif row.active and differs(row, wanted[row.name]):
            differing = ", ".join(differing_in(row, wanted[row.name]))
            ways_out = "write both alike and they are shared, or rename one of the two"
            yield f"source {row.name} belongs to {owner(row)}, where its {differing} is another: {ways_out}"


def differing_in(row: Source, wanted: Mapping[str, Any]) -> Iterator[str]:
    """The keys of a definition that say something else than the row."""
    for name, value in wanted.items():
        has = getattr(row, name)
        if name == "options":
            yield from (key for key in sorted(has.keys() | value.keys()) if has.get(key) != value.get(key))
        elif has != value:
            yield name


def owner(row: Agent | Source) -> str:
    return f"project {row.project}" if row.project else "the admin, where it was made"


def apply_source(workspace: Workspace, project: str, spec: SourceSpec, changes: Changes) -> Source:
    wanted = {**settings_of(spec), "project": project}
    source, new = Source.objects.get_or_create(workspace=workspace, name=spec.name, defaults=wanted)
    shared = source.active and source.project != project
    if new or (not shared and differs(source, {**wanted, "active": True})):
        Source.objects.filter(pk=source.pk).update(**wanted, active=True)
        changes.sources.append(spec.name)
    return source


def settings_of(spec: SourceSpec) -> dict[str, object]:
    """The columns of a source that its definition fills."""
    said = {"provider": spec.provider, "credential": spec.credential, "allow_unsigned": spec.allow_unsigned}
    return {**said, "options": spec.options}


def apply_agent(workspace: Workspace, project: ProjectSpec, spec: AgentSpec, changes: Changes) -> Agent:
    wanted = {
        "kind": spec.kind,
        "description": spec.description[:500],
        "scale": spec.scale,
        "priority": Priority.named(spec.priority),
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
    apply_schedules(agent, spec, back=not agent.active)
    polls.apply(agent, spec, back=not agent.active)
    Agent.objects.filter(pk=agent.pk).update(**wanted, version=version)
    agent.refresh_from_db()
    ticks.mirror(agent)
    bells.ring_agent(agent.pk)  # a larger scale may let the next in line begin
    (changes.created if new else changes.updated).append(spec.name)
    return agent


def apply_schedules(agent: Agent, spec: AgentSpec, *, back: bool) -> None:
    """One that is there already keeps what it has fired; a new one counts from now, as all do of an agent come back."""
    now = clock.now()
    fresh = {"fired_at": now, "since": now}
    known = []
    for index, wanted in enumerate(spec.schedules):
        row, _ = Schedule.objects.get_or_create(
            agent=agent,
            cron=wanted.cron,
            timezone=wanted.timezone or spec.timezone,
            defaults={**fresh, "anchor": now.replace(microsecond=0)},
        )
        said = {"jitter_seconds": wanted.jitter_seconds, "missed": wanted.missed}
        said |= {"index": index, "missed_seconds": wanted.missed_seconds}
        Schedule.objects.filter(pk=row.pk).update(**said, **(fresh if back else {}))
        known.append(row.pk)
    if agent.schedules.exclude(pk__in=known).delete()[0]:
        alerts.end(alerts.SCHEDULE_MISSED, str(agent.pk))


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
        alerts.end(alerts.SCHEDULE_MISSED, str(agent.pk))
        polls.settle_alert(agent.pk)
        changes.deactivated.append(agent.name)
    for source in Source.objects.filter(workspace=workspace, project=project.name, active=True):
        if source.name not in {spec.name for spec in project.sources}:
            give_up(source)


def give_up(source: Source) -> None:
    """The project has dropped it: it is another's that listens to it, or nobody's."""
    listening = Trigger.objects.filter(source=source, agent__active=True)
    others = listening.exclude(agent__project__in=(source.project, "")).order_by("agent__project")
    heir = others.values_list("agent__project", flat=True).first()
    Source.objects.filter(pk=source.pk).update(**({"project": heir} if heir else {"active": False}))


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
        raise NoProject(f"there is no project {name}{known(workspace)}" if name else "no agent was made in the admin")
    return ProjectSpec(
        name=name,
        scale=workspace.scale,
        sources=sources,
        outgoing=outgoing.stored(workspace, name),
        agents=tuple(specs.values()),
        files={row.name: files_of(row) for row in rows},
    )


def known(workspace: Workspace) -> str:
    """The names of the projects there are, for a sentence."""
    agents = Agent.objects.filter(workspace=workspace, active=True).exclude(project="")
    names = ", ".join(agents.order_by("project").values_list("project", flat=True).distinct())
    return f"; there are: {names}" if names else ""


def needed_sources(workspace: Workspace, project: str, specs: Iterable[AgentSpec]) -> tuple[SourceSpec, ...]:
    """The project's own, and whatever else its agents listen to: without them they could not be applied."""
    named = {entry.source for spec in specs for entry in spec.webhooks}
    rows = Source.objects.filter(workspace=workspace).filter(Q(project=project, active=True) | Q(name__in=named))
    return tuple(map(spec_of, rows.order_by("name")))


def spec_of(row: Source) -> SourceSpec:
    """The definition that `settings_of` made the row from. Raises pydantic's ValidationError."""
    said = {name: getattr(row, name) for name in ("name", "provider", "credential", "allow_unsigned")}
    return SourceSpec(**said, **row.options)


def files_of(agent: Agent) -> dict[str, bytes]:
    files = AgentFile.objects.filter(version=agent.version_id).order_by("path")
    return {path: bytes(content) for path, content in files.values_list("path", "content")}


def differs(row: Agent | Source, wanted: Mapping[str, object]) -> bool:
    return any(getattr(row, name) != value for name, value in wanted.items())
