"""Risky calls wait for a person's word: bound to the exact call, used once, refused when nobody answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from agents import spec
from agents.models import Agent, Workspace
from runs import approvals, queue, tools
from runs.models import Approval, ApprovalState, CallState, Run, ToolCall
from tests.conftest import DrivenClock, DrivenWorker, Points
from tests.making import ask, bash, make_agent, submit
from tests.test_admin import logged_in, of_run, page, press, said, staff
from tests.test_api import Api, code
from tests.test_engine import Killed, data, kill, printed, successor, told, types

pytestmark = pytest.mark.django_db(transaction=True)

WEEK = 7 * 86_400
COMMAND = "echo ran >>ran; wc -l <ran"


@pytest.fixture
def api(db: None) -> Api:
    return Api()


def careful(*commands: str, **approval: Any) -> Agent:
    """An agent that runs these commands in one turn, each with leave only."""
    turns = [{"tools": [bash(command) for command in commands or (COMMAND,)]}, {"text": "done"}]
    return make_agent(turns=turns, sandbox="lazy", approvals={"ask": "always", **approval})


def asking(worker: DrivenWorker, *commands: str, **approval: Any) -> Run:
    run = worker.drive(submit(careful(*commands, **approval)))
    assert (run.status, run.wait_reason, run.has_slot) == ("waiting", "approval", False), types(run)
    return run


def open_one(run: Run) -> Approval:
    return Approval.objects.select_related("call").get(run=run, state="pending")


def approve(run: Run, **words: str) -> None:
    approval = open_one(run)
    approvals.approve(run, approval.call.call_id, approval.digest, **{"by": "Ada", **words})


def refuse(run: Run, **words: str) -> None:
    approval = open_one(run)
    approvals.refuse(run, approval.call.call_id, approval.digest, **{"by": "Ada", **words})


def states(run: Run) -> list[str]:
    return list(Approval.objects.filter(run=run).order_by("pk").values_list("state", flat=True))


def rows(run: Run) -> list[Any]:
    """All that a decision may change."""
    return [
        Run.objects.filter(pk=run.pk).values().get(),
        list(Approval.objects.filter(run=run).values()),
        list(ToolCall.objects.filter(attempt__run=run).values()),
    ]


def commands_run(worker: DrivenWorker) -> int:
    return len({command.call_id for command in worker.fake.commands})


# --- asking and deciding ----------------------------------------------------------------------------------------


def test_a_call_starts_when_it_is_approved_and_not_before(worker: DrivenWorker) -> None:
    run = asking(worker)
    assert worker.engine.names() == []
    assert ToolCall.objects.get().state == CallState.PLANNED
    [asked] = data(run, "approval.asked")
    assert (asked["callId"], asked["toolName"], asked["toolInput"]) == ("1-0", "bash", {"command": COMMAND})
    assert asked["digest"] == approvals.digest_of(ToolCall.objects.get())
    approve(run, reason="looks right")
    run = worker.drive(run)
    assert (run.status, run.output) == ("finished", "done")
    assert told(run) == [("1\n", False)]
    assert data(run, "approval.decided") == [
        {"callId": "1-0", "state": "approved", "by": "Ada", "reason": "looks right"}
    ]
    approval = Approval.objects.get()
    assert (approval.state, approval.decided_by, approval.reason) == ("used", "Ada", "looks right")


def test_a_refused_call_never_starts_and_the_model_is_told_by_whom_and_why(worker: DrivenWorker) -> None:
    run = asking(worker)
    refuse(run, reason="not on a Friday")
    run = worker.drive(run)
    assert run.status == "finished"
    [(text, is_error)] = told(run)
    assert is_error
    assert "Ada: not on a Friday" in text
    assert "Do not try to get the same effect in another way" in text
    assert (commands_run(worker), states(run)) == (0, ["refused"])
    assert ToolCall.objects.get().started_at is None


def test_what_nobody_answers_in_time_is_refused(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    run = asking(worker, expires_seconds=60)
    driven_clock.forward(59)
    worker.sweep()
    assert states(run) == ["pending"]
    driven_clock.forward(2)
    worker.sweep()
    run = worker.drive(run)
    assert run.status == "finished"
    [(text, is_error)] = told(run)
    assert is_error
    assert "nobody answered" in text
    assert (commands_run(worker), states(run)) == (0, ["expired"])
    assert data(run, "approval.decided") == [{"callId": "1-0", "state": "expired", "by": "", "reason": ""}]


def test_every_call_of_a_turn_is_asked_for_in_its_order(worker: DrivenWorker) -> None:
    run = asking(worker, "echo a", "echo b", "echo c")
    approve(run)
    run = worker.drive(run)
    assert (run.status, printed(run), open_one(run).call.call_id) == ("waiting", "a\n", "1-1")
    refuse(run)
    run = worker.drive(run)
    assert (run.status, open_one(run).call.call_id) == ("waiting", "1-2")
    approve(run)
    run = worker.drive(run)
    assert (run.status, printed(run)) == ("finished", "a\nc\n")
    assert [is_error for _, is_error in told(run)] == [False, True, False]
    assert states(run) == ["used", "refused", "used"]


@pytest.mark.postgresql
def test_an_approval_that_came_too_late_to_be_used_starts_nothing(
    worker: DrivenWorker, driven_clock: DrivenClock
) -> None:
    run = asking(worker, expires_seconds=60)
    driven_clock.forward(59)
    approve(run)
    driven_clock.forward(2)
    run = worker.drive(run)
    [(text, is_error)] = told(run)
    assert is_error
    assert "the time for it had passed" in text
    assert (commands_run(worker), states(run)) == (0, ["expired"])


def test_an_approval_is_for_the_call_that_was_shown_and_for_no_other(worker: DrivenWorker) -> None:
    """Whatever changes the stored call after the decision."""
    run = asking(worker)
    approve(run)
    ToolCall.objects.update(arguments={"command": "touch something-else"})
    run = worker.drive(run)
    [(text, is_error)] = told(run)
    assert is_error
    assert "what was approved is not this call" in text
    assert (commands_run(worker), states(run)) == (0, ["expired"])


def test_a_new_attempt_asks_again(worker: DrivenWorker, driven_clock: DrivenClock, points: Points) -> None:
    """What was approved in the first attempt is used up, and its digest opens nothing in the second."""
    turns = [{"tools": [bash(COMMAND)]}, {"text": "done"}]
    run = worker.drive(submit(make_agent(turns=turns, approvals={"ask": "always"}, retry="always")))
    first = open_one(run)
    points.after("silent 1", lambda: driven_clock.forward(1000))  # the first attempt's time is up
    approve(run)
    run = worker.drive(run)
    assert (run.wait_reason, states(run)) == ("retry", ["used"])
    driven_clock.forward(60)
    worker.sweep()
    run = worker.drive(run)
    assert (run.wait_reason, states(run)) == ("approval", ["used", "pending"])
    with pytest.raises(approvals.ApprovalChanged):
        approvals.approve(run, "1-0", first.digest, by="Ada")
    approve(run)
    assert worker.drive(run).status == "finished"
    assert types(run).count("tool.start") == 2


@pytest.mark.postgresql
def test_a_run_that_ends_takes_its_question_with_it(worker: DrivenWorker) -> None:
    run = asking(worker)
    approval = open_one(run)
    queue.cancel(run)
    run = worker.drive(run)
    assert (run.status, states(run)) == ("canceled", ["expired"])
    with pytest.raises(approvals.NotWaiting):
        approvals.approve(run, "1-0", approval.digest, by="Ada")


def test_a_call_that_cannot_be_carried_out_is_not_asked_for(worker: DrivenWorker) -> None:
    turns = [{"tools": [bash("x", timeout=0), {"name": "nothing", "arguments": {}}]}, {"text": "done"}]
    run = worker.drive(submit(make_agent(turns=turns, approvals={"ask": "always"})))
    assert (run.status, states(run)) == ("finished", [])


def test_only_tools_of_the_sandbox_are_risky() -> None:
    """Others have their effect and their row's change in one transaction, and no place for the approval's use."""
    risky = {name for name, tool in tools.ALL.items() if tool.risky}
    assert risky == {"bash", "write", "edit"}
    assert all(tools.ALL[name].in_sandbox for name in risky)


# --- which calls are asked for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "command"),
    [
        ("bash", "rm -rf /; reboot"),
        ("bash:git status*", "git status"),
        ("bash:git status*", "git status --short src"),
        ("bash:ls ?", "ls x"),
        ("bash:git add . && git commit", "git add . && git commit"),
        ("bash:echo $(date)", "echo $(date)"),
        ("bash:ls [ab]; ls", "ls [ab]; ls"),
    ],
)
def test_a_pattern_allows(pattern: str, command: str) -> None:
    assert approvals.allows(pattern, "bash", {"command": command})


@pytest.mark.parametrize(
    ("pattern", "command"),
    [
        ("bash:git status*", "sudo git status"),
        ("bash:git status", "git status --short"),
        ("bash:git status*", "GIT STATUS"),
        ("write", "git status"),
        ("bas*", "git status"),
        ("bash:", "git status"),
        *(
            ("bash:git status*", f"git status{more}")
            for more in (
                "; rm x", " & rm x", " && rm x", " || rm x", " | sh", " `rm x`", " $(rm x)", "\nrm x", " > x",
                " >> x", " < x", " <(rm x)", "\rrm x", " \"$(rm x)\"", " ${x:-`rm x`}",
            )
        ),
        ("bash:*", "git status; rm x"),
        ("bash:git *; ls", "git status; ls"),
    ],
)  # fmt: skip
def test_a_pattern_does_not_allow(pattern: str, command: str) -> None:
    assert not approvals.allows(pattern, "bash", {"command": command})


@pytest.mark.parametrize(
    ("ask_", "allow", "needed"),
    [
        ("off", (), []),
        ("on-miss", (), ["bash", "write", "edit"]),
        ("on-miss", ("write", "bash:echo*"), ["edit"]),
        ("always", ("bash", "write", "edit"), ["bash", "write", "edit"]),
    ],
)
def test_a_policy_asks_for_risky_calls_only(ask_: Any, allow: tuple[str, ...], needed: list[str]) -> None:
    policy = spec.Approvals(ask=ask_, allow=allow)
    asked = [name for name, tool in tools.ALL.items() if approvals.needed(policy, tool, {"command": "echo hi"})]
    assert asked == needed


def test_an_allowed_call_starts_at_once_and_another_waits(worker: DrivenWorker) -> None:
    run = asking(worker, "echo free", "echo bound; ls", ask="on-miss", allow=["bash:echo *"])
    assert (printed(run), open_one(run).call.call_id) == ("free\n", "1-1")


# --- decisions that come to nothing -----------------------------------------------------------------------------


Wrong = Callable[[Run, DrivenClock], Any]


def decided(run: Run, driven_clock: DrivenClock) -> None:
    refuse(run)


def late(run: Run, driven_clock: DrivenClock) -> None:
    driven_clock.forward(WEEK)


def canceled(run: Run, driven_clock: DrivenClock) -> None:
    queue.cancel(run)


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("before", "call_id", "digest", "expected"),
    [
        (None, "1-0", "0" * 64, (409, "APPROVAL_CHANGED")),
        (None, "1-1", None, (400, "TASK_NOT_WAITING")),
        (decided, "1-0", None, (409, "APPROVAL_DECIDED")),
        (late, "1-0", None, (409, "APPROVAL_EXPIRED")),
        (canceled, "1-0", None, (400, "TASK_NOT_WAITING")),
    ],
)
@pytest.mark.parametrize("decision", ["approve", "refuse"])
def test_a_decision_that_does_not_fit_changes_nothing(
    worker: DrivenWorker, driven_clock: DrivenClock, api: Api,
    before: Wrong | None, call_id: str, digest: str | None, expected: tuple[int, str], decision: str,
) -> None:  # fmt: skip
    run = asking(worker)
    digest = digest or open_one(run).digest
    if before is not None:
        before(run, driven_clock)
    was, happened = rows(run), types(run)
    answer = api("POST", f"tasks/{run.pk}/approvals/{call_id}", {"decision": decision, "digest": digest})
    assert code(answer) == expected
    assert (rows(run), types(run)) == (was, happened)


def test_a_call_that_is_no_longer_what_was_shown_is_not_decided_on(worker: DrivenWorker) -> None:
    run = asking(worker)
    digest = open_one(run).digest
    ToolCall.objects.update(arguments={"command": "touch something-else"})
    with pytest.raises(approvals.ApprovalChanged):
        approvals.approve(run, "1-0", digest, by="Ada")
    assert states(run) == ["pending"]


def test_an_expiry_that_was_late_itself_leaves_the_next_question_alone(
    worker: DrivenWorker, driven_clock: DrivenClock, points: Points
) -> None:
    """Read before somebody approved, carried out after: the run waits again, for another call."""
    run = asking(worker, "echo a", "echo b", expires_seconds=60)
    stale = open_one(run)
    approve(run)
    run = worker.drive(run)
    was, happened = rows(run), types(run)
    assert not approvals._settle(stale, ApprovalState.EXPIRED)
    assert (rows(run), types(run)) == (was, happened)
    assert open_one(run).call.call_id == "1-1"


@pytest.mark.postgresql
@pytest.mark.parametrize("other", [refuse, queue.cancel])
def test_of_two_decisions_at_one_time_one_counts(
    worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch, other: Callable[[Run], Any]
) -> None:
    """The other comes between the first one's look at the row and its write."""
    run = asking(worker)
    check = approvals._check

    def somebody_is_quicker(*seen: Any) -> None:
        check(*seen)
        monkeypatch.setattr(approvals, "_check", check)
        other(run)

    monkeypatch.setattr(approvals, "_check", somebody_is_quicker)
    approval = open_one(run)
    with pytest.raises(approvals.CannotDecide):
        approvals.approve(run, approval.call.call_id, approval.digest, by="Bob")
    assert states(run) == (["refused"] if other is refuse else ["expired"])
    assert [decision["by"] for decision in data(run, "approval.decided")] == ["Ada"] * (other is refuse)
    worker.drive(run)
    assert commands_run(worker) == 0


