"""What a page says about a run: what its status means now, and the facts beside it. Reads, never writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agents import clock
from agents.models import Agent
from agents.pages import change_url, length, moment, page_url
from agents.spec import AgentSpec, Limits
from runs.bells import HEARD_OF
from runs.models import Attempt, Host, Run, Status, TriggerKind, WaitReason

# Status → unfold's variant of a label.
COLORS: dict[str, str] = {
    Status.PENDING: "info",
    Status.PROCESSING: "primary",
    Status.WAITING: "warning",
    Status.FINISHED: "success",
    Status.FAILED: "danger",
    Status.CANCELED: "default",
}
# caused_by's prefix → the admin's page of what is behind it.
CAUSES = {"dlv": ("webhooks", "delivery", "delivery"), "run": ("runs", "run", "run")}


@dataclass(frozen=True)
class Fact:
    """One line beside a run. With `at`, the page counts the time `since` it or `left` to it."""

    label: str
    text: str
    url: str = ""
    note: str = ""
    at: datetime | None = None
    counts: str = ""


@dataclass(frozen=True)
class Line:
    """What decides whether an agent's next run may start."""

    in_use: int
    in_use_in_all: int
    hosts_alive: bool

    @classmethod
    def of(cls, agent: Agent) -> Line:
        taken = Run.objects.filter(has_slot=True)
        return cls(
            in_use=taken.filter(agent=agent).count(),
            in_use_in_all=taken.filter(workspace=agent.workspace_id).count(),
            hosts_alive=Host.objects.filter(last_seen_at__gt=clock.now() - HEARD_OF).exists(),
        )

    def waits_for(self, agent: Agent) -> str:
        """Why the next in the agent's line has not started, in words."""
        if agent.refusal:
            return agent.refusal
        if not self.hosts_alive:
            return "no worker is there to take it"
        if self.in_use >= agent.scale:
            return f"scale {agent.scale} in use"
        cap = agent.workspace.scale
        if cap is not None and self.in_use_in_all >= cap:
            return f"the workspace's {cap} in use"
        return "about to start"


def standing(run: Run, line: Line | None = None) -> str:
    """What the run's status means now, in a sentence; empty where the status says it all."""
    if run.cancel_requested_at and not run.terminal:
        return "cancel requested: stopping"
    match run.status:
        case Status.PENDING:
            return f"in line: {(line or Line.of(run.agent)).waits_for(run.agent)}"
        case Status.PROCESSING if not run.has_slot:
            return "woken, in line for a free slot"
        case Status.PROCESSING:
            return run.status_text
        case Status.WAITING:
            return waiting_for(run)
        case Status.FAILED:
            return f"{code_of(run)}: {(run.error or {}).get('message', '')}"
    return ""


def waiting_for(run: Run) -> str:
    until = f" until {moment(run.wake_at)} UTC" if run.wake_at else ""
    words = {
        WaitReason.INPUT: "an answer",
        WaitReason.APPROVAL: "an approval",
        WaitReason.TRIGGER: "its trigger",
        WaitReason.HANDOFF: "the run it handed over to",
        WaitReason.RATE_LIMIT: f"the model's rate limit{until}",
        WaitReason.RETRY: f"another try{until}",
    }
    return f"waits for {words.get(WaitReason(run.wait_reason), run.wait_reason)}"


def code_of(run: Run) -> str:
    return str((run.error or {}).get("code", ""))


def duration(run: Run) -> str:
    """From its start to its end, or to now."""
    if run.started_at is None:
        return ""
    return length(((run.finished_at or clock.now()) - run.started_at).total_seconds())


def spec_of(run: Run) -> AgentSpec:
    """The definition the run has, or will have if it starts now."""
    return run.version.read() if run.version else run.agent.spec


def facts(run: Run, attempt: Attempt | None) -> list[Fact]:
    limits = spec_of(run).limits
    return [
        Fact("Run", run.pk),
        Fact("Agent", run.agent.name, change_url(run.agent)),
        *because(run),
        *times(run, limits),
        Fact("Turns", spent(run.turns, run.max_turns, limits.turns)),
        Fact("Tokens", spent(run.tokens, run.token_budget, limits.tokens), note=tokens_in_detail(run)),
        *places(run, attempt),
    ]


def because(run: Run) -> Iterator[Fact]:
    """Why the run exists, with the page of what caused it."""
    yield Fact("Started by", TriggerKind(run.trigger).label.lower())
    app, model, word = CAUSES.get(run.caused_by.partition("_")[0], ("", "", ""))
    if app:
        yield Fact("Cause", f"{word} {run.caused_by}", page_url(app, model, run.caused_by))
    elif run.caused_by:
        yield Fact("Cause", run.caused_by)
    if run.parent_id and run.parent_id != run.caused_by:
        yield Fact("Parent", run.parent_id, page_url("runs", "run", run.parent_id))
    if run.scheduled_for:
        yield Fact("Scheduled for", f"{moment(run.scheduled_for)} UTC")


def times(run: Run, limits: Limits) -> Iterator[Fact]:
    yield Fact("Asked for", f"{moment(run.created_at)} UTC")
    if run.started_at:
        yield Fact("Started", f"{moment(run.started_at)} UTC")
        counts = {} if run.terminal else {"at": run.started_at, "counts": "since"}
        yield Fact("Duration", duration(run), **counts)  # type: ignore[arg-type]
    if run.finished_at:
        yield Fact("Ended", f"{moment(run.finished_at)} UTC")
    wall = run.wall_seconds if run.wall_seconds is not None else limits.wall_seconds
    if run.status == Status.PROCESSING and run.deadline_at:
        left = length((run.deadline_at - clock.now()).total_seconds())
        yield Fact("Time left", left, note=f"of {length(wall)}", at=run.deadline_at, counts="left")
    elif not run.terminal:
        yield Fact("Time limit", length(wall) if wall else "none", note="waiting does not count")


def spent(used: int, own: int | None, agents: int) -> str:
    limit = own if own is not None else agents
    return f"{used:,} of {limit:,}" if limit else f"{used:,}"


def tokens_in_detail(run: Run) -> str:
    parts = [f"{run.input_tokens:,} in", f"{run.output_tokens:,} out"]
    if run.cache_read_tokens:
        parts.append(f"{run.cache_read_tokens:,} of them read from the cache")
    if run.estimated_tokens:
        parts.append(f"{run.estimated_tokens:,} estimated: sent, and the answer was lost")
    return ", ".join(parts)


def places(run: Run, attempt: Attempt | None) -> Iterator[Fact]:
    if run.host:
        yield Fact("Host", run.host.name, note=run.host.pk)
    if attempt is None:
        return
    yield Fact("Attempt", str(attempt.number))
    yield Fact("Sandbox", f"{attempt.sandbox_state} {attempt.sandbox_id}".strip(), note=attempt.sandbox_name)
    if attempt.image:
        yield Fact("Image", attempt.image)


def context_for(run: Run, *, may_operate: bool) -> dict[str, Any]:
    """All that the page's live part shows, for the page and for its refreshes alike."""
    attempt = run.attempts.order_by("-number").first()
    return {
        "run": run,
        "color": COLORS.get(run.status, "default"),
        "standing": standing(run),
        "facts": facts(run, attempt),
        "asks": may_operate and run.status == Status.WAITING and run.wait_reason == WaitReason.INPUT,
        "may_cancel": may_operate and not run.terminal and run.cancel_requested_at is None,
        "now": clock.now(),
    }
