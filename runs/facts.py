"""What a page says about a run: what its status means now, and the facts beside it. Reads, never writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agents import clock
from agents.models import Agent
from agents.pages import change_url, length, moment, page_url
from agents.spec import AgentSpec, Limits
from runs import approvals, definitions, limits
from runs.bells import HEARD_OF
from runs.line import AT_WORK, SEATED
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
        taken = Run.objects.filter(SEATED)
        return cls(
            in_use=taken.filter(agent=agent).count(),
            in_use_in_all=taken.filter(workspace=agent.workspace_id).count(),
            hosts_alive=Host.objects.filter(last_seen_at__gt=clock.now() - HEARD_OF).exists(),
        )

    def waits_for(self, agent: Agent) -> str:
        """Why the next in the agent's line has not started, in words."""
        if agent.refusal:
            return agent.refusal
        if agent.broken and agent.probe_at and agent.probe_at > clock.now():
            return f"{agent.failures_in_a_row} failed in a row, one is tried at {moment(agent.probe_at)} UTC"
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
            return f"in line: {held_up_by(run) or (line or Line.of(run.agent)).waits_for(run.agent)}"
        case Status.PROCESSING if not run.has_slot:
            return "woken, in line for a free slot"
        case Status.PROCESSING if run.slot_lent_at:
            return "a command of it waits for a call, and others may have its slot meanwhile"
        case Status.PROCESSING:
            return run.status_text
        case Status.WAITING:
            return waiting_for(run)
        case Status.FAILED:
            return f"{code_of(run)}: {(run.error or {}).get('message', '')}"
    return ""


def held_up_by(run: Run) -> str:
    """Another run of its claim key or session that is at work; empty if there is none."""
    at_work = Run.objects.filter(agent=run.agent_id, status__in=AT_WORK)
    for column, word in (("claim_key", "claim key"), ("session_key", "session")):
        if key := getattr(run, column):
            for other in at_work.filter(**{column: key}).values_list("pk", flat=True)[:1]:
                return f"{other} of the same {word} is not over"
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
    return run.version.shown() if run.version else run.agent.shown_spec


def facts(run: Run, attempts: Sequence[Attempt]) -> list[Fact]:
    """`attempts` are all of the run's, in their order."""
    spec = spec_of(run)
    own = limits.of(run, spec)
    return [
        Fact("Run", run.pk),
        Fact("Agent", run.agent.name, change_url(run.agent)),
        *definition(run),
        *because(run),
        *related(run, spec),
        *times(run, own),
        *spendings(run, own),
        *tries(attempts, spec),
        *places(run, attempts[-1] if attempts else None),
    ]


def definition(run: Run) -> Iterator[Fact]:
    """The version it was started with, and whether that is still the agent's."""
    if run.version:
        note = "" if definitions.is_current(run) else "the agent has another one now"
        yield Fact("Definition", str(run.version), page_url("runs", "run", run.pk, "definition"), note)


def because(run: Run) -> Iterator[Fact]:
    """Why the run exists, with the page of what caused it."""
    yield Fact("Started by", TriggerKind(run.trigger).label.lower())
    app, model, word = CAUSES.get(run.caused_by.partition("_")[0], ("", "", ""))
    if run.rerun_of_id and run.caused_by == run.rerun_of_id:
        return
    if app:
        yield Fact("Cause", f"{word} {run.caused_by}", page_url(app, model, run.caused_by))
    elif run.caused_by:
        yield Fact("Cause", run.caused_by)
    if run.parent_id and run.parent_id != run.caused_by:
        yield Fact("Parent", run.parent_id, page_url("runs", "run", run.parent_id))
    if run.scheduled_for:
        yield Fact("Scheduled for", f"{moment(run.scheduled_for)} UTC")


def related(run: Run, spec: AgentSpec) -> Iterator[Fact]:
    """What it shares with other runs: a claim key, a session, what it repeats or resumes, and what came after it."""
    if run.claim_key:
        yield Fact("Claim key", run.claim_key)
    if run.session_key:
        yield Fact("Session key", run.session_key)
    if run.rerun_of_id:
        yield run_fact("Rerun of", run.rerun_of_id, note=f"rerun {run.rerun_number} of {spec.max_reruns} at most")
    if run.resumed_from_id:
        yield run_fact("Resumed from", run.resumed_from_id)
    if run.terminal:
        for label, followers in (("Followed by", run.reruns), ("Resumed by", run.resumptions)):
            for pk in followers.filter(delete_requested_at=None).order_by("pk").values_list("pk", flat=True)[:5]:
                yield run_fact(label, pk)


def run_fact(label: str, run_id: str, note: str = "") -> Fact:
    return Fact(label, run_id, page_url("runs", "run", run_id), note)