def test_an_answer_is_no_approval_and_an_approval_no_answer(worker: DrivenWorker, api: Api) -> None:
    run = asking(worker)
    was = rows(run)
    assert code(api("POST", f"tasks/{run.pk}/respond", {"message": "yes"})) == (400, "TASK_NOT_WAITING")
    assert rows(run) == was
    asker = make_agent("asker", turns=[{"tools": [ask("may I?")]}, {"text": "done"}], tools=["ask"])
    run = worker.drive(submit(asker))
    was = rows(run)
    answer = api("POST", f"tasks/{run.pk}/approvals/1-0", {"decision": "approve", "digest": "0" * 64})
    assert code(answer) == (400, "TASK_NOT_WAITING")
    assert rows(run) == was


# --- processes that die -----------------------------------------------------------------------------------------


# Every write from the first question to the end of the run.
WRITES = [
    "approval.asked 1",
    "approval.decided 1",
    "run.resumed 1",
    "sandbox.start 1",
    "sandbox.ready 1",
    "tool.start 1",
    "output 1",
    "silent 1",
    "model.start 2",
    "model.turn 2",
    "status.change 2",
]


def to_its_end(worker: DrivenWorker, run: Run) -> Run:
    """Whatever it asks leave for is given."""
    run = worker.drive(run)
    while run.wait_reason == "approval":
        approve(run)
        run = worker.drive(run)
    return run


