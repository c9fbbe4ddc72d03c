"""The keys of `[[polls]]`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from agents.manifest.values import Name, Table, length_of_time
from agents.spec import PollSpec

Short = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=2000)]


class PollTable(Table):
    """`[[polls]]` of an agent: see PollSpec."""

    name: Name
    every: Annotated[int, BeforeValidator(length_of_time), Field(ge=10, le=2**31 - 1)] = PollSpec.every_seconds
    url: Text = PollSpec.url
    headers: dict[str, Text] = {}
    path: Annotated[str, Field(max_length=1000)] = PollSpec.path
    command: Annotated[str, Field(max_length=30_000)] = PollSpec.command
    items: Short = PollSpec.items
    id: Short = PollSpec.id
    most: Annotated[int, Field(ge=1, le=1000)] = PollSpec.most
