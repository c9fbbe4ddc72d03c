"""What people do to runs in the admin: cancel, answer, say something, approve or refuse a call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from django import forms
from unfold.widgets import UnfoldAdminTextareaWidget

from agents.pages import Deed, Refused, Words, plain_lines
from runs import approvals, inputs, queue
from runs.facts import Leave
from runs.models import InputMode, Run, TriggerKind
from runs.pages import WHEN_HEARD, OfRun


class CancelRun(Deed, OfRun):
    verb = "Cancel the run"
    sentence = "Its command is stopped and its sandbox removed. What it has done stays done."
    dangerous = True

    @property
    def title(self) -> str:
        return f"Cancel {self.row}"

    def do(self, form: forms.Form) -> str:
        try:
            queue.cancel(self.row)
        except queue.AlreadyOver as over:
            raise Refused(f"{self.row} is over already: {Run.objects.get(pk=self.row.pk).status}") from over
        return f"Asked {self.row} to stop"


class RespondToRun(Deed, OfRun):
    verb = "Answer"
    form_class = Words

    @property
    def title(self) -> str:
        return f"Answer {self.row}"

    @property
    def sentence(self) -> str:
        return str(self.row.question) or "It asks nothing at the moment."

    def do(self, form: forms.Form) -> str:
        try:
            queue.respond(self.row, form.cleaned_data["text"])
        except queue.NotWaiting as over:
            raise Refused(f"{self.row} waits for no answer") from over
        return f"Answered {self.row}"


class SomethingToSay(Words):
    mode = forms.ChoiceField(choices=WHEN_HEARD, initial=InputMode.FOLLOWUP, label="")


class SayToRun(Deed, OfRun):
    verb = "Send"
    sentence = "If the run is over, another goes on from where it ended."
    form_class = SomethingToSay

    @property
    def title(self) -> str:
        return f"Say something to {self.row}"

    def do(self, form: forms.Form) -> str:
        said = form.cleaned_data
        try:
            sent, _ = inputs.send(self.row, said["text"], InputMode(said["mode"]), trigger=TriggerKind.MANUAL)
        except inputs.HearsNothing as error:
            raise Refused(f"{self.row} is a program that hears nothing while it runs") from error
        except (queue.AgentRefuses, queue.QueueFull, queue.Coalesced) as error:
            raise Refused(str(error)) from error
        self.row = inputs.hearer(sent)
        return f"{self.row} has your message: {sent.outcome}"


class Decision(forms.Form):
    """On the call that was shown: the digest says which that was."""

    call_id = forms.CharField(max_length=32, widget=forms.HiddenInput)
    digest = forms.CharField(max_length=64, widget=forms.HiddenInput)
    reason = forms.CharField(max_length=10_000, required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}))

    def clean_reason(self) -> str:
        return plain_lines(self.cleaned_data["reason"])


class DecideOnCall(Deed, OfRun):
    decide: Callable[..., None]
    done = ""  # what the message says
    form_class = Decision
    template_name = "runs/decide.html"

    @cached_property
    def leave(self) -> Leave | None:
        return Leave.of(self.row)

    @property
    def title(self) -> str:
        return f"{self.verb} a call of {self.row}"

    @property
    def sentence(self) -> str:
        return "" if self.leave else "It asks leave for nothing at the moment."

    def get_initial(self) -> dict[str, Any]:
        return {"call_id": self.leave.call_id, "digest": self.leave.digest} if self.leave else {}

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(leave=self.leave, **kwargs)

    def do(self, form: forms.Form) -> str:
        said = form.cleaned_data
        try:
            self.decide(self.row, said["call_id"], said["digest"], by=str(self.request.user), reason=said["reason"])
        except approvals.CannotDecide as error:
            raise Refused(f"Nothing has changed: {why_not(error)}") from error
        return f"{self.done} call {said['call_id']} of {self.row}"


class ApproveCall(DecideOnCall):
    verb, done = "Approve", "Approved"
    decide = staticmethod(approvals.approve)


class RefuseCall(DecideOnCall):
    verb, done = "Refuse", "Refused"
    dangerous = True
    decide = staticmethod(approvals.refuse)


def why_not(error: approvals.CannotDecide) -> str:
    match error:
        case approvals.ApprovalChanged():
            return "the call is not the one that was shown"
        case approvals.AlreadyDecided():
            return f"it has been decided on, and is {error}"
        case approvals.ApprovalExpired():
            return f"the time to decide passed at {error}"
    return "it waits for no such word"
