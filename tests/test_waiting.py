"""What a run costs that waits for a person: a row. No thread, no slot, soon no container; and it goes on days later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from playwright.sync_api import Page, expect, sync_playwright

from runs import approvals, queue
from runs.models import Approval, Attempt, Message, Run, SandboxState
from tests.box import Box, labelled, standing
from tests.conftest import DrivenClock, DrivenWorker, other_worker
from tests.making import ask, bash, make_agent, submit
from tests.test_browser import ARGUMENTS, CHROMIUM, PATIENCE
from tests.test_engine import data, printed, reload, told, types

DAY = 86_400
KEEPS = "echo kept >file"
ALLOWED = {"ask": "on-miss", "allow": [f"bash:{KEEPS}"]}
ANSWERED: list[dict[str, Any]] = [
    {"tools": [bash(KEEPS), ask("go on?")]},
    {"tools": [bash("cat file")]},
    {"expect": ["kept"], "text": "done"},
]
APPROVED: list[dict[str, Any]] = [
    {"tools": [bash(KEEPS)]},
    {"tools": [bash("cat file")]},
    {"expect": ["kept"], "text": "done"},
]


def respond(run: Run) -> None:
    queue.respond(run, "yes")


def approve(run: Run) -> None:
    approval = Approval.objects.select_related("call").get(run=run, state="pending")
    approvals.approve(run, approval.call.call_id, approval.digest, by="Ada")


WAYS = pytest.mark.parametrize(
    ("definition", "go_on"),
    [
        pytest.param({"turns": ANSWERED}, respond, id="input"),
        pytest.param({"turns": APPROVED, "approvals": ALLOWED}, approve, id="approval"),
    ],
)
GoOn = Callable[[Run], None]


def driven(test: Callable[..., None]) -> Any:
    """On a driven worker and the fake sandbox, on both databases."""
    return pytest.mark.django_db(transaction=True)(pytest.mark.postgresql(test))


@driven
@WAYS
def test_a_waiting_run_holds_no_step_no_lease_and_no_slot(
    worker: DrivenWorker, driven_clock: DrivenClock, definition: dict[str, Any], go_on: GoOn
) -> None:
    """Another of an agent with one slot works meanwhile, and nobody looks at the first."""
    agent = make_agent(scale=1, **definition)
    first = worker.drive(submit(agent))
    assert (first.status, first.has_slot, first.lease_owner, first.lease_expires_at) == ("waiting", False, "", None)
    assert worker.lease_thread.active() == []
    second = worker.drive(submit(agent))
    assert (second.status, reload(first).status) == ("waiting", "waiting")
    driven_clock.forward(30)
    worker.sweep()
    assert worker.rung.bells == []
    assert reload(first).lease_epoch == first.lease_epoch
    go_on(second)
    assert worker.drive(second).status == "finished"
    assert reload(first).status == "waiting"


@driven
@WAYS
def test_a_woken_run_stands_in_line_for_its_slot_and_the_scale_holds(
    worker: DrivenWorker, definition: dict[str, Any], go_on: GoOn
) -> None:
    agent = make_agent(scale=1, **definition)
    first = worker.drive(submit(agent))
    second = submit(agent)
    worker.answer_one()
    assert reload(second).has_slot
    go_on(first)
    assert (reload(first).status, reload(first).has_slot) == ("processing", False)
    worker.drive(first)
    assert (reload(first).status, reload(second).status) == ("finished", "waiting")


@driven
@WAYS
def test_the_container_goes_after_the_grace_period_and_files_and_transcript_stay(
    worker: DrivenWorker,
    driven_clock: DrivenClock,
    settings: LazySettings,
    definition: dict[str, Any],
    go_on: GoOn,
) -> None:
    settings.PARKED_GRACE = 60
    run = worker.drive(submit(make_agent(**definition)))
    name = Attempt.objects.get().sandbox_name
    said = list(Message.objects.values_list("position", "body"))
    driven_clock.forward(59)
    worker.sweep()
    assert worker.engine.names() == [name]
    driven_clock.forward(2)
    worker.sweep()
    assert worker.engine.names() == []
    attempt = Attempt.objects.get()
    assert (attempt.sandbox_state, attempt.has_workspace) == (SandboxState.GONE, True)
    go_on(run)
    run = worker.drive(run)
    assert (run.status, run.output, printed(run)) == ("finished", "done", "kept\n")
    assert list(Message.objects.values_list("position", "body"))[: len(said)] == said
    assert worker.engine.names() == []


@driven
@WAYS
def test_a_run_goes_on_days_later_with_another_worker(
    worker: DrivenWorker, driven_clock: DrivenClock, definition: dict[str, Any], go_on: GoOn
) -> None:
    """The first is gone, and its bells; the time that passed counts against no limit."""
    run = worker.drive(submit(make_agent(limits={"wall_seconds": 60}, **definition)))
    driven_clock.forward(3600)
    worker.sweep()
    assert worker.engine.names() == []
    worker.die()
    driven_clock.forward(3 * DAY)
    second = other_worker(worker)
    second.sweep()
    assert reload(run).status == "waiting"
    go_on(run)
    second.rung.bells.clear()
    second.sweep()
    run = second.drive(run)
    assert (run.status, run.output) == ("finished", "done"), types(run)
    assert told(run)[-1] == ("kept\n", False)
    [waited] = [entry["waited_seconds"] for entry in data(run, "run.resumed")]
    assert waited > 3 * DAY
    assert Attempt.objects.get().sandbox_losses == 0


# --- a whole installation -----------------------------------------------------------------------------------------


CAREFUL = f'[approvals]\nask = "on-miss"\nallow = ["bash:{KEEPS}"]\n'


@pytest.mark.box
@pytest.mark.engine
@pytest.mark.browser
@pytest.mark.timeout(300)
def test_waiting_outlives_a_restart_of_everything(tmp_path: Path) -> None:
    """One run waits for an answer, one for leave; there is one slot and one thread, and neither of them has it."""
    with Box(tmp_path, AGENTFLEET_WORKER_THREADS="1", AGENTFLEET_PARKED_GRACE="1") as box:
        box.agent("dev", turns=ANSWERED, scale=1, extra=CAREFUL)
        asks, needs_leave = box.start("dev"), box.start("dev")
        for run_id in (asks, needs_leave):
            assert box.wait(run_id, "waiting")["wait_reason"] == "input"
        answer(box, needs_leave)
        for run_id in (asks, needs_leave):
            box.until(partial(has_no_container, run_id))
            assert len(labelled(f"agentfleet.run={run_id}")[1]) == 1
        box.down()
        box.up()
        allow(box, needs_leave)
        with logged_in(box) as page:
            page.goto(f"{box.client.url}/admin/runs/run/{asks}/change/")
            expect(page.get_by_text("It asks", exact=True)).to_be_visible()
            answer(box, asks)
            allow_on(page)
        for run_id in (asks, needs_leave):
            assert box.wait(run_id)["output"] == "done", box.story(run_id)
            assert box.output(run_id) == "kept\n"
            happened = [event["type"] for event in box.events(run_id)]
            assert (happened.count("tool.start"), happened.count("sandbox.lost")) == (3, 0)
            box.until(partial(has_nothing, run_id))


def answer(box: Box, run_id: str) -> None:
    """The run's question; it then waits for leave."""
    box.client.call("POST", f"tasks/{run_id}/respond", {"message": "yes"})
    assert box.wait(run_id, "waiting", "failed")["wait_reason"] == "approval", box.story(run_id)