@pytest.mark.postgresql
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("write", WRITES)
def test_a_process_may_be_killed_at_any_write_between_asking_and_the_end(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, write: str, moment: str
) -> None:
    run = submit(careful())
    {"before": points.before, "after": points.after}[moment](write, kill)
    with pytest.raises(Killed):
        to_its_end(worker, run)
    run = to_its_end(successor(worker, driven_clock), run)
    assert (run.status, run.output) == ("finished", "done"), types(run)
    assert told(run) == [("1\n", False)]
    assert states(run) == ["used"]
    counted = [types(run).count(type_) for type_ in ("approval.asked", "approval.decided", "tool.start", "tool.end")]
    assert counted == [1, 1, 1, 1]


def test_a_run_that_asks_for_leave_has_these_writes_and_no_other(worker: DrivenWorker, points: Points) -> None:
    to_its_end(worker, submit(careful()))
    begin = points.passed.index("approval.asked 1")
    assert points.passed[begin:] == WRITES


@pytest.mark.postgresql
@pytest.mark.parametrize("spoil", [ApprovalState.EXPIRED, ApprovalState.REFUSED, ApprovalState.USED])
def test_nothing_starts_unless_the_start_itself_uses_the_approval(
    worker: DrivenWorker, points: Points, spoil: ApprovalState
) -> None:
    """Also where it was good a moment before."""
    run = asking(worker)
    approve(run)
    points.before("tool.start 1", lambda: Approval.objects.update(state=spoil))
    run = worker.drive(run)
    assert (run.status, commands_run(worker)) == ("finished", 0)
    assert "tool.start" not in types(run)
    assert [is_error for _, is_error in told(run)] == [True]


