"""Keeps known secrets out of everything that is stored or shown, in each form they tend to travel in.

It is a seat belt, not a wall: a program that means to leak can encode a value in ways nobody looks for.
"""

from __future__ import annotations

import base64
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

MARK = "[redacted]"
SHORTEST = 6  # shorter values occur by chance everywhere; hiding them would eat innocent text
SHORTEST_LINE = 16  # of a value of several lines, each line this long is hidden by itself too
SHORTEST_WRAPPED = 47  # the base64 of a shorter value, and an end of line, fits in one line


class Redactor:
    """Replaces the given values: plain, URL-quoted, JSON-escaped and in base64 at all three alignments.

    Where matches overlap, the first wins, and of those that begin together the longest.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        forms = {form for value in values for secret in _secrets(value) for form in _forms(secret)}
        forms.update(line for value in values for line in (*_lines(value), *_wrapped(value)))
        self._forms = sorted(forms, key=len, reverse=True)
        self._by_prefix: dict[bytes, list[bytes]] = defaultdict(list)  # the longest first
        for form in self._forms:
            self._by_prefix[form[:SHORTEST]].append(form)
        # Of prefixes alone: a pattern with whole keys in it takes a tenth of a second to compile.
        self._pattern = re.compile(_alternatives(self._by_prefix)) if forms else None
        self._beginning = re.compile(_beginnings(forms)) if forms else None

    def text(self, text: str) -> str:
        if self._pattern is None:
            return text
        return self.raw(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def raw(self, data: bytes) -> bytes:
        clean, done = [], 0
        for start, end in self._matches(data):
            clean += [data[done:start], MARK.encode()]
            done = end
        return b"".join([*clean, data[done:]]) if done else data

    def json(self, value: Any) -> Any:
        """A JSON value with every string in it cleaned, keys too."""
        if self._pattern is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self.json(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.json(item) for item in value]
        return value

    def settled(self, data: bytes) -> tuple[bytes, int]:
        """The beginning of `data` that no bytes to come can change, cleaned, and how long it was."""
        unfinished = self._unfinished(data)
        held_from = next(unfinished, len(data))
        clean, done = [], 0
        for start, end in self._matches(data):
            # A form that began before this one, or with it and is longer, may still be completed.
            while held_from < done:
                held_from = next(unfinished, len(data))
            if held_from <= start:
                break
            clean += [data[done:start], MARK.encode()]
            done = end
        while held_from < done:
            held_from = next(unfinished, len(data))
        clean.append(data[done:held_from])
        return b"".join(clean), held_from

    def _matches(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Where forms begin and end in `data`, in order and apart from each other."""
        at = 0
        while self._pattern is not None and (match := self._pattern.search(data, at)) is not None:
            at = match.start()
            form = next((form for form in self._by_prefix[match[0]] if data.startswith(form, at)), None)
            if form is None:
                at += 1
            else:
                yield at, at + len(form)
                at += len(form)

    def _unfinished(self, data: bytes) -> Iterator[int]:
        """Where in `data` a form begins that the next bytes may complete, in order."""
        if self._beginning is None:
            return
        at = max(0, len(data) - len(self._forms[0]) + 1) - 1
        while (match := self._beginning.search(data, at + 1)) is not None:
            at = match.start()
            tail = data[at:]
            if any(len(form) > len(tail) and form.startswith(tail) for form in self._forms):
                yield at


NOTHING_SECRET = Redactor()


class RedactedStream:
    """Turns raw output, in whatever pieces it comes, into clean text. `consumed` raw bytes are in what it gave out.

    It holds back only what could still turn out to be part of a secret or of a character.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = b""
        self.consumed = 0

    def feed(self, data: bytes, *, last: bool = False) -> str:
        data = self._held + data
        if last:
            clean, done = self._redactor.raw(data), len(data)
        else:
            clean, done = self._redactor.settled(data[: len(data) - _half_character(data)])
        self._held = data[done:]
        self.consumed += done
        return clean.decode("utf-8", "replace")


def _secrets(value: str) -> Iterable[str]:
    """What of a value to look for: without the white space around it, which does not always travel along."""
    stripped = value.strip()
    if len(stripped) >= SHORTEST:
        yield stripped
    elif stripped and len(value) >= SHORTEST:
        yield value


def _lines(value: str) -> Iterable[bytes]:
    """The lines of a key or a file: tools show them one by one, numbered or indented."""
    lines = value.splitlines()
    for line in map(str.strip, lines if len(lines) > 1 else ()):
        if len(line) >= SHORTEST_LINE and not line.startswith("-----"):  # every PEM file begins and ends alike
            yield _bytes(line)


def _wrapped(value: str) -> Iterable[bytes]:
    """The lines in which tools write a file's base64: `base64` and MIME in 76 characters, `openssl` and PEM in 64."""
    for content in (value.strip(), f"{value.strip()}\n") if len(value) > SHORTEST_WRAPPED else ():
        encoded = base64.b64encode(_bytes(content))
        for width in (64, 76):
            lines = (encoded[at : at + width] for at in range(0, len(encoded), width))
            yield from (line for line in lines if len(line.rstrip(b"=")) >= SHORTEST_LINE)


def _forms(value: str) -> Iterable[bytes]:
    raw = _bytes(value)
    yield raw
    # Python's own, with plus for blank, with slashes kept, and as encodeURIComponent and encodeURI have it.
    for quoted in (
        quote(raw, safe=""),
        quote_plus(raw),
        quote(raw),
        quote(raw, safe="!'()*"),
        quote(raw, safe="!'()*;,/?:@&=+$#"),
    ):
        yield quoted.encode()
        yield re.sub("%..", lambda match: match[0].lower(), quoted).encode()
    escaped = json.dumps(value)[1:-1]
    for written in (escaped, json.dumps(value, ensure_ascii=False)[1:-1]):
        yield _bytes(written)
        yield _bytes(written.replace("/", r"\/"))
        yield _bytes(re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", written))
    yield re.sub(r"\\u....", lambda match: "\\u" + match[0][2:].upper(), escaped).encode()
    for lead in range(3):
        # Of the characters that encode the value at this alignment, those no neighbour has a part in.
        encoded = base64.b64encode(b"\0" * lead + raw)
        inner = encoded[(lead * 8 + 5) // 6 : (lead + len(raw)) * 8 // 6]
        if len(inner) >= SHORTEST:
            yield inner
            yield inner.translate(bytes.maketrans(b"+/", b"-_"))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _alternatives(forms: Iterable[bytes]) -> bytes:
    """A pattern for any of `forms`, in their order; together by first byte, so that most are passed over at once."""
    together: dict[bytes, list[bytes]] = defaultdict(list)
    for form in forms:
        together[form[:1]].append(re.escape(form[1:]))
    return b"|".join(re.escape(first) + b"(?:" + b"|".join(rest) + b")" for first, rest in together.items())


def _beginnings(forms: Iterable[bytes]) -> bytes:
    """A pattern for the first three bytes of any form, or as many of them as there are left."""
    firsts = {tuple(re.escape(form[index : index + 1]) for index in range(3)) for form in forms}
    return b"|".join(b"%b(?:%b(?:%b|\\Z)|\\Z)" % first for first in sorted(firsts))


def _half_character(data: bytes) -> int:
    """Bytes at the end that begin a UTF-8 character and do not finish it."""
    for length in range(1, min(4, len(data) + 1)):
        byte = data[-length]
        if byte & 0b1100_0000 == 0b1000_0000:
            continue
        needed = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
        return length if length < needed else 0
    return 0
