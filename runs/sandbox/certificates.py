"""The file of certificates that an installation adds for TLS in its sandboxes, such as those of a company's proxy."""

from __future__ import annotations

import ssl
from pathlib import Path

from runs.sandbox.base import Refused

VARIABLE = "AGENTFLEET_EXTRA_CA_FILE"


def check(file: str) -> int:
    """How many certificates are in it. Raises Refused: what is wrong, and what to do."""
    if not Path(file).is_absolute():
        raise Refused(f"{VARIABLE} is {file}, which is no absolute path")
    try:
        found = ssl.create_default_context(cafile=file).cert_store_stats()["x509"]
    except OSError as error:  # also what ssl raises
        raise Refused(f"{file} has no certificates ({error}): {VARIABLE} names a file in PEM") from error
    if not Path(file).stat().st_mode & 0o004:
        raise Refused(f"{file} cannot be read by the user of sandboxes: chmod o+r {file}")
    return found


def read(file: str) -> bytes:
    """Raises Refused."""
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise Refused(f"{file}, which {VARIABLE} names, cannot be read: {error.strerror}") from error