# --- REST ---------------------------------------------------------------------------------------------------------


def test_what_is_asked_is_read_and_decided_over_rest(worker: DrivenWorker, api: Api) -> None:
    run = asking(worker)
    assert api("GET", f"tasks/{run.pk}")[1]["task"]["wait_reason"] == "approval"
    status, body = api("GET", f"tasks/{run.pk}/approvals")
    assert (status, set(body)) == (200, {"approvals"})
    [asked] = body["approvals"]
    expires_at, created_at = asked.pop("expires_at"), asked.pop("created_at")
    assert created_at < expires_at
    assert asked == {
        "call_id": "1-0",
        "tool": "bash",
        "arguments": {"command": COMMAND},
        "digest": open_one(run).digest,
        "state": "pending",
        "decided_at": None,
        "decided_by": "",
        "reason": "",
    }
    said_ = {"decision": "approve", "digest": asked["digest"], "reason": "go"}
    answer = api("POST", f"tasks/{run.pk}/approvals/1-0", said_)
    assert answer == (200, {"taskId": run.pk, "status": "processing", "state": "approved"})
    assert worker.drive(run).status == "finished"
    [asked] = api("GET", f"tasks/{run.pk}/approvals")[1]["approvals"]
    assert (asked["state"], asked["decided_by"], asked["reason"]) == ("used", "test", "go")
    assert asked["decided_at"] >= created_at


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"decision": "approve"},
        {"digest": "0" * 64},
        {"decision": "yes", "digest": "0" * 64},
        {"decision": "approve", "digest": 1},
        {"decision": "approve", "digest": "0" * 64, "for": "all"},
    ],
)
def test_a_decision_that_says_too_little_is_a_fault(worker: DrivenWorker, api: Api, body: dict[str, Any]) -> None:
    run = asking(worker)
    assert code(api("POST", f"tasks/{run.pk}/approvals/1-0", body)) == (400, "VALIDATION_ERROR")
    assert states(run) == ["pending"]


