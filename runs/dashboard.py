"""The front page: what runs, what waits and why, what comes next, what went wrong. A dozen bounded queries.

Applications above this one add lines of their own with `also`; this module knows none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, F, Min, QuerySet
from django.db.models.functions import Left
from django.http import HttpRequest
from django.urls import reverse

from agents import clock, timetable
from agents.ids import first_id
from agents.models import Agent, Schedule, Workspace
from agents.pages import change_url, page_url
from runs import alerts, breaker, images, lateness, outgoing
from runs.bells import HEARD_OF
from runs.facts import Line, code_of, waiting_for
from runs.line import SEATED
from runs.models import Alert, Event, Host, Run, Status

SHOWN = 30  # rows of one kind
NEXT = 10
FAILURES = 5
RECENT = timedelta(days=1)  # how far back failures are looked for: no index knows them
QUESTION_SHOWN = 300  # characters

AGENT, RUN = ("agents", "agent"), ("runs", "run")
# An alert's kind → what page its subject has.
PAGES = {
    alerts.SCHEDULE_LATE: AGENT,
    alerts.SCHEDULE_MISSED: AGENT,
    alerts.LINE_STUCK: AGENT,
    breaker.KIND: AGENT,
    alerts.AGENT_SHUT_DOWN: AGENT,
    images.FAILED: AGENT,
    "dead_letters": AGENT,
    "poll.failing": AGENT,
    outgoing.FAILED: ("runs", "outgoing"),
    alerts.RUN_SILENT: RUN,
}

COLUMNS = (
    "id", "agent", "status", "wait_reason", "status_text", "turns", "error", "has_slot", "last_event",
    "started_at", "finished_at", "waiting_since", "wake_at", "queued_at", "cancel_requested_at",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the front page: whose it is, what it says, since when or at what time."""

    name: str
    url: str
    text: str
    at: datetime | None = None
    counts: str = ""  # what the page writes: the time `since`, `ago`, or `until` that moment
    note: str = ""
    of: str = ""  # the row's agent, where the name is not it
    alarm: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    rows: list[Row]
    empty: str = ""  # what to say when there is none
    more: int = 0
    alarm: bool = False


@dataclass(frozen=True)
class Fleet:
    """The whole page, as of one moment."""

    at: datetime
    panels: list[Panel] = field(default_factory=list)
    paused: bool = False

    @classmethod
    def now(cls) -> Fleet:
        now = clock.now()
        hosts = list(Host.objects.order_by("name"))
        rest = rest_of_all()
        panels = [*rest, *alarms(), running(), waiting(hosts, now), upcoming(now), failures(now), machines(hosts, now)]
        return cls(now, [*panels, *(panel for more in _also if (panel := more(now)) is not None)], paused=bool(rest))


_also: list[Callable[[datetime], Panel | None]] = []


def also(panel: Callable[[datetime], Panel | None]) -> Callable[[datetime], Panel | None]:
    """Register a panel of another application: called with the time, it gives one, or None to stay away."""
    _also.append(panel)
    return panel