def times(run: Run, own: Limits) -> Iterator[Fact]:
    yield Fact("Asked for", f"{moment(run.created_at)} UTC")
    if run.started_at:
        yield Fact("Started", f"{moment(run.started_at)} UTC")
        counts = {} if run.terminal else {"at": run.started_at, "counts": "since"}
        yield Fact("Duration", duration(run), **counts)  # type: ignore[arg-type]
    if run.finished_at:
        yield Fact("Ended", f"{moment(run.finished_at)} UTC")
    wall = own.wall_seconds
    if run.status == Status.PROCESSING and run.deadline_at:
        left = length((run.deadline_at - clock.now()).total_seconds())
        yield Fact("Time left", left, note=f"of {length(wall)}", at=run.deadline_at, counts="left")
    elif not run.terminal:
        yield Fact("Time limit", length(wall) if wall else "none", note="waiting does not count")
    if own.idle_seconds and not run.terminal:
        yield Fact("Idle limit", length(own.idle_seconds), note="without a word from the model or a command")


def spendings(run: Run, own: Limits) -> Iterator[Fact]:
    yield Fact("Turns", spent(run.turns, own.turns))
    yield Fact("Tokens", spent(run.tokens, own.tokens), note=tokens_in_detail(run))
    if run.cost or own.usd:
        yield Fact("Cost", f"${run.cost:,.4f}" + (f" of ${own.usd:,.4f}" if own.usd else ""))
    yield Fact("Output", f"{spent(run.output_bytes, own.output_bytes)} bytes")
    if run.exit_code is not None:
        yield Fact("Exit code", str(run.exit_code))


def spent(used: int, limit: int) -> str:
    return f"{used:,} of {limit:,}" if limit else f"{used:,}"


def tokens_in_detail(run: Run) -> str:
    parts = [f"{run.input_tokens:,} in", f"{run.output_tokens:,} out"]
    if run.cache_read_tokens:
        parts.append(f"{run.cache_read_tokens:,} of them read from the cache")
    if run.estimated_tokens:
        parts.append(f"{run.estimated_tokens:,} estimated: sent, and the answer was lost")
    return ", ".join(parts)


def tries(attempts: Sequence[Attempt], spec: AgentSpec) -> Iterator[Fact]:
    """Which attempt this is, and how the earlier ones ended; each leads to its own transcript."""
    if not attempts:
        return
    newest, most = attempts[-1].number, 1 if spec.retry == "never" else spec.attempts.most
    url = f"?attempt={newest}" if newest > 1 else ""
    yield Fact("Attempt", f"{newest} of {most}" if newest <= most else str(newest), url)
    for earlier in reversed(attempts[:-1]):
        error = earlier.error or {}
        text = str(error.get("code", "ended"))
        yield Fact(f"Attempt {earlier.number}", text, f"?attempt={earlier.number}", str(error.get("message", "")))


def places(run: Run, attempt: Attempt | None) -> Iterator[Fact]:
    if run.host:
        yield Fact("Host", run.host.name, note=run.host.pk)
    if attempt is None:
        return
    yield Fact("Sandbox", f"{attempt.sandbox_state} {attempt.sandbox_id}".strip(), note=attempt.sandbox_name)
    if attempt.image:
        yield Fact("Image", attempt.image)


@dataclass(frozen=True)
class Leave:
    """The call a run asks leave for, as stored: all of it, and without signs that hide or turn what is read."""

    call_id: str
    tool: str
    digest: str
    expires_at: datetime
    arguments: list[tuple[str, str]]

    @classmethod
    def of(cls, run: Run) -> Leave | None:
        approval = approvals.open_one(run)
        if approval is None:
            return None
        call = approval.call
        return cls(call.call_id, call.name, approval.digest, approval.expires_at, written_out(call.arguments))


def written_out(arguments: Any) -> list[tuple[str, str]]:
    """Each argument by name, in text without a character that cannot be seen."""
    named = arguments if isinstance(arguments, dict) else {"arguments": arguments}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in named.items()}
    return [(visible(name), visible(text)) for name, text in texts.items()]


def visible(text: str) -> str:
    """Whatever shows nothing, or changes how other text is shown, by its number; lines stay lines."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else f"\\u{{{ord(sign):x}}}" for sign in text)


def context_for(run: Run, *, may_operate: bool) -> dict[str, Any]:
    """All that the page's live part shows, for the page and for its refreshes alike."""
    return {
        "run": run,
        "color": COLORS.get(run.status, "default"),
        "standing": standing(run),
        "facts": facts(run, list(run.attempts.order_by("number"))),
        "asks": may_operate and run.status == Status.WAITING and run.wait_reason == WaitReason.INPUT,
        "leave": Leave.of(run) if may_operate else None,
        "may_cancel": may_operate and not run.terminal and run.cancel_requested_at is None,
        "now": clock.now(),
    }
