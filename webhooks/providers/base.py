"""What a provider of webhooks is: who signed a request, and what the request says, in the words agents know.

Providers are pure: headers and bytes in, a value out; no row, no network.
"""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from agents.spec import SignatureScheme

Headers = Mapping[str, str]  # keys in lower case
Secrets = Mapping[str, str]  # instance of the credential -> its live secrets, one a line

# What two events that say the same may differ in: when, and under which address and number of its own.
OF_ITS_OWN = frozenset({"timestamp", "url", "runId", "messageId"})


class BadSignature(Exception):
    """Nobody we know signed these bytes. The message is the text of the 401."""


class BadBody(Exception):
    """The body is not what its content type says. The message is the text of the 400."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A POST of somebody who may be a provider. `scheme` is how its source signs, where that is left to the source."""

    headers: Headers
    body: bytes
    received_at: datetime
    scheme: SignatureScheme | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something an agent could act on. `context` is its WebhookContext: JSON, keys in the order agents see them."""

    event: str
    context: dict[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)  # for filters alone, such as the `paths` of a push
    external_id: str = ""  # the sender's own id of the delivery, which need not be signed
    unique: bool = False  # the body says which event it is, by ids and times: the same bytes are the same event
    hops: int = 0  # runs before it in the chain of causes, as a fleet says that sent it; signed
    reply: Mapping[str, Any] = field(default_factory=dict)  # what the sender wants to find in the answer

    @property
    def sender(self) -> str:
        """Who did it; empty where nobody is named."""
        named = self.context.get("sender", "")
        return "" if named == "unknown" else str(named)

    @property
    def number(self) -> int | None:
        number: int | None = self.context.get("number")
        return number

    @property
    def fingerprint(self) -> str:
        """32 characters, the same for events that say the same, whenever they do."""
        said = {key: value for key, value in self.context.items() if key not in OF_ITS_OWN}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Ignored:
    """A sound request with nothing in it that an agent could act on."""

    reason: str
    external_id: str = ""


@dataclass(frozen=True)
class Handshake:
    """A sender that asks whether anybody is there: answered, counted, and not kept."""

    answer: dict[str, Any]
    status: int = 200


class Provider(abc.ABC):
    """One sender of webhooks, such as GitHub.

    `secret_credential` is the type of the credentials that hold its secrets; empty: it has none. They are in the first
    of `secret_fields` that is kept.
    """

    secret_credential: ClassVar[str]
    secret_fields: ClassVar[tuple[str, ...]] = ("secret",)
    event_header: ClassVar[str] = ""  # in lower case, that says which event it is; empty: the body does

    @abc.abstractmethod
    def signed_by(self, request: Request, secrets: Secrets) -> str | None:
        """The name of the secret that signed exactly these bytes; None if none did or nothing is signed.

        None as well where a time is signed that is too far from that of the receipt. Never raises; the time of each
        comparison tells nothing about its secret.
        """

    @abc.abstractmethod
    def parse(self, request: Request) -> Event | Ignored | Handshake:
        """What the request says. Raises BadBody and nothing else.

        To be asked only once the caller has settled who signed it.
        """

    def greet(self, query: Mapping[str, str], secrets: Secrets) -> Handshake | None:
        """What a GET with this query is answered; None: the provider sends none such."""
        del query, secrets
        return None
