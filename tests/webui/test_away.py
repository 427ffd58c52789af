"""The page without its daemon, and after a restart."""

import re
from pathlib import Path

from playwright.sync_api import Browser, expect
from support.serving import backup, restore, served_daemon

from .conftest import CARDS, confirm, opened_page
from .test_page import REPORT, progress

AWAY_SINCE = re.compile(r"No connection since \d\d:\d\d\. What you see is from then\.")
AWAY = "The server cannot be reached. Try again when it is back."


def test_a_restored_daemon_works_on_the_page(browser: Browser, tmp_path: Path, free_port: int) -> None:
    state_dir = tmp_path / "state"
    expected = "ERR_CONNECTION_REFUSED", "WebSocket"
    with (
        served_daemon(state_dir, port=free_port) as first,
        browser.new_context() as context,  # whose clock stays set
        opened_page(context, first.url, *expected, script=CARDS) as page,
    ):
        expect(page.locator("[data-connection=live]")).to_be_visible()
        page.evaluate(REPORT, ["queued"])
        job_id = page.evaluate(REPORT, ["tape", progress(1, 2, "One")])
        page.evaluate(REPORT, ["disk", progress(1, 2, "One")])
        queued, tape = page.locator(".job", has_text="queued"), page.locator(".job", has_text="tape")
        backup(state_dir, tmp_path / "backup")
        finish = "id => fetch(`api/jobs/${id}/events`, {method: 'POST', body: '{\"type\": \"completed\"}'})"
        page.evaluate(finish, job_id)
        expect(tape).to_have_attribute("data-status", "completed")
        page.clock.install()
        first.kill()
        expect(page.locator("[data-connection=reconnecting]")).to_be_visible()
        elapsed = page.locator(".job", has_text="disk").locator(".job-time")
        before = elapsed.inner_text()
        page.clock.fast_forward(4000)
        expect(elapsed).to_have_text(before)
        expect(page.locator("#away")).to_be_hidden()
        page.clock.fast_forward(5000)
        expect(page.locator("#away")).to_have_text(AWAY_SINCE)
        expect(page).to_have_title("No connection – progressd")
        for _ in range(2):
            confirm(queued.locator("[data-action=cancel]"))
            expect(queued.get_by_role("alert")).to_have_text(AWAY)
        restore(state_dir, tmp_path / "backup")
        with served_daemon(state_dir, port=free_port):
            expect(page.locator("[data-connection=live]")).to_be_visible()
            expect(tape).to_have_attribute("data-status", "processing")
            expect(queued.get_by_role("alert")).to_be_hidden()
            expect(page.locator("#away")).to_be_hidden()
            expect(page).not_to_have_title("No connection – progressd")
            confirm(queued.locator("[data-action=cancel]"))
            expect(queued).to_have_attribute("data-status", "cancelled")
