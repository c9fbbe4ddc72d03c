"""What an agent is, as one frozen value: read from a folder, stored as JSON with each version, used by the engine.

Every field has the default a folder without it gets. Units: seconds, tokens, bytes.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

Thinking = Literal["off", "minimal", "low", "medium", "high", "xhigh"]
Network = Literal["none", "gateway", "allowlist", "open"]

ToolName = Literal[
    "bash",
    "read",
    "write",
    "edit",
    "glob",
    "grep",
    "ask",
    "set_status",
    "rerun",
    "acquire_lock",
    "release_lock",
    "call_agent",
    "check_call",
    "return_value",
    "exit",
    "wait_for_trigger",
    "skill",
    "memory",
]
Missing = Literal["skip", "latest", "all"]
Failure = Literal["machinery", "timeout", "model", "work"]

_strict = ConfigDict(extra="forbid")

# Of a source: what it says beside who sends and whose secret signs.
OPTIONS = frozenset({"own", "rate", "sender_rate", "identical", "duplicate_seconds", "scheme"})


def _shortest(amount: Decimal) -> Decimal:
    """1.50 and 1.5 are one amount, so they are stored as one text."""
    return amount.quantize(Decimal(1)) if amount == amount.to_integral_value() else amount.normalize()


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
    idle_seconds: int = Field(default=0, ge=0)  # without a word from the model or a byte from a command
    tokens: int = Field(default=1_000_000, ge=0)
    usd: Annotated[Decimal, AfterValidator(_shortest)] = Field(default=Decimal(0), ge=0)
    output_bytes: int = Field(default=100_000_000, ge=0)  # printed by commands, in all


@dataclass(frozen=True, kw_only=True, config=_strict)
class Attempts:
    """How often a run is tried, and after which failures. Whether it may be is `AgentSpec.retry`."""

    most: int = Field(default=2, ge=1, le=100)
    delay_seconds: int = Field(default=10, ge=0)  # before the second; each next is twice as long, with jitter
    longest_delay_seconds: int = Field(default=600, ge=0)
    after: tuple[Failure, ...] = ("machinery", "timeout")


@dataclass(frozen=True, kw_only=True, config=_strict)
class Breaker:
    """After so many failed runs in a row the agent holds its line, and tries one now and then."""

    failures: int = Field(default=5, ge=0)  # 0: never
    probe_seconds: int = Field(default=600, ge=1)  # until the first probe; each next waits twice as long


@dataclass(frozen=True, kw_only=True, config=_strict)
class Coalescing:
    """What events are about, as a template over their context, and what becomes of a second one meanwhile."""

    key: str = ""  # such as github://{repo}/issues/{number}; an event that lacks a field has no key
    mode: Literal["queue", "skip", "replace"] = "queue"


@dataclass(frozen=True, kw_only=True, config=_strict)
class Approvals:
    """Which tool calls a person must allow first. Patterns: a tool's name, or `bash:` and a command with `*`."""

    ask: Literal["off", "on-miss", "always"] = "off"
    allow: tuple[str, ...] = ()
    expires_seconds: int = Field(default=7 * 86_400, ge=1)  # then it is refused


@dataclass(frozen=True, kw_only=True, config=_strict)
class WebhookSpec:
    """One `[[webhooks]]` entry: the source it listens to and what must match, key by key."""

    source: str
    filters: dict[str, str | list[str]] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_strict)
class ScheduleSpec:
    """One schedule of an agent."""

    cron: str  # an expression, or @every 15m
    timezone: str = ""  # empty: the agent's
    jitter_seconds: int = Field(default=0, ge=0, le=86_400)  # the start is this much later at most, the same each time
    missed: Missing = "latest"  # ticks that passed while nothing could fire them
    missed_seconds: int = Field(default=86_400, ge=0)  # older ticks are skipped, whatever `missed` says; 0: none is


@dataclass(frozen=True, kw_only=True, config=_strict)
class PollSpec:
    """One `[[polls]]` entry: look somewhere now and then, and start a run for each item that is new there.

    Exactly one of `url`, `path` and `command` is given.
    """

    name: str
    every_seconds: int = Field(default=300, ge=10)
    url: str = ""  # fetched with GET
    headers: dict[str, str] = Field(default_factory=dict)  # values may name credentials: ${type:instance:field}
    path: str = ""  # a pattern of files on the worker's host, below the folders that the server allows
    command: str = ""  # for the shell of a sandbox of the agent; prints JSON
    items: str = ""  # dotted path to the list in what came; empty: the whole of it
    id: str = "id"  # dotted path to what names an item, in the item
    most: int = Field(default=20, ge=1, le=1000)  # runs of one look; the rest is left to the next


@dataclass(frozen=True, kw_only=True, config=_strict)
class SkillSpec:
    """What an agent is told of a skill; the rest is in its files, below `skills/<name>/`."""

    name: str
    description: str


def _was_none(value: Any) -> Any:
    """Definitions stored before there was a default have a null here."""
    return 100 if value is None else value


def _with_schedules(value: Any) -> Any:
    """Definitions stored before an agent could have several have one `schedule`, a text."""
    if not isinstance(value, dict):
        return value
    rest = {key: item for key, item in value.items() if key != "schedule"}
    return rest | {"schedules": ({"cron": value["schedule"]},)} if value.get("schedule") else rest


