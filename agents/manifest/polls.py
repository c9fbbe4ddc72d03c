"""What is wrong with the polls of an agent. What they do: `webhooks.polls`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from agents import addresses
from agents.manifest import keys
from agents.manifest.poll_table import PollTable
from agents.manifest.written import Agent, Fault

PLACES = ("url", "path", "command")
CREDENTIAL = "write ${type:instance:field}, as in ${github_token:default:token}"

_name = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_header = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_reference = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*:[A-Za-z0-9][A-Za-z0-9._-]*:[A-Za-z0-9][A-Za-z0-9._-]*")
_braces = re.compile(r"\$\{([^}]*)\}?")


def faults(agent: Agent) -> Iterator[Fault]:
    seen: set[str] = set()
    for index, poll in enumerate(agent.table.polls):
        misfits = list(_misfits(poll))
        if poll.name in seen:
            misfits.append((("name",), f"there is another poll {poll.name}"))
        seen.add(poll.name)
        for place, message in misfits:
            yield agent.settings.fault(("polls", index, *place), message)


def _misfits(poll: PollTable) -> Iterator[keys.Misfit]:
    if not _name.fullmatch(poll.name):
        yield ("name",), f"{poll.name!r} cannot name a poll: use lower-case letters, digits and dashes, at most 63"
    if sum(bool(getattr(poll, place).strip()) for place in PLACES) != 1:
        yield (), "a poll looks at one thing: give it one of url, path and command"
    if poll.url:
        yield from _url_misfits(poll.url)
    if poll.headers and not poll.url:
        yield ("headers",), "headers are for a poll with a url"
    for name, value in poll.headers.items():
        yield from ((("headers", name), fault) for fault in _header_faults(name, value))
    if poll.path:
        yield from _path_misfits(poll)


def _url_misfits(url: str) -> Iterator[keys.Misfit]:
    if fault := addresses.fault(url):
        yield ("url",), f"the address {fault}"
    elif not url.isprintable() or " " in url:
        yield ("url",), "url holds what no address can have: spaces and line ends are written as %20 and the like"
    elif "${" in url:
        yield ("url",), "url cannot name a credential, because addresses are shown: headers can"


def _header_faults(name: str, value: str) -> Iterator[str]:
    if not _header.fullmatch(name):
        yield f"{name!r} is a name that no header can have"
    if not value.isprintable():
        yield f"the header {name} must be one line"
    for inner in _braces.findall(value):
        if not _reference.fullmatch(inner):
            yield f"the header {name} names no credential: {CREDENTIAL}"


def _path_misfits(poll: PollTable) -> Iterator[keys.Misfit]:
    path = PurePosixPath(poll.path)
    if not path.is_absolute() or ".." in path.parts:
        yield ("path",), "path must be a pattern that begins with / and has no .., such as /srv/inbox/*.csv"
    for key, value, unsaid in (("items", poll.items, ""), ("id", poll.id, "id")):
        if value != unsaid:
            yield (key,), f"{key} is for what a url or a command gives: a file is known by path, size and time"
