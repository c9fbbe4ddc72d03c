"""Who is next in an agent's line, and whether there is room for it.

Woken runs stand before pending ones. Pending ones go by priority and age together: a normal one stands as if it
had come ten minutes later than it did, a low one thirty, so that no stream of higher ones starves it. A run whose
claim key or session is at work is passed over until that one is done.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.models import Case, Count, F, Q, QuerySet, When

from agents import clock
from agents.models import Agent, Priority, Workspace
from runs.models import Run, Status

HOST_IS_DEAD = timedelta(seconds=60)  # not heard of for this long: its runs are anybody's
HANDICAP = {Priority.HIGH: timedelta(), Priority.NORMAL: timedelta(minutes=10), Priority.LOW: timedelta(minutes=30)}
AT_WORK = (Status.PROCESSING, Status.WAITING)
# A slot that is lent is nobody's, until whoever lent it wants it back: then it is kept for him.
SEATED = Q(has_slot=True, slot_lent_at=None)
TAKEN = SEATED | Q(has_slot=True, slot_wanted_at__isnull=False)
# What a claim needs of a run: reading all of its columns takes longer than finding it.
COLUMNS = (
    *("id", "agent_id", "status", "priority", "queued_at", "waiting_since", "deadline_at", "wall_seconds"),
    *("lease_epoch", "claim_key", "session_key"),
)


def lock_agent(agent_id: int) -> Agent | None:
    """The agent's row, locked behind its workspace's where that has a cap; None if it is gone."""
    found = Agent.objects.filter(pk=agent_id).values_list("workspace_id", "workspace__scale").first()
    if found is None:
        return None
    workspace_id, cap = found
    if cap is not None:  # without one, claims of different agents need not wait for each other
        Workspace.objects.select_for_update(no_key=True).get(pk=workspace_id)
    locked = Agent.objects.select_for_update(no_key=True, of=("self",))
    return locked.select_related("workspace", "version").get(pk=agent_id)


def has_room(agent: Agent) -> bool:
    """For one more from the line. Slots in use are rows, counted: a counter would drift with the first crash."""
    return _has_room(agent, TAKEN)


def has_room_again(agent: Agent, run: Run) -> bool:
    """For a run of the agent that has lent its slot: those that have wanted theirs back for longer come first."""
    longer = Q(slot_wanted_at__lt=run.slot_wanted_at) | Q(slot_wanted_at=run.slot_wanted_at, pk__lt=run.pk)
    return _has_room(agent, SEATED | (Q(has_slot=True) & longer))


def _has_room(agent: Agent, taken: Q) -> bool:
    if Run.objects.filter(taken, agent=agent).count() >= agent.scale:
        return False
    cap = agent.workspace.scale
    return cap is None or _taken_in_all(agent.workspace_id, taken) < cap


def _taken_in_all(workspace_id: int, taken: Q) -> int:
    """Of those that want a slot of their agent back, only as many as it can give count for the whole workspace."""
    rows = Run.objects.filter(taken, workspace_id=workspace_id, has_slot=True).order_by()
    by_agent = rows.values("agent").annotate(taken=Count("pk"), scale=F("agent__scale"))
    return sum(min(row["taken"], row["scale"]) for row in by_agent)


def slots_in_use(agent: Agent) -> int:
    return Run.objects.filter(SEATED, agent=agent).count()


def is_empty(agent_id: int) -> bool:
    """Whether nobody stands in line, pending or woken."""
    mine = Run.objects.filter(agent=agent_id).order_by()
    # Two queries: no index serves an OR of the two.
    pending, woken = Q(status=Status.PENDING), Q(status=Status.PROCESSING, has_slot=False)
    return not mine.filter(pending).exists() and not mine.filter(woken).exists()


def length(agent: Agent) -> int:
    """How many stand in line."""
    return Run.objects.filter(agent=agent, status=Status.PENDING).count()


def first(agent: Agent, host_id: str) -> Run | None:
    """The next run for a worker of this host; None: nobody, or only one that another host must take."""
    woken = Run.objects.filter(agent=agent, status=Status.PROCESSING, has_slot=False)
    ours = Q(host_id=host_id) | Q(host_id=None) | Q(host__last_seen_at__lt=clock.now() - HOST_IS_DEAD)
    ranked = woken.annotate(elsewhere=Case(When(ours, then=0), default=1))
    run = ranked.only(*COLUMNS).order_by("elsewhere", "queued_at", "pk").first()
    if run is not None:
        # Another host's stands before every pending one: its own sweep or bell will claim it.
        return None if run.elsewhere else run
    return first_pending(agent) if may_begin(agent) else None


def may_begin(agent: Agent) -> bool:
    """Whether a pending run may start: not while the agent is off, nor while it is broken, but for a probe."""
    return not agent.refusal and (agent.probe_at is None or agent.probe_at <= clock.now())


def first_pending(agent: Agent) -> Run | None:
    """By its place in the line: one look at an index for each priority, however long the line is."""
    heads = heads_of(Run.objects.filter(agent=agent, status=Status.PENDING))
    if any(run.claim_key or run.session_key for run in heads):
        heads = heads_of(free_of_others(agent))
    return min(heads, key=place, default=None)


def heads_of(line: QuerySet[Run]) -> list[Run]:
    """The first of each priority."""
    rows = line.only(*COLUMNS).order_by("pk")
    heads = [rows.filter(priority=priority).first() for priority in Priority]
    return [run for run in heads if run is not None]


def free_of_others(agent: Agent) -> QuerySet[Run]:
    """The pending runs that need not wait for another of their claim key or session."""
    free = Run.objects.filter(agent=agent, status=Status.PENDING)
    claims, sessions = keys_at_work(agent)
    if claims:
        free = free.exclude(claim_key__in=claims)
    return free.exclude(session_key__in=sessions) if sessions else free


def place(run: Run) -> Any:
    return run.queued_at + HANDICAP[Priority(run.priority)], run.pk


def keys_at_work(agent: Agent) -> tuple[set[str], set[str]]:
    """The claim keys and the sessions of runs that have begun and are not over."""
    at_work = Run.objects.filter(agent=agent, status__in=AT_WORK).order_by()
    # Two queries: each finds what it needs in the index of its constraint.
    claims = at_work.exclude(claim_key="").values_list("claim_key", flat=True)
    sessions = at_work.exclude(session_key="").values_list("session_key", flat=True)
    return set(claims), set(sessions)