def front_page(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """unfold's DASHBOARD_CALLBACK."""
    if request.user.has_perm("runs.view_run"):
        context["fleet"] = Fleet.now()
    return context


# --- the panels -------------------------------------------------------------------------------------------------


def rest_of_all() -> list[Panel]:
    """That nothing starts, where somebody wants it so."""
    paused = Workspace.objects.exclude(paused_at=None).order_by("name")
    said = "paused: nothing new starts, whatever asks; what has begun goes on"
    rows = [Row(workspace.name, "", said, workspace.paused_at, "since", alarm=True) for workspace in paused]
    return [Panel("The fleet is paused", rows, alarm=True)] if rows else []


def alarms() -> list[Panel]:
    """What an operator must know now, above everything else; no panel where there is nothing."""
    standing = Alert.objects.filter(cleared_at=None).order_by("-raised_at")
    chosen = list(standing[:SHOWN])
    rows = [Row(alert.kind, page_of(alert), alert.message, alert.raised_at, "since", alarm=True) for alert in chosen]
    return [Panel("Alerts", rows, more=rest(standing, chosen), alarm=True)] if rows else []


def page_of(alert: Alert) -> str:
    """The page of what the alert is about; the front page where it is no one thing."""
    app, model = PAGES.get(alert.kind, ("", ""))
    return page_url(app, model, alert.subject) if app else reverse("admin:index")


def runs() -> QuerySet[Run]:
    return Run.objects.filter(delete_requested_at=None).select_related("agent").only(*COLUMNS, "agent__name")


def row_of(run: Run, text: str, at: datetime | None, **more: Any) -> Row:
    return Row(run.pk, change_url(run), text, at, of=run.agent.name, **{"counts": "since", **more})


def running() -> Panel:
    at_work = runs().filter(has_slot=True, status=Status.PROCESSING)
    chosen = list(at_work.order_by("-started_at")[:SHOWN])
    latest = dict(
        Event.objects.filter(run__in=chosen, number=F("run__last_event")).values_list("run_id", "type")
    )  # its type: the text of events stays where it is
    rows = [
        row_of(
            run,
            "stopping" if run.cancel_requested_at else run.status_text or latest.get(run.pk, ""),
            run.started_at,
            note=f"turn {run.turns}",
        )
        for run in chosen
    ]
    return Panel("Running", rows, "Nothing runs.", rest(at_work, chosen))


def waiting(hosts: Iterable[Host], now: datetime) -> Panel:
    """Parked runs with what they wait for, woken ones, and each agent's line with what holds it up."""
    parked = runs().filter(status=Status.WAITING).annotate(asks=Left("question", QUESTION_SHOWN))
    chosen = list(parked.order_by("-waiting_since")[:SHOWN])  # by id, SQLite would walk over all runs
    rows = [row_of(run, waiting_for(run), run.waiting_since, note=run.asks) for run in chosen]
    woken = runs().filter(status=Status.PROCESSING, has_slot=False).order_by("queued_at")[:SHOWN]
    rows += [row_of(run, "woken, in line for a free slot", run.queued_at) for run in woken]
    return Panel("Waiting", [*rows, *lines(hosts, now)], "Nothing waits.", rest(parked, chosen))


def lines(hosts: Iterable[Host], now: datetime) -> Iterator[Row]:
    in_line = Run.objects.filter(status=Status.PENDING, delete_requested_at=None).values("agent")
    pending = {line["agent"]: line for line in in_line.annotate(count=Count("pk"), oldest=Min("queued_at"))}
    if not pending:
        return
    taken = dict(Run.objects.filter(SEATED).values_list("agent").annotate(Count("pk")))
    in_all = dict(Run.objects.filter(SEATED).values_list("workspace").annotate(Count("pk")))
    alive = any(is_alive(host, now) for host in hosts)
    for agent in Agent.objects.filter(pk__in=pending).select_related("workspace").order_by("name")[:SHOWN]:
        line = Line(taken.get(agent.pk, 0), in_all.get(agent.workspace_id, 0), alive)
        why, count = line.waits_for(agent), pending[agent.pk]["count"]
        text = f"{count} pending: {why}"
        yield Row(agent.name, change_url(agent), text, pending[agent.pk]["oldest"], "since", alarm=not alive)


def upcoming(now: datetime) -> Panel:
    schedules = Schedule.objects.filter(agent__in=lateness.able()).select_related("agent")
    rows = [
        Row(agent.name, change_url(agent), tick.local("%Y-%m-%d %H:%M"), tick.at, "until")
        for tick in timetable.upcoming(schedules, after=now, count=NEXT)
        for agent in [tick.schedule.agent]
    ]
    return Panel("Next", rows, "No schedule is due.")


def failures(now: datetime) -> Panel:
    recent = runs().filter(status=Status.FAILED, pk__gte=first_id("run", now - RECENT)).order_by("-id")[:FAILURES]
    rows = [
        row_of(run, code_of(run), run.finished_at, counts="ago", note=(run.error or {}).get("message", ""))
        for run in recent
    ]
    return Panel("Last failures", rows, "None in a day.")


def machines(hosts: Iterable[Host], now: datetime) -> Panel:
    rows = [machine(host, silent=not is_alive(host, now)) for host in hosts]
    deaf = all(row.alarm for row in rows)
    return Panel("Hosts", rows, "No worker has been heard of: nothing will start.", alarm=deaf)


def machine(host: Host, *, silent: bool) -> Row:
    text = "silent: it takes no new work" if silent else f"takes {host.capacity} steps at once"
    return Row(host.name, "", text, host.last_seen_at, "ago", note=host.pk, alarm=silent)


def is_alive(host: Host, now: datetime) -> bool:
    return host.last_seen_at > now - HEARD_OF


def rest(rows: QuerySet[Any], shown: Sequence[Any]) -> int:
    """How many more there are than are shown; counted only when there may be some."""
    return max(0, rows.count() - len(shown)) if len(shown) == SHOWN else 0
