"""The page while its daemon is away, and afterwards."""

from pathlib import Path

from playwright.sync_api import Browser, expect
from support.serving import served_daemon

from .conftest import opened_page
from .test_page import REPORT

AWAY = "The server cannot be reached. Try again when it is back."


def test_an_action_without_a_daemon_shows_an_error(browser: Browser, tmp_path: Path, free_port: int) -> None:
    state_dir = tmp_path / "state"
    expected = "ERR_CONNECTION_REFUSED", "WebSocket"
    with served_daemon(state_dir, port=free_port) as first, opened_page(browser, first.url, *expected) as page:
        expect(page.locator("[data-connection=live]")).to_be_visible()
        page.evaluate(REPORT, ["backup"])
        backup = page.locator(".job", has_text="backup")
        first.kill()
        expect(page.locator("[data-connection=reconnecting]")).to_be_visible()
        for _ in range(2):
            backup.locator("[data-action=cancel]").click()
            expect(backup.get_by_role("alert")).to_have_text(AWAY)
        with served_daemon(state_dir, port=free_port):
            expect(page.locator("[data-connection=live]")).to_be_visible()
            expect(backup.get_by_role("alert")).to_be_hidden()
            backup.locator("[data-action=cancel]").click()
            expect(backup).to_have_attribute("data-status", "cancelled")
