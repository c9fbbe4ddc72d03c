"""Plain functions that make rows, each with what a test does not care about filled in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from agents import clock
from agents.models import Agent, AgentFile, AgentVersion, Priority, Schedule, Workspace
from agents.spec import AgentSpec
from runs import queue
from runs.lifecycle import Cause
from runs.models import Run, TriggerKind
from runs.transcript import Body, Part

SCRIPTED = {"provider": "scripted", "model": "script.yaml"}


def make_workspace(**changes: Any) -> Workspace:
    workspace, _ = Workspace.objects.get_or_create(name="default")
    for name, value in changes.items():
        setattr(workspace, name, value)
    workspace.save()
    return workspace


def make_agent(name: str = "dev", *, turns: Sequence[Any] | None = None, **changes: Any) -> Agent:
    """An agent; `turns` are its scripted model's, other changes go into its definition."""
    spec = AgentSpec.load({"name": name, "models": [SCRIPTED], **changes})
    agent = Agent.objects.create(
        workspace=make_workspace(),
        name=name,
        kind=spec.kind,
        scale=spec.scale,
        priority=Priority.named(spec.priority),
        task_enabled=spec.task_enabled,
        queue_size=spec.max_work_queue,
        claim_key=spec.coalesce.key,
        coalesce=spec.coalesce.mode,
        breaker_failures=spec.breaker.failures,
    )
    agent.version = AgentVersion.objects.create(agent=agent, digest=f"{agent.pk:064}", spec=spec.dump())
    agent.save()
    make_schedules(agent, spec)
    if turns is not None:
        script = yaml.safe_dump({"turns": list(turns)}).encode()
        AgentFile.objects.create(version=agent.version, path="script.yaml", content=script)
    return agent


def make_schedules(agent: Agent, spec: AgentSpec) -> None:
    """As `apply` makes them: they count from now."""
    now = clock.now()
    for index, said in enumerate(spec.schedules):
        Schedule.objects.create(
            agent=agent,
            index=index,
            cron=said.cron,
            timezone=said.timezone or spec.timezone,
            jitter_seconds=said.jitter_seconds,
            missed=said.missed,
            missed_seconds=said.missed_seconds,
            fired_at=now,
            since=now,
            anchor=now.replace(microsecond=0),
        )


def submit(agent: Agent, trigger: TriggerKind = TriggerKind.MANUAL, **changes: Any) -> Run:
    run, _ = queue.submit(agent, Cause(trigger), **changes)
    return run


def bash(command: str, **arguments: Any) -> dict[str, Any]:
    """A scripted turn's tool call."""
    return {"name": "bash", "arguments": {"command": command, **arguments}}


def said(text: str = "", *calls: dict[str, Any], stop: str = "end_turn") -> Body:
    """A model's message with tool calls as `bash` makes them. It cost 100 tokens in and 10 out."""
    parts: list[Part] = [{"type": "text", "text": text}] if text else []
    for number, call in enumerate(calls):
        parts.append(
            {"type": "tool_call", "id": f"call_{number}", "name": call["name"], "arguments": call["arguments"]}
        )
    return {
        "role": "assistant",
        "parts": parts,
        "model": "played",
        "usage": {"input": 100, "output": 10, "cache_read": 0, "cache_write": 0},
        "stop": "tool_use" if calls else stop,
    }


def status(text: str) -> dict[str, Any]:
    """The call of a tool that needs no sandbox."""
    return {"name": "set_status", "arguments": {"text": text}}


def ask(question: str) -> dict[str, Any]:
    return {"name": "ask", "arguments": {"question": question}}
