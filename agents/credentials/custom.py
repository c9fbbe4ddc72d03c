"""The operator's own kinds of credentials, from HOME/credential-types.toml; a table each:

[stripe_token]
fields = ["token", "account"]
optional = ["account"]           # may be missing
public = ["account"]             # no secret: shown, not redacted
env = {token = "STRIPE_API_KEY"} # variables in sandboxes
context = "`STRIPE_API_KEY`: use `curl` with Stripe's API"
help = "A restricted key of Stripe."
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from agents.credential_types import BUILT_IN, CredentialType
from agents.credential_types import Field as TypeField
from agents.credentials.base import CredentialError, is_name

# What else is said with a variable of that name must stay true.
RESERVED = re.compile(r"PATH|HOME|LD_.*|GATEWAY_URL|SHUTDOWN_SECRET|AGENTFLEET_.*|AL_.*|GIT_CONFIG_.*")

Variable = Annotated[str, StringConstraints(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*\z")]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid")

    fields: list[str] = Field(min_length=1)
    optional: list[str] = []
    public: list[str] = []
    env: dict[str, Variable] = {}
    context: str = ""
    help: str = ""


_file = TypeAdapter(dict[str, Table])


def read(file: Path) -> Mapping[str, CredentialType]:
    """The types in it; none if there is no such file. Raises CredentialError with what is wrong in it."""
    try:
        changed_at = file.stat().st_mtime_ns
    except FileNotFoundError:
        return {}
    return _read(file, changed_at)


@lru_cache(maxsize=8)
def _read(file: Path, changed_at: int) -> Mapping[str, CredentialType]:
    try:
        tables = _file.validate_python(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CredentialError(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CredentialError(f"{file}: {place}: {first['msg']}") from error
    for name, table in tables.items():
        if fault := _fault(name, table):
            raise CredentialError(f"{file}: [{name}] {fault}")
    return {name: _type(name, table) for name, table in tables.items()}


def _fault(name: str, table: Table) -> str:
    if name in BUILT_IN:
        return "is built in: choose another name"
    if bad := [word for word in (name, *table.fields) if not is_name(word)]:
        return f"cannot have the name {bad[0]!r}: use letters, digits, dots, dashes and underscores"
    if stray := {*table.optional, *table.public, *table.env} - set(table.fields):
        return f"says something about {min(stray)}, which is none of its fields"
    if taken := [variable for variable in table.env.values() if RESERVED.fullmatch(variable)]:
        return f"may not set {taken[0]}"
    return ""


def _type(name: str, table: Table) -> CredentialType:
    fields = [
        TypeField(
            name=field,
            env=table.env.get(field, ""),
            optional=field in table.optional,
            secret=field not in table.public,
        )
        for field in table.fields
    ]
    return CredentialType(
        name=name, field_sets=[fields], help=table.help, context=" ".join(table.context.split()), custom=True
    )
