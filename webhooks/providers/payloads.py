"""Reading payloads in which anything may be missing or of another type.

Agents and filters never see a value of the wrong type: what is not a non-empty string, or not a number that a
database can hold, is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from agents import storable
from webhooks.providers.base import BadBody, Request

LONG_TEXT = 4000  # characters of a body or a comment that agents are told
LONGEST_TEXT = 20_000  # of anything else
MOST_NAMES = 200  # of a list, such as labels
EXTERNAL_ID_LENGTH = 200
EVENT_LENGTH = 100
MOST_PATHS = 3000  # of a push: GitHub tells of 2048 commits at most
FARTHEST_HOPS = 32_767  # what the column holds

Reader = Callable[[Any], Any]  # payload -> the value of one key, or None to leave the key out
TextReader = Callable[[Any], str | None]
Keys = Mapping[str, Reader]

# Any of these at the top of a body says which event it is; an `id` alone may be that of what the event is about.
NAMES_ITS_EVENT = ("timestamp", "time", "created", "event_id", "eventId", "delivery_id", "deliveryId")


def payload_of(request: Request) -> Any:
    """The JSON value of the body, or of the field `payload` of a form. Raises BadBody."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = content_type == "application/x-www-form-urlencoded"
    try:
        return _json(_form_field(request.body) if is_form else request.body)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, or a number without end
        raise BadBody("invalid JSON body") from error


def _form_field(body: bytes) -> str:
    try:
        # senders have one field or a few; more are somebody making us work
        fields = parse_qs(body.decode(errors="replace"), max_num_fields=100)
    except ValueError:
        fields = {}
    if "payload" not in fields:
        raise BadBody("missing payload in form body")
    return fields["payload"][0]


def _json(written: str | bytes) -> Any:
    """As the standard has it: UTF-8, and no NaN or infinity, which Python would take."""
    return json.loads(written.decode() if isinstance(written, bytes) else written, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def told(payload: Any, keys: Keys) -> dict[str, Any]:
    """The keys that the payload has something for, in their order."""
    values = {key: read(payload) for key, read in keys.items()}
    return {key: value for key, value in values.items() if value is not None}


def at(value: Any, path: str) -> Any:
    """What is at `path`, whose steps are keys of objects and places in lists; None where it leads nowhere.

    A step of a list may count from its end: `commits.-1`.
    """
    for step in path.split("."):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.removeprefix("-").isdecimal():
            value = value[int(step)] if -len(value) <= int(step) < len(value) else None
        else:
            return None
    return value


def text(*paths: str, default: str | None = None) -> TextReader:
    """The first of `paths` that holds a non-empty string."""

    def read(payload: Any) -> str | None:
        texts = (at(payload, path) for path in paths)
        found = next((text for text in texts if isinstance(text, str) and text), None)
        return default if found is None else storable.text(found[:LONGEST_TEXT])

    return read


def long_text(*paths: str) -> TextReader:
    whole = text(*paths)

    def read(payload: Any) -> str | None:
        found = whole(payload)
        return cut(found) if found else None

    return read


def cut(whole: str) -> str:
    return whole[:LONG_TEXT] + "..." if len(whole) > LONG_TEXT else whole


def number(*paths: str) -> Reader:
    """The first of `paths` that holds a whole number."""

    def read(payload: Any) -> int | None:
        numbers = (at(payload, path) for path in paths)
        # a bool is an int to isinstance
        return next((number for number in numbers if type(number) is int and abs(number) < 2**63), None)

    return read


def identifier(*paths: str) -> TextReader:
    """The first of `paths` that holds a non-empty string or a whole number, as text."""

    def read(payload: Any) -> str | None:
        for path in paths:
            found = text(path)(payload) or number(path)(payload)
            if found is not None:
                return str(found)
        return None

    return read


def names(path: str, *, key: str = "name") -> Reader:
    """The names of a list of objects: always a list, without the members that have no name."""
    name = text(key)

    def read(payload: Any) -> list[str]:
        return [found for member in members(payload, path)[:MOST_NAMES] if (found := name(member)) is not None]

    return read


def members(payload: Any, path: str) -> list[Any]:
    found = at(payload, path)
    return found if isinstance(found, list) else []


def branch(path: str) -> TextReader:
    """A ref by its branch's name; tags keep their whole `refs/tags/…`, so that no branch filter takes them."""
    ref = text(path)

    def read(payload: Any) -> str | None:
        return (ref(payload) or "").removeprefix("refs/heads/") or None

    return read


def changed_paths(payload: Any) -> list[str]:
    """What the commits of a push added, modified and removed, each once."""
    lists = (
        members(commit, kind) for commit in members(payload, "commits") for kind in ("added", "modified", "removed")
    )
    found = dict.fromkeys(storable.text(path) for paths in lists for path in paths if isinstance(path, str) and path)
    return list(found)[:MOST_PATHS]


def hops(payload: Any) -> int:
    """What a fleet says that sent it: how many runs are before this in the chain of causes."""
    said = number("agentfleet-hops")(payload) or 0
    return min(max(said, 0), FARTHEST_HOPS)


def names_its_event(payload: Any) -> bool:
    return any(identifier(key)(payload) for key in NAMES_ITS_EVENT)


def external_id(request: Request, *names: str) -> str:
    """The first of these headers that is there, at a length that its column holds."""
    found = next((request.headers[name] for name in names if request.headers.get(name)), "")
    return storable.text(found)[:EXTERNAL_ID_LENGTH]


def timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