def allow(box: Box, run_id: str) -> None:
    [asked] = box.client.call("GET", f"tasks/{run_id}/approvals")["approvals"]
    said = {"decision": "approve", "digest": asked["digest"]}
    box.client.call("POST", f"tasks/{run_id}/approvals/{asked['call_id']}", said)


@contextmanager
def logged_in(box: Box) -> Iterator[Page]:
    """A page of a Chromium, in which no script may fail."""
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(box.client.url + box.client.call("POST", "login-links")["path"])
        yield page
        browser.close()
    assert faults == []


def allow_on(page: Page) -> None:
    """On the run's page, where the question comes up by itself."""
    card = page.locator('[data-part="approval"]')
    expect(card).to_contain_text("It asks leave to run bash", timeout=PATIENCE)
    expect(card.locator("pre")).to_have_text("cat file")
    card.get_by_label("Reason").fill("only reads")
    card.get_by_role("button", name="Approve").click()
    expect(page.get_by_text("Approved call 3-0 of")).to_be_visible(timeout=PATIENCE)
    call = page.locator('[data-call="3-0"]')
    expect(call).to_have_count(1)
    expect(call).to_contain_text("ok", timeout=PATIENCE)
    expect(card.locator("pre")).to_have_count(0)


def has_no_container(run_id: str) -> bool:
    return not labelled(f"agentfleet.run={run_id}")[0]


def has_nothing(run_id: str) -> bool:
    return standing(run_id) == []
