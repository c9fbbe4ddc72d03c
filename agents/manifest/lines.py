"""Where things stand in a settings file: the line of each key, which neither tomllib nor yaml.safe_load tells.

A place is the way to a value: ("webhooks", 0, "events"). Lines count from 1.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import yaml

Place = tuple[str | int, ...]
Lines = dict[Place, int]

DEPTH = 50
TOO_DEEP = f"it is nested more than {DEPTH} deep"

_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*')"""
_KEYS = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_STATEMENT = re.compile(
    rf"[ \t]*(?:\[\[[ \t]*(?P<entry>{_KEYS})[ \t]*\]\]|\[[ \t]*(?P<table>{_KEYS})[ \t]*\]|(?P<key>{_KEYS})[ \t]*=)"
)
# What a value is made of, as far as its end is concerned: a line break inside a string or a bracket does not end it.
_PIECE = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?!")'
    r"|'''.*?'''(?!')"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|(?P<open>[\[{])|(?P<close>[\]}])|(?P<end>\n)"
    r"|[^\[\]{}\"'\#\n]+|.",
    re.DOTALL,
)


_KEY_TAGS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}


class Unreadable(Exception):
    """The text is no TOML or YAML, or of a kind we do not take; the message says why, `line` where, if known."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


def read_toml(text: str) -> tuple[dict[str, Any], Lines]:
    """The document and its lines. Raises Unreadable."""
    try:
        data = tomllib.loads(text)
    except ValueError as error:
        message, _, position = str(error).partition(" (at ")
        line = re.match(r"line (\d+)", position)
        raise Unreadable(message, int(line[1]) if line else text.count("\n") + 1) from error
    except RecursionError as error:
        raise Unreadable(TOO_DEEP, None) from error
    _refuse_depth(data)
    return data, toml_lines(text)


def read_yaml(text: str, *, first: int) -> tuple[Any, Lines]:
    """The document and its lines, where the text begins on line `first` of its file. Raises Unreadable."""
    try:
        return _constructed(text, first)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = ", ".join(filter(None, (error.context, error.problem)))
        if error.context == "while scanning an alias":  # schedule: */5 * * * *
            message = "text that begins with * needs quotes around it"
        raise Unreadable(message, first + mark.line if mark else None) from error
    # A date such as 2026-02-31, or a tag that does not fit its value: PyYAML fails with whatever came up.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Unreadable(str(error), None) from error


def _constructed(text: str, first: int) -> tuple[Any, Lines]:
    _refuse_bombs(text, first)
    loader = yaml.SafeLoader(text)
    node = loader.get_single_node()
    if node is None:
        return None, {}
    lines = yaml_lines(node, first=first)
    return loader.construct_document(node), lines


def _refuse_bombs(text: str, first: int) -> None:
    """With aliases a few lines can stand for gigabytes, and each level of nesting costs PyYAML more than the last."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        line = first + event.start_mark.line if event.start_mark else None
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise Unreadable(TOO_DEEP, line)
        if isinstance(event, yaml.AliasEvent):
            raise Unreadable(f"aliases are not read: write out what *{event.anchor} stands for", line)


def _refuse_depth(data: Any) -> None:
    """What follows walks the document by recursion."""
    level = [data]
    for _ in range(DEPTH):
        level = [inner for value in level for inner in _children(value)]
        if not level:
            return
    raise Unreadable(TOO_DEEP, None)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def nearest(lines: Lines, place: Place) -> int | None:
    """The line of `place`, or of the innermost thing around it that has one."""
    for length in range(len(place), 0, -1):
        if place[:length] in lines:
            return lines[place[:length]]
    return None


def below(lines: Lines, key: str) -> Lines:
    """The lines of what stands under `key`, as if that were the whole file."""
    return {place[1:]: line for place, line in lines.items() if place[0] == key and len(place) > 1}


def toml_lines(text: str) -> Lines:
    """Line of each key and header of a document that tomllib has accepted; inline tables count as one value."""
    lines: Lines = {}
    entries: dict[Place, int] = {}
    table: Place = ()
    for line, statement in _statements(text):
        if statement["key"]:
            place = (*table, *_names(statement["key"]))
        elif statement["table"]:
            place = table = _resolved(_names(statement["table"]), entries)
        else:
            place = table = _new_entry(_names(statement["entry"]), entries)
        for length in range(1, len(place) + 1):
            lines.setdefault(place[:length], line)
    return lines


def _statements(text: str) -> Iterator[tuple[int, re.Match[str]]]:
    line, position = 1, 0
    while position < len(text):
        statement = _STATEMENT.match(text, position)
        if statement:
            yield line, statement
        end = _end_of_statement(text, statement.end() if statement else position)
        line += text.count("\n", position, end)
        position = end


def _end_of_statement(text: str, position: int) -> int:
    depth = 0
    while piece := _PIECE.match(text, position):
        position = piece.end()
        depth += bool(piece["open"]) - bool(piece["close"])
        if piece["end"] and depth == 0:
            break
    return position


def _names(dotted: str) -> tuple[str, ...]:
    """The parts of a dotted key; tomllib knows best how quotes and escapes are read."""
    value: Any = tomllib.loads(f"{dotted} = 0")
    names = []
    while isinstance(value, dict):
        [(name, value)] = value.items()
        names.append(name)
    return tuple(names)


def _resolved(names: tuple[str, ...], entries: dict[Place, int]) -> Place:
    """`[a.b]` after `[[a]]` speaks of the latest entry of a."""
    place: Place = ()
    for name in names:
        place = (*place, name)
        if place in entries:
            place = (*place, entries[place] - 1)
    return place


def _new_entry(names: tuple[str, ...], entries: dict[Place, int]) -> Place:
    place = (*_resolved(names[:-1], entries), names[-1])
    entries[place] = entries.get(place, 0) + 1
    return (*place, entries[place] - 1)


def yaml_lines(node: yaml.Node, *, first: int) -> Lines:
    """Line of each key and list item of a composed document.

    Raises Unreadable for keys that come twice, and for those that YAML takes for something else than text (on, 1).
    """
    lines: Lines = {}
    for place, marked in _nodes(node, ()):
        line = first + marked.start_mark.line
        if isinstance(place[-1], str) and marked.tag not in _KEY_TAGS:
            raise Unreadable(f"the key {place[-1]} is not text: put it in quotes", line)
        if place in lines:
            raise Unreadable(f"{place[-1]} stands here a second time", line)
        lines[place] = line
    return lines


def _nodes(node: yaml.Node, place: Place) -> Iterator[tuple[Place, yaml.Node]]:
    """Each place and the node that marks it: a key for a mapping's entry, the item itself in a list."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            yield inner, key
            yield from _nodes(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*place, index), item
            yield from _nodes(item, (*place, index))
