"""Patterns for paths, as ripgrep and gitignore have them, in time that grows with the path and not beyond.

`*` and `?` stay within a folder, `**` as a whole name crosses any number of them, `{a,b}` and `[abc]` choose, a
backslash takes a character as it is. A pattern without a slash is about the name alone, in whatever folder.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

MOST_ALTERNATIVES = 500
SPECIAL = re.compile(r"[*?\[{\\]")

NOTHING = re.compile(r"(?!)")
ANY_FOLDERS = None
Step = re.Pattern[str] | None  # of a path: a name, or ANY_FOLDERS


class BadPattern(ValueError):
    """Nothing can be looked for by it; the message says why."""


class PathPattern:
    """Raises BadPattern for one with too many alternatives."""

    def __init__(self, pattern: str) -> None:
        anchored = pattern if "/" in pattern else f"**/{pattern}"
        self._names = [alternative.rpartition("/")[2] for alternative in alternatives(anchored)]
        self._ways = [[step(name) for name in names(alternative)] for alternative in alternatives(anchored)]

    def matches(self, path: str) -> bool:
        parts = names(path)
        return any(fits(way, parts) for way in self._ways)

    def find_test(self) -> list[str]:
        """The pattern as `find` can ask for it: passes every name that matches, and perhaps more."""
        tests = [["-o", "-name", loosened(name)] for name in dict.fromkeys(self._names)]
        return ["(", *[word for test in tests for word in test][1:], ")"]


def split(pattern: str) -> tuple[str, str]:
    """The folder the pattern begins with, as far as it is plain, and the rest."""
    special = SPECIAL.search(pattern)
    end = pattern.rfind("/", 0, special.start() if special else len(pattern)) + 1
    return pattern[:end], pattern[end:]


def names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in {"", "."}]


def step(name: str) -> Step:
    if name == "**":
        return ANY_FOLDERS
    # fnmatch knows neither escapes nor [^…]; its expressions do not backtrack over more than one star.
    said = re.sub(r"\\(.)", lambda escaped: f"[{escaped[1]}]" if escaped[1] in "*?[" else escaped[1], name)
    return re.compile(fnmatch.translate(said.replace("[^", "[!")))


def fits(way: Sequence[Step], parts: Sequence[str]) -> bool:
    """The usual walk for one wildcard at a time: on a dead end, the last `**` takes one folder more."""
    at = part = 0
    retry_at, retry_part = -1, 0
    while part < len(parts):
        wanted = way[at] if at < len(way) else NOTHING
        if wanted is ANY_FOLDERS:
            retry_at, retry_part = at, part
            at += 1
        elif wanted.match(parts[part]):
            at, part = at + 1, part + 1
        elif retry_at >= 0:
            retry_part += 1
            at, part = retry_at + 1, retry_part
        else:
            return False
    return all(left is ANY_FOLDERS for left in way[at:])


def alternatives(pattern: str) -> list[str]:
    """Without braces: all they stand for. Braces that do not close, or hold no comma, are what they are."""
    found: list[str] = []
    left = [pattern]
    while left:
        if len(found) + len(left) > MOST_ALTERNATIVES:
            raise BadPattern(f"the pattern stands for more than {MOST_ALTERNATIVES} others: use fewer braces")
        first = left.pop(0)
        choice = re.search(r"(?<!\\)\{([^{}]*,[^{}]*)\}", first)  # an innermost one
        if choice is None:
            found.append(first)
        else:
            left += [f"{first[: choice.start()]}{one}{first[choice.end() :]}" for one in choice[1].split(",")]
    return list(dict.fromkeys(found))


def loosened(name: str) -> str:
    """A pattern for `find -name` that matches no less: what locales and programs differ in is any text."""
    return re.sub(r"\*+", "*", re.sub(r"\\.|\[.*\]|[?\[\]\\]", "*", name)) or "*"
