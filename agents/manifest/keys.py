"""The keys a project folder may hold, in the seed's three generations and our own.

The seed's names are camelCase, ours snake_case. Source: spec/action-llama.md 2.4, 2.6, 4.2, 4.3, 4.5.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    field_validator,
)
from pydantic_core import PydanticCustomError

from agents.manifest.lines import Place
from agents.manifest.outgoing_table import OutgoingTable
from agents.manifest.poll_table import PollTable
from agents.manifest.sources import SourceTable
from agents.manifest.values import Count, Length, Name, Seconds, Table, length_of_time
from agents.schedule import LONGEST
from agents.spec import Failure, Missing, Network, Thinking

Cpus = Annotated[float, Field(gt=0, le=1024, allow_inf_nan=False)]
Misfit = tuple[Place, str]

OUR_KEYS = frozenset(
    {
        *("kind", "timezone", "network", "tools", "priority", "image", "sandbox", "task", "limits", "command"),
        *("retry", "attempts", "breaker", "coalesce", "overlap", "approvals", "schedules", "polls"),
        *("memory", "cpus", "build", "build_args", "locks"),
    }
)

# Features of the seed that are known and that nothing here carries out yet; the loose sets are not even looked into.
LATER_IN_AGENT = LOOSE_IN_AGENT = frozenset({"runtime", "feedback", "harness"})
LATER_IN_PROJECT = LOOSE_IN_PROJECT = frozenset(
    {
        *("agents", "cloud", "environment", "feedback", "harness"),
        *("historyRetentionDays", "projectName", "server", "telemetry"),
    }
)
LATER_IN_LOCAL = frozenset({"enabled"})
LATER_IN_GATEWAY = frozenset({"port", "url", "maxChatSessions"})
LATER_NETWORKS = frozenset({"allowlist"})
PROVIDERS = frozenset({"anthropic", "scripted"})  # those that can be asked

_MEANT = {
    "repository": ("repos",),
    "repositories": ("repos",),
    "repo": ("repos",),
    "event": ("events",),
    "action": ("actions",),
    "label": ("labels",),
    "branch": ("branches",),
    "organization": ("organizations", "orgs"),
    "organizations": ("orgs",),
}


LEAST_MEMORY = 6 * 2**20  # bytes: an engine starts nothing in less
_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30}


def _size(text: str) -> str:
    found = re.fullmatch(r"([0-9]{1,15})([bkmg]?)", text, re.IGNORECASE)
    if not found or int(found[1]) * _UNITS[found[2].lower()] < LEAST_MEMORY:
        raise PydanticCustomError("ours", "memory must be a size of at least 6m, such as 512m or 4g")
    return text


Memory = Annotated[str, AfterValidator(_size)]


class ModelTable(Table):
    """`[model]` and `[models.<name>]`."""

    provider: Name
    model: Name
    auth_type: Literal["api_key", "oauth_token"] = Field("api_key", alias="authType")
    thinking: Thinking | None = Field(None, alias="thinkingLevel")
    base_url: str | None = Field(None, alias="baseUrl")

    @field_validator("auth_type", mode="before")
    @classmethod
    def _no_host_login(cls, value: Any) -> Any:
        if value == "pi_auth":
            raise PydanticCustomError(
                "ours", "pi_auth is a login on one person's machine, which runs do not have: use api_key or oauth_token"
            )
        return value


class LocalTable(Table):
    enabled: bool | None = None
    image: Name | None = None
    memory: Memory | None = None
    cpus: Cpus | None = None
    timeout: Count | None = None


class GatewayTable(Table):
    port: Any = None
    url: Any = None
    max_chat_sessions: Any = Field(default=None, alias="maxChatSessions")
    lock_timeout: Seconds | None = Field(default=None, alias="lockTimeout")


class BuildTable(Table):
    args: dict[str, str] = {}


class LocksTable(Table):
    one_at_a_time: bool | None = None
    seconds: Seconds | None = None


class HooksTable(Table):
    pre: list[str] = []
    post: list[str] = []


class PreflightTable(Table):
    provider: Name
    required: bool = True
    params: dict[str, Any]


class TaskTable(Table):
    enabled: bool = True


class LimitsTable(Table):
    turns: Count | None = None
    wall_seconds: Count | None = None
    idle_seconds: Count | None = None
    tokens: Count | None = None
    usd: Annotated[float, Field(ge=0, le=100_000, allow_inf_nan=False)] | None = None
    output_bytes: Annotated[int, Field(ge=0, le=2**53)] | None = None


class AttemptsTable(Table):
    most: Annotated[int, Field(ge=1, le=100)] | None = None
    delay_seconds: Count | None = None
    longest_delay_seconds: Count | None = None
    after: list[Failure] | None = None


class BreakerTable(Table):
    failures: Count | None = None
    probe_seconds: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None


class CoalesceTable(Table):
    key: Annotated[str, Field(max_length=200)] = ""
    mode: Literal["queue", "skip", "replace"] = "queue"


class ApprovalsTable(Table):
    ask: Literal["off", "on-miss", "always"] = "off"
    allow: list[str] = []
    expires_seconds: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None


class ProjectTable(Table):
    """`config.toml` at the top of the folder."""

    model: ModelTable | None = None
    models: dict[str, ModelTable] = {}
    local: LocalTable = LocalTable()
    webhooks: dict[str, SourceTable] = {}
    outgoing: dict[str, OutgoingTable] = {}
    scale: Count | None = None
    default_scale: Count = Field(1, alias="defaultAgentScale")
    queue_size: Count | None = Field(None, validation_alias=AliasChoices("workQueueSize", "webhookQueueSize"))
    max_reruns: Count | None = Field(None, alias="maxReruns")
    network: Network | None = None
    build: BuildTable = BuildTable()
    build_args: dict[str, str] = {}
    locks: LocksTable = LocksTable()
    lock_seconds: Seconds | None = Field(None, alias="resourceLockTimeout")
    gateway: GatewayTable = GatewayTable()
    max_call_depth: Count | None = Field(None, validation_alias=AliasChoices("maxCallDepth", "maxTriggerDepth"))
    trigger_wait: Seconds | None = Field(None, alias="defaultWaitTimeout")


class ScheduleTable(Table):
    """`[[schedules]]`."""

    cron: Annotated[str, Field(min_length=1, max_length=LONGEST)]
    timezone: Annotated[str, Field(max_length=64)] = ""
    jitter: Annotated[int, BeforeValidator(length_of_time), Field(ge=0, le=86_400)] = 0
    missed: Missing = "latest"
    missed_within: Length | None = None


class AgentTable(Table):
    """An agent's settings, wherever its generation keeps them. Entries of `webhooks` are looked at elsewhere."""

    name: Any = None  # the folder's name counts
    source: Any = None  # where the seed's installer had it from
    description: str | None = Field(None, max_length=500)
    credentials: list[str] = []
    models: list[str] = []
    model: ModelTable | None = None
    schedule: str | list[str] = ""
    schedules: list[ScheduleTable] = []
    polls: list[PollTable] = []
    webhooks: list[dict[str, Any]] = []
    hooks: HooksTable = HooksTable()
    preflight: list[PreflightTable] = []
    params: dict[str, Any] = {}
    scale: Count | None = None
    timeout: Count | None = None
    max_work_queue: Count | None = Field(None, alias="maxWorkQueueSize")
    kind: Literal["model", "command"] = "model"
    timezone: str = Field("UTC", max_length=64)
    network: Network | None = None
    tools: list[str] | None = None
    priority: Literal["high", "normal", "low"] = "normal"
    image: Name | None = None
    sandbox: Literal["eager", "lazy"] = "eager"
    task: TaskTable = TaskTable()
    limits: LimitsTable = LimitsTable()
    command: str | list[str] = ""
    retry: Literal["safe", "always", "never"] = "safe"
    attempts: AttemptsTable = AttemptsTable()
    breaker: BreakerTable = BreakerTable()
    coalesce: CoalesceTable = CoalesceTable()
    overlap: Literal["skip", "queue"] = "skip"
    approvals: ApprovalsTable = ApprovalsTable()
    memory: Memory | None = None
    cpus: Cpus | None = None
    build: BuildTable = BuildTable()
    build_args: dict[str, str] = {}
    locks: LocksTable = LocksTable()
    max_reruns: Count | None = Field(None, alias="maxReruns")
    max_call_depth: Count | None = Field(None, validation_alias=AliasChoices("maxCallDepth", "maxTriggerDepth"))
    trigger_wait: Seconds | None = Field(None, alias="defaultWaitTimeout")

    @field_validator("sandbox", mode="before")
    @classmethod
    def _no_bare_process(cls, value: Any) -> Any:
        if value == "process":
            raise PydanticCustomError(
                "ours", "sandbox cannot be process here: only the server's setting allows that; use eager or lazy"
            )
        return value

    @field_validator("schedule", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """As of `command`."""
        crons = value if isinstance(value, list) else [value]
        if not all(isinstance(cron, str) for cron in crons):
            raise PydanticCustomError("ours", "schedule must be text, or a list of texts")
        if any(len(cron) > LONGEST for cron in crons):
            raise PydanticCustomError("ours", f"schedule must have at most {LONGEST} characters")
        return value

    @field_validator("command", mode="before")
    @classmethod
    def _text_or_words(cls, value: Any) -> Any:
        """One sentence, where a union would tell one for each of its members."""
        words = value if isinstance(value, list) else [value]
        if not all(isinstance(word, str) for word in words):
            raise PydanticCustomError("ours", "command must be text, for the shell, or a list of texts, its words")
        return value


class FrontMatter(Table):
    """What a SKILL.md says above its instructions."""

    name: Any = None
    description: str | None = Field(None, max_length=500)
    license: Any = None
    compatibility: Any = None
    metadata: dict[str, Any] | None = None


def known(table: type[Table]) -> frozenset[str]:
    """Every name the file may use for a key of `table`."""
    names: set[str] = set()
    for name, field in table.model_fields.items():
        alias = field.validation_alias
        names.update(map(str, alias.choices) if isinstance(alias, AliasChoices) else [str(alias or name)])
    return frozenset(names | loose(table))


def trimmed(reference: str) -> str:
    """`type:instance`, split at the first colon and both trimmed, as the seed reads it."""
    return ":".join(part.strip() for part in reference.split(":", 1))


def suggestion(key: str, names: Iterable[str]) -> str | None:
    """The known name that was probably meant."""
    names = sorted(names)
    for meant in _MEANT.get(key, ()):
        if meant in names:
            return meant
    plain = {name.replace("_", "").lower(): name for name in names}
    close = difflib.get_close_matches(key.replace("_", "").lower(), plain, n=1)
    return plain[close[0]] if close else None


def question(key: str, names: Iterable[str]) -> str:
    """What to put after "unknown key x"; empty if nothing is near."""
    meant = suggestion(key, names)
    return f": did you mean {meant}?" if meant else ""


def loose(table: type[Table]) -> frozenset[str]:
    return {AgentTable: LOOSE_IN_AGENT, ProjectTable: LOOSE_IN_PROJECT}.get(table, frozenset())
