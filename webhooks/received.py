"""A request that has been let in, and the row that keeps it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agents import clock, storable
from webhooks import listeners
from webhooks.listeners import Table
from webhooks.models import Delivery, Source
from webhooks.providers.base import Event

NO_MATCH = "no trigger matches"
# Signatures and sessions prove something to whoever reads them again later.
PATH = ":path"  # among the headers, as HTTP/2 has it: which sources were asked
SECRET_HEADERS = re.compile("authorization|cookie|signature|hmac|token|secret|proxy-")


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
    known: Table = field(default_factory=listeners.table)  # where the sources are from
    replay_of: Delivery | None = None
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(self.body).hexdigest())


def delivery_of(received: Received, event: Event | None, *, external_id: str = "") -> Delivery:
    """Not stored yet."""
    now = clock.now()
    delivery = Delivery(
        workspace_id=received.sources[0].workspace_id,
        source=received.sources[0],
        provider=received.provider,
        external_id=storable.text(external_id)[:200],
        headers=shown(received.headers),
        body=received.body,
        digest=received.digest,
        signed=received.signed,
        replay_of=received.replay_of,
        reason=NO_MATCH,
        received_at=now,
        decided_at=now,
    )
    if event is not None:
        say(delivery, event)
    return delivery


def say(delivery: Delivery, event: Event) -> None:
    delivery.external_id = storable.text(event.external_id)[:200]
    delivery.event = storable.text(event.event)[:100]
    delivery.context = storable.json(event.context)
    delivery.sender = storable.text(event.sender)[:200]
    delivery.fingerprint = event.fingerprint
    delivery.hops = event.hops


def shown(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that may be kept and shown."""
    kept = {name: value for name, value in headers.items() if not SECRET_HEADERS.search(name)}
    cleaned: dict[str, str] = storable.json(kept)
    return cleaned
