"""One verified request becomes a delivery and the runs it starts, in one transaction.

What no trigger and no run waits for is one statement: it is stored on the condition that this is still so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.db import connection, transaction

from agents import clock, storable
from agents.models import Agent
from runs import intake, trigger_waits
from runs.intake import Delivered
from runs.lifecycle import Cause
from runs.models import Run, TriggerKind
from webhooks import guards, listeners, unmatched
from webhooks.guards import Verdict
from webhooks.listeners import Listener, Table
from webhooks.models import Delivery, DeliveryOutcome, Source, Trigger
from webhooks.providers import PROVIDERS
from webhooks.providers.base import BadBody, Event, Handshake, Ignored, Request
from webhooks.received import NO_MATCH, PATH, Outcome, Received, delivery_of
from webhooks.waits import Arrived


def dispatch(received: Received, event: Event) -> Outcome:
    """The delivery, and for each agent its run that waits for it, or a pending run for every trigger that matches.

    Raises Stale: the sources are not what they were when the request was let in.
    """
    delivery = delivery_of(received, event)
    if refused := guards.refuse(received.sources, event):
        return keep(received, delivery, refused)
    matched = listening(received, event)
    if not matched and unmatched.store(received, delivery):
        return Outcome(delivery)
    with transaction.atomic():
        received.known.check()
        decided = decide(received, event, delivery, matched)
        delivery.save(force_insert=True)
    return decided


def listening(received: Received, event: Event) -> list[Listener]:
    """The triggers it passes, of sources to which it is not their own deed."""
    others = [source for source in received.sources if not guards.is_own(source, event)]
    return received.known.matching(others, event)


def keep_only(received: Received, ignored: Ignored) -> Outcome:
    """A request that verified and can start nothing is kept as well, with the reason."""
    delivery = delivery_of(received, None, external_id=ignored.external_id)
    return keep(received, delivery, Verdict(DeliveryOutcome.IGNORED, ignored.reason))


def not_understood(received: Received, reason: str) -> Outcome:
    """So is one whose body is not what its content type says."""
    said = Verdict(DeliveryOutcome.NOT_UNDERSTOOD, f"not understood: {reason}")
    return keep(received, delivery_of(received, None), said)


def keep(received: Received, delivery: Delivery, verdict: Verdict) -> Outcome:
    """Raises Stale."""
    settle(delivery, verdict)
    with transaction.atomic():
        received.known.check()
        delivery.save(force_insert=True)
    return Outcome(delivery)


def settle(delivery: Delivery, verdict: Verdict) -> None:
    delivery.outcome, delivery.reason = verdict.outcome, verdict.reason[:500]
    delivery.held_until = verdict.held_until


# --- what becomes of it, in a transaction ---------------------------------------------------------------------------


def decide(
    received: Received, event: Event, delivery: Delivery, matched: Sequence[Listener], *, in_turn: bool = True
) -> Outcome:
    """Fills in the delivery, which is stored by the caller. `in_turn`: it waits where too much has come before it.

    A replay is a person's wish: neither that it came before nor that much came lately stands against it.
    """
    anew = received.replay_of is not None
    if not anew and (first := started_before(received, event, delivery)):
        return repeated(delivery, first)
    verdict = guards.judge(received.sources[0], delivery) if matched and in_turn and not anew else None
    if verdict:
        settle(delivery, verdict)
        return Outcome(delivery)
    return take(received, event, delivery, matched)


def repeated(delivery: Delivery, first: Delivery) -> Outcome:
    settle(delivery, Verdict(DeliveryOutcome.DUPLICATE, f"{first.pk} was the same, and has started its runs"))
    delivery.duplicate_of = first
    started = Run.objects.filter(caused_by=first.pk).order_by("pk").values_list("pk", flat=True)
    return Outcome(delivery, [*trigger_waits.resumed_by(first.pk), *started], duplicate=True)


def take(received: Received, event: Event, delivery: Delivery, matched: Sequence[Listener]) -> Outcome:
    """Resume what waits for it, and start what listens to it."""
    resumed = resume(received, event, delivery)
    decisions = list(decisions_of(event, delivery, matched, resumed))
    runs = [*resumed.values(), *(made["run"] for made in decisions if "run" in made and "resumed" not in made)]
    reasons = [refused["reason"] for refused in decisions if "reason" in refused]
    delivery.decisions, delivery.matched, delivery.skipped = decisions, len(runs), len(reasons)
    if runs:
        settle(delivery, Verdict(DeliveryOutcome.STARTED, ""))
    elif reasons:
        settle(delivery, Verdict(DeliveryOutcome.SKIPPED, "; ".join(reasons)))
    else:
        settle(delivery, Verdict(DeliveryOutcome.NO_MATCH, NO_MATCH))
    return Outcome(delivery, runs, len(runs), len(reasons))


def started_before(received: Received, event: Event, delivery: Delivery) -> Delivery | None:
    """The delivery of the same signed body, or the same id, that started runs not long ago.

    By the body only for events whose body says which one it is: two pushes of a button can have the same bytes.
    """
    window = guards.window_of(received.sources[0])
    if not (received.signed and window and (event.unique or delivery.external_id)):
        return None
    wait_for_twins(received, event)
    since = clock.now() - window
    started = Delivery.objects.filter(provider=received.provider, matched__gt=0, received_at__gt=since)
    same_body, same_id = started.none(), started.none()
    if event.unique:
        same_body = started.filter(digest=received.digest)
    if delivery.external_id:
        same_id = started.filter(external_id=delivery.external_id, source=received.sources[0], signed=True)
    return same_body.order_by("-pk").first() or same_id.order_by("-pk").first()


def wait_for_twins(received: Received, event: Event) -> None:
    """Let transactions of the same event pass one by one; SQLite lets all writers pass one by one anyway."""
    if connection.vendor == "postgresql":
        same = received.digest if event.unique else hashlib.sha256(event.external_id.encode()).hexdigest()
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [int(same[:15], 16)])


def resume(received: Received, event: Event, delivery: Delivery) -> dict[int, str]:
    """{agent: its run that goes on with the event}."""
    arrived = Arrived(received.provider, received.sources, event, received.body)
    context = context_of(event, delivery)
    return trigger_waits.resume_all(delivery.workspace_id, arrived.fits, context, caused_by=delivery.pk)


def decisions_of(
    event: Event, delivery: Delivery, matched: Sequence[Listener], resumed: Mapping[int, str]
) -> Iterator[dict[str, Any]]:
    """For each trigger what came of it. The agents are read now: one that was paused a moment ago is paused."""
    rows = Trigger.objects.select_related("agent__workspace").in_bulk([listener.trigger for listener in matched])
    for listener in matched:
        if (trigger := rows.get(listener.trigger)) is None:
            continue
        said: dict[str, Any] = {"agent": trigger.agent.name, "index": trigger.index}
        if trigger.agent_id in resumed:
            yield {**said, "run": resumed[trigger.agent_id], "resumed": True}
        elif trigger.agent.refusal:
            yield {**said, "reason": trigger.agent.refusal}
        else:
            yield {**said, **shown_as(start(trigger.agent, event, delivery))}


def shown_as(became: Delivered) -> dict[str, str]:
    if became.run:
        return {"run": became.run.pk}
    letter = {"deadLetter": became.dead_letter.pk} if became.dead_letter else {}
    return {"reason": became.reason, **letter}


def start(agent: Agent, event: Event, delivery: Delivery) -> Delivered:
    cause = Cause(TriggerKind.WEBHOOK, context_of(event, delivery), delivery.pk, hops=delivery.hops)
    return intake.deliver(agent, cause)


def context_of(event: Event, delivery: Delivery) -> dict[str, Any]:
    return {**storable.json(event.context), "receiptId": delivery.pk}


# --- what came before, once more ------------------------------------------------------------------------------------


class CannotRead(Exception):
    """A stored delivery says nothing any more; the message is the reason."""


def again(delivery: Delivery) -> Outcome:
    """Decide anew what is stored, as a delivery of its own; one that is held is taken out of its turn instead.

    Raises CannotRead.
    """
    return listeners.currently(lambda: take_held(delivery.pk, in_turn=False) or dispatch_again(delivery))


def dispatch_again(delivery: Delivery) -> Outcome:
    received, said = read_again(delivery, replay_of=delivery)
    return dispatch(received, said) if isinstance(said, Event) else keep_only(received, said)


def take_held(delivery_id: str, *, in_turn: bool = True) -> Outcome | None:
    """Decide what is held anew; None if nobody holds it, or somebody else is at it. Raises CannotRead, Stale."""
    with transaction.atomic():
        rows = Delivery.objects.select_for_update(skip_locked=True, no_key=True)
        delivery = rows.filter(pk=delivery_id, held_until__isnull=False).first()
        if delivery is None:
            return None
        received, event = read_again(delivery)
        received.known.check()
        delivery.decided_at = clock.now()
        outcome = decide_again(received, event, delivery, in_turn=in_turn)
        delivery.save()
    return outcome


def decide_again(received: Received, said: Event | Ignored, delivery: Delivery, *, in_turn: bool) -> Outcome:
    if isinstance(said, Ignored):
        settle(delivery, Verdict(DeliveryOutcome.IGNORED, said.reason))
    elif refused := guards.refuse(received.sources, said):
        settle(delivery, refused)
    else:
        return decide(received, said, delivery, listening(received, said), in_turn=in_turn)
    return Outcome(delivery)


def read_again(delivery: Delivery, *, replay_of: Delivery | None = None) -> tuple[Received, Event | Ignored]:
    """The request and what it says, as it was when it came. Raises CannotRead, Stale."""
    known = listeners.table()
    sources = sources_again(known, delivery)
    if not sources:
        known.check()
        raise CannotRead("its source is gone, or switched off, or has another credential")
    request = Request(
        headers=delivery.headers,
        body=bytes(delivery.body),
        received_at=delivery.received_at,
        scheme=sources[0].scheme,
    )
    try:
        said = PROVIDERS[delivery.provider].parse(request)
    except BadBody as error:
        raise CannotRead(f"not understood: {error}") from error
    if isinstance(said, Handshake):
        raise CannotRead("it only asked whether anybody is there")
    received = Received(
        provider=delivery.provider,
        headers=delivery.headers,
        body=request.body,
        sources=sources,
        signed=delivery.signed,
        known=known,
        replay_of=replay_of,
    )
    return received, said


def sources_again(known: Table, delivery: Delivery) -> list[Source]:
    """Those that accepted it, as far as they still would: on its path, with the same credential."""
    name = str(delivery.headers.get(PATH, "")).strip("/").split("/")[2:3]
    on_path = known.of(delivery.provider, name[0] if name else None)
    first = next((source for source in on_path if source.pk == delivery.source_id), None)
    if first is None:
        return []
    if not delivery.signed:
        return [source for source in on_path if source.allow_unsigned]
    alike = (first.credential, first.scheme)
    return [source for source in on_path if (source.credential, source.scheme) == alike]
