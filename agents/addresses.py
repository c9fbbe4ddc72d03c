"""Addresses that agentfleet itself sends to."""

from __future__ import annotations

from urllib.parse import urlsplit


def fault(url: str) -> str:
    """Why nothing can be sent there, to be put after "the address"; empty if it can."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "cannot be read"
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return "must begin with https:// or http:// and name a host"
    if parts.username is not None or parts.password is not None:
        return "holds a name or a password, which belong into a credential"
    return ""


def host_of(url: str) -> str:
    """All of an address that a log may have."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
