"""What would come of a payload: nothing is stored, nothing is started, no model is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agents import storable
from agents.models import Agent
from runs import prompt, rehearsal
from runs.models import TriggerKind
from webhooks import explanations
from webhooks.explanations import Explanation
from webhooks.models import Source
from webhooks.providers import PROVIDERS
from webhooks.providers.base import Event
from webhooks.received import PATH, shown

MOST_PROMPTS = 20  # of as many agents
RECEIPT = "dlv_simulated"  # in place of the id that a delivery would have


class Unfit(Exception):
    """There is nothing to simulate; the message says why."""


@dataclass(frozen=True)
class Simulation:
    explanation: Explanation
    prompts: Mapping[str, str] = field(default_factory=dict)  # agent to what a run of it would be told


def simulate(source: Source, body: bytes, *, event: str = "", headers: Mapping[str, str] | None = None) -> Simulation:
    """As if `source` had signed it. `event` goes into the header of its provider. Raises Unfit."""
    explanation = explanations.of_request(source, headers_of(source, event, headers or {}), body)
    if explanation.event is None or explanation.guard is not None:
        return Simulation(explanation)
    agents = {one.trigger.agent.name: one.trigger.agent for one in explanation.matching if not one.resumes}
    chosen = list(agents.items())[:MOST_PROMPTS]
    return Simulation(explanation, {name: prompt_of(agent, explanation.event) for name, agent in chosen})


def prompt_of(agent: Agent, event: Event) -> str:
    """What a run of it would be told, or why it would be told nothing."""
    context = {**storable.json(event.context), "receiptId": RECEIPT}
    try:
        return rehearsal.told(agent, prompt.Trigger(TriggerKind.WEBHOOK, context))
    except rehearsal.Unfit as error:
        return f"[{error}]"


def headers_of(source: Source, event: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Those of a request, in lower case, and none that a delivery does not keep."""
    if source.provider not in PROVIDERS:
        raise Unfit(f"{source.name} is of an unknown provider, {source.provider}")
    given = {name.strip().lower(): value.strip() for name, value in headers.items()}
    asked = {PATH: f"/webhooks/{source.provider}/{source.name}", "content-type": "application/json", **shown(given)}
    if not event:
        return asked
    if header := event_header(source):
        return {**asked, header: event}
    raise Unfit(f"webhooks of {source.provider} say in their body which event they are")


def event_header(source: Source) -> str:
    """In lower case; empty: the body says it."""
    if source.scheme is not None and source.scheme.event_header:
        return source.scheme.event_header.lower()
    return PROVIDERS[source.provider].event_header if source.provider in PROVIDERS else ""
