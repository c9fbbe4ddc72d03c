"""Where each provider's key comes from: the credential store first, then the vendor's own environment variables."""

from __future__ import annotations

import os
from dataclasses import dataclass

from agents import credentials


@dataclass(frozen=True)
class Access:
    """How to reach a provider. `key` is a secret: hand it to the redactor when you take it."""

    key: str
    base_url: str | None = None


# provider -> (variable with the key, variable with the address)
ENVIRONMENT = {"anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL")}


def access(provider: str) -> Access | None:
    """None: there is no key for it. Raises CredentialError for one that lies open."""
    key_name, url_name = ENVIRONMENT.get(provider, ("", ""))
    key = credentials.read(f"{provider}_key") or os.environ.get(key_name)
    return Access(key, os.environ.get(url_name)) if key else None


def all_values() -> list[str]:
    """Every key that can be used, for the redactor."""
    return [key for provider in ENVIRONMENT if (key := _usable(provider))]


def _usable(provider: str) -> str:
    """A key that lies open is asked for by nobody; who is about to use it is told."""
    try:
        found = access(provider)
    except credentials.CredentialError:
        return ""
    return found.key if found else ""
