"""`[outgoing.<name>]` of a project: what is wrong with it, what it means, and how it is written."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from agents.manifest import keys
from agents.manifest.written import Fault, Project
from agents.spec import OutgoingSpec, ProjectSpec

_instance = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def faults(project: Project, agents: Collection[str]) -> Iterator[Fault]:
    """`agents`: the names of the project's own, which are those that can be told of."""
    document = project.document
    for name, table in project.table.outgoing.items():
        place = ("outgoing", name)
        if not (table.url or table.credential):
            message = f"outgoing.{name} has no address: say url, or a credential of type outgoing_webhook with a url"
            yield document.fault(place, message)
        if table.credential and not _instance.fullmatch(table.credential):
            message = f"{table.credential!r} names no credential: write its instance, as in outgoing_webhook:<instance>"
            yield document.fault((*place, "credential"), message)
        for index, agent in enumerate(table.agents):
            if agent not in agents:
                message = f"there is no agent {agent}{keys.question(agent, agents)}"
                yield document.fault((*place, "agents", index), message)


def warnings(project: Project) -> Iterator[Fault]:
    for name, table in project.table.outgoing.items():
        if table.format == "standard" and not table.credential:
            message = f"messages to {name} are not signed: nobody can tell whether they are ours without a credential"
            yield project.document.fault(("outgoing", name), message)


def specs(project: Project) -> tuple[OutgoingSpec, ...]:
    return tuple(
        OutgoingSpec(
            name=name,
            url=table.url,
            credential=table.credential,
            states=tuple(table.states),
            agents=tuple(table.agents),
            format=table.format,
        )
        for name, table in sorted(project.table.outgoing.items())
    )


def written(project: ProjectSpec) -> dict[str, Any]:
    """As tables of a settings file."""
    return {spec.name: _written(spec) for spec in sorted(project.outgoing, key=lambda spec: spec.name)}


def _written(spec: OutgoingSpec) -> dict[str, Any]:
    unsaid = OutgoingSpec(name=spec.name)
    said = {"url": spec.url, "credential": spec.credential, "states": spec.states, "agents": spec.agents}
    said["format"] = spec.format
    differing = {key: value for key, value in said.items() if value != getattr(unsaid, key)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in differing.items()}
