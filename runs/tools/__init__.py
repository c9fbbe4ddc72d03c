"""The model's tools, one file each, under the names models are trained on."""

from __future__ import annotations

from collections.abc import Sequence

from runs.tools import ask, bash, edit, glob, grep, read, rerun, set_status, write
from runs.tools.base import Tool

ALL: dict[str, Tool] = {
    module.TOOL.name: module.TOOL for module in (bash, read, write, edit, glob, grep, ask, set_status, rerun)
}


def offered(names: Sequence[str] | None) -> list[Tool]:
    """The tools an agent gets: all, or those it names, in the order of ALL."""
    return [tool for tool in ALL.values() if names is None or tool.name in names]
