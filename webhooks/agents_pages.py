"""What the admin shows of an agent, and Run now, Pause, Resume and Reset."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django import forms
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.views.generic import TemplateView
from unfold.widgets import UnfoldAdminTextareaWidget

from agents import clock, timetable
from agents.ids import new_id
from agents.models import Agent, AgentEvent, AgentFile, Missed, Schedule
from agents.pages import LARGEST, Deed, PageOfRow, Refused, change_url, length, moment, plain_lines, pretty
from agents.spec import AgentSpec, Approvals, Breaker, Limits
from runs import images_admin, queue
from runs.facts import COLORS, code_of, duration
from runs.lifecycle import Cause
from runs.models import Run, Status, TriggerKind
from webhooks.dead_letters_admin import list_url, unreplayed
from webhooks.polls import told

RUNS_SHOWN = 10
VERSIONS_SHOWN = 10
FIRES_SHOWN = 5
EVENTS_SHOWN = 10
STATES = {"active": "success", "paused": "warning", "off": "default", "gone": "danger", "broken": "danger"}

SECOND_OF_A_KEY = {
    "queue": "runs after the first",
    "skip": "starts nothing",
    "replace": "takes the place of one still in line",
}


# --- what an agent is doing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activity:
    running: int = 0
    pending: int = 0
    last: Run | None = None


def activities(agents: Iterable[Agent]) -> dict[int, Activity]:
    """For a page of agents, in four queries however many there are."""
    ids = [agent.pk for agent in agents]
    per_agent = Run.objects.filter(agent__in=ids).values_list("agent").annotate(Count("pk"))
    running = dict(per_agent.filter(has_slot=True))
    pending = dict(per_agent.filter(status=Status.PENDING))
    newest = Run.objects.filter(agent=OuterRef("pk")).order_by("-id").values("pk")[:1]
    last_ids = Agent.objects.filter(pk__in=ids).annotate(last=Subquery(newest)).values_list("last", flat=True)
    few = ("id", "agent", "status", "error", "wait_reason", "created_at", "started_at", "finished_at")
    last = {run.agent_id: run for run in Run.objects.filter(pk__in=[pk for pk in last_ids if pk]).only(*few)}
    return {pk: Activity(running.get(pk, 0), pending.get(pk, 0), last.get(pk)) for pk in ids}


def state_of(agent: Agent) -> tuple[str, str]:
    if not agent.active:
        return "gone", "not in its folder"
    if agent.scale == 0:
        return "off", "off"
    if agent.paused or agent.workspace.paused_at:
        return "paused", "paused" if agent.paused else "fleet paused"
    return ("broken", "broken") if agent.broken else ("active", "active")


def next_fires(agent: Agent, count: int) -> list[str]:
    """Its next fire times, each in its own zone; empty where nothing will fire."""
    if agent.refusal:
        return []
    return [str(tick) for tick in timetable.upcoming(agent.schedules.all(), after=clock.now(), count=count)]


def schedule_in_words(schedule: Schedule) -> str:
    """0 9 * * * Europe/Berlin, up to 5 min later; missed: all within 2 h 00 min"""
    jitter = f", up to {length(schedule.jitter_seconds)} later" if schedule.jitter_seconds else ""
    window = f" within {length(schedule.missed_seconds)}" if schedule.missed_seconds else ""
    return f"{schedule}{jitter}; missed: {schedule.missed}{'' if schedule.missed == Missed.SKIP else window}"


def step_in_words(step: Mapping[str, Any]) -> str:
    """Its provider and what that is about."""
    params = step.get("params", {})
    about = params.get("command") or params.get("url") or params.get("repo") or ""
    return f"{step.get('provider')} {about}{'' if step.get('required', True) else ' (optional)'}"


def limits_in_words(limits: Limits) -> str:
    wall = length(limits.wall_seconds) if limits.wall_seconds else "no limit of time"
    turns = f"{limits.turns} turns" if limits.turns else "no limit of turns"
    tokens = f"{limits.tokens:,} tokens" if limits.tokens else "no limit of tokens"
    more = [f"{length(limits.idle_seconds)} idle"] if limits.idle_seconds else []
    more += [f"${limits.usd:,.2f}"] if limits.usd else []
    return ", ".join([turns, wall, tokens, *more])


def attempts_in_words(spec: AgentSpec) -> str:
    policy = spec.attempts
    if spec.retry == "never" or policy.most == 1 or not policy.after:
        return "one"
    when = "" if spec.retry == "always" else ", only where no tool call had been started"
    return f"{policy.most} at most, after a failure of {', '.join(policy.after)}{when}"


def breaker_in_words(breaker: Breaker) -> str:
    if not breaker.failures:
        return "none"
    return f"after {breaker.failures} failed runs in a row, then one tried after {length(breaker.probe_seconds)}"


def approvals_in_words(approvals: Approvals) -> str:
    if approvals.ask == "off":
        return ""
    allowed = f", but for {', '.join(approvals.allow)}" if approvals.ask == "on-miss" and approvals.allow else ""
    return f"bash, write and edit{allowed}; refused after {length(approvals.expires_seconds)}"


# --- pages ------------------------------------------------------------------------------------------------------


class OfAgent(PageOfRow):
    def get_rows(self) -> QuerySet[Agent]:
        rows: QuerySet[Agent] = super().get_rows()
        return rows.select_related("workspace", "version")


class AgentPage(OfAgent, TemplateView):
    template_name = "agents/agent.html"

    @property
    def title(self) -> str:
        return f"Agent {self.row}"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        agent: Agent = self.row
        kind, state = state_of(agent)
        return super().get_context_data(
            agent=agent,
            spec=agent.shown_spec,
            state=state,
            state_color=STATES[kind],
            activity=activities([agent])[agent.pk],
            schedules=[schedule_in_words(schedule) for schedule in agent.schedules.all()],
            fires=next_fires(agent, FIRES_SHOWN),
            polls=told.lines(agent),
            runs=recent_runs(agent),
            events=recent_events(agent),
            images=images_admin.of(agent),
            dead_letters=unreplayed(agent),
            dead_letters_url=list_url(agent.pk),
            now=clock.now(),
            definition=definition(agent.shown_spec),
            params=pretty(agent.shown_spec.params) if agent.shown_spec.params else "",
            triggers=triggers_of(agent),
            files=AgentFile.objects.filter(version=agent.version_id).order_by("path").values_list("path", flat=True),
            versions=agent.versions.order_by("-id").only("digest", "created_at")[:VERSIONS_SHOWN],
            may_operate=self.model_admin.has_operate_permission(self.request),
            may_edit=self.model_admin.has_edit_permission(self.request) and not agent.project,
            ask_id=new_id("ask"),
            **kwargs,
        )


def triggers_of(agent: Agent) -> list[dict[str, Any]]:
    triggers = agent.webhook_triggers.select_related("source").order_by("index")
    return [{"source": trigger.source, "filters": pretty(trigger.filters)} for trigger in triggers]


def recent_runs(agent: Agent) -> list[dict[str, Any]]:
    few = ("id", "status", "error", "wait_reason", "trigger", "created_at", "started_at", "finished_at", "turns")
    rows = Run.objects.filter(agent=agent, delete_requested_at=None).only(*few).order_by("-id")[:RUNS_SHOWN]
    return [
        {
            "run": run,
            "url": change_url(run),
            "color": COLORS[run.status],
            "why": run.wait_reason or code_of(run),
            "created": moment(run.created_at),
            "duration": duration(run),
        }
        for run in rows
    ]


def recent_events(agent: Agent) -> list[dict[str, str]]:
    return [
        {"at": moment(event.created_at), "type": event.type, "text": in_words(event)}
        for event in agent.events.order_by("-id")[:EVENTS_SHOWN]
    ]


def in_words(event: AgentEvent) -> str:
    said = ", ".join(f"{name}: {value}" for name, value in event.data.items() if value is not None and value != "")
    about = f"tick of {moment(event.tick)} UTC" if event.tick else ""
    return "; ".join(filter(None, (about, said)))


def definition(spec: AgentSpec) -> list[tuple[str, str]]:
    """What the definition says, beside its instructions, parameters and triggers."""
    model_names = [f"{model.provider}:{model.model}" for model in spec.models]
    lines = [
        ("Kind", spec.kind),
        ("Command", spec.command if isinstance(spec.command, str) else shlex.join(spec.command)),
        ("Models", ", then ".join(model_names)),
        ("Limits", limits_in_words(spec.limits)),
        ("Output", f"{spec.limits.output_bytes:,} bytes at most" if spec.limits.output_bytes else "no limit"),
        ("Scale", f"{spec.scale} at once"),
        ("Line", f"{spec.max_work_queue:,} at most beyond the free slots"),
        ("Attempts", attempts_in_words(spec)),
        ("Breaker", breaker_in_words(spec.breaker)),
        ("Reruns", f"{spec.max_reruns} in a row at most"),
        ("Tick without a free slot", {"skip": "left out", "queue": "waits"}[spec.overlap] if spec.schedules else ""),
        ("Claim key", spec.coalesce.key),
        ("A second of one key", SECOND_OF_A_KEY[spec.coalesce.mode] if spec.coalesce.key else ""),
        ("Asks leave for", approvals_in_words(spec.approvals)),
        ("Priority", spec.priority),
        ("Image", spec.image or "the fleet's own"),
        ("Network", spec.network),
        ("Sandbox", spec.sandbox),
        ("Tools", "all" if spec.tools is None else ", ".join(spec.tools)),
        ("Credentials", ", ".join(spec.credentials)),
        ("Takes tasks over REST", "yes" if spec.task_enabled else "no"),
        ("Preflight", "; ".join(map(step_in_words, spec.preflight))),
        ("Hooks before", "; ".join(spec.hooks_pre)),
        ("Hooks after", "; ".join(spec.hooks_post)),
    ]
    return [(label, text) for label, text in lines if text]


class RunNowForm(forms.Form):
    text = forms.CharField(
        required=False,
        max_length=LARGEST,
        label="Prompt (optional)",
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 6}),
        help_text="Empty: it looks for work by itself, as on its schedule.",
    )
    ask_id = forms.CharField(max_length=100, widget=forms.HiddenInput)

    def clean_text(self) -> str:
        return plain_lines(self.cleaned_data["text"])


class RunNow(Deed, OfAgent):
    verb = "Run now"
    form_class = RunNowForm
    started: Run | None = None

    @property
    def title(self) -> str:
        return f"Run {self.row} now"

    def get_initial(self) -> dict[str, Any]:
        return {"ask_id": new_id("ask")}

    def do(self, form: forms.Form) -> str:
        """Pressing the button twice starts one run: the form's id is the idempotency key."""
        key = f"admin-{form.cleaned_data['ask_id']}"
        cause = Cause(TriggerKind.MANUAL)
        try:
            self.started, _ = queue.submit(self.row, cause, input=form.cleaned_data["text"], idempotency_key=key)
        except (queue.AgentRefuses, queue.Coalesced, queue.QueueFull) as refusal:
            raise Refused(str(refusal)) from refusal
        except queue.KeyReused as error:
            raise Refused(f"this form has started {error} already: open it again for another run") from error
        return f"Asked {self.row} to run"

    def get_success_url(self) -> str:
        return change_url(self.started or self.row)


class PauseAgent(Deed, OfAgent):
    verb = "Pause"
    sentence = "Nothing new starts, whatever asks. What runs goes on, and what is in line stays there."

    @property
    def title(self) -> str:
        return f"Pause {self.row}"

    def do(self, form: forms.Form) -> str:
        queue.pause(self.row)
        return f"Paused {self.row}"


class ResumeAgent(Deed, OfAgent):
    verb = "Resume"
    sentence = "It takes work again. Ticks that passed are not made up for."

    @property
    def title(self) -> str:
        return f"Resume {self.row}"

    def do(self, form: forms.Form) -> str:
        queue.resume(self.row)
        return f"Resumed {self.row}"


class ResetAgent(Deed, OfAgent):
    verb = "Reset"
    sentence = "Its failures in a row are forgotten: if it held its line, that moves again."

    @property
    def title(self) -> str:
        return f"Reset {self.row}"

    def do(self, form: forms.Form) -> str:
        queue.reset_breaker(self.row)
        return f"Reset {self.row}"
