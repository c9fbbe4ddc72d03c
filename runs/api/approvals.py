"""What a task asks leave for, and the answer to it."""

from __future__ import annotations

from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from runs import approvals
from runs.api.auth import Caller
from runs.api.bodies import Strict, Text
from runs.api.errors import ApiError
from runs.api.lookups import run_or_404
from runs.api.schema import ERROR
from runs.models import ApprovalState, Status

LONGEST_REASON = 10_000  # characters


class Decision(Strict):
    decision = serializers.ChoiceField(["approve", "refuse"])
    digest = Text(max_length=64)
    reason = Text(max_length=LONGEST_REASON, required=False, allow_blank=True, default="")


ASKED = inline_serializer(
    "Approval",
    {
        "call_id": serializers.CharField(),
        "tool": serializers.CharField(),
        "arguments": serializers.JSONField(),
        "digest": serializers.CharField(),
        "state": serializers.ChoiceField(ApprovalState.choices),
        "expires_at": serializers.DateTimeField(),
        "decided_at": serializers.DateTimeField(allow_null=True),
        "decided_by": serializers.CharField(),
        "reason": serializers.CharField(),
        "created_at": serializers.DateTimeField(),
    },
    many=True,
)
DECIDED = inline_serializer(
    "Decided",
    {
        "taskId": serializers.CharField(),
        "status": serializers.CharField(),
        "state": serializers.CharField(),
    },
)


class TaskApprovals(APIView):
    @extend_schema(responses={200: inline_serializer("ApprovalPage", {"approvals": ASKED}), 404: ERROR})
    def get(self, request: Request, run_id: str) -> Response:
        """What the task has asked leave for, the oldest first."""
        return Response({"approvals": approvals.shown(run_or_404(request, run_id))})


class TaskApproval(APIView):
    @extend_schema(request=Decision, responses={200: DECIDED, 400: ERROR, 404: ERROR, 409: ERROR})
    def post(self, request: Request, run_id: str, call_id: str) -> Response:
        """Approve or refuse a call, as it was shown with this digest."""
        run = run_or_404(request, run_id)
        form = Decision(data=request.data)
        form.is_valid(raise_exception=True)
        said = form.validated_data
        approving = said["decision"] == "approve"
        decide = approvals.approve if approving else approvals.refuse
        try:
            decide(run, call_id, said["digest"], by=name_of(request), reason=said["reason"])
        except approvals.CannotDecide as error:
            raise answer_to(error, call_id) from error
        state = ApprovalState.APPROVED if approving else ApprovalState.REFUSED
        return Response({"taskId": run.pk, "status": Status.PROCESSING, "state": state})


def name_of(request: Request) -> str:
    """Whose token it is."""
    caller = request.user
    assert isinstance(caller, Caller), "the API takes bearer tokens only"
    return str(caller.token.name)


def answer_to(error: approvals.CannotDecide, call_id: str) -> ApiError:
    match error:
        case approvals.ApprovalChanged():
            message = f"this digest is not that of call {call_id}: read the approvals again"
            return ApiError(409, "APPROVAL_CHANGED", message)
        case approvals.AlreadyDecided():
            return ApiError(409, "APPROVAL_DECIDED", f"call {call_id} has been decided on: {error}")
        case approvals.ApprovalExpired():
            return ApiError(409, "APPROVAL_EXPIRED", f"the time to decide on call {call_id} passed at {error}")
    return ApiError(400, "TASK_NOT_WAITING", f"the task waits for no word on call {call_id}")
