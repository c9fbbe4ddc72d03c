"""Dockerfiles of agents and projects, as text: what is in them, and the same on a base that is here.

Pure: nothing is built here. Source: spec/action-llama.md 7.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

NAME = "Dockerfile"
# Where a version keeps what the project's own image is made from. No folder has hidden files, so nothing clashes.
OF_PROJECT = ".project/"

SEEDS = re.compile(r"al-agent(:[\w.-]+)?", re.IGNORECASE)  # the seed's name for its base, with any tag
_directive = re.compile(r"#\s*([a-zA-Z]+)\s*=\s*(\S+)\s*")
_from_flag = re.compile(r"(--from=)(\S+)")


@dataclass(frozen=True)
class Instruction:
    """`word` in capitals; `rest` in one line, without comments; the lines it stands on, the second not included."""

    word: str
    rest: str
    first: int
    end: int


@dataclass(frozen=True)
class Stage:
    """What one FROM says."""

    image: str
    alias: str


def instructions(text: str) -> list[Instruction]:
    """In their order. A line goes on where the escape sign ends it; comments and blank lines in between are none."""
    lines = text.splitlines()
    going_on = re.compile(re.escape(_escape(lines)) + r"[ \t]*$")
    found: list[Instruction] = []
    pieces: list[str] = []
    first = 0
    for number, line in enumerate(lines):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        first = first if pieces else number
        pieces.append(going_on.sub("", line).strip())
        if not going_on.search(line):
            found.append(_instruction(pieces, first, number + 1))
            pieces = []
    return [*found, _instruction(pieces, first, len(lines))] if pieces else found


def _escape(lines: Iterable[str]) -> str:
    """The sign a line goes on with: a directive in the first comments may choose the other one."""
    for line in lines:
        said = _directive.fullmatch(line.strip())
        if said is None:
            break
        if said[1].lower() == "escape" and said[2] in {"\\", "`"}:
            return said[2]
    return "\\"


def _instruction(pieces: Sequence[str], first: int, end: int) -> Instruction:
    word, _, rest = " ".join(filter(None, pieces)).partition(" ")
    return Instruction(word.upper(), rest.strip(), first, end)


def stage(rest: str) -> Stage:
    """Of what follows FROM: [--platform=…] image [AS name]."""
    words = [word for word in rest.split() if not word.startswith("--")]
    named = len(words) > 2 and words[1].lower() == "as"
    return Stage(words[0] if words else "", words[2] if named else "")


def does_something(text: str) -> bool:
    """Whether there is more in it than where it begins."""
    return any(instruction.word not in {"FROM", "ARG"} for instruction in instructions(text))


def takes_files(text: str) -> bool:
    """Whether anything of the folder can come into the image."""
    copying = [one.rest for one in instructions(text) if one.word in {"COPY", "ADD"}]
    return any("--from=" not in rest for rest in copying)


def arguments(text: str) -> frozenset[str]:
    """The names that ARG declares."""
    said = [one.rest for one in instructions(text) if one.word == "ARG"]
    return frozenset(word.partition("=")[0] for rest in said for word in rest.split())


def problems(text: str) -> Iterator[tuple[int, str]]:
    """What the engine's builder would stumble over: line, counted from 1, and sentence."""
    found = instructions(text)
    if all(one.word != "FROM" for one in found):
        yield 1, "has no FROM: begin with FROM al-agent:latest"
        return
    for one in found:
        if one.word == "FROM":
            break
        if one.word != "ARG":
            yield one.first + 1, f"{one.word} stands before FROM, where only ARG may"
    for one in found:
        if re.match(r"<<-?\s*['\"]?\w", one.rest) or (one.word == "RUN" and one.rest.startswith("--")):
            yield one.first + 1, "needs BuildKit, and images are built without it: write it with plain RUN and COPY"


def rewritten(text: str, base: str, *, after_from: Sequence[str] = ()) -> str:
    """The same Dockerfile on `base`, with the lines `after_from` at the beginning of each stage.

    Every FROM that names the seed's base gets ours; where none does, the first one, whatever it names. The others,
    of Dockerfiles with several stages, stay as they are. What was taken out of the seed's base comes from ours.
    """
    found = instructions(text)
    stages = [stage(one.rest) for one in found if one.word == "FROM"]
    aliases = {one.alias.lower() for one in stages if one.alias}
    replaced = {index for index, one in enumerate(stages) if _is_seeds(one.image, aliases)} or {0}
    lines = text.splitlines()
    written: list[str] = []
    done = number = 0
    for one in found:
        written += lines[done : one.first]
        done = one.end
        if one.word == "FROM":
            whole = lines[one.first : one.end]
            written += [_from(stages[number], base)] if number in replaced else whole
            written += after_from
            number += 1
        else:
            written += [_copied_from(line, base, aliases) for line in lines[one.first : one.end]]
    return "\n".join([*written, *lines[done:], ""])


def _is_seeds(image: str, aliases: Iterable[str]) -> bool:
    return bool(SEEDS.fullmatch(image)) and image.lower() not in aliases


def _from(said: Stage, base: str) -> str:
    """Without a platform: the base is the one that is here."""
    return f"FROM {base} AS {said.alias}" if said.alias else f"FROM {base}"


def _copied_from(line: str, base: str, aliases: Iterable[str]) -> str:
    return _from_flag.sub(lambda flag: flag[1] + (base if _is_seeds(flag[2], aliases) else flag[2]), line)


def not_ignored(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those that the folder's .dockerignore leaves to a build. The last line about a file decides, as in Docker."""
    said = files.get(".dockerignore", b"").decode("utf-8", "replace").splitlines()
    lines = [line.strip() for line in said if line.strip() and not line.startswith("#")]
    rules = [(_ignoring(line.removeprefix("!")), line.startswith("!")) for line in lines]
    kept = {}
    for path, content in files.items():
        told = [keep for pattern, keep in rules if pattern.fullmatch(path)]
        if path == NAME or not told or told[-1]:
            kept[path] = content
    return kept


def _ignoring(pattern: str) -> re.Pattern[str]:
    """A line of .dockerignore as an expression for paths: of the file itself, or of a folder that it is in."""
    parts = [part for part in pattern.strip().split("/") if part not in {"", "."}]
    steps = ["(?:[^/]+/)*" if part == "**" else re.sub(r"\\\*", "[^/]*", re.escape(part)) + "/" for part in parts]
    whole = "".join(steps).replace(r"\?", "[^/]")
    everything_below = parts[-1:] == ["**"]
    return re.compile(f"{whole}.*" if everything_below else f"{whole.removesuffix('/')}(?:/.*)?", re.DOTALL)
