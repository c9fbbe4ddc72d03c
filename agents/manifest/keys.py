"""The keys a project folder may hold, in the seed's three generations and our own, and words for what does not fit.

The seed's names are camelCase, ours snake_case. Source: spec/action-llama.md 2.4, 2.6, 4.2, 4.3, 4.5.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from agents.manifest.lines import Place
from agents.spec import Failure, Network, Thinking

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Misfit = tuple[Place, str]

OUR_KEYS = frozenset(
    {
        *("kind", "timezone", "network", "tools", "priority", "image", "sandbox", "task", "limits", "command"),
        *("retry", "attempts", "breaker", "coalesce", "overlap", "approvals"),
    }
)

# Features of the seed that are known and that nothing here carries out yet; the second sets are not even looked into.
LATER_IN_AGENT = frozenset({"credentials", "hooks", "preflight", "runtime", "feedback", "harness"})
LOOSE_IN_AGENT = frozenset({"runtime", "feedback", "harness"})
LATER_IN_PROJECT = LOOSE_IN_PROJECT = frozenset(
    {
        *("agents", "cloud", "defaultWaitTimeout", "environment", "feedback", "gateway", "harness"),
        *("historyRetentionDays", "maxCallDepth", "maxTriggerDepth", "projectName"),
        *("resourceLockTimeout", "server", "telemetry"),
    }
)
LATER_IN_LOCAL = frozenset({"enabled", "cpus", "memory"})
LATER_NETWORKS = frozenset({"allowlist", "open"})
PROVIDERS = frozenset({"anthropic", "scripted"})  # those that can be asked

FILTERS: Mapping[str, frozenset[str]] = {
    "github": frozenset(
        {"events", "actions", "repos", "orgs", "org", "labels", "assignee", "author", "branches", "conclusions"}
    ),
    "sentry": frozenset({"resources"}),
    "linear": frozenset({"events", "actions", "organizations", "labels", "assignee", "author"}),
    "mintlify": frozenset({"events", "actions", "repos", "projects", "branches"}),
    "discord": frozenset({"events", "guilds", "channels", "commands"}),
    "slack": frozenset({"events", "channels", "team_ids"}),
    "twitter": frozenset({"events", "repos", "users"}),
    "test": frozenset({"events", "actions", "repos"}),
}
SECRETS = {
    "github": "github_webhook_secret",
    "sentry": "sentry_client_secret",
    "linear": "linear_webhook_secret",
    "mintlify": "mintlify_webhook_secret",
    "discord": "discord_bot",
    "slack": "slack_signing_secret",
    "twitter": "x_twitter_api",
}

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


class Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


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
    memory: str | None = None
    cpus: float | None = None
    timeout: Count | None = None


class SourceTable(Table):
    """`[webhooks.<name>]` of a project."""

    type: Literal["github", "sentry", "linear", "mintlify", "discord", "slack", "twitter", "test"]
    credential: Name = "default"
    allow_unsigned: bool = Field(False, validation_alias=AliasChoices("allowUnsigned", "allow_unsigned"))

    @model_validator(mode="before")
    @classmethod
    def _credential_by_its_type(cls, value: Any) -> Any:
        """Later versions of the seed write `x_twitter_api = "MyBot"` for `credential = "MyBot"`."""
        key = SECRETS.get(str(value.get("type"))) if isinstance(value, dict) else None
        if key is None or key not in value or "credential" in value:
            return value
        return {"credential" if name == key else name: item for name, item in value.items()}


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
    scale: Count | None = None
    default_scale: Count = Field(1, alias="defaultAgentScale")
    queue_size: Count | None = Field(None, validation_alias=AliasChoices("workQueueSize", "webhookQueueSize"))
    max_reruns: Count | None = Field(None, alias="maxReruns")
    network: Network | None = None


class AgentTable(Table):
    """An agent's settings, wherever its generation keeps them. Entries of `webhooks` are looked at elsewhere."""

    name: Any = None  # the folder's name counts
    source: Any = None  # where the seed's installer had it from
    description: str | None = Field(None, max_length=500)
    credentials: list[str] = []
    models: list[str] = []
    model: ModelTable | None = None
    schedule: str = Field("", max_length=100)
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

    @field_validator("sandbox", mode="before")
    @classmethod
    def _no_bare_process(cls, value: Any) -> Any:
        if value == "process":
            raise PydanticCustomError(
                "ours", "sandbox cannot be process here: only the server's setting allows that; use eager or lazy"
            )
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


_INNER: Mapping[str, type[Table]] = {
    "model": ModelTable,
    "models": ModelTable,
    "local": LocalTable,
    "webhooks": SourceTable,
    "hooks": HooksTable,
    "preflight": PreflightTable,
    "task": TaskTable,
    "limits": LimitsTable,
    "attempts": AttemptsTable,
    "breaker": BreakerTable,
    "coalesce": CoalesceTable,
    "approvals": ApprovalsTable,
}

