"""How requests are signed: comparisons whose time tells nothing, several live secrets, and how old a time may be."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from webhooks.providers.base import Secrets

WINDOW = timedelta(minutes=5)  # what Slack and standardwebhooks.com recommend

Algorithm = Literal["sha1", "sha256", "sha512"]


def live(secrets: Secrets) -> Iterator[tuple[str, str]]:
    """Name and secret, for each line that holds one: an old and a new one are both good while they are changed.

    An empty secret would let anybody sign.
    """
    for name, lines in secrets.items():
        for line in lines.split("\n"):
            if secret := line.strip():
                yield name, secret


def signer(secrets: Secrets, signed: Callable[[str], bool]) -> str | None:
    """The name of the first secret that `signed` takes."""
    return next((name for name, secret in live(secrets) if signed(secret)), None)


def mac(secret: bytes | str, signed: bytes, algorithm: Algorithm = "sha256") -> bytes:
    key = secret.encode(errors="surrogatepass") if isinstance(secret, str) else secret
    return hmac.new(key, signed, getattr(hashlib, algorithm)).digest()


def same(claimed: bytes | None, true: bytes) -> bool:
    return claimed is not None and hmac.compare_digest(claimed, true)


def same_token(claimed: str, true: str) -> bool:
    """Of two tokens, whose lengths are nobody's business either."""
    digests = [hashlib.sha256(token.encode(errors="surrogatepass")).digest() for token in (claimed, true)]
    return hmac.compare_digest(*digests)


def is_of(public_key: bytes, signature: bytes, signed: bytes) -> bool:
    """Whether the signature is the Ed25519 one of the key's owner."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, signed)
    except (ValueError, InvalidSignature):  # ValueError: it is no key
        return False
    return True


def from_hex(written: str) -> bytes | None:
    """Lower-case hex and nothing else: `bytes.fromhex` would take blanks as well."""
    try:
        value = bytes.fromhex(written)
    except ValueError:
        return None
    return value if value.hex() == written else None


def from_base64(written: str) -> bytes | None:
    """The standard alphabet, with its padding."""
    try:
        return base64.b64decode(written.encode("ascii"), validate=True)
    except (ValueError, binascii.Error):
        return None


def is_fresh(timestamp: str, received_at: datetime, window: timedelta = WINDOW) -> bool:
    """Whether seconds (or milliseconds) since 1970 are at most `window` before or after the receipt."""
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 13):
        return False
    seconds = int(timestamp) / (1000 if len(timestamp) > 11 else 1)
    return abs(received_at.timestamp() - seconds) <= window.total_seconds()
