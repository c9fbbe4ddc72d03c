"""Polls of an address: one GET, with credentials in its headers that are resolved for it and kept nowhere."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agents import credentials
from agents.addresses import host_of
from agents.credentials import CredentialError, Reference
from agents.redaction import Redactor
from agents.spec import PollSpec
from runs import secrets
from webhooks.polls.items import LookFailed, Seen, read

if TYPE_CHECKING:
    import httpx

WITHIN = 60.0  # seconds for all of a look
CONNECT, SILENCE = 10.0, 20.0  # seconds
LARGEST = 5 * 1024 * 1024  # bytes of an answer, unpacked
REDIRECTS = 5
PLACE = re.compile(r"\$\{([^${}]*)\}")
LONGEST_ETAG = 500


@dataclass(frozen=True)
class Answer:
    body: bytes
    etag: str = ""
    unchanged: bool = False


def named_in(headers: Mapping[str, str]) -> list[Reference]:
    """The credentials that headers name. Raises CredentialError."""
    return [split(place)[0] for value in headers.values() for place in PLACE.findall(value)]


def split(place: str) -> tuple[Reference, str]:
    """`type:instance:field`. Raises CredentialError."""
    reference, _, field = place.rpartition(":")
    return Reference.parse(reference), field


def look(spec: PollSpec, *, workspace: str, etag: str) -> Seen:
    """Raises LookFailed."""
    values = dict(resolved(spec.headers, workspace))
    redactor = secrets.redactor(frozenset(values.values()))
    headers = {name: filled(text, values) for name, text in spec.headers.items()}
    try:
        answer = get(spec.url, headers, etag)
    except LookFailed as error:
        raise LookFailed(redactor.text(str(error))) from None
    if answer.unchanged:
        return Seen(etag=etag, unchanged=True)
    return Seen(items=read(spec, answer.body, redactor=redactor), etag=kept(answer.etag, redactor))


def kept(etag: str, redactor: Redactor) -> str:
    return etag if len(etag) <= LONGEST_ETAG and redactor.text(etag) == etag else ""


def resolved(headers: Mapping[str, str], workspace: str) -> Iterator[tuple[str, str]]:
    """What stands between the braces, and its value. Raises LookFailed."""
    for place in {place for value in headers.values() for place in PLACE.findall(value)}:
        try:
            reference, field = split(place)
            value = credentials.read(reference.type, reference.instance, field, workspace=workspace)
        except CredentialError as error:
            raise LookFailed(str(error)) from error
        if not value:
            mend = f"add it with `agentfleet creds add {reference}`"
            raise LookFailed(f"credential {reference} has no {field}: {mend}")
        if not value.isprintable():
            raise LookFailed(f"{field} of credential {reference} has more than a line, which no header can have")
        yield place, value


def filled(text: str, values: Mapping[str, str]) -> str:
    return PLACE.sub(lambda found: values[found[1]], text)


def get(address: str, headers: Mapping[str, str], etag: str) -> Answer:
    """Raises LookFailed, whose message may hold what was sent."""
    import httpx  # noqa: PLC0415 - a tenth of every web's start, for workers alone

    end = time.monotonic() + WITHIN
    asked = {"Accept": "application/json", "User-Agent": "agentfleet", **headers}
    asked |= {"If-None-Match": etag} if etag else {}
    sent = [(name.encode(), value.encode()) for name, value in asked.items()]
    try:
        with httpx.Client(timeout=httpx.Timeout(SILENCE, connect=CONNECT)) as client:
            for _ in range(REDIRECTS + 1):
                with client.stream("GET", address, headers=sent) as response:
                    if response.next_request is None:
                        return answer(response, end)
                    address = followed(response.request.url, response.next_request.url)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise LookFailed(f"{host_of(address)} cannot be asked: {str(error) or type(error).__name__}") from error
    raise LookFailed(f"{host_of(address)} redirects more than {REDIRECTS} times")


def followed(here: httpx.URL, there: httpx.URL) -> str:
    """Nobody but the host that was named is told the headers, or is asked at all from where the workers stand."""
    upgraded = here.scheme == "http" and there.scheme == "https" and (here.port, there.port) == (None, None)
    same = (here.scheme, here.port) == (there.scheme, there.port)
    if here.host != there.host or not (same or upgraded):
        origin = f"{there.scheme}://{there.netloc.decode()}"
        raise LookFailed(f"{here.host} redirects to {origin}: write that address if it is meant")
    return str(there)


def answer(response: httpx.Response, end: float) -> Answer:
    if response.status_code == 304:
        return Answer(b"", unchanged=True)
    if not response.is_success:
        raise LookFailed(f"{response.request.url.host} answered {response.status_code}")
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > LARGEST:
            raise LookFailed(f"the answer has more than {LARGEST:,} bytes: ask for less")
        if time.monotonic() > end:
            raise LookFailed(f"the answer was not complete within {WITHIN:.0f} seconds")
    return Answer(bytes(body), response.headers.get("ETag", ""))
