"""Known secrets never come out: in no form, at no place, however the output is cut into pieces."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agents.redaction import MARK, SHORTEST, RedactedStream, Redactor

FORMS: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "URL-quoted": lambda secret: quote(secret, safe="").encode(),
    "URL-quoted in small letters": lambda secret: small(quote(secret, safe="")).encode(),
    "URL-quoted with slashes": lambda secret: quote(secret).encode(),
    "a form's field": lambda secret: quote_plus(secret).encode(),
    "JSON": lambda secret: json.dumps(secret)[1:-1].encode(),
    "JSON in UTF-8": lambda secret: json.dumps(secret, ensure_ascii=False)[1:-1].encode(),
    "JSON with escaped slashes": lambda secret: json.dumps(secret)[1:-1].replace("/", r"\/").encode(),
    "JSON safe for HTML": lambda secret: html_safe(json.dumps(secret)[1:-1]).encode(),
}


def small(quoted: str) -> str:
    return re.sub("%..", lambda code: code[0].lower(), quoted)


def html_safe(escaped: str) -> str:
    return escaped.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


# Blanks around a value are not part of the secret: files end in a newline, and a page strips what it shows.
secrets = st.text(min_size=SHORTEST).filter(lambda secret: len(secret.strip()) >= SHORTEST).map(str.strip)
tokens = st.text("abcABC019-_+/=", min_size=SHORTEST, max_size=40)
around = st.binary(max_size=20)

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure


def streamed(redactor: Redactor, pieces: Sequence[bytes]) -> str:
    stream = RedactedStream(redactor)
    return "".join([*map(stream.feed, pieces), stream.feed(b"", last=True)])


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


places = st.lists(st.integers(min_value=0, max_value=10_000), max_size=8)


def shows(text: str, form: bytes) -> bool:
    """Whether what is left between the marks still holds `form`."""
    return any(form.decode() in piece for piece in text.split(MARK))


# --- no secret comes out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@patient
@given(secret=secrets | tokens, before=around, after=around, places=places)
def test_no_form_of_a_secret_comes_out(
    form: Callable[[str], bytes], secret: str, before: bytes, after: bytes, places: list[int]
) -> None:
    written = form(secret)
    text = streamed(Redactor([secret]), cut(before + written + after, places))
    assert MARK in text
    assert not shows(text, written)


@patient
@given(secret=secrets | tokens, before=around, after=around, places=places, urlsafe=st.booleans())
def test_no_base64_of_a_secret_comes_out_at_any_alignment(
    secret: str, before: bytes, after: bytes, places: list[int], urlsafe: bool
) -> None:
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    text = streamed(Redactor([secret]), cut(encode(before + secret.encode() + after), places))
    assert MARK in text
    left = sum(map(len, text.split(MARK)))  # the neighbours, padding, and a few bits of the secret in between
    assert left <= len(encode(before)) + len(encode(after)) + 6


@patient
@given(
    known=st.lists(tokens, min_size=1, max_size=5),
    data=st.lists(st.sampled_from("abcABC019-_+/=") | tokens, max_size=30).map("".join),
    places=places,
)
def test_of_many_secrets_none_comes_out(known: list[str], data: str, places: list[int]) -> None:
    data += "".join(known)
    text = streamed(Redactor(known), cut(data.encode(), places))
    assert not any(shows(text, secret.encode()) for secret in known)


@patient
@given(secret=tokens, more=tokens, places=places)
def test_a_secret_that_begins_another_does_not_uncover_its_rest(secret: str, more: str, places: list[int]) -> None:
    redactor = Redactor([secret, secret + more])
    assert streamed(redactor, cut(f"<{secret + more}>".encode(), places)) == f"<{MARK}>"
    assert streamed(redactor, cut(f"<{secret}>".encode(), places)) == f"<{MARK}>"


@patient
@given(data=st.text("ab", max_size=60).map(str.encode), places=places)
@example(data=b"a" * 40, places=list(range(40)))
def test_a_secret_that_overlaps_itself_is_found_alike_in_any_pieces(data: bytes, places: list[int]) -> None:
    redactor = Redactor(["aaaaaa", "abaaba", "bbbbbbaa"])
    assert streamed(redactor, cut(data, places)) == redactor.raw(data).decode()


def test_every_line_of_a_key_is_a_secret_and_its_frame_is_none() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvgIBADANBgkqhkiG9w0B\nAQEFAASCBKgwggSkAgEAAoIB\n-----END PRIVATE KEY-----\n"
    redactor = Redactor([key])
    numbered = "".join(f"{number:6}\t{line}\r\n" for number, line in enumerate(key.splitlines(), 1))
    assert redactor.text(numbered) == (
        "     1\t-----BEGIN PRIVATE KEY-----\r\n"
        f"     2\t{MARK}\r\n     3\t{MARK}\r\n     4\t-----END PRIVATE KEY-----\r\n"
    )
    assert redactor.text(key) == f"{MARK}\n"


@pytest.mark.parametrize("value", ["", "short", "      ", "\n\n\n\n\n\n\n"])
def test_values_that_occur_by_chance_hide_nothing(value: str) -> None:
    text = "a short text,      with blanks\n\n\n\n\n\n\n\n"
    assert Redactor([value]).text(text) == text


def test_a_value_is_found_without_the_blanks_around_it() -> None:
    redactor = Redactor(["  hunter2!\n"])
    assert redactor.text("is hunter2! right?") == f"is {MARK} right?"


# --- everything else does -----------------------------------------------------------------------------------------


@patient
@given(text=st.text(), places=places)
def test_text_without_secrets_is_not_touched(text: str, places: list[int]) -> None:
    redactor = Redactor(["\N{SNOWMAN}-only-here"])
    assert streamed(redactor, cut(text.encode(), places)) == text
    assert redactor.text(text) == text


@patient
@given(data=st.binary(), secret=tokens, places=places)
def test_pieces_change_nothing(data: bytes, secret: str, places: list[int]) -> None:
    redactor = Redactor([secret])
    assert streamed(redactor, cut(data, places)) == redactor.raw(data).decode("utf-8", "replace")


@patient
@given(data=st.binary(), places=places)
def test_invalid_utf8_becomes_the_same_marks_in_any_pieces(data: bytes, places: list[int]) -> None:
    for redactor in (Redactor(), Redactor(["pässwörd"])):
        assert streamed(redactor, cut(data, places)) == data.decode("utf-8", "replace")


def test_a_line_is_held_back_only_for_what_may_begin_a_secret() -> None:
    stream = RedactedStream(Redactor(["sk-123456789", "over\nlines-are-long"]))
    assert stream.feed(b"nothing here\n") == "nothing here\n"
    assert stream.feed(b"sk-1234 is none\n") == "sk-1234 is none\n"
    assert stream.feed(b"this may be: sk-12") == "this may be: "
    assert stream.feed(b"x no\n") == "sk-12x no\n"
    assert stream.feed(b"all over\n") == "all "
    assert stream.feed(b"again\n") == "over\nagain\n"


@patient
@given(lines=st.lists(st.text("abc 1é", max_size=30), max_size=10))
def test_whole_lines_are_given_out_at_once(lines: list[str]) -> None:
    stream = RedactedStream(Redactor(["abcabc", "1 1 1 1 1", "cab" * 20]))
    for line in lines:
        assert stream.feed(f"{line}\n".encode()) == Redactor(["abcabc", "1 1 1 1 1", "cab" * 20]).text(f"{line}\n")


def test_a_finished_secret_is_given_out_at_once_unless_a_longer_one_may_follow() -> None:
    stream = RedactedStream(Redactor(["abcabc"]))
    assert stream.feed(b"abcabc") == MARK
    stream = RedactedStream(Redactor(["abcabc", "abcabcabc"]))
    assert stream.feed(b"abcabc") == ""
    assert stream.feed(b"d") == f"{MARK}d"


def test_half_a_character_waits_for_the_other() -> None:
    stream = RedactedStream(Redactor())
    snowman = "\N{SNOWMAN}".encode()
    assert [stream.feed(snowman[:1]), stream.feed(snowman[1:2]), stream.feed(snowman[2:])] == ["", "", "\N{SNOWMAN}"]
    assert stream.feed(snowman[:2]) == ""
    assert stream.feed(b"", last=True) == "�"


# --- going on elsewhere -------------------------------------------------------------------------------------------


@patient
@given(
    data=st.lists(st.sampled_from([b"abcabc", b"ab", b"c", b"\n", "é".encode(), b"\xc3", b"\xff"])).map(b"".join),
    places=places,
)
def test_a_fresh_stream_goes_on_where_the_consumed_bytes_end(data: bytes, places: list[int]) -> None:
    redactor = Redactor(["abcabc", "cabcé!"])
    whole = redactor.raw(data).decode("utf-8", "replace")
    stream, said, fed = RedactedStream(redactor), "", 0
    for piece in cut(data, places):
        said += stream.feed(piece)
        fed += len(piece)
        assert stream.consumed <= fed
        assert said == redactor.raw(data[: stream.consumed]).decode("utf-8", "replace")
        resumed = RedactedStream(redactor).feed(data[stream.consumed :], last=True)
        assert said + resumed == whole
    stream.feed(b"", last=True)
    assert stream.consumed == len(data)


# --- values -------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=10,
)


@patient
@given(secret=tokens, value=json_values)
def test_every_string_of_a_json_value_is_cleaned(secret: str, value: Any) -> None:
    dirty = {"a": [f"<{secret}>", {f"{secret}": secret, "rest": value}], "b": (secret,)}
    assert Redactor([secret]).json(dirty) == {
        "a": [f"<{MARK}>", {MARK: MARK, "rest": value}],
        "b": [MARK],
    }


def test_halves_of_characters_pass_through_text() -> None:
    assert Redactor(["hunter2!"]).text("a \ud800 hunter2!") == f"a \ud800 {MARK}"
    assert Redactor(["hunter\ud800!"]).text("a hunter\ud800!") == f"a {MARK}"


def test_without_secrets_everything_is_given_back_as_it_is() -> None:
    value = {"a": ["b"]}
    assert Redactor().json(value) is value
    assert Redactor().text("x") == "x"


@pytest.mark.parametrize("width", [64, 76])
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_keys_base64_in_lines_does_not_come_out(width: int, end: str) -> None:
    """As `base64 file` and `openssl base64 -in file` print it."""
    key = "\n".join(
        ["-----BEGIN KEY-----", *(f"line {n} of a key that has some" for n in range(9)), "-----END KEY-----"]
    )
    encoded = base64.b64encode(f"{key}{end}".encode()).decode()
    lines = [encoded[at : at + width] for at in range(0, len(encoded), width)]
    assert Redactor([key]).text("\n".join(lines)) == "\n".join([MARK] * len(lines))
