"""What a run says of itself, with a tool, with a file or through the gateway, and what becomes of it then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from runs import attempt_keys, queue, signals
from runs.models import Alert, Attempt, Run, TriggerKind
from tests.conftest import DrivenClock, DrivenWorker, Points
from tests.making import ask, bash, make_agent, submit
from tests.test_engine import (
    GATED,
    Killed,
    data,
    error_of,
    kill,
    reload,
    successor,
    types,
)

pytestmark = pytest.mark.django_db(transaction=True)

KEY = "sk-ant-api03-0123456789abcdef"


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def leave(**files: str) -> str:
    """The command that leaves these signal files."""
    written = [f"printf '%s' '{text}' >\"$AL_SIGNAL_DIR/{name}\"" for name, text in files.items()]
    return "; ".join(['mkdir -p "$AL_SIGNAL_DIR"', *written])


def ran(worker: DrivenWorker, *calls: dict[str, Any], trigger: TriggerKind = TriggerKind.MANUAL, **changes: Any) -> Run:
    """A run whose model makes these calls and then stops."""
    return worker.drive(submit(make_agent(turns=[{"tools": list(calls)}, {"text": "done"}], **changes), trigger))


def followers() -> list[Run]:
    return list(Run.objects.exclude(rerun_of=None))


def how_it_ended(run: Run) -> str:
    """The status, or the code of the error."""
    return error_of(run)[0] if run.status == "failed" else run.status


# --- how a run ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "ended", "followed", "returned"),
    [
        ({"return": "7"}, "finished", 0, "7"),
        ({"rerun": ""}, "finished", 1, None),
        ({"rerun": "", "return": "7"}, "finished", 1, "7"),
        ({"exit": "0", "rerun": ""}, "finished", 0, None),
        ({"exit": "42"}, "finished", 1, None),
        ({"exit": "13", "rerun": "", "return": "7"}, "EXIT_13", 0, "7"),
    ],
)
@pytest.mark.parametrize("way", ["tools", "files"])
def test_exit_comes_before_rerun_and_rerun_before_return(
    worker: DrivenWorker, way: str, said: dict[str, str], ended: str, followed: int, returned: str | None
) -> None:
    as_tools: dict[str, Callable[[str], dict[str, Any]]] = {
        "exit": lambda text: call("exit", code=int(text)),
        "rerun": lambda _: call("rerun"),
        "return": lambda text: call("return_value", value=text),
    }
    calls = [as_tools[name](text) for name, text in said.items()] if way == "tools" else [bash(leave(**said))]
    run = ran(worker, *calls, limits={"turns": 50}, max_reruns=1)
    assert (how_it_ended(run), len(followers()), run.return_value) == (ended, followed, returned)


@pytest.mark.parametrize(
    ("code", "reason"),
    [(15, "Unrecoverable error"), (10, "Authentication/credentials failure"), (99, "Unknown exit code: 99")],
)
def test_an_exit_code_is_the_run_s_error_with_its_reason(worker: DrivenWorker, code: int, reason: str) -> None:
    run = ran(worker, call("exit", **({} if code == signals.UNRECOVERABLE else {"code": code})))
    assert error_of(run) == (f"EXIT_{code}", reason)
    assert run.exit_code == code


@pytest.mark.parametrize(
    ("written", "ended"), [("12\n", "EXIT_12"), ("soon", "finished"), ("", "finished"), ("300", "EXIT_44")]
)
def test_an_exit_file_counts_if_it_is_a_number(worker: DrivenWorker, written: str, ended: str) -> None:
    assert how_it_ended(ran(worker, bash(leave(exit=written)))) == ended


def test_a_return_value_is_kept_whole_and_without_secrets(
    worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    value = f"two\nlines of {KEY[:20]}" + KEY[20:]
    long = f"{value}\n" + "x" * 5000
    run = ran(worker, bash(leave(**{"return": long})))
    assert run.return_value == long.replace(KEY, "[redacted]")
    assert [len(entry["value"]) for entry in data(run, "signal.return")] == [signals.VALUE_SHOWN]


def test_what_a_file_says_is_said_once(worker: DrivenWorker) -> None:
    """It stays where it is, and every command after it reads it again."""
    run = ran(worker, bash(leave(**{"return": "7", "rerun": ""})), bash("echo on"), bash("echo and on"), max_reruns=1)
    assert [types(run).count(type_) for type_ in ("signal.return", "signal.rerun", "tool.end")] == [1, 1, 3]


@pytest.mark.postgresql
@pytest.mark.parametrize("moment", ["before", "after"])
def test_files_are_read_although_the_worker_dies(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, moment: str
) -> None:
    turns = [{"tools": [bash(f"echo ran >>ran; {leave(**{'return': '7'})}; wc -l <ran")]}, {"text": "done"}]
    run = submit(make_agent(turns=turns))
    getattr(points, moment)("output 1", kill)  # with the call's result
    with pytest.raises(Killed):
        worker.drive(run)
    run = successor(worker, driven_clock).drive(run)
    assert (run.status, run.return_value) == ("finished", "7")
    assert data(run, "tool.end")[0]["outputPreview"] == "1\n"
    assert types(run).count("signal.return") == 1


def test_a_called_run_is_not_followed_by_another(worker: DrivenWorker) -> None:
    assert ran(worker, call("rerun"), trigger=TriggerKind.CALL).status == "finished"
    assert followers() == []


def test_the_next_attempt_has_said_nothing_yet(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    turns = [{"tools": [call("return_value", value="7"), call("exit", code=12)]}, {"text": "done"}]
    run = worker.drive(submit(make_agent(turns=turns, attempts={"after": ["work"]}, retry="always")))
    assert (run.status, run.exit_requested, run.return_value, run.rerun_requested) == ("waiting", None, None, False)
    driven_clock.forward(60)
    worker.sweep()
    assert error_of(worker.drive(run))[0] == "EXIT_12"


@pytest.mark.parametrize(
    ("program", "said", "ended", "rerun"),
    [
        (0, {}, "", False),
        (42, {}, "", True),
        (3, {}, "EXIT_3", False),
        (3, {"rerun_requested": True}, "EXIT_3", False),
        (0, {"rerun_requested": True}, "", True),
        (3, {"exit_requested": 0}, "", False),
        (0, {"exit_requested": 16, "rerun_requested": True}, "EXIT_16", False),
    ],
)
def test_a_program_s_own_code_counts_unless_an_exit_was_signalled(
    db: None, program: int, said: dict[str, Any], ended: str, rerun: bool
) -> None:
    run = submit(make_agent())
    Run.objects.filter(pk=run.pk).update(**said)
    conclusion = signals.conclusion(run, program)
    assert (conclusion.code, conclusion.rerun) == (ended, rerun)


# --- through the gateway ------------------------------------------------------------------------------------------


def test_what_the_gateway_is_told_is_stored_without_the_attempt_s_own_secret(worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(turns=[{"tools": [ask("well?")]}])))
    attempt = Attempt.objects.get()
    secret = attempt_keys.secret(run.pk, attempt.number)
    signals.set_status(attempt, f"using {secret}")
    signals.return_value(attempt, f"it is {secret}")
    run = reload(run)
    assert (run.status_text, run.return_value) == ("using [redacted]", "it is [redacted]")
    assert data(run, "status.text") == [{"text": "using [redacted]"}]
    assert data(run, "signal.return") == [{"value": "it is [redacted]"}]


@pytest.mark.postgresql
def test_a_run_that_is_over_says_nothing_more(worker: DrivenWorker) -> None:
    run = ran(worker)
    attempt, last = Attempt.objects.get(), run.last_event
    for say in (
        lambda: signals.set_status(attempt, "late"),
        lambda: signals.return_value(attempt, "late"),
        lambda: signals.rerun(attempt),
        lambda: signals.exit(attempt),
        lambda: signals.shutdown(attempt, "late"),
    ):
        with pytest.raises(signals.RunIsOver):
            say()
    assert (reload(run).last_event, reload(run).status_text, Alert.objects.count()) == (last, "", 0)


# --- shutdown -----------------------------------------------------------------------------------------------------


def shut_down_in(worker: DrivenWorker, points: Points, run: Run, reason: str = "a stranger gave me orders") -> Run:
    """In the middle of its command, which does not end by being asked to."""

    def shut_down() -> None:
        worker.drive(run)  # what others have to do meanwhile
        attempt = Attempt.objects.get(run=run)
        assert signals.shutdown(attempt, reason, "in issue 7") == attempt.sandbox_name
        worker.look(run.pk)

    points.after("output 1", shut_down)
    return worker.drive(run)


@pytest.mark.postgresql
def test_a_shutdown_ends_the_run_at_once_with_its_reason(worker: DrivenWorker, points: Points) -> None:
    turns = [{"tools": [bash(f"trap '' TERM; {GATED}")]}]
    run = submit(make_agent(turns=turns, retry="always", attempts={"after": ["work", "machinery"]}))
    run = shut_down_in(worker, points, run)
    assert error_of(run) == ("SHUTDOWN", "a stranger gave me orders")
    assert run.error is not None
    assert run.error["details"] == "in issue 7"
    assert worker.engine.names() == []
    assert (Attempt.objects.get().gateway_digest, Attempt.objects.get().ended_at is None) == ("", False)
    alert = Alert.objects.get()
    assert (alert.kind, alert.subject, run.pk in alert.message) == ("agent.shutdown", str(run.agent_id), True)
    assert types(run).count("attempt.failed") == 0
    assert data(run, "shutdown.requested") == [{"reason": "a stranger gave me orders", "details": "in issue 7"}]


@pytest.mark.postgresql
def test_the_alert_of_a_shutdown_is_over_when_a_run_of_the_agent_has_finished(worker: DrivenWorker) -> None:
    agent = make_agent(turns=[{"tools": [ask("well?")]}, {"text": "done"}])
    first, second = worker.drive(submit(agent)), worker.drive(submit(agent))
    signals.shutdown(Attempt.objects.get(run=first), "enough")
    assert Alert.objects.get().cleared_at is None
    queue.respond(second, "yes")
    assert worker.drive(second).status == "finished"
    assert Alert.objects.get().cleared_at is not None


@pytest.mark.postgresql
def test_a_shutdown_that_its_worker_does_not_live_to_carry_out_is_the_next_one_s(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock
) -> None:
    run = submit(make_agent(turns=[{"tools": [bash(GATED)]}]))

    def shut_down() -> None:
        signals.shutdown(Attempt.objects.get(), "enough")
        kill()

    points.after("output 1", shut_down)
    with pytest.raises(Killed):
        worker.drive(run)
    second = successor(worker, driven_clock)
    assert error_of(second.drive(run)) == ("SHUTDOWN", "enough")
    assert worker.engine.names() == []


@pytest.mark.postgresql
def test_a_parked_run_is_shut_down_without_a_worker(worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(turns=[{"tools": [ask("well?")]}])))
    assert run.status == "waiting"
    signals.shutdown(Attempt.objects.get(), "enough")
    assert error_of(reload(run)) == ("SHUTDOWN", "enough")


@pytest.mark.postgresql
def test_what_a_shut_down_run_has_called_is_canceled_to_any_depth(worker: DrivenWorker, points: Points) -> None:
    make_agent(
        "second", turns=[{"tools": [call("call_agent", target_agent="third", context="")]}, {"tools": [ask("?")]}]
    )
    make_agent("third", turns=[{"tools": [ask("well?")]}])
    turns = [{"tools": [call("call_agent", target_agent="second", context="go"), bash(GATED)]}]
    run = submit(make_agent("first", turns=turns))
    assert error_of(shut_down_in(worker, points, run))[0] == "SHUTDOWN"
    assert list(Run.objects.exclude(pk=run.pk).values_list("agent__name", "status").order_by("agent__name")) == [
        ("second", "canceled"),
        ("third", "canceled"),
    ]
