"""The keys of `[outgoing.<name>]`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from agents import addresses
from agents.credential_types import OUTGOING
from agents.manifest.values import Name, Table
from agents.spec import OutgoingSpec

State = Literal["pending", "processing", "waiting", "finished", "failed", "canceled"]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _instance(value: Any) -> Any:
    """The type is known, so it may be left out."""
    return value.removeprefix(f"{OUTGOING}:") if isinstance(value, str) else value


class OutgoingTable(Table):
    """`[outgoing.<name>]` of a project."""

    url: Annotated[str, Field(max_length=2000)] = OutgoingSpec.url
    credential: Annotated[str, Field(max_length=100), BeforeValidator(_instance)] = OutgoingSpec.credential
    states: Annotated[list[State], BeforeValidator(_listed)] = []
    agents: Annotated[list[Name], BeforeValidator(_listed)] = []
    format: Literal["standard", "slack"] = OutgoingSpec.format

    @field_validator("url")
    @classmethod
    def _can_be_reached(cls, value: str) -> str:
        if value and (fault := addresses.fault(value)):
            raise PydanticCustomError("ours", f"the address {fault}")
        return value
