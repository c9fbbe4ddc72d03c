"""The log lines of an agent's own program: what becomes of each, whole and once."""

from __future__ import annotations

import itertools
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.models import Agent
from agents.redaction import NOTHING_SECRET, Redactor
from runs import log_lines
from runs.events import New
from runs.log_lines import Listener, LogStream
from runs.models import Event, Run
from tests.conftest import DrivenClock, DrivenWorker, Points, other_worker
from tests.making import make_agent, submit


def line(msg: str, **fields: Any) -> str:
    return json.dumps({"_log": True, "level": "info", "msg": msg, **fields, "ts": 1})


def program(*lines: str, **changes: Any) -> Agent:
    """An agent whose program prints these lines, each when it has slept a moment."""
    quoted = "; ".join(f"cat <<'END'\n{text}\nEND\n" if not text.startswith("$ ") else text[2:] for text in lines)
    return make_agent(**{"kind": "command", "command": quoted.replace("END\n; ", "END\n"), "models": [], **changes})


def heard(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """What the program has said, without the ids of its call."""
    found = run.events.filter(type__in=[*log_lines.TYPES, "output"]).order_by("number")
    return [(event.type, {k: v for k, v in event.data.items() if k != "callId"}) for event in found]


@pytest.mark.django_db(transaction=True)
def test_log_lines_become_events_in_their_place_among_the_output(worker: DrivenWorker) -> None:
    agent = program(
        "one",
        line("assistant", text="I look."),
        line("bash", cmd="ls"),
        line("tool start", tool="bash"),
        line("tool done", tool="bash", resultLength=12),
        line("tool error", tool="bash", cmd="ls x", result="no x"),
        "two",
        line("session error", error="overloaded", level="error"),
        "three",
    )
    run = worker.drive(submit(agent))
    assert (run.status, run.output) == ("finished", "one\ntwo\nthree\n")
    assert heard(run) == [
        ("output", {"text": "one\n"}),
        ("agent.text", {"text": "I look."}),
        ("agent.tool", {"toolName": "bash", "state": "start", "cmd": "ls"}),
        ("agent.tool", {"toolName": "bash", "state": "start"}),
        ("agent.tool", {"toolName": "bash", "state": "done", "resultLength": 12}),
        ("agent.tool", {"toolName": "bash", "state": "error", "cmd": "ls x", "result": "no x"}),
        ("output", {"text": "two\n"}),
        ("log", {"level": "error", "msg": "session error", "fields": {"error": "overloaded"}}),
        ("output", {"text": "three\n"}),
    ]


@pytest.mark.django_db(transaction=True)
def test_a_program_that_only_logs_has_the_last_words_of_its_agent_as_output(worker: DrivenWorker) -> None:
    run = worker.drive(submit(program(line("assistant", text="I look."), line("assistant", text="All good."))))
    assert run.output == "All good."


@pytest.mark.django_db(transaction=True)
def test_tokens_and_dollars_count(worker: DrivenWorker) -> None:
    usage = line("token-usage", inputTokens=900, outputTokens=70, cacheReadTokens=500, cost=0.0125, turnCount=3)
    run = worker.drive(submit(program(usage, usage)))
    assert (run.input_tokens, run.output_tokens, run.cache_read_tokens, run.turns) == (1800, 140, 1000, 6)
    assert run.cost == Decimal("0.025")


@pytest.mark.django_db(transaction=True)
def test_a_program_over_its_budget_is_ended(worker: DrivenWorker) -> None:
    usage = line("token-usage", inputTokens=900, outputTokens=200)
    run = worker.drive(submit(program(usage, "$ sleep 600", limits={"tokens": 1000})))
    assert run.error is not None
    assert (run.status, run.error["code"], run.input_tokens) == ("failed", "BUDGET_EXCEEDED", 900)
    assert worker.engine.names() == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("said", "status", "code", "value"),
    [
        ({"type": "exit", "exitCode": 10}, "failed", "EXIT_10", None),
        ({"type": "return", "value": "four"}, "finished", None, "four"),
        ({"type": "exit", "exitCode": "ten"}, "finished", None, None),
    ],
)
def test_a_signal_in_a_log_line_counts(
    worker: DrivenWorker, said: dict[str, Any], status: str, code: str | None, value: str | None
) -> None:
    run = worker.drive(submit(program(line("signal-result", **said))))
    assert (run.status, (run.error or {}).get("code"), run.return_value) == (status, code, value)


@pytest.mark.django_db(transaction=True)
def test_a_rerun_in_a_log_line_starts_another(worker: DrivenWorker) -> None:
    agent = program(line("signal-result", type="rerun"), max_reruns=1)
    worker.drive(submit(agent))
    assert [run.trigger for run in Run.objects.order_by("pk")] == ["manual", "rerun"]


class Killed(BaseException):
    """The process ends here; no code of ours catches it."""


@pytest.mark.django_db(transaction=True)
@pytest.mark.postgresql
@pytest.mark.parametrize("point", ["agent.usage 1", "tool.start 1", "agent.usage 2"])
def test_each_line_is_heard_once_whoever_dies(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, point: str
) -> None:
    second = other_worker(worker)
    usage = line("token-usage", inputTokens=100, outputTokens=10)
    half, rest = usage[:20], usage[20:]
    lines = [usage, f"$ printf '%s' '{half}'", "$ sleep 0.3", f"$ echo '{rest}'", "plain", "$ sleep 0.3", usage]
    run = submit(program(*lines))

    def killed() -> None:
        raise Killed

    points.after(point, killed)
    with pytest.raises(Killed):
        worker.drive(run)
    worker.die()
    for _ in range(2):
        driven_clock.forward(3)
        second.sweep()
        run = second.drive(run)
    assert run.status == "finished"
    assert (run.input_tokens, run.output_tokens) == (300, 30)
    assert [kind for kind, _ in heard(run)] == ["agent.usage", "agent.usage", "output", "agent.usage"]
    assert run.output == "plain\n"


