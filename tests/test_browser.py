"""A real Chromium watches runs of a real box: live, over reloads and a killed server, with hostile text, on a phone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, ViewportSize, WebSocketRoute, expect, sync_playwright

from tests.box import Box, keep_webhook_secret, kill
from tests.making import bash
from tests.signing import SECRET, github

pytestmark = [pytest.mark.box, pytest.mark.engine, pytest.mark.browser, pytest.mark.timeout(180)]

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
PHONE = ViewportSize(width=390, height=844)
DESK = ViewportSize(width=1280, height=900)
PATIENCE = 60_000  # milliseconds: what is expected comes far sooner
expect.set_options(timeout=PATIENCE)
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>'


def counting(lines: int, before: str = "") -> list[dict[str, Any]]:
    """Turns of an agent that prints a line each 0.3 s."""
    command = f'{before}i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo "line $i."; sleep 0.3; done'
    return [{"text": "I count.", "tools": [bash(command)]}, {"text": "Counted."}]


def lines(count: int) -> str:
    return "".join(f"line {number}.\n" for number in range(1, count + 1))


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"))
    box.define("counter", turns=counting(14), scale=4)
    box.define("long", turns=counting(24), scale=4)
    box.define("chatty", turns=counting(12, before="seq 1 400; "))
    evil = [bash(f"cat <<'END'\n{EVIL}\nEND")]
    box.define("hostile", f"Say {EVIL}", turns=[{"text": EVIL, "tools": evil}, {"text": EVIL}])
    question = {"name": "ask", "arguments": {"question": f"Left or right? {EVIL}"}}
    box.define("asker", turns=[{"tools": [question]}, {"expect": ["left"], "text": "Went left."}])
    box.define("sleeper", turns=[{"tools": [bash("echo asleep; sleep 600")]}])
    on_issues = '[[webhooks]]\nsource = "github"\nevents = ["issues"]\nactions = ["opened"]'
    box.define("listener", f"Mind {EVIL}", turns=[{"text": "Heard."}], extra=on_issues)
    with box:
        box.apply()
        yield box


@pytest.fixture(scope="module")
def browser(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """Logged in by the link that `agentfleet login` prints."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=CHROMIUM, args=ARGUMENTS, viewport=DESK
        )
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto(box.client.url + box.client.call("POST", "login-links")["path"])
        expect(page).to_have_title("Fleet now | agentfleet")
        yield context
        context.close()


@pytest.fixture
def page(browser: BrowserContext) -> Iterator[Page]:
    """A new tab, in which no script may fail and no injected one may run."""
    page = browser.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    assert page.evaluate("window.hacked") is None
    assert faults == []
    page.close()


def open_agent(page: Page, box: Box, name: str) -> None:
    page.goto(f"{box.client.url}/admin/agents/agent/")
    page.get_by_role("link", name=name).click()


def run_now(page: Page, box: Box, name: str) -> str:
    """Press Run now on the agent's page; the run whose page opens."""
    open_agent(page, box, name)
    page.get_by_role("button", name="Run now").click()
    page.wait_for_url("**/runs/run/run_*/change/")
    page.evaluate("window.sameDocument = true")
    return page.url.split("/")[-3]


def open_run(page: Page, box: Box, run_id: str) -> None:
    page.goto(f"{box.client.url}/admin/runs/run/{run_id}/change/")


def output(page: Page) -> str:
    return "".join(page.locator(".af-output").all_text_contents())


def wait_for_line(page: Page, number: int) -> None:
    expect(page.locator(".af-output")).to_contain_text(f"line {number}.", timeout=PATIENCE)


def wait_for_state(page: Page, state: str | re.Pattern[str]) -> None:
    expect(page.locator("#connection")).to_have_attribute("data-state", state, timeout=PATIENCE)


def wait_for_status(page: Page, status: str) -> None:
    expect(page.locator("[data-status]")).to_have_attribute("data-status", status, timeout=PATIENCE)


def assert_whole(page: Page, box: Box, run_id: str, printed: str) -> None:
    """The page of a finished run has every line and every event, each once and in order."""
    wait_for_state(page, "over")
    expect(page.locator("#transcript")).to_contain_text("processing → finished")
    assert output(page) == printed
    assert output(page) == box.output(run_id)
    rows = page.locator(".af-log-row").evaluate_all("rows => rows.map((row) => Number(row.dataset.event))")
    assert rows == list(range(1, box.task(run_id)["eventCount"] + 1))
    wait_for_status(page, "finished")


def same_document(page: Page) -> bool:
    return bool(page.evaluate("window.sameDocument === true"))


