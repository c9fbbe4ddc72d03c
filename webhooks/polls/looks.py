"""One look of a poll: who takes it, what it starts, what is remembered of it.

The asking is done outside any transaction. Each item is then known and has its run in one: whoever looks, however
often, and whatever dies in between, an item starts one run at most, and one that was not told of yet is still new.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from django.db import transaction
from django.db.models import QuerySet

from agents import clock, storable
from agents.models import Agent
from agents.spec import PollSpec
from runs import alerts, intake
from runs.db import release_connection
from runs.lifecycle import Cause
from runs.models import TriggerKind
from runs.sandbox.base import Engine
from runs.sweep import Worker
from webhooks.models import Poll, PollItem
from webhooks.polls import addresses, commands, files, rows
from webhooks.polls.items import Item, LookFailed, Seen

AT_ONCE = 16  # looks of one worker: services that answer slowly keep no threads from the runs
LOOKING = timedelta(seconds=180)  # longer than a look takes: who took it is dead by then
LONGEST_PAUSE = 3600  # seconds between looks that fail
SEEN_EXACTLY = timedelta(days=1)  # how exactly it is known when an item was there last
REMEMBERED = timedelta(days=90)  # an item that was gone for so long is new
SETTLING = "it is new, or it has changed since the look before"


class Overtaken(Exception):
    """The look is no longer this one's: another has it, or the poll is another."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """A poll as it was when this look was taken. Nobody else looks before `until`, and it is known by that."""

    poll: Poll
    spec: PollSpec
    began: datetime
    until: datetime

    @property
    def etag(self) -> str:
        """Once a day all is asked for anew: what is only known to be unchanged would be forgotten as gone."""
        at = self.poll.looked_at
        return self.poll.etag if at and at.date() == self.began.date() else ""


_room = threading.BoundedSemaphore(AT_ONCE)


def sweep(worker: Worker) -> None:
    """A part of every worker's round."""
    due = rows.due().order_by("next_at").values_list("pk", flat=True)
    for poll_id in due[: min(AT_ONCE, worker.free)]:
        worker.hand(partial(look_if_there_is_room, poll_id, worker), ("poll", poll_id))


def look_if_there_is_room(poll_id: int, worker: Worker) -> None:
    """Otherwise it stays due."""
    if _room.acquire(blocking=False):
        try:
            look(poll_id, worker.engine, host_id=worker.host_id)
        finally:
            _room.release()


def look(poll_id: int, engine: Engine, *, host_id: str) -> None:
    """Look, if it is time and nobody else does."""
    mine = take(poll_id)
    if mine is None:
        return
    release_connection()
    try:
        seen = what_is_there(mine, engine, host_id)
    except LookFailed as error:
        fail(mine, str(error))
        return
    try:
        whole = store(mine, seen)
        conclude(mine, seen, whole=whole)
    except Overtaken:
        return


def take(poll_id: int) -> Look | None:
    poll = rows.due().filter(pk=poll_id).select_related("agent__version", "agent__workspace").first()
    if poll is None:
        return None
    now = clock.now()
    until = now + LOOKING
    taken = Poll.objects.filter(pk=poll.pk, active=True, next_at=poll.next_at).update(next_at=until)
    return Look(poll=poll, spec=rows.spec_of(poll), began=now, until=until) if taken else None


def what_is_there(mine: Look, engine: Engine, host_id: str) -> Seen:
    """Raises LookFailed."""
    spec = mine.spec
    if spec.url:
        return addresses.look(spec, workspace=mine.poll.agent.workspace.name, etag=mine.etag)
    if spec.path:
        return files.look(spec.path)
    return commands.look(mine.poll, spec, engine, host_id=host_id, until=mine.until)


# --- what becomes of it -------------------------------------------------------------------------------------------


@contextmanager
def held(mine: Look) -> Iterator[None]:
    """A transaction that counts only as long as the look is this one's. Raises Overtaken."""
    with transaction.atomic():
        intake.one_by_one(mine.poll.agent)
        still = Poll.objects.filter(pk=mine.poll.pk, active=True, next_at=mine.until)
        if not still.update(looked_at=mine.began):
            raise Overtaken
        yield


def store(mine: Look, seen: Seen) -> bool:
    """Whether all that is new has started what it should; the rest is left to the next look. Raises Overtaken."""
    if seen.unchanged:
        return True
    if mine.poll.first_look_at is None:
        know(mine, seen)
        return True
    ready = settled(mine, seen) if mine.spec.path else unknown(mine, seen)
    chosen = ready[: mine.spec.most]
    started = all(start(mine, item) for item in (map(files.with_text, chosen) if mine.spec.path else chosen))
    remember(mine, seen)
    return started and len(ready) <= mine.spec.most


