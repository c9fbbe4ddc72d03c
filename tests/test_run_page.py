"""The page of a run that was tried more than once, in a real Chromium: every attempt, or the one that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.box import Box
from tests.making import bash
from tests.test_browser import ARGUMENTS, CHROMIUM, DESK, PATIENCE

pytestmark = [pytest.mark.box, pytest.mark.engine, pytest.mark.browser, pytest.mark.timeout(180)]

TRIED_TWICE = """
retry = "always"
attempts = {most = 2, delay_seconds = 0}
limits = {wall_seconds = 4}
"""


def show(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#connection")).to_have_attribute("data-state", "over", timeout=PATIENCE)


def test_each_attempt_is_shown_and_can_be_shown_alone(tmp_path: Path) -> None:
    with Box(tmp_path) as box, sync_playwright() as playwright:
        box.agent("slow", extra=TRIED_TWICE, turns=[{"text": "I begin.", "tools": [bash("sleep 600")]}])
        made = box.client.run("slow")
        task = box.client.wait_for(made["taskId"], timeout=90)
        assert (task["status"], task["error"]["code"], task["attempts"]) == ("failed", "TIMEOUT", 2)
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS).new_page(viewport=DESK)
        page.goto(box.client.url + box.client.call("POST", "login-links")["path"])
        run = f"{box.client.url}/admin/runs/run/{task['id']}/change/"
        failure = page.get_by_text("attempt 1 failed: TIMEOUT")

        show(page, run)
        expect(page.locator(".af-turn")).to_have_count(2)
        expect(failure).to_be_visible()

        page.get_by_role("link", name="TIMEOUT").click()
        expect(page.locator("#connection")).to_have_attribute("data-state", "over", timeout=PATIENCE)
        assert page.url == f"{run}?attempt=1"
        expect(page.locator(".af-turn")).to_have_count(1)
        expect(page.locator(".af-call")).to_contain_text("was not finished")
        expect(failure).to_be_visible()

        show(page, f"{run}?attempt=2")
        expect(page.locator(".af-turn")).to_have_count(1)
        expect(page.locator(".af-call")).to_contain_text("was not finished")
        expect(failure).to_have_count(0)
