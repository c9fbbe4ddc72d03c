"""What the triggers of a source make of a request, as they are now: each with the word of every filter.

Reads and starts nothing, so that it can be asked of what came long ago and of what never came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agents import clock
from runs import trigger_waits
from webhooks import dispatch, guards, listeners, matching
from webhooks.models import Delivery, Source, Trigger
from webhooks.providers import PROVIDERS
from webhooks.providers.base import BadBody, Event, Handshake, Ignored, Request
from webhooks.received import Received, delivery_of
from webhooks.waits import Arrived

MOST = 200  # triggers that are told one by one, those that match first


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One trigger, and what it makes of the event. `reason` says why it would start nothing; empty: it would."""

    trigger: Trigger
    filters: Sequence[matching.Verdict]
    passed: bool
    reason: str = ""
    resumes: str = ""  # the agent's run that waits for such an event and goes on, in place of a new one

    @property
    def starts(self) -> bool:
        return not self.reason and not self.resumes


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a request says, what stands against it, and what each trigger makes of it.

    Without an event, `fault` says why there is none.
    """

    event: Event | None = None
    fault: str = ""
    guard: guards.Verdict | None = None  # what stands against all of it
    heard: Sequence[Heard] = ()
    left_out: int = 0  # further triggers, none of which matches unless all that are told do
    resumed: Mapping[str, str] = field(default_factory=dict)  # agent to its run that would go on

    @property
    def matching(self) -> list[Heard]:
        return [one for one in self.heard if one.passed]


def of_delivery(delivery: Delivery) -> Explanation:
    """Of a stored one, were it replayed now: neither rates nor what came before it stand against that."""
    listeners.refresh()
    try:
        received, said = dispatch.read_again(delivery)
    except dispatch.CannotRead as error:
        return Explanation(fault=str(error))
    return explain(received, said, guard=guards.refuse(received.sources, said) if isinstance(said, Event) else None)


def of_request(source: Source, headers: Mapping[str, str], body: bytes) -> Explanation:
    """Of one that nobody sent, as if its signature had been that of `source`."""
    listeners.refresh()
    asked = Request(headers=headers, body=body, received_at=clock.now(), scheme=source.scheme)
    received = Received(provider=source.provider, headers=headers, body=body, sources=[source], signed=True)
    try:
        said = PROVIDERS[source.provider].parse(asked)
    except BadBody as error:
        return Explanation(fault=f"not understood: {error}")
    return explain(received, said, guard=guard_of(received, said) if isinstance(said, Event) else None)


def guard_of(received: Received, event: Event) -> guards.Verdict | None:
    """With the rates, which count only where something listens."""
    refused = guards.refuse(received.sources, event)
    if refused or not dispatch.listening(received, event):
        return refused
    return guards.judge(received.sources[0], delivery_of(received, event))


def explain(
    received: Received, said: Event | Ignored | Handshake, *, guard: guards.Verdict | None = None
) -> Explanation:
    if isinstance(said, Ignored):
        return Explanation(fault=said.reason)
    if isinstance(said, Handshake):
        return Explanation(fault="it only asks whether anybody is there")
    arrived = Arrived(received.provider, received.sources, said, received.body)
    resumed = trigger_waits.fitting(received.sources[0].workspace_id, arrived.fits)
    heard = heard_by(received, said, {run.agent_id: run.pk for run in resumed})
    return Explanation(
        event=said,
        guard=guard,
        heard=heard[:MOST],
        left_out=len(heard[MOST:]),
        resumed={run.agent.name: run.pk for run in resumed},
    )


def heard_by(received: Received, event: Event, resumed: Mapping[int, str]) -> list[Heard]:
    """Every trigger of the sources: those that match first, else agents by name and their triggers in order."""
    rows = Trigger.objects.filter(source__in=received.sources).select_related("source", "agent__workspace")
    own = {source.pk for source in received.sources if guards.is_own(source, event)}
    told = [hear(trigger, event, resumed, own=trigger.source_id in own) for trigger in rows]
    return sorted(told, key=lambda one: (not one.passed, one.trigger.agent.name, one.trigger.index))


def hear(trigger: Trigger, event: Event, resumed: Mapping[int, str], *, own: bool) -> Heard:
    filters = matching.explain(trigger.source.provider, trigger.filters, event)
    failed = [verdict.sentence for verdict in filters if not verdict.passed]
    if own:
        failed.append(f"{event.sender} is ourselves")
    if failed:
        return Heard(trigger=trigger, filters=filters, passed=False, reason="; ".join(failed))
    run_id = resumed.get(trigger.agent_id, "")
    return Heard(
        trigger=trigger, filters=filters, passed=True, resumes=run_id, reason="" if run_id else trigger.agent.refusal
    )
