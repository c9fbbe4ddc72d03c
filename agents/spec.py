"""What an agent is, as one frozen value: read from a folder, stored as JSON with each version, used by the engine.

Every field has the default a folder without it gets. Units: seconds, tokens, bytes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

Thinking = Literal["off", "minimal", "low", "medium", "high", "xhigh"]
Network = Literal["none", "gateway", "allowlist", "open"]

ToolName = Literal["bash", "read", "write", "edit", "glob", "grep", "ask", "set_status"]

_strict = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_strict)
class ModelSpec:
    """One model the agent may use; the first whose provider has a key is taken."""

    provider: str
    model: str
    thinking: Thinking | None = None
    auth_type: str = "api_key"
    base_url: str | None = None


@dataclass(frozen=True, kw_only=True, config=_strict)
class Limits:
    """What one run may spend; 0 means no limit. A task may ask for its own in their place."""

    turns: int = Field(default=50, ge=0)
    wall_seconds: int = Field(default=900, ge=0)
    tokens: int = Field(default=1_000_000, ge=0)


@dataclass(frozen=True, kw_only=True, config=_strict)
class WebhookSpec:
    """One `[[webhooks]]` entry: the source it listens to and what must match, key by key."""

    source: str
    filters: dict[str, str | list[str]] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_strict)
class AgentSpec:
    name: str
    description: str = ""
    kind: Literal["model", "command"] = "model"
    instructions: str = ""
    models: tuple[ModelSpec, ...] = ()
    schedule: str = ""
    timezone: str = "UTC"
    webhooks: tuple[WebhookSpec, ...] = ()
    params: dict[str, Any] = Field(default_factory=dict)
    credentials: tuple[str, ...] = ()
    scale: int = Field(default=1, ge=0)
    priority: Literal["high", "normal", "low"] = "normal"
    limits: Limits = Limits()
    image: str | None = None
    sandbox: Literal["eager", "lazy"] = "eager"
    network: Network = "gateway"
    tools: tuple[ToolName, ...] | None = None  # None: all of them
    task_enabled: bool = True
    max_work_queue: int | None = Field(default=None, ge=0)
    preflight: tuple[dict[str, Any], ...] = ()
    hooks_pre: tuple[str, ...] = ()
    hooks_post: tuple[str, ...] = ()

    def dump(self) -> dict[str, Any]:
        """As JSON types; `load` gives the same value back."""
        value: dict[str, Any] = _adapter.dump_python(self, mode="json")
        return value

    @staticmethod
    def load(value: dict[str, Any]) -> AgentSpec:
        """Raises pydantic's ValidationError, naming each field that does not fit."""
        return _adapter.validate_python(value)


@dataclass(frozen=True, kw_only=True, config=_strict)
class SourceSpec:
    """One `[webhooks.<name>]` of a project: where webhooks come from and whose secret signs them."""

    name: str
    provider: str
    credential: str = "default"
    allow_unsigned: bool = False


@dataclass(frozen=True, kw_only=True, config=_strict)
class ProjectSpec:
    """A whole project folder: what `apply` makes the rows match."""

    name: str
    scale: int | None = None
    sources: tuple[SourceSpec, ...] = ()
    agents: tuple[AgentSpec, ...] = ()
    files: dict[str, dict[str, bytes]] = Field(default_factory=dict)  # agent -> path in its folder -> content


_adapter = TypeAdapter(AgentSpec)
