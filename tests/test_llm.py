"""Model requests: providers over real HTTP against a double, and scripts."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents import private_files
from agents.spec import ModelSpec
from runs import llm, loop, tools, transcript
from runs.llm import keys, remote
from runs.llm.base import ModelError, ModelUnavailable, Request, ToolSchema
from runs.transcript import Body, Part
from tests.doubles.anthropic import Asked, MockAnthropic, Reply

KEY = "sk-mock-0123456789"
SONNET = ModelSpec(provider="anthropic", model="claude-sonnet-5")
LOOK = ToolSchema("look", "Look at it.", {"type": "object", "properties": {"at": {"type": "string"}}})


@pytest.fixture
def mock(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockAnthropic]:
    with MockAnthropic() as mock:
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", mock.url)
        yield mock
        loop.submit(remote.close()).result()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a test can wait for."""
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked again in place."""
    monkeypatch.setattr(remote, "IN_PLACE", 0.0)


def begin(*words: str) -> list[Body]:
    said: list[Part] = [{"type": "text", "text": word} for word in words or ["Hi."]]
    return [{"role": "user", "parts": [{"type": "system", "text": "Be good."}, *said]}]


def result(call: Part, text: str, *, is_error: bool = False) -> Body:
    part: Part = {"type": "tool_result", "id": call["id"], "name": call["name"], "text": text, "is_error": is_error}
    return {"role": "tool", "parts": [part]}


def ask(messages: list[Body] | None = None, **changes: Any) -> Body:
    return llm.submit(make_request(messages, **changes)).result(30)


def make_request(messages: list[Body] | None = None, **changes: Any) -> Request:
    return Request(**{"model": SONNET, "messages": messages or begin(), "tools": [LOOK], **changes})


def replies(*in_turn: Reply) -> Callable[[Asked], Reply]:
    """A plan: these, one per request; the last again and again."""
    left = list(in_turn)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]


def until(what: Callable[[], Any], within: float = 5) -> None:
    end = time.monotonic() + within
    while not what():
        assert time.monotonic() < end, f"not within {within} s"
        time.sleep(0.01)


# --- what is sent and what comes back -----------------------------------------------------------------------------


def test_text_and_tool_calls_arrive_with_what_they_cost(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(text="I look. " * 20, tools=[("look", {"at": "ä"}), ("look", {})]))
    answer = ask()
    assert answer["role"] == "assistant"
    assert transcript.text(answer) == "I look. " * 20
    calls = transcript.tool_calls(answer)
    assert [(call["id"], call["name"], call["arguments"]) for call in calls] == [
        ("toolu_1", "look", {"at": "ä"}),
        ("toolu_2", "look", {}),
    ]
    assert answer["usage"] == {"input": 100, "output": 20, "cache_read": 0, "cache_write": 0}
    assert answer["model"] == "anthropic:claude-sonnet-5"
    assert answer["stop"] == "tool_call"
    assert "lost_requests" not in answer
    json.dumps(answer)


def test_the_request_carries_system_text_tools_and_key(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(text="ok"))
    ask(begin("One.", "Two."))
    (asked,) = mock.asked
    assert asked.key == KEY
    assert asked.body["system"] == "Be good."
    assert [part["text"] for part in asked.body["messages"][0]["content"]] == ["One.", "Two."]
    assert asked.body["tools"] == [{"name": "look", "description": "Look at it.", "input_schema": LOOK.parameters}]
    assert asked.body["stream"]


def test_all_our_tools_are_accepted_as_schemas(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(text="ok"))
    ask(tools=[tool.schema for tool in tools.ALL.values()])
    assert [tool["name"] for tool in mock.asked[0].body["tools"]] == list(tools.ALL)


def test_a_conversation_is_told_again_as_it_was(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(text="I look.", tools=[("look", {"at": "x"}), ("look", {"at": "y"})]), Reply(text="done"))
    first = ask()
    calls = transcript.tool_calls(first)
    results = result(calls[0], "seen")
    results["parts"] += result(calls[1], "no such thing", is_error=True)["parts"]
    assert transcript.text(ask([*begin(), first, results])) == "done"
    said, told = mock.asked[1].body["messages"][1:]
    assert said["content"] == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "x"}},
        {"type": "tool_use", "id": "toolu_2", "name": "look", "input": {"at": "y"}},
    ]
    assert [(part["tool_use_id"], part["content"][0]["text"], part["is_error"]) for part in told["content"]] == [
        ("toolu_1", "seen", False),
        ("toolu_2", "no such thing", True),
    ]


def test_thinking_survives_the_round_trip_with_its_signature(mock: MockAnthropic) -> None:
    mock.plan = replies(
        Reply(thinking="hm, " * 30, redacted="c2VjcmV0", text="So.", tools=[("look", {})]), Reply(text="done")
    )
    thinking = ModelSpec(provider="anthropic", model="claude-sonnet-5", thinking="medium")
    first = json.loads(json.dumps(ask(model=thinking)))  # as it comes back from the database
    assert [part["type"] for part in first["parts"]] == ["thinking", "thinking", "text", "tool_call"]
    assert first["parts"][0]["text"] == "hm, " * 30
    assert transcript.text(first) == "So."
    (call,) = transcript.tool_calls(first)
    ask([*begin(), first, result(call, "seen")], model=thinking)
    assert mock.asked[0].body["thinking"]["type"] == "adaptive"
    assert mock.asked[1].body["messages"][1]["content"][:2] == [
        {"type": "thinking", "thinking": "hm, " * 30, "signature": "signed: " + "hm, " * 30},
        {"type": "redacted_thinking", "data": "c2VjcmV0"},
    ]


@pytest.mark.parametrize("level", ["off", None])
def test_thinking_is_not_asked_for_unless_wanted(mock: MockAnthropic, level: Any) -> None:
    mock.plan = replies(Reply(text="ok"))
    ask(model=ModelSpec(provider="anthropic", model="claude-sonnet-5", thinking=level))
    assert "thinking" not in mock.asked[0].body


@pytest.mark.parametrize("written", ['{"at": "x', "[1, 2]", "look at x"])
def test_tool_arguments_that_are_no_json_object_arrive_as_text_and_can_be_told_again(
    mock: MockAnthropic, written: str
) -> None:
    mock.plan = replies(Reply(tools=[("look", written)]), Reply(text="sorry"))
    first = ask()
    (call,) = transcript.tool_calls(first)
    assert call["arguments"] == written
    assert transcript.text(ask([*begin(), first, result(call, "not JSON", is_error=True)])) == "sorry"
    assert len(mock.asked) == 2


def test_what_no_database_can_hold_does_not_come_out_of_a_model(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(text="nul \x00 here", tools=[("look", {"at\x00": "nul \x00"})]))
    answer = ask()
    assert transcript.text(answer) == "nul � here"
    assert transcript.tool_calls(answer)[0]["arguments"] == {"at�": "nul �"}


def test_an_answer_cut_at_the_output_limit_says_so(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(text="and then", stop="max_tokens"))
    assert ask()["stop"] == "length"


def test_an_answer_that_ended_for_a_reason_nobody_knows_is_whole(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(text="done", stop="sunset"))
    assert ask()["stop"] == "sunset"


def test_a_refusal_to_answer_is_no_success(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(text="I would rather", stop="refusal"))
    with pytest.raises(ModelError, match="anthropic refused to answer: I would rather") as caught:
        ask()
    assert caught.value.code == "MODEL_REFUSED"
    assert len(mock.asked) == 1


def test_an_empty_answer_is_an_answer(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply())
    answer = ask()
    assert (answer["parts"], answer["stop"]) == ([], "stop")


def test_the_models_own_address_wins_over_the_environments(
    mock: MockAnthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:1")
    mock.plan = replies(Reply(text="ok"))
    ask(model=ModelSpec(provider="anthropic", model="claude-sonnet-5", base_url=mock.url))
    assert len(mock.asked) == 1


def test_many_requests_at_once_do_not_mix(mock: MockAnthropic) -> None:
    mock.plan = lambda asked: Reply(text=asked.body["messages"][0]["content"][0]["text"], delay=0.05)
    asked = {word: llm.submit(make_request(begin(word))) for word in map(str, range(40))}
    assert {word: transcript.text(answer.result(30)) for word, answer in asked.items()} == {
        word: word for word in asked
    }


# --- providers that do not answer now -----------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [Reply(status=429, headers={"retry-after": "1"}), Reply(status=529)])
def test_a_short_pause_is_waited_for_in_place(mock: MockAnthropic, trouble: Reply) -> None:
    mock.plan = replies(trouble, Reply(text="now"))
    began = time.monotonic()
    answer = ask()
    assert transcript.text(answer) == "now"
    assert "lost_requests" not in answer
    assert time.monotonic() - began >= 1


def test_a_long_pause_is_left_to_the_caller(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(status=429, headers={"retry-after": "60"}, error="Slow down."))
    with pytest.raises(ModelUnavailable, match=r"429: Slow down\.") as caught:
        ask()
    assert caught.value.retry_after == 60
    assert caught.value.lost_requests == 0
    assert len(mock.asked) == 1


def test_a_provider_that_says_wait_no_time_at_all_is_not_asked_without_end(
    mock: MockAnthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "IN_PLACE", 0.1)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.02)
    mock.plan = replies(Reply(status=503, headers={"retry-after": "0"}))
    with pytest.raises(ModelUnavailable):
        ask()
    assert len(mock.asked) == 3  # after 0, 0.02 and 0.06 seconds


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_a_status_that_may_pass_is_no_verdict(mock: MockAnthropic, status: int) -> None:
    mock.plan = replies(Reply(status=status, error="Not now."))
    with pytest.raises(ModelUnavailable, match=rf"{status}: Not now\.") as caught:
        ask()
    assert caught.value.lost_requests == 0
    assert len(mock.asked) == 1, "the vendor's SDK asked again by itself"


@pytest.mark.usefixtures("impatient")
def test_nobody_at_the_address_is_no_verdict(mock: MockAnthropic) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ModelUnavailable, match="anthropic: ") as caught:
            ask(model=ModelSpec(provider="anthropic", model="claude-sonnet-5", base_url=url))
    assert caught.value.lost_requests == 0
    assert caught.value.retry_after is None


BROKEN_OFF = {
    "hung up": Reply(text="half of it " * 40, cut=True),
    "ended too early, in good order": Reply(text="half of it " * 40, short=True),
    "overloaded in the middle": Reply(text="half of it " * 40, trouble="overloaded_error", error="Too much."),
    "an error nobody knows": Reply(text="half of it " * 40, trouble="strange_error", error="Odd."),
}


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("reply", BROKEN_OFF.values(), ids=BROKEN_OFF)
def test_an_answer_that_broke_off_is_asked_for_again_and_counted(mock: MockAnthropic, reply: Reply) -> None:
    mock.plan = replies(reply, reply, Reply(text="whole"))
    answer = ask()
    assert transcript.text(answer) == "whole"
    assert answer["lost_requests"] == 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("reply", BROKEN_OFF.values(), ids=BROKEN_OFF)
def test_half_an_answer_is_never_taken_for_one(mock: MockAnthropic, reply: Reply) -> None:
    mock.plan = replies(reply)
    with pytest.raises(ModelUnavailable) as caught:
        ask()
    assert caught.value.lost_requests == 1


@pytest.mark.usefixtures("hurried")
def test_what_broke_off_is_counted_also_when_the_request_fails_in_the_end(mock: MockAnthropic) -> None:
    mock.plan = replies(BROKEN_OFF["hung up"], Reply(status=529), Reply(status=401))
    with pytest.raises(ModelError) as refused:
        ask()
    assert refused.value.lost_requests == 1
    mock.plan = replies(BROKEN_OFF["hung up"], Reply(status=429, headers={"retry-after": "60"}))
    with pytest.raises(ModelUnavailable) as parked:
        ask()
    assert parked.value.lost_requests == 1


# --- requests that cannot succeed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "MODEL_ERROR"),
        (401, "MODEL_AUTHENTICATION"),
        (402, "MODEL_QUOTA"),
        (403, "MODEL_PERMISSION"),
        (404, "MODEL_NOT_FOUND"),
        (413, "MODEL_CONTEXT_LENGTH"),
        (422, "MODEL_ERROR"),
    ],
)
def test_a_refusal_is_told_by_its_code_in_the_providers_words(mock: MockAnthropic, status: int, code: str) -> None:
    mock.plan = replies(Reply(status=status, error="This is why."))
    with pytest.raises(ModelError, match=rf"\A{status}: This is why\.\Z") as caught:
        ask()
    assert caught.value.code == code
    assert len(mock.asked) == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("prompt is too long: 250000 tokens > 200000 maximum", "MODEL_CONTEXT_LENGTH"),
        ("Your credit balance is too low to access the API.", "MODEL_QUOTA"),
    ],
)
def test_a_bad_request_that_is_really_something_else(mock: MockAnthropic, words: str, code: str) -> None:
    mock.plan = replies(Reply(status=400, kind="invalid_request_error", error=words))
    with pytest.raises(ModelError, match=words) as caught:
        ask()
    assert caught.value.code == code


def test_a_whole_page_in_place_of_an_error_is_cut(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(status=403, error="<p>" * 10_000))
    with pytest.raises(ModelError) as caught:
        ask()
    assert len(str(caught.value)) < 3000


def test_a_provider_nobody_knows_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ModelError, match="provider abacus is not supported") as caught:
        ask(model=ModelSpec(provider="abacus", model="1"))
    assert caught.value.code == "PROVIDER_UNKNOWN"


def test_a_key_that_is_gone_is_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(ModelError, match="no key for anthropic") as caught:
        ask()
    assert caught.value.code == "CREDENTIAL_MISSING"


# --- leaving ------------------------------------------------------------------------------------------------------


def test_cancelling_before_the_first_byte_hangs_up(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(text="late", delay=60))
    asked = llm.submit(make_request())
    until(lambda: mock.asked)
    cancel(asked)
    until(lambda: mock.hung_up)


def test_cancelling_in_mid_stream_hangs_up(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(text="word " * 1000, pace=0.1))
    asked = llm.submit(make_request())
    until(lambda: mock.asked)
    time.sleep(0.3)
    cancel(asked)
    until(lambda: mock.hung_up)


def test_cancelling_between_two_tries_ends_them(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(status=529))
    asked = llm.submit(make_request())
    until(lambda: mock.asked)
    time.sleep(0.1)
    cancel(asked)
    time.sleep(1.2)
    assert len(mock.asked) == 1


def cancel(asked: Future[Body]) -> None:
    assert asked.cancel()
    with pytest.raises(CancelledError):
        asked.result(5)


def test_after_a_hang_up_the_next_request_is_answered(mock: MockAnthropic) -> None:
    mock.plan = replies(Reply(text="word " * 1000, pace=0.1), Reply(text="fresh"))
    asked = llm.submit(make_request())
    until(lambda: mock.asked)
    cancel(asked)
    assert transcript.text(ask()) == "fresh"


# --- warming ------------------------------------------------------------------------------------------------------


def test_warming_asks_nobody_and_needs_no_key(mock: MockAnthropic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    llm.warm()
    assert mock.asked == []


def test_models_and_keys_share_their_connections(mock: MockAnthropic, monkeypatch: pytest.MonkeyPatch) -> None:
    mock.plan = replies(Reply(text="ok"))
    ask()
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-other-key")
    ask(model=ModelSpec(provider="anthropic", model="claude-opus-5"))
    assert [(asked.body["model"], asked.key) for asked in mock.asked] == [
        ("claude-sonnet-5", KEY),
        ("claude-opus-5", "sk-other-key"),
    ]
    assert mock.connections == 1


# --- choosing, and keys -------------------------------------------------------------------------------------------


def test_the_first_model_with_a_key_is_chosen(mock: MockAnthropic) -> None:
    other = ModelSpec(provider="abacus", model="1")
    assert llm.choose([other, SONNET]) == SONNET
    script = ModelSpec(provider="scripted", model="script.yaml")
    assert llm.choose([script, SONNET]) == script


def test_without_a_model_or_a_key_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(ModelError, match="names no model") as caught:
        llm.choose([])
    assert caught.value.code == "NO_MODEL"
    with pytest.raises(ModelError, match="no key for anthropic, abacus") as caught:
        llm.choose([SONNET, ModelSpec(provider="abacus", model="1"), SONNET])
    assert caught.value.code == "CREDENTIAL_MISSING"


def test_a_key_in_the_store_wins_over_the_environment(mock: MockAnthropic, settings: Any, tmp_path: Path) -> None:
    settings.HOME = tmp_path
    folder = tmp_path / "credentials" / "anthropic_key" / "default"
    folder.mkdir(parents=True, mode=0o700)
    for place in (folder, *list(folder.parents)[:2]):
        place.chmod(0o700)
    private_files.write(folder / "token", "sk-from-the-store\n")
    mock.plan = replies(Reply(text="ok"))
    ask()
    assert mock.asked[0].key == "sk-from-the-store"
    assert keys.all_values() == ["sk-from-the-store"]
    (folder / "token").chmod(0o644)
    with pytest.raises(ModelError, match="may be read by others") as caught:
        llm.choose([SONNET])
    assert caught.value.code == "CREDENTIAL_REFUSED"


# --- scripts ------------------------------------------------------------------------------------------------------


def scripted(script: Any, messages: list[Body] | None = None) -> Future[Body]:
    content = script if isinstance(script, bytes | None) else yaml.safe_dump(script).encode()
    spec = ModelSpec(provider="scripted", model="script.yaml")
    return llm.submit(make_request(messages, model=spec, read_file={"script.yaml": content}.get))


def test_a_script_answers_turn_by_turn() -> None:
    script = {"turns": [{"text": "I look.", "tools": [{"name": "look", "arguments": {"at": "x"}}]}, {"text": "done"}]}
    first = scripted(script).result(5)
    assert (transcript.text(first), first["stop"], first["model"]) == ("I look.", "tool_use", "scripted:script.yaml")
    (call,) = transcript.tool_calls(first)
    assert (call["id"], call["name"], call["arguments"]) == ("scripted_0_0", "look", {"at": "x"})
    assert first == scripted(script).result(5), "asked again, it says the same"
    second = scripted(script, [*begin(), first, result(call, "seen")]).result(5)
    assert (transcript.text(second), second["stop"]) == ("done", "end_turn")
    assert second["usage"]["input"] > first["usage"]["input"] > 0
    assert second["usage"]["output"] > 0


def test_a_script_that_expected_something_else_fails_with_both() -> None:
    with pytest.raises(
        ModelError, match=r"turn 1 of script.yaml expected to be shown 'missing', and was shown: Be good\.\nHi\."
    ) as caught:
        scripted({"turns": [{"expect": ["Hi.", "missing"], "text": "no"}]})
    assert caught.value.code == "SCRIPT_MISMATCH"


def test_a_script_expects_only_what_is_new() -> None:
    script = {"turns": [{"tools": [{"name": "look"}]}, {"expect": ["seen"], "text": "ok"}, {"expect": ["Hi."]}]}
    first = scripted(script).result(5)
    told = result(transcript.tool_calls(first)[0], "seen")
    assert transcript.text(scripted(script, [*begin(), first, told]).result(5)) == "ok"
    with pytest.raises(ModelError, match="turn 3"):
        scripted(script, [*begin(), first, told, first, told])


BAD_SCRIPTS = [None, b"", b"turns: 3", b"turns: [1]", b"[]", b"{turns: [", b"\xff\xfe\x00", b"other: []"]


@pytest.mark.parametrize("content", BAD_SCRIPTS, ids=repr)
def test_a_script_that_cannot_be_read_is_named(content: bytes | None) -> None:
    with pytest.raises(ModelError, match=r"script\.yaml") as caught:
        scripted(content)
    assert caught.value.code == "SCRIPT_MISSING"


BAD_TURNS: list[Any] = [
    {"text": 3},
    {"tools": "bash"},
    {"tools": ["bash"]},
    {"tools": [{"arguments": {}}]},
    {"expect": "one word"},
    {"delay": "soon"},
    {"text": "ok", "tolls": []},
]


@pytest.mark.parametrize("turn", BAD_TURNS, ids=repr)
def test_a_turn_that_makes_no_sense_is_named(turn: Any) -> None:
    with pytest.raises(ModelError, match=r"script\.yaml is not a script: turn 2") as caught:
        scripted({"turns": [{"text": "fine"}, turn]})
    assert caught.value.code == "SCRIPT_MISSING"


def test_a_script_that_has_ended_is_not_an_answer() -> None:
    first = scripted({"turns": [{"text": "one"}]}).result(5)
    with pytest.raises(ModelError, match="has 1 turns and was asked for one more") as caught:
        scripted({"turns": [{"text": "one"}]}, [*begin(), first, *begin()])
    assert caught.value.code == "SCRIPT_ENDED"


def test_a_script_can_be_slow_and_be_cancelled() -> None:
    began = time.monotonic()
    assert transcript.text(scripted({"turns": [{"text": "slow", "delay": 0.3}]}).result(5)) == "slow"
    assert time.monotonic() - began >= 0.3
    slow = scripted({"turns": [{"text": "never", "delay": 60}]})
    done = threading.Event()
    slow.add_done_callback(lambda _: done.set())
    assert slow.cancel()
    assert done.wait(5)
