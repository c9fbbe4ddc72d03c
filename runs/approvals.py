"""A person's word on a risky tool call, before it starts.

An approval belongs to one call of one attempt, exactly as it is stored and shown: the digest is taken over that when
it is asked for, and again when the call starts. It is used up in the transaction that marks the call as started, so
nothing that needs one starts without, and no two starts share one.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, TypedDict

from django.db import transaction
from django.db.models import QuerySet

from agents import clock, spec, storable
from runs import lifecycle
from runs.events import New, isoformat
from runs.models import Approval, ApprovalState, Run, Status, ToolCall, WaitReason
from runs.tools.base import Tool

# What lets one command line do more than the command it begins with: none of it passes by a pattern.
CHAINS = re.compile(r"[;&|`<>\n\r]|\$\(")
GO_ROUND = "It was not started. Do not try to get the same effect in another way: go on without it, or ask."


class CannotDecide(Exception):
    """The decision came to nothing, and nothing has changed."""


class NotWaiting(CannotDecide):
    """The run waits for no word on this call."""


class ApprovalChanged(CannotDecide):
    """The digest is not that of the call: what was shown is not what would start."""


class AlreadyDecided(CannotDecide):
    """Somebody was first; the message is the state it has had since."""


class ApprovalExpired(CannotDecide):
    """It is too late: the call has been, or is about to be, refused."""


class NotApproved(Exception):
    """The call has no approval that is good now, so it must not start."""


class Shown(TypedDict):
    """An approval as everyone outside gets it, with the whole call."""

    call_id: str
    tool: str
    arguments: Any
    digest: str
    state: str
    expires_at: str
    decided_at: str | None
    decided_by: str
    reason: str
    created_at: str


# --- which calls need one ---------------------------------------------------------------------------------------


def needed(policy: spec.Approvals, tool: Tool, arguments: dict[str, Any]) -> bool:
    """Whether a person must allow this call first."""
    if policy.ask == "off" or not tool.risky:
        return False
    return policy.ask == "always" or not any(allows(pattern, tool.name, arguments) for pattern in policy.allow)


def allows(pattern: str, name: str, arguments: dict[str, Any]) -> bool:
    """`write` is every call of that tool; `bash:git status*` those of its commands, from end to end.

    A command in which another may hide (see CHAINS) is allowed only by a pattern that is that command.
    """
    tool, colon, wanted = pattern.partition(":")
    if tool != name:
        return False
    if not colon:
        return True
    command = arguments.get("command")
    if not isinstance(command, str):
        return False
    return command == wanted or (CHAINS.search(command) is None and fnmatchcase(command, wanted))


def digest_of(call: ToolCall) -> str:
    """SHA-256, in hex, of what would start: attempt, call, tool and arguments as they are stored."""
    said = [call.attempt_id, call.call_id, call.name, call.arguments]
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# --- from asking to starting: inside the step's transactions -------------------------------------------------------


def ask(run_id: str, call: ToolCall, *, expires_at: datetime) -> Approval:
    """The row of a question that is being asked; the run is parked for it in the same transaction."""
    return Approval.objects.create(run_id=run_id, call=call, digest=digest_of(call), expires_at=expires_at)


def of(call: ToolCall) -> Approval | None:
    return Approval.objects.filter(call=call).first()


def is_good(call: ToolCall) -> bool:
    """Whether the call, as it is now, may start."""
    return _good(call).exists()


def use(call: ToolCall) -> None:
    """Use the approval up, in the transaction that starts the call. Raises NotApproved."""
    if not _good(call).update(state=ApprovalState.USED):
        raise NotApproved(call.call_id)


def void(call: ToolCall) -> None:
    """The call is over without a start: what was approved and not used is good for nothing any more."""
    Approval.objects.filter(call=call, state=ApprovalState.APPROVED).update(state=ApprovalState.EXPIRED)


def refusal(approval: Approval, call: ToolCall) -> str:
    """What the model is told instead of a result."""
    if approval.state == ApprovalState.REFUSED:
        why = f": {approval.reason}" if approval.reason else " and gave no reason"
        return f"[refused by {approval.decided_by}{why}. {GO_ROUND}]"
    if approval.digest != digest_of(call):
        return f"[refused: what was approved is not this call. {GO_ROUND}]"
    if approval.state == ApprovalState.APPROVED:
        return f"[refused: {approval.decided_by} allowed it, but the time for it had passed. {GO_ROUND}]"
    return f"[refused: nobody answered before {isoformat(approval.expires_at)}. {GO_ROUND}]"


def _good(call: ToolCall) -> QuerySet[Approval]:
    approved = Approval.objects.filter(call=call, state=ApprovalState.APPROVED)
    return approved.filter(digest=digest_of(call), expires_at__gt=clock.now())


# --- deciding -----------------------------------------------------------------------------------------------------


def approve(run: Run, call_id: str, digest: str, *, by: str, reason: str = "") -> None:
    """Let the call start, once. Raises NotWaiting, ApprovalChanged, AlreadyDecided, ApprovalExpired."""
    _decide(run, call_id, digest, ApprovalState.APPROVED, by=by, reason=reason)


def refuse(run: Run, call_id: str, digest: str, *, by: str, reason: str = "") -> None:
    """The call will not start, and the model is told by whom and why. Raises as `approve`."""
    _decide(run, call_id, digest, ApprovalState.REFUSED, by=by, reason=reason)


def expire_due() -> None:
    """Refuse what nobody has answered in time."""
    due = Approval.objects.filter(state=ApprovalState.PENDING, expires_at__lte=clock.now())
    due = due.filter(run__status=Status.WAITING, run__wait_reason=WaitReason.APPROVAL)
    for approval in due.select_related("call").order_by("expires_at")[:100]:
        _settle(approval, ApprovalState.EXPIRED)


def _decide(run: Run, call_id: str, digest: str, state: ApprovalState, *, by: str, reason: str) -> None:
    approval = _newest(run, call_id)
    _check(approval, digest)
    if not _settle(approval, state, by=storable.text(by)[:150], reason=storable.text(reason), in_time=True):
        _check(_newest(run, call_id), digest)  # somebody else was first, or the time has just passed
        raise NotWaiting(run.pk)


def _newest(run: Run, call_id: str) -> Approval:
    """Attempts number their calls alike; the run can wait for the last one's only. Raises NotWaiting."""
    approval = Approval.objects.filter(run=run, call__call_id=call_id).select_related("call").first()
    if approval is None:
        raise NotWaiting(run.pk)
    return approval


