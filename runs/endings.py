"""Why a step ends early, and what each way of ending means for its run."""

from __future__ import annotations

import logging
from datetime import timedelta

from pydantic import ValidationError

from agents import clock
from runs import command_agent, leases, limits, secrets, signals
from runs.db import release_connection
from runs.halt import Halted, Why
from runs.images import ImageBuilding
from runs.llm import ModelError, ModelUnavailable
from runs.models import WaitReason
from runs.sandbox.base import EngineDown, SandboxError, SandboxGone
from runs.sandbox.cleanup import stop_and_remove
from runs.step import Step
from runs.transcript import Corrupt

log = logging.getLogger(__name__)

MACHINERY_WAITS = 12  # in a row without progress, before the run gives up
LONGEST_PAUSE = 300.0  # seconds


def check_wanted(step: Step) -> None:
    """Raises what speaks against going on, before anything is done."""
    if step.run.cancel_requested_at is not None:
        raise Halted(Why.CANCEL)
    check_definition(step)
    if step.run.takeovers > leases.TAKEOVERS:
        raise limits.Over("WORKER_LOST", f"{leases.TAKEOVERS} workers were lost in a row at this point")


def check_definition(step: Step) -> None:
    """Raises Corrupt for one that can no longer be read."""
    try:
        _ = step.spec
    except ValidationError as error:
        raise Corrupt(f"the definition of {step.run.agent.name} that the run has cannot be read: {error}") from error


def check_host(step: Step, host_id: str) -> None:
    """A run whose host died goes on here, if nothing of it stood there. Raises SandboxGone, LeaseLost."""
    if step.attempt.host_id == host_id:
        return
    if step.attempt.has_workspace:
        raise SandboxGone(f"host {step.attempt.host_id} is gone, and the run's sandbox and workspace with it")
    step.move_to(host_id)


def end_early(step: Step, error: Exception) -> None:
    """What each way of ending a step early means for the run. Raises LeaseLost, SandboxError."""
    match error:
        case Halted(why=Why.CANCEL):
            end_as_wished(step)
        case Halted(why=Why.DEADLINE | Why.IDLE as why):
            give_up(step, limits.timeout(step.run) if why is Why.DEADLINE else limits.idle(step.run, step.spec))
        case Halted(why=Why.STOPPING | Why.INTERRUPT):
            step.release()
        case Halted():
            log.info("%s goes on elsewhere", step.lease.run_id)
        case Corrupt() | secrets.Unusable():
            step.fail(error.code, str(error))
        case ModelError():
            step.give_up(error.code, str(error), lost_requests=error.lost_requests)
        case ModelUnavailable() | EngineDown() | ImageBuilding():
            wait_for_machinery(step, error)
        case limits.Over() | SandboxError():
            give_up(step, error)
        case _:
            log.error("%s: unexpected", step.lease.run_id, exc_info=error)
            step.fail("INTERNAL_ERROR", f"{type(error).__name__}: {error}")


def end_as_wished(step: Step) -> None:
    """The run's own wish to be shut down leaves its commands no time; a person's wish to cancel it does."""
    wish = signals.shutdown_wish(step.lease.run_id)
    attempt = step.attempt
    release_connection()
    if wish is None:
        stop_and_remove(step.engine, attempt)
        step.cancel()
    else:
        step.engine.remove(attempt.sandbox_name)
        step.shut_down(wish)


def give_up(step: Step, error: limits.Over | SandboxError) -> None:
    """A command agent that is out of time ends as `timeout` ends a program."""
    timed_out = step.spec.kind == "command" and error.code in {"TIMEOUT", "IDLE_TIMEOUT"}
    step.give_up(error.code, str(error), exit_code=command_agent.TIMED_OUT if timed_out else None)


def wait_for_machinery(step: Step, error: ModelUnavailable | EngineDown | ImageBuilding) -> None:
    match error:
        case ImageBuilding():
            step.wait_for_image(error.needed)
        case ModelUnavailable():
            pause_or_fail(step, WaitReason.RATE_LIMIT, "MODEL_UNAVAILABLE", error)
        case EngineDown():
            pause_or_fail(step, WaitReason.RETRY, error.code, error)


def pause_or_fail(step: Step, reason: WaitReason, code: str, error: EngineDown | ModelUnavailable) -> None:
    """The machinery may recover: park the run, longer each time; after enough of that it has failed."""
    lost, retry_after = None, 0.0
    if isinstance(error, ModelUnavailable):
        lost, retry_after = error.lost_requests, error.retry_after or 0.0
    waits = step.run.machinery_waits
    if waits >= MACHINERY_WAITS:
        step.give_up(code, f"{error} (after {waits} tries)", lost_requests=lost)
        return
    pause = max(retry_after, min(LONGEST_PAUSE, 5.0 * 2**waits))
    note = {"code": code, "message": str(error), "seconds": round(pause, 1)}
    step.pause(reason, note, wake_at=clock.now() + timedelta(seconds=pause), lost_requests=lost)
