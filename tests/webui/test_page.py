"""The page in a real browser, against the real daemon."""

import re
from pathlib import Path

from playwright.sync_api import Page, expect
from serving import ServedDaemon

# Every bar value the page has shown, collected in the page itself: a poll from outside would miss some.
COLLECT = """() => {
  window.seen = new Set();
  new MutationObserver(() => document.querySelectorAll('[role=progressbar][aria-valuenow]').forEach(
    bar => window.seen.add(Number(bar.getAttribute('aria-valuenow')))
  )).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""


def give(page: Page, path: Path) -> None:
    page.locator("input[type=file]").set_input_files(path)


def test_a_scan_is_converted_while_its_bar_moves_and_its_result_downloads(page: Page, scan: Path) -> None:
    expect(page.locator("[data-connection=live]")).to_be_visible()
    page.evaluate(COLLECT)
    give(page, scan)
    done = page.locator(".job[data-status=completed]").first
    expect(done).to_be_visible(timeout=30_000)
    assert len(page.evaluate("[...window.seen]")) >= 3
    expect(done.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")
    with page.expect_download() as download:
        done.locator("[data-action=download]").click()
    assert download.value.suggested_filename == scan.name
    assert Path(download.value.path()).read_bytes().startswith(b"%PDF-")


def test_a_broken_file_shows_its_error_and_can_be_tried_again(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7\nnothing that follows")
    give(page, broken)
    failed = page.locator(".job[data-status=failed]", has_text="broken.pdf").first
    expect(failed).to_be_visible(timeout=20_000)
    expect(failed).to_contain_text(re.compile("PDF", re.IGNORECASE))
    failed.locator("[data-action=retry]").click()
    expect(page.locator(".job[data-status=failed]", has_text="broken.pdf")).to_have_count(2, timeout=20_000)


def test_what_is_not_a_pdf_is_refused_with_the_servers_sentence(page: Page, tmp_path: Path) -> None:
    text = tmp_path / "letter.pdf"
    text.write_text("Dear Sir or Madam")
    give(page, text)
    expect(page.locator(".job", has_text="letter.pdf")).to_contain_text("not a file of the type application/pdf")


def test_a_running_job_is_cancelled(page: Page, scan: Path) -> None:
    page.locator("input[name=dpi]").fill("1200")
    give(page, scan)
    running = page.locator(".job[data-status=processing]").first
    expect(running).to_be_visible(timeout=20_000)
    running.locator("[data-action=cancel]").click()
    expect(page.locator(".job[data-status=cancelled]").first).to_be_visible(timeout=20_000)


def test_with_websockets_blocked_it_polls_says_so_and_still_shows_the_result(
    page: Page, served: ServedDaemon, scan: Path
) -> None:
    page.route_web_socket(re.compile(".*"), lambda route: route.close(code=1011))
    page.reload()
    expect(page.locator("[data-connection=polling]")).to_be_visible(timeout=15_000)
    finished = page.locator(".job[data-status=completed]")
    before = finished.count()
    give(page, scan)
    expect(finished).to_have_count(before + 1, timeout=30_000)


def test_jobs_of_other_producers_appear_by_themselves(page: Page, served: ServedDaemon) -> None:
    expect(page.locator("[data-connection=live]")).to_be_visible()
    page.evaluate(
        """async () => {
            const post = (path, body) => fetch(path, {method: 'POST', body: JSON.stringify(body),
                                                     headers: {'Content-Type': 'application/json'}});
            const job = await (await post('api/jobs', {kind: 'backup'})).json();
            await post(`api/jobs/${job.id}/events`,
                       {type: 'progress', data: {current_step: 3, total_steps: 4, step_name: 'Copying'}});
        }"""
    )
    backup = page.locator(".job[data-status=processing]", has_text="backup")
    expect(backup).to_contain_text("Copying")
    expect(backup.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "75")