def _check(approval: Approval, digest: str) -> None:
    if digest != approval.digest or digest != digest_of(approval.call):
        raise ApprovalChanged(approval.call.call_id)
    if approval.state in {ApprovalState.APPROVED, ApprovalState.REFUSED, ApprovalState.USED}:
        raise AlreadyDecided(approval.state)
    if approval.expires_at <= clock.now():
        raise ApprovalExpired(isoformat(approval.expires_at))
    if approval.state == ApprovalState.EXPIRED:  # before its time: the run has ended
        raise NotWaiting(approval.run_id)


def _settle(approval: Approval, state: ApprovalState, *, by: str = "", reason: str = "", in_time: bool = False) -> bool:
    """The decision, its event and the run's waking, or nothing of it: False."""
    now = clock.now()
    said = New("approval.decided", {"callId": approval.call.call_id, "state": state, "by": by, "reason": reason})
    open_one = Approval.objects.filter(pk=approval.pk, state=ApprovalState.PENDING, digest=approval.digest)
    if in_time:
        open_one = open_one.filter(expires_at__gt=now)
    with transaction.atomic():
        woken = lifecycle.wake(approval.run_id, WaitReason.APPROVAL, also=[said])
        settled = woken and open_one.update(state=state, decided_at=now, decided_by=by, reason=reason)
        if not settled:
            transaction.set_rollback(True)  # it may have woken the run from its wait for another call
    return bool(settled)


# --- showing ------------------------------------------------------------------------------------------------------


def shown(run: Run) -> list[Shown]:
    """All that the run has been asked for, the oldest first."""
    return [_as_shown(row) for row in run.approvals.select_related("call").order_by("pk")]


def open_one(run: Run) -> Approval | None:
    """What the run waits for somebody's word on."""
    if run.wait_reason != WaitReason.APPROVAL:
        return None
    return run.approvals.filter(state=ApprovalState.PENDING).select_related("call").first()


def _as_shown(approval: Approval) -> Shown:
    return {
        "call_id": approval.call.call_id,
        "tool": approval.call.name,
        "arguments": approval.call.arguments,
        "digest": approval.digest,
        "state": approval.state,
        "expires_at": isoformat(approval.expires_at),
        "decided_at": isoformat(approval.decided_at) if approval.decided_at else None,
        "decided_by": approval.decided_by,
        "reason": approval.reason,
        "created_at": isoformat(approval.created_at),
    }