def test_another_workspace_sees_no_approvals(worker: DrivenWorker) -> None:
    run = asking(worker)
    stranger = Api(Workspace.objects.create(name="other"))
    said_ = {"decision": "approve", "digest": open_one(run).digest}
    assert code(stranger("GET", f"tasks/{run.pk}/approvals")) == (404, "TASK_NOT_FOUND")
    assert code(stranger("POST", f"tasks/{run.pk}/approvals/1-0", said_)) == (404, "TASK_NOT_FOUND")
    assert states(run) == ["pending"]


# --- the admin ----------------------------------------------------------------------------------------------------


@pytest.fixture
def operator(db: None) -> Client:
    return logged_in(User.objects.create_superuser("operator"))


def shown_on(html: str, run: Run) -> dict[str, str]:
    """The fields of the form as the page has them."""
    approval = open_one(run)
    fields = {"call_id": approval.call.call_id, "digest": approval.digest}
    for name, value in fields.items():
        assert f'form="decide" name="{name}" value="{value}"' in html
    return fields


@pytest.mark.parametrize(("verb", "state"), [("approve", "used"), ("refuse", "refused")])
def test_a_call_is_decided_on_from_the_runs_page(operator: Client, worker: DrivenWorker, verb: str, state: str) -> None:
    run = asking(worker)
    html = page(operator, of_run(run))
    assert "echo ran &gt;&gt;ran; wc -l &lt;ran" in html
    fields = shown_on(html, run)
    answer = press(operator, of_run(run, f"{verb}/"), **fields, reason="because")
    assert said(answer) == f"{'Approved' if verb == 'approve' else 'Refused'} call 1-0 of {run}"
    run = worker.drive(run)
    assert (run.status, states(run)) == ("finished", [state])
    approval = Approval.objects.get()
    assert (approval.decided_by, approval.reason) == ("operator", "because")
    assert "Nothing has changed: it has been decided on" in said(press(operator, of_run(run, f"{verb}/"), **fields))


