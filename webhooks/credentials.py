"""Who names which credential: agents in their definitions, and sources for the secrets that sign their webhooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agents import credentials
from agents.credential_types import OUTGOING
from agents.credentials import CredentialError, Reference
from agents.credentials.references import Standing, kept, parsed, standing
from agents.manifest import Fault
from agents.models import Agent, Credential, Workspace
from agents.spec import AgentSpec, PollSpec, ProjectSpec, SourceSpec
from runs.models import Outgoing
from webhooks import outgoing
from webhooks.models import Source
from webhooks.polls import addresses
from webhooks.providers import PROVIDERS

SIGNING = frozenset({OUTGOING, *filter(None, (provider.secret_credential for provider in PROVIDERS.values()))})


@dataclass(frozen=True, kw_only=True)
class Listed:
    standing: Standing
    used_by: list[str]


def named_by(project: ProjectSpec) -> Mapping[Reference, list[str]]:
    """What a project's agents and sources refer to, and who does, as `users`."""
    named = [(f"agent {spec.name}", dict.fromkeys(parsed(spec.credentials))) for spec in project.agents]
    named += [(f"poll {poll.name} of {spec.name}", polled_with(poll)) for spec in project.agents for poll in spec.polls]
    named += [(f"source {spec.name}", dict.fromkeys(of_source(spec))) for spec in project.sources]
    named += [(f"outgoing webhook {spec.name}", dict.fromkeys(outgoing.reference(spec))) for spec in project.outgoing]
    found: dict[Reference, list[str]] = defaultdict(list)
    for user, references in named:
        for reference in references:
            found[reference].append(user)
    return found


def polled_with(poll: PollSpec) -> dict[Reference, Any]:
    return dict.fromkeys(addresses.named_in(poll.headers))


def of_source(source: Source | SourceSpec) -> list[Reference]:
    provider = PROVIDERS.get(source.provider)
    return [Reference(provider.secret_credential, source.credential)] if provider and provider.secret_credential else []


def users(workspace: Workspace) -> Mapping[Reference, list[str]]:
    """Who names it, in words: `agent dev`, `source github`."""
    found: dict[Reference, list[str]] = defaultdict(list)
    agents = Agent.objects.filter(workspace=workspace, active=True).select_related("version").order_by("name")
    for agent in agents:
        spec: AgentSpec = agent.shown_spec
        for reference in dict.fromkeys(parsed(spec.credentials)):
            found[reference].append(f"agent {agent.name}")
        for poll in spec.polls:
            for reference in polled_with(poll):
                found[reference].append(f"poll {poll.name} of {agent.name}")
    for source in Source.objects.filter(workspace=workspace, active=True).order_by("name"):
        for reference in of_source(source):
            found[reference].append(f"source {source.name}")
    for row in Outgoing.objects.filter(workspace=workspace, active=True).order_by("name"):
        for reference in outgoing.reference(row):
            found[reference].append(f"outgoing webhook {row.name}")
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
    for reference, who in sorted(named_by(project).items()):
        try:
            if credentials.type_of(reference.type) is None:
                told.append(f"type {reference.type} is not known: its files reach the sandbox, no variables")
            if not credentials.is_host_only(reference.type) or reference.type in SIGNING:
                told += _unusable(reference, who, workspace)
        except CredentialError as error:
            told = [str(error)]
            break
    return [Fault("credentials", None, sentence) for sentence in told]


def _unusable(reference: Reference, who: Iterable[str], workspace: Workspace) -> list[str]:
    known = standing(reference, workspace.name)
    mend = "" if known.word == "faulty" else f": add it with `agentfleet creds add {reference}`"
    return [f"{reference}, for {', '.join(who)}: {known.fault}{mend}"] if known.fault else []
