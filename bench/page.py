"""A real Chromium on a run's page, which notes when each stamped line is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, expect, sync_playwright

from tests.box import Box

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
PATIENCE = 30_000  # milliseconds

# Lines of the form "stamp NANOSECONDS"; the page's clock and the container's are the same machine's.
WATCH = r"""() => {
  window.seen = {};
  const look = () => {
    const now = Date.now();
    for (const output of document.querySelectorAll(".af-output")) {
      for (const [, stamp] of output.textContent.matchAll(/^stamp (\d+)$/gm)) window.seen[stamp] ??= now;
    }
  };
  new MutationObserver(look).observe(document.getElementById("transcript"), {
    childList: true, subtree: true, characterData: true,
  });
}"""


@contextmanager
def logged_in_page(box: Box) -> Iterator[Page]:
    """A page of its own browser, logged in by link."""
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS) as browser,
    ):
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(box.client.url + box.client.call("POST", "login-links")["path"])
        yield page


def watch(page: Page, box: Box, run_id: str) -> None:
    """Open the run's page and note stamps from now on."""
    page.goto(f"{box.client.url}/admin/runs/run/{run_id}/change/")
    wait_for_state(page, "live")
    page.evaluate(WATCH)


def wait_for_state(page: Page, state: str) -> None:
    """live: the page follows the run; over: it has shown the last event."""
    expect(page.locator("#connection")).to_have_attribute("data-state", state, timeout=PATIENCE)


def delays(page: Page) -> list[float]:
    """Milliseconds from each stamp to its line on the page. The page's clock has whole milliseconds, cut off."""
    seen: dict[str, int] = page.evaluate("window.seen")
    return [at - int(stamp) / 1e6 for stamp, at in seen.items()]