AnyTable = TypeVar("AnyTable", bound=Table)


def known(table: type[Table]) -> frozenset[str]:
    """Every name the file may use for a key of `table`."""
    names: set[str] = set()
    for name, field in table.model_fields.items():
        alias = field.validation_alias
        names.update(map(str, alias.choices) if isinstance(alias, AliasChoices) else [str(alias or name)])
    return frozenset(names | _loose(table))


def read(table: type[AnyTable], data: dict[str, Any]) -> tuple[AnyTable, list[Misfit]]:
    """The table, and what in `data` does not fit it; the table holds the default wherever something did not."""
    data = {key: value for key, value in data.items() if key not in _loose(table)}
    try:
        return table.model_validate(data), []
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
    fitting = deepcopy(data)
    for error in errors:
        _remove(fitting, error)
    return table.model_validate(fitting), [(error["loc"], _sentence(table, error)) for error in errors]


def misplaced(table: type[Table], data: Mapping[str, Any]) -> list[Misfit]:
    """Keys of the top level inside tables that are not looked into: TOML gives a key to the last [table] above it."""
    return [
        misfit
        for key in sorted(_loose(table) & data.keys() - {"agents"})  # [agents.<name>] has such keys by right
        for misfit in _misplaced(known(table), data[key], (key,))
    ]


def stray(key: str, place: Place) -> str:
    return (
        f"{key} means nothing inside {dotted(place)}: it belongs at the top level "
        "(in TOML above the first [table], since a key belongs to the table it stands under)"
    )


def filters(entry: Mapping[str, Any], provider: str) -> dict[str, str | list[str]]:
    """Those of a webhook entry that narrow it: an empty one is as good as none."""
    return {key: value for key, value in entry.items() if key in FILTERS[provider] and value}


def dropped(entry: Mapping[str, Any], provider: str) -> list[str]:
    """Keys of a webhook entry that its provider does not know."""
    return [key for key in entry if key != "source" and key not in FILTERS[provider]]


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


def dotted(place: Place) -> str:
    """("webhooks", 0, "events") as webhooks[0].events."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return "".join(steps).removeprefix(".")


def a_kind_of(value: Any) -> str:
    kinds = {bool: "true or false", str: "text", dict: "a table", list: "a list", type(None): "empty"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "a date or time")


def _loose(table: type[Table]) -> frozenset[str]:
    return {AgentTable: LOOSE_IN_AGENT, ProjectTable: LOOSE_IN_PROJECT}.get(table, frozenset())


def _misplaced(names: frozenset[str], value: Any, place: Place) -> list[Misfit]:
    if not isinstance(value, dict):
        return []
    found = [((*place, key), stray(key, place)) for key in value if key in names]
    for key, inner in value.items():
        found += _misplaced(names, inner, (*place, key))
    return found


def _remove(data: dict[str, Any], error: ErrorDetails) -> None:
    """Take out what does not fit: an unknown key alone, else the whole setting, or the one model or source."""
    place = error["loc"]
    if error["type"] != "extra_forbidden" or any(isinstance(step, int) for step in place):
        named = place[0] in {"models", "webhooks"} and isinstance(data.get(str(place[0])), dict)
        place = place[: 2 if named else 1]
    table: Any = data
    for step in place[:-1]:
        table = table.get(step, {})
    table.pop(place[-1], None)


_WANTED: Mapping[str, str] = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}
_PHRASES: Mapping[str, str] = {
    "missing": "is missing",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "finite_number": "must be a finite number",
}


def _sentence(root: type[Table], error: ErrorDetails) -> str:
    place, kind = error["loc"], error["type"]
    if kind == "model_type" and len(place) == 2 and place[1] in known(root):
        return stray(str(place[1]), place[:1])
    if kind == "extra_forbidden":
        return _unknown_key(root, place)
    if kind in _WANTED:
        return f"{dotted(place)} must be {_WANTED[kind]}, not {a_kind_of(error['input'])}"
    if kind in _PHRASES:
        return f"{dotted(place)} {_PHRASES[kind].format(**_plain(error.get('ctx', {})))}".replace("'", "")
    return error["msg"]


def _plain(bounds: Mapping[str, Any]) -> dict[str, Any]:
    """Bounds of a number that may have a fraction come as 0.0."""
    whole = {name for name, bound in bounds.items() if isinstance(bound, float) and bound.is_integer()}
    return {name: int(bound) if name in whole else bound for name, bound in bounds.items()}


def _unknown_key(root: type[Table], place: Place) -> str:
    key = str(place[-1])
    if len(place) > 1 and key in known(root):
        return stray(key, place[:-1])
    if root is FrontMatter and key in known(AgentTable):
        return f"{key} means nothing above the instructions: put it into config.toml beside SKILL.md"
    table = root if len(place) == 1 else _INNER[str(place[0])]
    return f"unknown key {dotted(place)}{question(key, known(table))}"
