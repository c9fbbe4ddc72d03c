"""Who names which credential: agents in their definitions, and sources for the secrets that sign their webhooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agents import credentials
from agents.credentials import CredentialError, Reference
from agents.credentials.references import Standing, kept, parsed, standing
from agents.manifest import Fault
from agents.models import Agent, Credential, Workspace
from agents.spec import AgentSpec, ProjectSpec, SourceSpec
from webhooks.models import Source
from webhooks.providers import PROVIDERS

SIGNING = frozenset(provider.secret_credential for provider in PROVIDERS.values())


@dataclass(frozen=True, kw_only=True)
class Listed:
    standing: Standing
    used_by: list[str]


def named_by(project: ProjectSpec) -> list[Reference]:
    """What a project's agents and sources refer to."""
    agents = [reference for spec in project.agents for reference in parsed(spec.credentials)]
    return [*agents, *(reference for spec in project.sources for reference in of_source(spec))]


def of_source(source: Source | SourceSpec) -> list[Reference]:
    provider = PROVIDERS.get(source.provider)
    return [Reference(provider.secret_credential, source.credential)] if provider else []


def users(workspace: Workspace) -> Mapping[Reference, list[str]]:
    """Who names it, in words: `agent dev`, `source github`."""
    found: dict[Reference, list[str]] = defaultdict(list)
    agents = Agent.objects.filter(workspace=workspace, active=True).select_related("version").order_by("name")
    for agent in agents:
        spec: AgentSpec = agent.shown_spec
        for reference in dict.fromkeys(parsed(spec.credentials)):
            found[reference].append(f"agent {agent.name}")
    for source in Source.objects.filter(workspace=workspace, active=True).order_by("name"):
        for reference in of_source(source):
            found[reference].append(f"source {source.name}")
    return found


def listed(workspace: Workspace) -> list[Listed]:
    """All that is kept, named or was once referred to, and where it comes from. Never a value."""
    named = users(workspace)
    rows = Credential.objects.filter(workspace=workspace)
    known = kept(workspace.name) | set(named) | {Reference(row.type, row.instance) for row in rows}
    return [_listed(reference, workspace, named) for reference in sorted(known)]


def _listed(reference: Reference, workspace: Workspace, named: Mapping[Reference, Iterable[str]]) -> Listed:
    return Listed(standing=standing(reference, workspace.name), used_by=list(named.get(reference, ())))


def warnings(workspace: Workspace, project: ProjectSpec) -> list[Fault]:
    """A sentence for everything that a project names and nobody knows, or nobody could use now."""
    told = []
    for reference in sorted(set(named_by(project))):
        try:
            if credentials.type_of(reference.type) is None:
                told.append(f"type {reference.type} is not known: its files reach the sandbox, no variables")
            if not credentials.is_host_only(reference.type) or reference.type in SIGNING:
                told += _unusable(reference, workspace)
        except CredentialError as error:
            told = [str(error)]
            break
    return [Fault("credentials", None, sentence) for sentence in told]


def _unusable(reference: Reference, workspace: Workspace) -> list[str]:
    known = standing(reference, workspace.name)
    mend = "" if known.word == "faulty" else f": add it with `agentfleet creds add {reference}`"
    return [f"{reference}: {known.fault}{mend}"] if known.fault else []
