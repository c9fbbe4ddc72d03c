"""What an agent says of its own run: what it is doing, what it returns, and how it is to end.

One implementation behind the model's tools, the gateway's routes and the signal files that the commands in the
sandbox leave. A signal of a run that is over changes nothing. Source: spec/action-llama.md 1.6, 1.7, 7.5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from django.db import transaction
from django.db.models import Q

from agents import clock, storable
from agents.redaction import Redactor
from runs import alerts, bells, events, lifecycle, secrets
from runs.events import New
from runs.models import TERMINAL, Attempt, Run

SHUTDOWN = "SHUTDOWN"  # the code of a run that its agent has ended at once
RERUN = 42
UNRECOVERABLE = 15  # the exit code of who names none
CODES = 256  # an exit code is a byte
STATUS_LENGTH = 500
VALUE_SHOWN = 1000  # characters of a return value in its event
REASONS = {
    10: "Authentication/credentials failure",
    11: "Permission/access denied",
    12: "Rate limit exceeded",
    13: "Configuration error",
    14: "Missing dependency or service error",
    15: "Unrecoverable error",
    16: "User-requested abort",
}


class RunIsOver(Exception):
    """The run has ended: nothing it says counts any more."""


def set_status(attempt: Attempt, text: str, *, redactor: Redactor | None = None) -> None:
    """What people who watch see. Raises RunIsOver."""
    redactor = redactor or secrets.redactor_of(attempt)
    shown = redactor.text(storable.text(text))[:STATUS_LENGTH]
    _say(attempt, New("status.text", {"text": shown}), redactor, status_text=shown)


def return_value(attempt: Attempt, value: str, *, redactor: Redactor | None = None) -> None:
    """What a caller gets; the last one counts. Raises RunIsOver."""
    redactor = redactor or secrets.redactor_of(attempt)
    kept = redactor.text(storable.text(value))
    _say(attempt, New("signal.return", {"value": kept[:VALUE_SHOWN]}), redactor, return_value=kept)


def rerun(attempt: Attempt, *, redactor: Redactor | None = None) -> None:
    """When the run has finished, another is to follow. Raises RunIsOver."""
    _say(attempt, New("signal.rerun"), redactor, rerun_requested=True)


def exit(attempt: Attempt, code: int = UNRECOVERABLE, *, redactor: Redactor | None = None) -> None:  # noqa: A001
    """How the run is to end, when the agent has stopped. Raises RunIsOver."""
    _say(attempt, New("signal.exit", {"code": code % CODES}), redactor, exit_requested=code % CODES)


def shutdown(attempt: Attempt, reason: str, details: str = "") -> str:
    """End the run at once, as failed, whatever it does; its secret is dead from now on. Raises RunIsOver.

    The name of the container that goes.
    """
    redactor = secrets.redactor_of(attempt)
    message = redactor.text(storable.text(reason)) or "the agent has shut itself down"
    more = {"details": redactor.text(storable.text(details))} if details else {}
    with transaction.atomic():
        wish = New("shutdown.requested", {"reason": message, **more})
        error = {"code": SHUTDOWN, "message": message, **more}
        _say(attempt, wish, redactor, cancel_requested_at=clock.now(), error=error)
        Attempt.objects.filter(pk=attempt.pk).update(gateway_digest="")
        said = f"{attempt.run_id} has shut itself down: {message}"
        alerts.begin(alerts.AGENT_SHUT_DOWN, str(attempt.run.agent_id), said)
        bells.ring_run(attempt.run_id, attempt.host_id)
    lifecycle.fail_idle(attempt.run_id, error)
    return attempt.sandbox_name


def shutdown_wish(run_id: str) -> dict[str, Any] | None:
    """The error that a run which wants to be shut down is to end with; None if it does not."""
    error: dict[str, Any] | None = Run.objects.values_list("error", flat=True).get(pk=run_id)
    return error if error and error["code"] == SHUTDOWN else None


def _say(attempt: Attempt, said: New, redactor: Redactor | None, **sets: Any) -> None:
    live = ~Q(status__in=TERMINAL)
    redactor = redactor or secrets.redactor_of(attempt)
    with transaction.atomic():
        if not events.append(attempt.run_id, [said], redactor=redactor, where=live, **sets):
            raise RunIsOver(attempt.run_id)


# --- what commands have left --------------------------------------------------------------------------------------


class Hands(Protocol):
    """The sandbox, as far as signal files are concerned."""

    @property
    def signals_left(self) -> bool: ...
    def exec(self, argv: Sequence[str], *, timeout: int = 60) -> Printed: ...


class Printed(Protocol):
    @property
    def raw(self) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class Left:
    """The signal files that lie in a sandbox; None where there is none."""

    exit: int | None = None
    rerun: bool = False
    value: str | None = None

    def news(self, run: Run, redactor: Redactor) -> tuple[list[New], dict[str, Any]]:
        """Events, and the columns of the run, of what it has not said before. The files stay where they are."""
        news: list[New] = []
        sets: dict[str, Any] = {}
        if self != Left():  # the commands say it to the gateway too, since the step began
            run.refresh_from_db(fields=["exit_requested", "rerun_requested", "return_value"])
        if self.exit is not None and self.exit != run.exit_requested:
            news.append(New("signal.exit", {"code": self.exit}))
            sets["exit_requested"] = run.exit_requested = self.exit
        if self.rerun and not run.rerun_requested:
            news.append(New("signal.rerun"))
            sets["rerun_requested"] = run.rerun_requested = True
        kept = None if self.value is None else redactor.text(storable.text(self.value))
        if kept is not None and kept != run.return_value:
            news.append(New("signal.return", {"value": kept[:VALUE_SHOWN]}))
            sets["return_value"] = run.return_value = kept
        return news, sets


# Each file as its name, its size in bytes, a line end, its content and a line end.
READ = """cd "${AL_SIGNAL_DIR:-/tmp/signals}" || exit 0
for file in exit rerun return; do
    [ -f "$file" ] && printf '%s %d\\n' "$file" "$(wc -c <"$file")" && cat "$file" && echo
