"""Network policies of sandboxes, carried out or refused, never widened."""

from __future__ import annotations

from typing import Any

from runs.sandbox.base import Refused


def docker_mode(policy: str, engine: Any) -> str:
    """Docker's network mode for a policy. Raises Refused with a sentence."""
    if policy in {"none", "gateway"}:
        return "none"  # there is no gateway yet, so nothing to reach
    raise Refused(f"network policy {policy!r} cannot be carried out by this version; use none or gateway")
