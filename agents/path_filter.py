"""Which paths a filter of a trigger means.

Patterns are those of `agents.patterns`, as gitignore has them, with two more signs: `docs/` is all that is below docs,
and what a pattern behind `!` means is taken out, wherever in the list it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agents.patterns import BadPattern, PathPattern, names, split


class PathFilter:
    """Without any pattern but those behind `!`, all other paths are meant. Raises BadPattern."""

    def __init__(self, written: Sequence[str]) -> None:
        empty = [one for one in written if not one.removeprefix("!").strip("/ ")]
        if empty:
            raise BadPattern(f"{empty[0]!r} is no pattern of paths: write docs/** or *.py")
        wanted = [_whole(one) for one in written if not one.startswith("!")] or ["**"]
        self._wanted = [PathPattern(one) for one in wanted]
        self._left_out = [PathPattern(_whole(one[1:])) for one in written if one.startswith("!")]
        self._folders = tuple(map(_folder, wanted))

    def takes_one_of(self, paths: Iterable[str]) -> bool:
        # a push may have thousands, and most can be told apart by their folder
        near = (path for path in paths if path.startswith(self._folders))
        return any(map(self._takes, near))

    def _takes(self, path: str) -> bool:
        wanted = any(pattern.matches(path) for pattern in self._wanted)
        return wanted and not any(pattern.matches(path) for pattern in self._left_out)


def _whole(written: str) -> str:
    return f"{written}**" if written.endswith("/") else written


def _folder(pattern: str) -> str:
    """What every path that the pattern matches begins with."""
    return "".join(f"{name}/" for name in names(split(pattern)[0]))
