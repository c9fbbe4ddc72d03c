"""What keeps events from starting too much: our own deeds, loops, floods, and the same said again and again.

    own         the sender is ourselves, as the source names us           nothing is started
    loop        too many runs are before it, as a fleet of ours says      nothing is started
    limited     so many that say the same have been taken lately          nothing is started
    held        so many of the source, or of the sender, were taken       it waits until there is room

Each is kept with its reason. Only events that some trigger wants are counted, and of these only those that were taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import connection
from django.db.models import Max, QuerySet

from agents import clock, rates
from agents.rates import Rate
from agents.spec import SourceSpec
from webhooks.models import Delivery, DeliveryOutcome, Source
from webhooks.providers.base import Event

NEAR = 32  # events from a limit from which on they are let in one by one
SOURCES = 0x73726373  # the class of our locks among PostgreSQL's advisory ones


@dataclass(frozen=True)
class Verdict:
    """Why an event starts nothing, or nothing yet."""

    outcome: DeliveryOutcome
    reason: str
    held_until: datetime | None = None


def rate_of(source: Source, name: str) -> Rate | None:
    """None: no limit. What nobody can read is as if it were not said."""
    unless_said: str = getattr(SourceSpec, name)
    try:
        return rates.rate(str(source.options.get(name, unless_said)))
    except rates.BadRate:
        return rates.rate(unless_said)


def shown(rate: Rate) -> str:
    return f"{rate.count} in {rate.within.total_seconds():.0f} s"


def window_of(source: Source) -> timedelta:
    """How long an event that comes again is a duplicate; zero: it never is."""
    seconds = source.options.get("duplicate_seconds", SourceSpec.duplicate_seconds)
    return timedelta(seconds=seconds if isinstance(seconds, int) else SourceSpec.duplicate_seconds)


# --- what the event alone tells -------------------------------------------------------------------------------------


def is_own(source: Source, event: Event) -> bool:
    """Whether the sender is one of those the source calls ours; `x[bot]` is the account of the app `x`."""
    named = source.options.get("own") or ()
    return bool(event.sender) and account(event.sender) in {account(str(name)) for name in named}


def account(name: str) -> str:
    return name.strip().casefold().removesuffix("[bot]")


def refuse(sources: Sequence[Source], event: Event) -> Verdict | None:
    """What stands against the event, whoever listens to it."""
    if all(is_own(source, event) for source in sources):
        return Verdict(DeliveryOutcome.OWN, f"{event.sender} is ourselves")
    return loop(event)


def loop(event: Event) -> Verdict | None:
    if event.hops <= settings.MAX_HOPS:
        return None
    said = f"a chain of {event.hops} runs has led to this, {settings.MAX_HOPS} are the most"
    return Verdict(DeliveryOutcome.LOOP, said)


# --- what came before -----------------------------------------------------------------------------------------------


def judge(source: Source, delivery: Delivery) -> Verdict | None:
    """What stands against taking the delivery now. In the transaction that takes it."""
    return limited(source, delivery) or held(source, delivery)


def limited(source: Source, delivery: Delivery) -> Verdict | None:
    rate = rate_of(source, "identical")
    if rate is None or room_at(source, rate, fingerprint=delivery.fingerprint) is None:
        return None
    return Verdict(DeliveryOutcome.LIMITED, f"{shown(rate)} have said the same, which are the most of {source.name}")


def held(source: Source, delivery: Delivery) -> Verdict | None:
    """Those that came before it and are held still are taken before it."""
    sender = delivery.sender
    if sender and (rate := rate_of(source, "sender_rate")):
        until = room_at(source, rate, sender=sender) or after_its_senders(source, delivery)
        if until:
            return hold(rate, sender, until)
    if rate := rate_of(source, "rate"):
        until = room_at(source, rate) or after_those_due(source, delivery)
        if until:
            return hold(rate, source.name, until)
    return None


def hold(rate: Rate, whose: str, until: datetime) -> Verdict:
    said = f"{shown(rate)} of {whose} are the most: it is taken when there is room"
    return Verdict(DeliveryOutcome.HELD, said, until)


def room_at(source: Source, rate: Rate, **alike: str) -> datetime | None:
    """When there is room for one more beside those of the source that are `alike` and were taken; None: now."""
    since = clock.now() - rate.within

    def the_one(back: int) -> datetime | None:
        taken = Delivery.objects.filter(source=source, matched__gt=0, decided_at__gt=since, **alike)
        latest = taken.order_by("-decided_at").values_list("decided_at", flat=True)
        return latest[back : back + 1].first()

    if rate.count > NEAR and the_one(rate.count - NEAR) is None:
        return None
    one_by_one(source, **alike)
    first = the_one(rate.count - 1)
    return None if first is None else first + rate.within


def after_its_senders(source: Source, delivery: Delivery) -> datetime | None:
    """When those of its sender that came before it have their turn; None: there are none."""
    before = held_of(source).filter(sender=delivery.sender, pk__lt=delivery.pk)
    latest: datetime | None = before.aggregate(latest=Max("held_until"))["latest"]
    return latest


def after_those_due(source: Source, delivery: Delivery) -> datetime | None:
    """Now, if others that came before it are about to be taken. Those that wait for their sender's sake are not."""
    now, held = clock.now(), held_of(source)
    later = held.filter(held_until__gt=now).values("sender")
    due = held.filter(held_until__lte=now, pk__lt=delivery.pk).exclude(sender__in=later)
    return now if due.exists() else None


def held_of(source: Source) -> QuerySet[Delivery]:
    return Delivery.objects.filter(source=source, held_until__isnull=False)


def one_by_one(source: Source, **alike: str) -> None:
    """Until the end of the transaction nobody else decides near this limit. SQLite lets one in anyway.

    Always in one order: what says the same, the sender, the source; and before the lines of agents.
    """
    if connection.vendor == "postgresql":
        key = hashlib.sha256(repr((source.pk, sorted(alike.items()))).encode()).digest()
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [SOURCES, int.from_bytes(key[:4], signed=True)])
