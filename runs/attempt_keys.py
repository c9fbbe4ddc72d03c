"""The secret with which an attempt's sandbox speaks to the gateway.

It is made anew from the installation's own key whenever somebody needs it, so that a worker that takes over knows
what to keep out of the logs; the database has only its hash.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid

from django.conf import settings


def secret(run_id: str, number: int) -> str:
    """In the form of a UUID, as agents know it."""
    key = hashlib.sha256(b"agentfleet gateway\0" + settings.SECRET_KEY.encode()).digest()
    made = hmac.new(key, f"{run_id}/{number}".encode(), hashlib.sha256).digest()
    return str(uuid.UUID(bytes=made[:16], version=4))


def digest(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