@dataclass(frozen=True, kw_only=True, config=_strict)
class AgentSpec:
    name: str
    description: str = ""
    kind: Literal["model", "command"] = "model"
    instructions: str = ""
    models: tuple[ModelSpec, ...] = ()
    schedules: tuple[ScheduleSpec, ...] = ()
    timezone: str = "UTC"  # of schedules that name none
    webhooks: tuple[WebhookSpec, ...] = ()
    polls: tuple[PollSpec, ...] = ()
    params: dict[str, Any] = Field(default_factory=dict)
    credentials: tuple[str, ...] = ()
    scale: int = Field(default=1, ge=0)
    priority: Literal["high", "normal", "low"] = "normal"
    limits: Limits = Limits()
    retry: Literal["safe", "always", "never"] = "safe"  # safe: only where no tool call had been started
    attempts: Attempts = Attempts()
    breaker: Breaker = Breaker()
    coalesce: Coalescing = Coalescing()
    overlap: Literal["skip", "queue"] = "skip"  # a tick that finds no slot; queue: the latest stays in line
    max_reruns: int = Field(default=10, ge=0)
    approvals: Approvals = Approvals()
    command: str | tuple[str, ...] = ""  # of kind command: for the shell, or its words
    image: str | None = None  # what its Dockerfiles begin with, or, without any, what it runs in
    build_args: dict[str, str] = Field(default_factory=dict)
    memory: str = "4g"  # as the engine writes it
    cpus: float = Field(default=2.0, gt=0)
    sandbox: Literal["eager", "lazy"] = "eager"
    network: Network = "gateway"
    tools: tuple[ToolName, ...] | None = None  # None: all of them
    task_enabled: bool = True
    max_work_queue: Annotated[int, BeforeValidator(_was_none)] = Field(default=100, ge=0)  # beyond the free slots
    lock_seconds: int = Field(default=1800, ge=1)  # a lock that nobody renews
    one_lock: bool = False  # refuse a second lock while one is held
    max_call_depth: int = Field(default=3, ge=0)  # runs above a called one, at most
    trigger_wait_seconds: int = Field(default=1800, ge=1)  # that `wait_for_trigger` waits unless told
    preflight: tuple[dict[str, Any], ...] = ()
    hooks_pre: tuple[str, ...] = ()
    hooks_post: tuple[str, ...] = ()
    skills: tuple[SkillSpec, ...] = ()

    @property
    def reaches_gateway(self) -> bool:
        return self.network in {"gateway", "open"}

    def dump(self) -> dict[str, Any]:
        """As JSON types; `load` gives the same value back."""
        value: dict[str, Any] = _adapter.dump_python(self, mode="json")
        return value

    @staticmethod
    def load(value: dict[str, Any]) -> AgentSpec:
        """Raises pydantic's ValidationError, naming each field that does not fit."""
        return _adapter.validate_python(_with_schedules(value))


@dataclass(frozen=True, kw_only=True, config=_strict)
class SignatureScheme:
    """How a sender of provider `hmac` signs, and where it says what an event is."""

    header: str
    algorithm: Literal["sha1", "sha256", "sha512"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""
    separator: str = ""  # of a header of pairs, as in t=1,v1=2: what stands between pairs
    signature_key: str = ""  # the pair that holds the signature
    timestamp_key: str = ""  # the pair that holds the time
    timestamp_header: str = ""
    signed: str = "{body}"  # what is signed: {body}, {timestamp} and {id} are filled in
    tolerance_seconds: int = Field(default=300, ge=0)  # how old a time may be; 0: any
    id_header: str = ""
    event_header: str = ""
    event: str = "type"  # dotted path in the body, where no header says it


@dataclass(frozen=True, kw_only=True, config=_strict)
class OutgoingSpec:
    """One `[outgoing.<name>]` of a project: whom to tell of runs."""

    name: str
    url: str = ""
    credential: str = ""
    states: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    format: Literal["standard", "slack"] = "standard"


@dataclass(frozen=True, kw_only=True, config=_strict)
class SourceSpec:
    """One `[webhooks.<name>]` of a project: where webhooks come from and whose secret signs them."""

    name: str
    provider: str
    credential: str = "default"
    allow_unsigned: bool = False
    own: tuple[str, ...] = ()  # senders that are ourselves: what they do starts nothing
    rate: str = ""  # such as 60/10m: of events that start something; the rest is held until there is room
    sender_rate: str = "60/10m"  # the same of each sender
    identical: str = "5/10m"  # events that say the same; the rest starts nothing
    duplicate_seconds: int = Field(default=86_400, ge=0)
    scheme: SignatureScheme | None = None  # of provider hmac

    @property
    def options(self) -> dict[str, Any]:
        """Guards and scheme as JSON types, where they are not the defaults: what `SourceSpec` takes by these names."""
        said: dict[str, Any] = _source_adapter.dump_python(self, mode="json", exclude_defaults=True)
        return {name: value for name, value in said.items() if name in OPTIONS}


@dataclass(frozen=True, kw_only=True, config=_strict)
class ProjectSpec:
    """A whole project folder: what `apply` makes the rows match."""

    name: str
    scale: int | None = None
    sources: tuple[SourceSpec, ...] = ()
    outgoing: tuple[OutgoingSpec, ...] = ()
    agents: tuple[AgentSpec, ...] = ()
    files: dict[str, dict[str, bytes]] = Field(default_factory=dict)  # agent -> path in its folder -> content


_adapter = TypeAdapter(AgentSpec)
_source_adapter = TypeAdapter(SourceSpec)
