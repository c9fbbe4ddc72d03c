"""Outgoing webhooks of a project's folder as rows. Like agents and sources they know the project they come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agents.credential_types import OUTGOING
from agents.credentials import Reference
from agents.models import Workspace
from agents.spec import OutgoingSpec, ProjectSpec
from runs import outgoing
from runs.models import Outgoing


def taken(workspace: Workspace, project: ProjectSpec) -> Iterator[str]:
    names = [spec.name for spec in project.outgoing]
    others = Outgoing.objects.filter(workspace=workspace, name__in=names, active=True).exclude(project=project.name)
    for row in others.order_by("name"):
        yield f"outgoing webhook {row.name} belongs to project {row.project}: rename one of the two"


def apply(workspace: Workspace, project: ProjectSpec) -> list[str]:
    """The names of those that were made or changed. One that its receiver had switched off is on again."""
    changed = [spec.name for spec in project.outgoing if _apply(workspace, project.name, spec)]
    gone = Outgoing.objects.filter(workspace=workspace, project=project.name, active=True)
    for row in gone.exclude(name__in=[spec.name for spec in project.outgoing]):
        outgoing.switch_off(row, "its project has dropped it")
        outgoing.settle(row)
    return changed


def _apply(workspace: Workspace, project: str, spec: OutgoingSpec) -> bool:
    wanted = {**_columns(spec), "project": project, "active": True}
    row, new = Outgoing.objects.get_or_create(workspace=workspace, name=spec.name, defaults=wanted)
    if new or all(getattr(row, name) == value for name, value in wanted.items()):
        return new
    Outgoing.objects.filter(pk=row.pk).update(**wanted)
    outgoing.settle(row)
    return True


def _columns(spec: OutgoingSpec) -> dict[str, Any]:
    said = {"url": spec.url, "credential": spec.credential, "format": spec.format}
    return {**said, "states": list(spec.states), "agents": list(spec.agents)}


def stored(workspace: Workspace, project: str) -> tuple[OutgoingSpec, ...]:
    rows = Outgoing.objects.filter(workspace=workspace, project=project, active=True).order_by("name")
    return tuple(map(_spec, rows))


def _spec(row: Outgoing) -> OutgoingSpec:
    said: dict[str, Any] = {name: getattr(row, name) for name in ("name", "url", "credential", "format")}
    return OutgoingSpec(**said, states=tuple(row.states), agents=tuple(row.agents))


def reference(named: Outgoing | OutgoingSpec) -> list[Reference]:
    return [Reference(OUTGOING, named.credential)] if named.credential else []