def test_lines_appear_as_they_are_printed(page: Page, box: Box) -> None:
    run_id = run_now(page, box, "counter")
    wait_for_line(page, 3)
    assert box.task(run_id)["status"] == "processing"
    assert "line 14." not in output(page)
    wait_for_line(page, 6)
    wait_for_state(page, "live")
    wait_for_status(page, "processing")
    assert_whole(page, box, run_id, lines(14))
    assert same_document(page)
    expect(page.locator('[data-part="result"]')).to_contain_text("Counted.")
    expect(page.locator(".af-call-head")).to_contain_text("ok, exit 0")
    page.get_by_text("What the run began with").click()
    expect(page.locator("#prompt")).to_contain_text("You are an agent that works on its own")


def test_a_reload_in_the_middle_shows_every_line_once(page: Page, box: Box) -> None:
    run_id = run_now(page, box, "counter")
    wait_for_line(page, 4)
    page.reload()
    wait_for_line(page, 6)
    page.reload()
    assert_whole(page, box, run_id, lines(14))


def test_a_killed_server_leaves_no_gap(page: Page, box: Box) -> None:
    run_id = run_now(page, box, "long")
    wait_for_line(page, 3)
    before = box.pids()["web"]
    kill(before)
    wait_for_state(page, "reconnecting")
    wait_for_state(page, re.compile("live|over"))  # over: the run was quicker than the server's return
    assert box.pids()["web"] != before
    assert_whole(page, box, run_id, lines(24))
    assert same_document(page)


def test_hostile_output_is_shown_as_text(page: Page, box: Box) -> None:
    run_id = run_now(page, box, "hostile")
    assert_whole(page, box, run_id, f"{EVIL}\n")
    assert page.locator(".af-turn .af-text").all_text_contents() == [EVIL, EVIL]
    page.get_by_text("What the run began with").click()
    expect(page.locator("#prompt")).to_contain_text(f"Say {EVIL}")
    page.get_by_text("whole result").click()
    expect(page.locator(".af-whole .af-pre")).to_have_text(f"{EVIL}\n")
    page.get_by_role("button", name="Log", exact=True).click()
    expect(page.locator("#log")).to_contain_text("window.hacked=1")
    assert page.locator("img[src=x]").count() == 0
    for path in ("", "agents/agent/", "runs/run/"):
        page.goto(f"{box.client.url}/admin/{path}")
        assert page.evaluate("window.hacked") is None


def test_a_question_is_answered_from_a_phone(page: Page, box: Box) -> None:
    page.set_viewport_size(PHONE)
    run_id = run_now(page, box, "asker")
    wait_for_status(page, "waiting")
    expect(page.locator(".af-card.af-ask")).to_contain_text(f"Left or right? {EVIL}")
    answer = page.get_by_label("Your answer")
    answer.fill("go lef")
    page.evaluate("document.querySelector('[data-part=facts]').textContent = ''")  # the next refresh brings it back
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # somebody looks at the tab again
    expect(page.locator("[data-part=facts]")).to_contain_text("asker", timeout=PATIENCE)
    answer.press_sequentially("t")  # what was typed before the refresh is still there
    button = page.get_by_role("button", name="Answer")
    expect(button).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    button.click()
    expect(page.get_by_text(f"Answered {run_id}")).to_be_visible()
    wait_for_status(page, "finished")
    assert box.task(run_id)["output"] == "Went left."
    expect(page.locator(".af-output")).to_have_text("go left")


def test_a_run_is_cancelled_from_a_phone(page: Page, box: Box) -> None:
    page.set_viewport_size(PHONE)
    run_id = run_now(page, box, "sleeper")
    expect(page.locator(".af-output")).to_contain_text("asleep")
    button = page.get_by_role("button", name="Cancel")
    expect(button).to_be_in_viewport()
    button.click()
    expect(page.get_by_text(f"Asked {run_id} to stop")).to_be_visible()
    wait_for_status(page, "canceled")
    wait_for_state(page, "over")
    assert box.task(run_id)["status"] == "canceled"
    assert page.get_by_role("button", name="Cancel").count() == 0


def test_whoever_has_scrolled_up_is_left_in_peace(page: Page, box: Box) -> None:
    run_now(page, box, "chatty")
    wait_for_line(page, 1)
    scroller = page.locator("#scroll")
    page.wait_for_function("() => { const s = document.querySelector('#scroll'); return s.scrollTop > 1000; }")
    scroller.evaluate("element => { element.scrollTop = 300; }")
    jump = page.get_by_role("button", name="Jump to the end")
    expect(jump).to_be_visible()
    wait_for_line(page, 5)
    assert scroller.evaluate("element => element.scrollTop") == 300
    jump.click()
    wait_for_line(page, 7)
    assert scroller.evaluate("element => element.scrollHeight - element.scrollTop - element.clientHeight") < 40
    expect(jump).to_be_hidden()


