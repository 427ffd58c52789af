"""The page while its daemon is away, and afterwards."""

from pathlib import Path

from playwright.sync_api import Browser, expect
from support.serving import backup, restore, served_daemon

from .conftest import opened_page
from .test_page import REPORT, progress

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


def test_a_job_that_a_backup_has_as_running_is_shown_so_again(browser: Browser, tmp_path: Path, free_port: int) -> None:
    state_dir = tmp_path / "state"
    expected = "ERR_CONNECTION_REFUSED", "WebSocket"
    with served_daemon(state_dir, port=free_port) as first, opened_page(browser, first.url, *expected) as page:
        expect(page.locator("[data-connection=live]")).to_be_visible()
        job_id = page.evaluate(REPORT, ["tape", progress(1, 2, "One")])
        backup(state_dir, tmp_path / "backup")
        finish = "id => fetch(`api/jobs/${id}/events`, {method: 'POST', body: '{\"type\": \"completed\"}'})"
        page.evaluate(finish, job_id)
        tape = page.locator(".job", has_text="tape")
        expect(tape).to_have_attribute("data-status", "completed")
        first.kill()
        restore(state_dir, tmp_path / "backup")
        with served_daemon(state_dir, port=free_port):
            expect(page.locator("[data-connection=live]")).to_be_visible()
            expect(tape).to_have_attribute("data-status", "processing")
