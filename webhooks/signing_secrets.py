"""What the senders of webhooks sign with, as stored: remembered for a second, since every request asks.

A secret that has been stored counts at once: a request that none of the remembered ones has signed is held against
those that are stored now. One that was taken away counts for a second more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping

from django.conf import settings

from agents import credentials
from agents.credentials import CredentialError
from webhooks.providers.base import Provider

log = logging.getLogger(__name__)

GOOD_FOR = 1.0  # seconds

_Key = tuple[str, str, str]
_known: dict[_Key, tuple[float, str]] = {}  # type, instance and home -> when it was read, and what


def remembered(speaks: Provider, instances: Collection[str]) -> Mapping[str, str] | None:
    """Those of all the instances, if they were read a moment ago; else None."""
    now = time.monotonic()
    found = {instance: _known.get(_key(speaks, instance)) for instance in instances}
    if any(secret is None or now - secret[0] > GOOD_FOR for secret in found.values()):
        return None
    return {instance: secret[1] for instance, secret in found.items() if secret and secret[1]}


def stored(speaks: Provider, instances: Collection[str]) -> Mapping[str, str]:
    """Instance of the credential → its secrets, read now. Those that cannot be used are left out."""
    for instance in instances:
        _known[_key(speaks, instance)] = (time.monotonic(), _read(speaks, instance))
    return remembered(speaks, instances) or {}


def _key(speaks: Provider, instance: str) -> _Key:
    return speaks.secret_credential, instance, str(settings.HOME)


def _read(speaks: Provider, instance: str) -> str:
    if not speaks.secret_credential:
        return ""
    try:
        kept = [credentials.read(speaks.secret_credential, instance, name) for name in speaks.secret_fields]
    except CredentialError as error:
        log.error("webhooks of %s are refused: %s", instance, error)  # noqa: TRY400 - the sentence is enough
        return ""
    return next(filter(None, kept), "")