def test_what_a_builder_says_appears_as_it_is_said(page: Page, box: Box) -> None:
    """The build outlasts the test: whoever stops the box ends it."""
    folder = box.project / "agents" / "built"
    folder.mkdir()
    counting = 'seq 100 | while read -r i; do echo "line $i."; sleep 0.3; done'
    (folder / "Dockerfile").write_text(f"FROM al-agent\nRUN {counting}\n")
    box.agent("built", turns=[{"text": "done"}])
    open_agent(page, box, "built")
    page.evaluate("window.sameDocument = true")
    images = page.locator('[data-part="images"]')
    expect(images).to_contain_text(re.compile(r"line \d+\."), timeout=PATIENCE)
    last = re.findall(r"line (\d+)\.", images.inner_text())[-1]
    expect(images).to_contain_text(f"line {int(last) + 3}.", timeout=PATIENCE)
    assert same_document(page)


def test_a_delivery_is_explained_tried_and_replayed(page: Page, box: Box) -> None:
    keep_webhook_secret(box.home, SECRET)
    body = (Path(__file__).parent / "data" / "github" / "issues.opened.json").read_bytes()
    headers = {"Content-Type": "application/json", "X-GitHub-Event": "issues", **github(body)}
    [first] = httpx.post(f"{box.client.url}/webhooks/github", content=body, headers=headers).json()["runs"]
    page.goto(f"{box.client.url}/admin/webhooks/delivery/")
    page.get_by_role("link", name=re.compile("^dlv_")).click()
    expect(page.locator("body")).to_contain_text("✓ actions: one of opened in opened")
    page.get_by_role("link", name="Simulate").click()
    page.get_by_role("button", name="Simulate").click()
    expect(page.locator("#simulated")).to_contain_text("What listener would be told")
    expect(page.locator("#simulated")).to_contain_text(EVIL)
    assert len(box.client.call("GET", "deliveries")["deliveries"]) == 1
    page.get_by_role("link", name="Back", exact=True).click()
    page.get_by_role("link", name="Replay").click()
    page.get_by_role("button", name="Replay").click()
    expect(page.locator("body")).to_contain_text(re.compile(r"Replayed dlv_\w+ as dlv_\w+: 1 run"))
    [again, _] = box.client.call("GET", "deliveries")["deliveries"]
    [second] = box.client.call("GET", f"deliveries/{again['id']}")["runs"]
    assert {box.wait(run)["output"] for run in (first, second)} == {"Heard."}


def test_the_front_page_follows_the_fleet(page: Page, box: Box) -> None:
    page.goto(f"{box.client.url}/admin/")
    page.evaluate("window.sameDocument = true")
    run_id = box.start("sleeper")
    expect(page.locator("#fleet")).to_contain_text(run_id, timeout=PATIENCE)
    assert same_document(page)
    box.client.call("POST", f"tasks/{run_id}/cancel")
    box.wait(run_id)


def test_ten_thousand_events_do_not_freeze_the_page(page: Page, box: Box) -> None:
    run_id = box.start("hostile")
    box.wait(run_id)
    asked: list[Any] = []

    def serve(socket: WebSocketRoute) -> None:
        """In place of the server: pages of events, one number twice, an unknown type, then the end."""

        def answer(message: str | bytes) -> None:
            asked.append(json.loads(message))
            for start in range(1, 10_001, 500):
                socket.send(json.dumps({"events": [made_up(number) for number in range(start, start + 500)]}))
            socket.send(
                json.dumps({"events": [made_up(10_000), {**made_up(10_001), "type": EVIL, "data": {"x": EVIL}}]})
            )
            socket.send(json.dumps({"over": True}))

        socket.on_message(answer)

    page.route_web_socket(re.compile("/ws/runs/"), serve)
    began = time.monotonic()
    open_run(page, box, run_id)
    expect(page.locator("#transcript")).to_contain_text(EVIL, timeout=PATIENCE)
    took = time.monotonic() - began
    assert asked == [{"after": 0}]
    rows = page.locator(".af-log-row").evaluate_all("rows => rows.map((row) => Number(row.dataset.event))")
    assert rows == list(range(5002, 10_002))
    expect(page.locator("#log")).to_contain_text("5001 earlier lines are not shown here")
    assert len(output(page)) <= 201_000
    expect(page.locator(".af-call")).to_contain_text("Earlier output is not shown here")
    with page.expect_download() as download:
        page.get_by_role("link", name="Whole log").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == box.task(run_id)["eventCount"]
    assert took < 15, f"{took:.1f} s"


def made_up(number: int) -> dict[str, Any]:
    text = f"{number} {'x' * 60}\n"
    return {
        "id": number,
        "type": "output",
        "data": {"callId": "1-0", "text": text},
        "created_at": "2026-11-20T10:00:00.000Z",
    }
