"""The locks that a batch of asks is about: what is stored is read once, decided on in Python, and written once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any, Literal

from django.db.models import BooleanField, Count, ExpressionWrapper, Q, QuerySet

from agents import clock, storable
from runs.models import TERMINAL, Attempt, Lock, LockWait
from runs.models.gateway import digest_of

Verb = Literal["acquire", "release", "heartbeat", "list"]
Place = tuple[int, str]  # workspace, digest of the key

MOST = 1000  # locks of one attempt: whoever wants more has lost its way
LONGEST = 10 * 365 * 86_400.0  # seconds that may be asked for

_OVER = ExpressionWrapper(
    Q(attempt__ended_at__isnull=False) | Q(attempt__run__status__in=sorted(TERMINAL)), output_field=BooleanField()
)


@dataclass(frozen=True)
class Holder:
    """Who asks: an attempt, and what its agent's definition says about locks. Nothing of it ever changes."""

    attempt_id: int
    workspace_id: int
    name: str  # <agent>-<8 hex>, as everybody else sees it
    lock_seconds: int
    one_lock: bool

    @classmethod
    def of(cls, attempt: Attempt) -> Holder:
        run = attempt.run
        assert run.version is not None, "the claim pins a version"
        spec = run.version.read()
        name = f"{run.agent.name}-{attempt.suffix}"
        return cls(attempt.pk, run.workspace_id, name, spec.lock_seconds, spec.one_lock)


@dataclass(frozen=True)
class Ask:
    """What somebody wants. `seconds` until the lock runs out; None: as its agent's definition says."""

    verb: Verb
    holder: Holder
    key: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Answer:
    """An HTTP status and the JSON that goes with it."""

    status: int
    body: Any

    @property
    def ok(self) -> bool:
        return self.status == 200


@dataclass(frozen=True)
class Held:
    """A lock as a row has it. `over`: its attempt has ended."""

    attempt_id: int
    holder: str
    key: str
    since: datetime
    expires_at: datetime
    over: bool = False

    def shown(self) -> dict[str, Any]:
        return {
            "resourceKey": self.key,
            "holder": self.holder,
            "heldSince": milliseconds(self.since),
            "expiresAt": milliseconds(self.expires_at),
        }


NOBODY = Answer(403, {"error": "invalid secret"})  # the attempt that asks has ended
NOT_FOUND = Answer(404, {"ok": False, "reason": "lock not found"})
OK = Answer(200, {"ok": True})


def living() -> QuerySet[Attempt]:
    """Attempts that may ask: at work, and not shut down by themselves, which takes their secret from them."""
    at_work = Attempt.objects.filter(ended_at=None).exclude(run__status__in=TERMINAL)
    return at_work.exclude(gateway_digest="")


def milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)