done
exit 0
"""


def left(hands: Hands) -> Left:
    """What the commands of these hands have left, in the sandbox itself. Raises what `hands.exec` raises."""
    if not hands.signals_left:
        return Left()
    return parse(hands.exec(["sh", "-c", READ], timeout=10).raw)


def parse(printed: bytes) -> Left:
    """What READ has printed. An exit code that is no number is none."""
    files: dict[str, bytes] = {}
    while b"\n" in printed:
        head, _, rest = printed.partition(b"\n")
        name, _, size = head.decode(errors="replace").partition(" ")
        if not size.isdecimal():
            break
        files[name], printed = rest[: int(size)], rest[int(size) + 1 :]
    code = files.get("exit", b"").decode(errors="replace").strip()
    value = files.get("return")
    return Left(
        exit=int(code) % CODES if re.fullmatch(r"-?[0-9]{1,9}", code) else None,
        rerun="rerun" in files,
        value=None if value is None else value.decode(errors="replace"),
    )


# --- how it ends --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """How a run ends whose agent has stopped by itself. `code` is the error's, empty where it has finished."""

    exit_code: int
    code: str = ""
    message: str = ""
    rerun: bool = False


def conclusion(run: Run, exit_code: int = 0) -> Conclusion:
    """`exit_code`: of a command agent's own program, 0 for a model that has answered.

    An exit signal decides; else the program's code, if it failed; else a wish for a rerun.
    """
    asked = Run.objects.values_list("exit_requested", "rerun_requested").get(pk=run.pk)
    wanted, again = asked
    if wanted is not None:
        exit_code, again = wanted, False
    if exit_code == RERUN or (exit_code == 0 and again):
        return Conclusion(exit_code=RERUN, rerun=True)
    if exit_code == 0:
        return Conclusion(exit_code=0)
    reason = REASONS.get(exit_code, f"Unknown exit code: {exit_code}")
    return Conclusion(exit_code=exit_code, code=f"EXIT_{exit_code}", message=reason)