def test_the_page_that_asks_before_it_acts_shows_the_call_and_changes_nothing(
    operator: Client, worker: DrivenWorker
) -> None:
    run = asking(worker)
    for verb in ("approve", "refuse"):
        html = page(operator, of_run(run, f"{verb}/"))
        assert "echo ran &gt;&gt;ran; wc -l &lt;ran" in html
        assert f'name="digest" value="{open_one(run).digest}"' in html
    assert states(run) == ["pending"]


def test_whoever_may_only_look_decides_nothing(worker: DrivenWorker) -> None:
    run = asking(worker)
    approval = open_one(run)
    watcher = staff("runs.view_run")
    assert approval.digest not in page(watcher, of_run(run))
    for verb in ("approve", "refuse"):
        answer = watcher.post(f"/admin/{of_run(run, verb)}/", {"call_id": "1-0", "digest": approval.digest})
        assert answer.status_code == 403
    assert states(run) == ["pending"]


def test_a_decision_needs_the_forms_token(worker: DrivenWorker) -> None:
    run = asking(worker)
    client = logged_in(User.objects.create_superuser("operator"), enforce_csrf_checks=True)
    fields = {"call_id": "1-0", "digest": open_one(run).digest}
    assert client.post(f"/admin/{of_run(run, 'approve/')}", fields).status_code == 403
    assert states(run) == ["pending"]


def test_the_page_shows_all_of_the_call_and_every_sign_in_it(operator: Client, worker: DrivenWorker) -> None:
    """Neither its length nor signs that turn or hide text keep the end of a command from who decides."""
    long = "x" * 30_000
    run = asking(worker, f"echo {long}\u202egnp.\u200b\x1b[8m</script>; rm it")
    html = page(operator, of_run(run))
    assert long in html
    assert "\\u{202e}gnp.\\u{200b}\\u{1b}[8m&lt;/script&gt;; rm it" in html


def test_what_was_said_before_the_call_is_no_part_of_what_is_decided_on(operator: Client, worker: DrivenWorker) -> None:
    turns = [{"text": "It only reads a file.", "tools": [bash("rm it")]}, {"text": "done"}]
    run = worker.drive(submit(make_agent(turns=turns, sandbox="lazy", approvals={"ask": "on-miss"})))
    html = page(operator, of_run(run))
    assert "rm it" in html
    assert "It only reads a file." not in html
    assert "an approval" in page(operator, "")


def test_the_record_of_a_decision_holds_what_was_shown(worker: DrivenWorker, api: Api) -> None:
    """Arguments are stored without the secrets known then; what runs, what is shown and the digest are that text."""
    run = asking(worker, "echo [redacted]")
    [asked] = api("GET", f"tasks/{run.pk}/approvals")[1]["approvals"]
    assert json.loads(json.dumps(asked["arguments"])) == ToolCall.objects.get().arguments
    approve(run)
    run = worker.drive(run)
    assert printed(run) == "[redacted]\n"