class Table:
    """The locks that one batch of asks is about, as they are after each of its answers."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        self.now = clock.now()
        self._holding: dict[int, int] = {}  # attempt that lives -> rows of locks
        self._waits: dict[int, Place | None] = {}  # attempt -> what it last failed to get
        self._locks: dict[Place, Held | None] = {}
        self._read_attempts({ask.holder.attempt_id for ask in asks})
        self._stored_waits = dict(self._waits)
        self._stored: dict[Place, Held | None] = {}
        self._keys: dict[Place, str] = {}  # of what is waited for
        self._all_of: set[int] = set()  # attempts whose every lock is known
        self._read_places({place_of(ask) for ask in asks if ask.verb != "list"})

    def answer(self, ask: Ask) -> Answer:
        if ask.holder.attempt_id not in self._holding:
            return NOBODY
        match ask.verb:
            case "acquire":
                return self._acquire(ask)
            case "release":
                return self._release(ask)
            case "heartbeat":
                return self._heartbeat(ask)
            case "list":
                return Answer(200, [held.shown() for held in self._held_by(ask.holder)])

    def store(self) -> None:
        """Write what has changed."""
        changed = {place: held for place, held in self._locks.items() if held != self._stored.get(place)}
        gone = [place for place, held in changed.items() if held is None]
        kept = [_row(place, held) for place, held in changed.items() if held is not None]
        if gone:
            _at(gone).delete()
        Lock.objects.bulk_create(
            kept,
            update_conflicts=True,
            unique_fields=["workspace", "key_digest"],
            update_fields=["attempt", "holder", "held_since", "expires_at"],
        )
        self._store_waits()

    def _store_waits(self) -> None:
        changed = {who: place for who, place in self._waits.items() if place != self._stored_waits.get(who)}
        over = [who for who, place in changed.items() if place is None]
        if over:
            LockWait.objects.filter(attempt__in=over).delete()
        LockWait.objects.bulk_create(
            [self._wait_row(who, place) for who, place in changed.items() if place is not None],
            update_conflicts=True,
            unique_fields=["attempt"],
            update_fields=["workspace", "key", "key_digest", "since"],
        )

    def _wait_row(self, attempt_id: int, place: Place) -> LockWait:
        workspace_id, digest = place
        key = self._keys[place]
        return LockWait(attempt_id=attempt_id, workspace_id=workspace_id, key=key, key_digest=digest, since=self.now)

    # --- the verbs ---------------------------------------------------------------------------------------------

    def _acquire(self, ask: Ask) -> Answer:
        place, holder = place_of(ask), ask.holder
        held = self._valid(place)
        if held is not None and held.attempt_id != holder.attempt_id:
            return self._conflict(ask, place, held)
        if held is None and (refusal := self._too_many(holder)):
            return Answer(409, {"ok": False, "reason": refusal})
        key = storable.text(ask.key)
        self._put(place, Held(holder.attempt_id, holder.name, key, self.now, self._end(ask)))
        self._waits[holder.attempt_id] = None
        return Answer(200, {"ok": True, "resourceKey": key})

    def _conflict(self, ask: Ask, place: Place, held: Held) -> Answer:
        asker = ask.holder
        # Who holds nothing is in nobody's way: no circle goes through it, so its wish need not be known.
        if self._holding[asker.attempt_id]:
            self._waits[asker.attempt_id] = place
            self._keys[place] = held.key
            if circle := self._circle(asker, place):
                reason = f"possible deadlock: {' → '.join([*circle, asker.name])}"
                return Answer(409, {"ok": False, "reason": reason, "deadlock": True, "cycle": circle})
        return Answer(409, {"ok": False, "holder": held.holder, "heldSince": milliseconds(held.since)})

    def _too_many(self, holder: Holder) -> str:
        """Why it may have no further lock; empty if it may."""
        if not self._holding[holder.attempt_id]:
            return ""
        if holder.one_lock and (others := self._held_by(holder)):
            return f"already holding lock on {others[0].key}"
        return f"already holding {MOST} locks" if self._holding[holder.attempt_id] >= MOST else ""

    def _release(self, ask: Ask) -> Answer:
        place = place_of(ask)
        held = self._valid(place)
        if held is None:
            return NOT_FOUND
        if held.attempt_id != ask.holder.attempt_id:
            return held_by_other(held)
        self._put(place, None)
        if not self._holding[ask.holder.attempt_id]:
            self._waits[ask.holder.attempt_id] = None
        return OK

    def _heartbeat(self, ask: Ask) -> Answer:
        place = place_of(ask)
        held = self._valid(place)
        if held is None:
            return NOT_FOUND
        if held.attempt_id != ask.holder.attempt_id:
            return held_by_other(held)
        later = replace(held, expires_at=self._end(ask))
        self._put(place, later)
        return Answer(200, {"ok": True, "expiresAt": milliseconds(later.expires_at)})

    def _end(self, ask: Ask) -> datetime:
        return self.now + timedelta(seconds=min(ask.seconds or ask.holder.lock_seconds, LONGEST))

    def _circle(self, asker: Holder, place: Place) -> list[str]:
        """Holder, resource, holder, … from the asker back to it; empty if the way from `place` ends elsewhere."""
        way, seen = [asker.name], set[int]()
        wanted: Place | None = place
        while wanted is not None:
            held = self._valid(wanted)
            if held is None or held.attempt_id in seen:
                return []
            way.append(held.key)
            if held.attempt_id == asker.attempt_id:
                return way
            way.append(held.holder)
            seen.add(held.attempt_id)
            wanted = self._wait_of(held.attempt_id)
        return []

    # --- what is known -----------------------------------------------------------------------------------------

    def _valid(self, place: Place) -> Held | None:
        """Who has it, if anybody has."""
        if place not in self._locks:
            self._read_places({place})
        held = self._locks[place]
        return None if held is None or held.over or held.expires_at <= self.now else held

    def _put(self, place: Place, held: Held | None) -> None:
        before = self._locks[place]
        for each, step in ((before, -1), (held, 1)):
            if each is not None and each.attempt_id in self._holding:
                self._holding[each.attempt_id] += step
        self._locks[place] = held

    def _held_by(self, holder: Holder) -> list[Held]:
        """Its own that count, oldest first."""
        attempt_id = holder.attempt_id
        if attempt_id not in self._all_of:
            self._all_of.add(attempt_id)
            self._learn(Lock.objects.filter(attempt=attempt_id))
        mine = [self._valid(place) for place, held in self._locks.items() if held and held.attempt_id == attempt_id]
        return sorted((held for held in mine if held is not None), key=lambda held: held.since)

    def _wait_of(self, attempt_id: int) -> Place | None:
        if attempt_id not in self._waits:
            found = LockWait.objects.filter(attempt=attempt_id).values_list("workspace_id", "key_digest").first()
            self._waits[attempt_id] = self._stored_waits[attempt_id] = found
        return self._waits[attempt_id]

    def _read_attempts(self, attempt_ids: Collection[int]) -> None:
        alive = living().filter(pk__in=attempt_ids)
        counted = alive.annotate(Count("locks")).values_list(
            "pk", "locks__count", "lock_wait__workspace_id", "lock_wait__key_digest"
        )
        for attempt_id, locks, workspace_id, digest in counted:
            self._holding[attempt_id] = locks
            self._waits[attempt_id] = (workspace_id, digest) if digest else None

    def _read_places(self, places: Collection[Place]) -> None:
        self._learn(_at(places))
        for place in places:
            self._locks.setdefault(place, None)

    def _learn(self, rows: QuerySet[Lock]) -> None:
        """Take over what is stored, but for what this batch has changed."""
        columns = ("workspace_id", "key_digest", "attempt_id", "holder", "key", "held_since", "expires_at", "over")
        for workspace_id, digest, *rest in rows.order_by().annotate(over=_OVER).values_list(*columns):
            place, held = (workspace_id, digest), Held(*rest)
            if place not in self._locks:
                self._locks[place] = self._stored[place] = held


def place_of(ask: Ask) -> Place:
    return ask.holder.workspace_id, digest_of(storable.text(ask.key))


def held_by_other(held: Held) -> Answer:
    return Answer(409, {"ok": False, "reason": f"held by {held.holder}"})


def _row(place: Place, held: Held) -> Lock:
    workspace_id, digest = place
    return Lock(
        workspace_id=workspace_id,
        key_digest=digest,
        key=held.key,
        attempt_id=held.attempt_id,
        holder=held.holder,
        held_since=held.since,
        expires_at=held.expires_at,
    )


def _at(places: Iterable[Place]) -> QuerySet[Lock]:
    by_workspace: dict[int, list[str]] = {}
    for workspace_id, digest in places:
        by_workspace.setdefault(workspace_id, []).append(digest)
    if not by_workspace:
        return Lock.objects.none()
    here = [Q(workspace=workspace_id, key_digest__in=digests) for workspace_id, digests in by_workspace.items()]
    return Lock.objects.filter(reduce(or_, here))
