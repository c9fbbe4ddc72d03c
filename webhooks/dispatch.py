"""One verified request becomes a delivery and the runs it starts, in one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import QuerySet

from agents import clock, storable
from agents.models import Agent
from runs import intake, trigger_waits
from runs.intake import Delivered
from runs.lifecycle import Cause
from runs.models import Run, TriggerKind
from webhooks import matching
from webhooks.models import Delivery, Source, Trigger
from webhooks.providers.base import Event, Ignored
from webhooks.waits import Arrived

SAME_WITHIN = timedelta(hours=24)
# Signatures and sessions prove something to whoever reads them again later.
SECRET_HEADERS = ("authorization", "cookie", "signature", "token", "secret", "proxy-")


@dataclass(frozen=True)
class Outcome:
    """What became of a request."""

    delivery: Delivery
    runs: Sequence[str] = ()
    matched: int = 0
    skipped: int = 0
    duplicate: bool = False


@dataclass(frozen=True, kw_only=True)
class Received:
    """A request whose sender is settled: the sources that accept it, and whether a signature is why."""

    provider: str
    headers: Mapping[str, str]
    body: bytes
    sources: Sequence[Source]
    signed: bool
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(self.body).hexdigest())


@transaction.atomic
def dispatch(received: Received, event: Event) -> Outcome:
    """The delivery, and for each agent its run that waits for it, or a pending run for every trigger that matches."""
    if (first := started_before(received, event)) is not None:
        repeat = keep(received, event, duplicate_of=first, reason="the same signed body has started its runs already")
        started = Run.objects.filter(caused_by=first.pk).order_by("pk").values_list("pk", flat=True)
        return Outcome(repeat, [*trigger_waits.resumed_by(first.pk), *started], duplicate=True)
    delivery = keep(received, event)
    resumed = resume(received, event, delivery)
    runs = list(resumed.values())
    skipped: list[str] = []
    for trigger in triggers_for(received.sources):
        if trigger.agent_id in resumed or not matching.matches(
            received.provider, trigger.filters, event.event, event.context
        ):
            continue
        if trigger.agent.refusal:
            skipped.append(trigger.agent.refusal)
            continue
        became = start(trigger.agent, event, delivery)
        runs.append(became.run.pk) if became.run else skipped.append(became.reason)
    delivery.matched, delivery.skipped = len(runs), len(skipped)
    delivery.reason = "" if runs else "; ".join(skipped)[:500] or "no trigger matches"
    delivery.save(update_fields=["matched", "skipped", "reason"])
    return Outcome(delivery, runs, len(runs), len(skipped))


def keep_only(received: Received, ignored: Ignored) -> Outcome:
    """A request that verified and can start nothing is kept as well, with the reason."""
    return Outcome(keep(received, None, external_id=ignored.external_id, reason=ignored.reason))


def started_before(received: Received, event: Event) -> Delivery | None:
    """The delivery of the same signed body that started runs not long ago.

    Only for events whose body says which one it is: two pushes of a button can have the same bytes.
    """
    if not (received.signed and event.unique):
        return None
    wait_for_twins(received.digest)
    same = Delivery.objects.filter(provider=received.provider, digest=received.digest, matched__gt=0)
    return same.filter(received_at__gt=clock.now() - SAME_WITHIN).order_by("-pk").first()


def wait_for_twins(digest: str) -> None:
    """Let transactions with the same body pass one by one; SQLite lets all writers pass one by one anyway."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [int(digest[:15], 16)])


def triggers_for(sources: Sequence[Source]) -> QuerySet[Trigger]:
    return Trigger.objects.filter(source__in=sources).select_related("agent").order_by("agent__name", "index")


def resume(received: Received, event: Event, delivery: Delivery) -> dict[int, str]:
    """{agent: its run that goes on with the event}."""
    arrived = Arrived(received.provider, received.sources, event, received.body)
    context = context_of(event, delivery)
    return trigger_waits.resume_all(delivery.workspace_id, arrived.fits, context, caused_by=delivery.pk)


def start(agent: Agent, event: Event, delivery: Delivery) -> Delivered:
    return intake.deliver(agent, Cause(TriggerKind.WEBHOOK, context_of(event, delivery), delivery.pk))


def context_of(event: Event, delivery: Delivery) -> dict[str, Any]:
    return {**storable.json(event.context), "receiptId": delivery.pk}


def keep(
    received: Received,
    event: Event | None,
    *,
    external_id: str = "",
    reason: str = "",
    duplicate_of: Delivery | None = None,
) -> Delivery:
    return Delivery.objects.create(
        workspace_id=received.sources[0].workspace_id,
        source=received.sources[0],
        provider=received.provider,
        external_id=event.external_id if event else external_id,
        event=event.event if event else "",
        context=storable.json(event.context) if event else None,
        headers=shown(received.headers),
        body=received.body,
        digest=received.digest,
        signed=received.signed,
        duplicate_of=duplicate_of,
        reason=reason[:500],
    )


def shown(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that may be kept and shown."""
    kept = {name: value for name, value in headers.items() if not any(word in name for word in SECRET_HEADERS)}
    cleaned: dict[str, str] = storable.json(kept)
    return cleaned