def know(mine: Look, seen: Seen, *, reason: str = "") -> None:
    """Remember all of them, and start nothing."""
    with held(mine):
        PollItem.objects.bulk_create(
            (row_of(mine, item, reason=reason) for item in seen.items), ignore_conflicts=True, batch_size=500
        )
        Poll.objects.filter(pk=mine.poll.pk, first_look_at=None).update(first_look_at=mine.began)


def row_of(mine: Look, item: Item, *, reason: str = "") -> PollItem:
    return PollItem(poll=mine.poll, item=item.key, shown=item.shown, reason=reason, seen_at=mine.began)


def unknown(mine: Look, seen: Seen) -> list[Item]:
    known = set(known_of(mine, seen).values_list("item", flat=True))
    return [item for item in seen.items if item.key not in known]


def settled(mine: Look, seen: Seen) -> list[Item]:
    """Files that were there at the look before as they are now. Others are remembered for the next."""
    settling = PollItem.objects.filter(poll=mine.poll, reason=SETTLING)
    before = set(settling.values_list("item", flat=True))
    fresh = unknown(mine, seen)
    if fresh:
        know(mine, Seen(items=tuple(fresh)), reason=SETTLING)
    if gone := before - {item.key for item in seen.items}:
        settling.filter(item__in=gone).delete()
    return [item for item in seen.items if item.key in before]


def known_of(mine: Look, seen: Seen) -> QuerySet[PollItem]:
    return PollItem.objects.filter(poll=mine.poll, item__in=[item.key for item in seen.items])


def start(mine: Look, item: Item) -> bool:
    """Know the item, and start its run. False: its agent may start nothing now. Raises Overtaken."""
    with held(mine):
        agent = Agent.objects.select_related("workspace").get(pk=mine.poll.agent_id)
        if agent.refusal:
            return False
        row = taken_up(mine, item)
        if row is None:
            return True
        delivered = intake.deliver(agent, cause_of(mine, item))
        row.run, row.reason = (delivered.run.pk if delivered.run else ""), delivered.reason[:500]
        row.save(update_fields=["run", "reason"])
    return True


def taken_up(mine: Look, item: Item) -> PollItem | None:
    """Its row, that nobody has started a run for."""
    row, new = PollItem.objects.get_or_create(
        poll=mine.poll, item=item.key, defaults={"shown": item.shown, "seen_at": mine.began}
    )
    return row if new or row.reason == SETTLING else None


def cause_of(mine: Look, item: Item) -> Cause:
    told = {"poll": mine.poll.name, "id": item.shown, "item": item.told}
    return Cause(TriggerKind.POLL, told, f"poll_{mine.poll.pk}")


def remember(mine: Look, seen: Seen) -> None:
    """What is there was seen now; what was gone for long is forgotten."""
    here = known_of(mine, seen)
    here.filter(seen_at__lt=mine.began - SEEN_EXACTLY).update(seen_at=mine.began)
    PollItem.objects.filter(poll=mine.poll, seen_at__lt=mine.began - REMEMBERED).delete()


# --- how it went --------------------------------------------------------------------------------------------------


def conclude(mine: Look, seen: Seen, *, whole: bool) -> None:
    """Raises Overtaken. An answer that left something to do is not to be called unchanged the next time."""
    following = mine.began + timedelta(seconds=mine.spec.every_seconds)
    with held(mine):
        Poll.objects.filter(pk=mine.poll.pk).update(
            next_at=following, failures=0, error="", etag=seen.etag if whole else ""
        )
        if mine.poll.failures:
            rows.settle_alert(mine.poll.agent_id)


def fail(mine: Look, why: str) -> None:
    failures = mine.poll.failures + 1
    every = mine.spec.every_seconds
    pause = min(every * 2 ** min(failures, 20), max(every, LONGEST_PAUSE))
    still = Poll.objects.filter(pk=mine.poll.pk, active=True, next_at=mine.until)
    following = clock.now() + timedelta(seconds=pause)
    with transaction.atomic():
        told = still.update(
            looked_at=mine.began, next_at=following, failures=failures, error=storable.text(why)[:500], etag=""
        )
        if told and failures >= rows.ALARMING:
            where = f"poll {mine.poll.name} of agent {mine.poll.agent.name}"
            alerts.begin(rows.FAILING, str(mine.poll.agent_id), f"{where} has failed {failures} times in a row: {why}")
