"""What is wrong with the preflight steps of an agent. What they do: `runs.preflight`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agents.manifest import keys
from agents.manifest.misfits import a_kind_of
from agents.manifest.written import Agent, Fault

LONGEST = 30_000  # bytes of a text; several of them become one argument of a command

_header = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_local = re.compile(r"(file://|/|https?://(localhost|127\.0\.0\.1|\[::1\])([:/]|\Z))")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")


@dataclass(frozen=True)
class Provider:
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    address: str = ""  # the parameter that says where it goes

    @property
    def known(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)


PROVIDERS: Mapping[str, Provider] = {
    "shell": Provider(("command",), ("output",)),
    "http": Provider(("url", "output"), ("method", "headers", "body"), "url"),
    "git-clone": Provider(("repo", "dest"), ("branch", "depth"), "repo"),
}


def faults(agent: Agent) -> Iterator[Fault]:
    for index, step in enumerate(agent.table.preflight):
        for place, message in _step_faults(step.provider, step.params):
            yield agent.settings.fault(("preflight", index, *place), message)


def _step_faults(name: str, params: Mapping[str, Any]) -> Iterator[keys.Misfit]:
    provider = PROVIDERS.get(name)
    if provider is None:
        there_are = keys.question(name, PROVIDERS) or f": there are {', '.join(PROVIDERS)}"
        yield ("provider",), f"there is no preflight provider {name}{there_are}"
        return
    for key in provider.required:
        if key not in params:
            yield ("params",), f"a {name} step needs params.{key}"
    for key, value in params.items():
        if key not in provider.known:
            known = keys.question(key, provider.known) or f": there are {', '.join(provider.known)}"
            yield ("params", key), f"{name} has no param {key}{known}"
        elif misfit := _misfit(key, value):
            yield ("params", key), f"params.{key} {misfit}"


def _misfit(key: str, value: Any) -> str:
    """What is wrong with a value, in words; empty if nothing is."""
    match key:
        case "depth":
            fits = isinstance(value, int) and not isinstance(value, bool) and value > 0
            return "" if fits else "must be a whole number above 0"
        case "headers":
            return _headers_misfit(value)
        case "method" if not (isinstance(value, str) and value.upper() in _METHODS):
            return f"must be one of {', '.join(_METHODS)}"
        case "body" if value == "":
            return ""
    return _text_misfit(value)


def _text_misfit(value: Any) -> str:
    if not isinstance(value, str):
        return f"must be text, not {a_kind_of(value)}"
    if not value:
        return "must not be empty"
    return f"must have at most {LONGEST} bytes" if len(value.encode("utf-8", "replace")) > LONGEST else ""


def _headers_misfit(value: Any) -> str:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        return "must be a table of texts"
    wrong = [name for name in value if not _header.fullmatch(name)]
    return f"has a name that no header can have: {wrong[0]!r}" if wrong else ""


def warnings(agent: Agent, network: str | None) -> Iterator[Fault]:
    """Steps that cannot reach what they ask for."""
    if network not in {"none", "gateway"}:
        return
    for index, step in enumerate(agent.table.preflight):
        provider = PROVIDERS.get(step.provider)
        address = str(step.params.get(provider.address, "")) if provider and provider.address else ""
        if address and not _local.match(address):
            message = f'{step.provider} reaches nothing with network {network}: the step needs network = "open"'
            yield agent.settings.fault(("preflight", index), message)
