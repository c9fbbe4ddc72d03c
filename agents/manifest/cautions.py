"""What is worth a warning in a project that can be applied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agents.credential_types import BUILT_IN
from agents.manifest import filters, keys, preflight
from agents.manifest.written import Agent, Fault, Project, agent_folders, defining

_TRAPPED = frozenset({"schedule", "scale", "timeout", "maxWorkQueueSize"})


def project_warnings(project: Project, files: Iterable[str]) -> Iterator[Fault]:
    document = project.document
    for key in document.data.keys() & keys.LATER_IN_PROJECT:
        yield document.fault((key,), _not_yet(key))
    for key in document.data.get("local", {}).keys() & keys.LATER_IN_LOCAL:
        yield document.fault(("local", key), _not_yet(f"local.{key}"))
    for key in document.data.get("gateway", {}).keys() & keys.LATER_IN_GATEWAY:
        yield document.fault(("gateway", key), _not_yet(f"gateway.{key}"))
    for name, source in project.table.webhooks.items():
        if source.type == "test" and not source.allow_unsigned:
            message = "nobody signs requests of type test: without allow_unsigned = true all of them are refused"
            yield document.fault(("webhooks", name), message)
        if source.allow_unsigned:
            message = f"anybody who can reach this server may start the agents that listen to {name}: nothing is signed"
            yield document.fault(("webhooks", name, "allowUnsigned"), message)
    for folder, inner in agent_folders(dict.fromkeys(files, b"")).items():
        if not defining(inner):
            yield Fault(folder, None, "holds neither SKILL.md nor agent-config.toml, so it is no agent")


def agent_warnings(agent: Agent, project: Project, *, network: str | None) -> Iterator[Fault]:
    settings = agent.settings
    yield from _run_warnings(agent, project, network=network)
    yield from preflight.warnings(agent, agent.network(project) or network)
    yield from _idle_warnings(agent)
    yield from _credential_warnings(agent)
    for key in settings.data.keys() & keys.LATER_IN_AGENT:
        if agent.says(key):
            yield settings.fault((key,), _not_yet(key))
    if settings.file.endswith(".toml"):
        for key in agent.table.params.keys() & _TRAPPED:
            yield settings.fault(("params", key), f"{key} is a parameter here; as a setting it stands above [params]")
    if project.table.scale is not None and agent.scale(project) > project.table.scale:
        message = f"scale is more than the {project.table.scale} that the whole project may run at once"
        yield settings.fault(("scale",), message)
    for index, entry in enumerate(agent.table.webhooks):
        provider = project.table.webhooks[entry["source"]].type
        for place, message in filters.warnings(entry, provider):
            yield settings.fault(("webhooks", index, *place), message)
    yield from _file_warnings(agent)


def _run_warnings(agent: Agent, project: Project, *, network: str | None) -> Iterator[Fault]:
    """What lets `apply` pass and every run fail."""
    settings, wanted = agent.settings, agent.network(project) or network
    if wanted in keys.LATER_NETWORKS:
        yield settings.fault(("network",), f"network {wanted} cannot be had yet: the agent's runs will fail")
    own = [agent.table.model] if agent.table.model else []
    named = [project.table.models[name] for name in agent.table.models]
    models = own or named or [model for model in [project.table.model] if model]
    providers = {model.provider for model in models}
    if agent.kind == "model" and providers and not providers & keys.PROVIDERS:
        names = ", ".join(sorted(providers))
        yield settings.fault(("models",), f"no provider of its models ({names}) can be asked yet: its runs will fail")


def _idle_warnings(agent: Agent) -> Iterator[Fault]:
    """Settings that do nothing because of another one."""
    settings, table = agent.settings, agent.table
    if table.retry == "never" and table.attempts.most is not None:
        yield settings.fault(("attempts", "most"), 'attempts.most does nothing beside retry = "never"')
    if "overlap" in settings.data and not agent.has_schedule:
        yield settings.fault(("overlap",), "overlap does nothing without a schedule: it is about its ticks")
    if table.approvals.allow and table.approvals.ask != "on-miss":
        yield settings.fault(("approvals", "allow"), 'approvals.allow does nothing without approvals.ask = "on-miss"')
    if table.kind == "command":
        for key in ("model", "models", "tools", "approvals"):
            if agent.says(key):
                yield settings.fault((key,), f"{key} does nothing for kind command: no model calls tools in its runs")


def _credential_warnings(agent: Agent) -> Iterator[Fault]:
    """Of types that everybody knows; whether the server knows others, and has them, is for it to say."""
    for index, reference in enumerate(agent.table.credentials):
        kind = BUILT_IN.get(keys.trimmed(reference).partition(":")[0].strip())
        if kind is not None and kind.host_only:
            message = f"{reference} is used by agentfleet alone: the agent's sandbox does not get it"
            yield agent.settings.fault(("credentials", index), message)


def _file_warnings(agent: Agent) -> Iterator[Fault]:
    if agent.kind == "model" and not agent.instructions.strip():
        yield Fault(agent.folder, None, "the agent has no instructions")
    for name in {"SKILL.md", "config.toml"} & agent.files.keys():
        if "agent-config.toml" in agent.files:
            yield Fault(f"{agent.folder}/{name}", None, "is not read, because agent-config.toml is there")


def _not_yet(key: str) -> str:
    return f"{key}: accepted, but not yet carried out"
