"""What a provider of webhooks is: who signed a request, and what the request says, in the words agents know.

Providers are pure: headers and bytes in, a value out; no row, no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

Headers = Mapping[str, str]  # keys in lower case


class BadSignature(Exception):
    """Nobody we know signed these bytes. The message is the text of the 401."""


class BadBody(Exception):
    """The body is not what its content type says. The message is the text of the 400."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something an agent could act on. `context` is its WebhookContext: JSON, keys in the order agents see them."""

    event: str
    context: dict[str, Any]
    external_id: str = ""  # the sender's own id of the delivery; nobody signed it
    unique: bool = False  # the body says which event it is, by ids and times: the same bytes are the same event


@dataclass(frozen=True)
class Ignored:
    """A sound request with nothing in it that an agent could act on."""

    reason: str
    external_id: str = ""


class Provider(Protocol):
    """One sender of webhooks, such as GitHub."""

    @property
    def secret_credential(self) -> str:
        """The type of the credentials that hold its secrets, each in the field `secret`."""

    def signed_by(self, headers: Headers, body: bytes, secrets: Mapping[str, str]) -> str | None:
        """The name of the secret that signed exactly these bytes; None if none did or nothing is signed.

        `secrets` maps names to secrets. Never raises; the time of each comparison tells nothing about its secret.
        """

    def parse(self, headers: Headers, body: bytes, *, received_at: datetime) -> Event | Ignored:
        """What the request says. Raises BadBody and nothing else.

        To be asked only once the caller has settled who signed it.
        """
