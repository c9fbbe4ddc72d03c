"""The model's tools, one file each, under the names models are trained on."""

from __future__ import annotations

from collections.abc import Sequence

from agents.spec import AgentSpec
from runs.tools import (
    acquire_lock,
    ask,
    bash,
    call_agent,
    check_call,
    edit,
    exit,  # noqa: A004
    glob,
    grep,
    memory,
    read,
    release_lock,
    rerun,
    return_value,
    set_status,
    skill,
    wait_for_trigger,
    write,
)
from runs.tools.base import Tool

ALL: dict[str, Tool] = {
    module.TOOL.name: module.TOOL
    for module in (
        *(bash, read, write, edit, glob, grep, ask, set_status, rerun),
        *(acquire_lock, release_lock, call_agent, check_call, return_value, exit, wait_for_trigger),
        *(skill, memory),
    )
}


def offered(names: Sequence[str] | None) -> list[Tool]:
    """The tools an agent gets: all, or those it names, in the order of ALL."""
    return [tool for tool in ALL.values() if names is None or tool.name in names]


def may_use_sandbox(spec: AgentSpec) -> bool:
    """Whether a run of the agent may ever start one."""
    steps = spec.preflight or spec.hooks_pre or spec.hooks_post
    return spec.kind == "command" or bool(steps) or any(tool.in_sandbox for tool in of(spec))


def of(spec: AgentSpec) -> list[Tool]:
    """Those offered to an agent, without what would be of no use to it."""
    return [tool for tool in offered(spec.tools) if tool is not skill.TOOL or spec.skills]