@pytest.mark.django_db(transaction=True)
def test_no_secret_of_a_log_line_is_stored(worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runs.step.secrets.redactor_of", lambda *_: Redactor(["hunter22"]))
    told = line("assistant", text="it is hunter22")
    returned = line("signal-result", type="return", value="hunter22")
    run = worker.drive(submit(program(told, returned, line("other", hunter22="hunter22"))))
    stored = json.dumps([*Event.objects.filter(run=run).values_list("data", flat=True), run.output, run.return_value])
    assert "hunter22" not in stored
    assert run.return_value == "[redacted]"


@pytest.mark.django_db(transaction=True)
def test_more_log_lines_than_are_kept_are_counted_all_the_same(
    worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lines, "MOST", 3)
    run = worker.drive(submit(program(*[line("token-usage", inputTokens=1)] * 6)))
    assert run.input_tokens == 6
    assert run.events.filter(type="agent.usage").count() == 3
    assert run.events.filter(type="output.cut").count() == 1


# --- the stream ---------------------------------------------------------------------------------------------------


def pieces(*chunks: bytes, redactor: Redactor = NOTHING_SECRET) -> list[Any]:
    """What comes of the chunks: text in one piece between log lines, and the log lines' messages."""
    stream = LogStream(redactor)
    found: list[Any] = []
    for number, chunk in enumerate(chunks):
        for piece in stream.feed(chunk, last=number == len(chunks) - 1):
            if isinstance(piece, str) and found and isinstance(found[-1], str):
                found[-1] += piece
            else:
                found.append(piece if isinstance(piece, str) else (piece.get("msg"),))
    assert stream.consumed == sum(map(len, chunks))
    return found


@pytest.mark.parametrize(
    "plain",
    [
        '{"_log": false, "msg": "x"}\n',
        '{"_log": 1, "msg": "x"}\n',
        '{"msg": "x"}\n',
        '["_log", true]\n',
        '{"_log": true, "msg": "x"\n',
        'x {"_log": true, "msg": "x"}\n',
        "{" * 5000 + '"_log"\n',
        json.dumps({"_log": True, "msg": "x" * log_lines.LONGEST}) + "\n",
        "no line end",
        "\n\n  \n",
    ],
)
def test_what_is_no_log_line_is_output(plain: str) -> None:
    assert pieces(plain.encode(), b"") == [plain]


def test_the_last_line_needs_no_end() -> None:
    assert pieces(line("x").encode()) == [("x",)]


def test_a_line_that_goes_on_as_a_log_line_is_output() -> None:
    assert pieces(b"abc", f"{line('x')}\n{line('y')}".encode()) == [f"abc{line('x')}\n", ("y",)]


def test_output_without_an_end_is_not_held_back() -> None:
    assert LogStream(NOTHING_SECRET).feed(b"Password: ") == ["Password: "]


def test_a_long_line_is_not_held_back_for_ever() -> None:
    stream = LogStream(NOTHING_SECRET)
    assert stream.feed(b"{" + b"x" * log_lines.LONGEST) == ["{" + "x" * log_lines.LONGEST]
    assert stream.feed(b'{"_log": true}\n') == ['{"_log": true}\n']


LINES = st.one_of(
    st.sampled_from([line("a"), line("b", text="ünï"), "plain", "", "{", "{ }", "  " + line("c"), "secret!", "é" * 3]),
    st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=["Cs"]), max_size=8),
)


@settings(max_examples=200, deadline=None)
@given(lines=st.lists(LINES, max_size=8), cuts=st.lists(st.integers(0, 400), max_size=6), end=st.booleans())
def test_how_it_is_cut_makes_no_difference(lines: list[str], cuts: list[int], end: bool) -> None:
    data = ("\n".join(lines) + ("\n" if end else "")).encode()
    at = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    chunks = [data[first:second] for first, second in itertools.pairwise(at)]
    redactor = Redactor(["secret!"])
    assert pieces(*chunks, b"", redactor=redactor) == pieces(data, b"", redactor=redactor)


# --- one line -----------------------------------------------------------------------------------------------------


def hear(**record: Any) -> tuple[New, dict[str, Any]]:
    listener = Listener("0-0", NOTHING_SECRET)
    (new,) = listener.hear({"_log": True, **record})
    return new, listener.columns()


@pytest.mark.parametrize("count", [-1, 2**60, True, "many", None, float("nan"), float("inf"), [1]])
def test_numbers_that_cannot_be_counted_count_nothing(count: Any) -> None:
    new, columns = hear(msg="token-usage", inputTokens=count, cost=count)
    assert columns == {}
    assert new.data["inputTokens"] == 0


@pytest.mark.parametrize("record", [{}, {"msg": 7}, {"msg": {"a": [1]}}, {"msg": "x", "level": ["y"], "z": [[]]}])
def test_any_object_is_kept_somehow(record: dict[str, Any]) -> None:
    new, columns = hear(**record)
    assert (new.type, columns) == ("log", {})
