"""The page in Firefox: the list, a job with its log, an upload, and an element on another site."""

from pathlib import Path

import pytest
from support.cutting_proxy import CuttingProxy
from support.firefox import FIREFOX, Firefox, firefox
from support.scenes import every_state, job, many, progress, report, started
from support.serving import ServedDaemon, served_daemon
from support.site import site

pytestmark = [pytest.mark.tools, pytest.mark.skipif(FIREFOX is None, reason="firefox-esr is not installed")]

LIVE = "document.querySelector('[data-connection=live]:not([hidden])')"
ELEMENT = """<!doctype html><title>Another site</title>
<script type="module" src="{url}/static/progressd.js"></script><progressd-job job="{id}"></progressd-job>"""


async def test_the_pages_work_in_firefox(tmp_path: Path) -> None:
    with site() as (origin, pages):
        config = f'[server]\nallowed_origins = ["{origin}"]\n'
        with served_daemon(tmp_path / "state", config=config) as daemon:
            ids = every_state(daemon)
            many(daemon, 40)
            copy = job(daemon, "Copy", started(), progress("Copying", 10, 100))
            pages["/"] = ELEMENT.format(url=daemon.url, id=copy)
            async with firefox(tmp_path / "profile") as browser:
                await browser.goto(daemon.url, LIVE)
                await browser.until("document.querySelectorAll('[role=row][data-id]').length > 10")
                await browser.press("?")
                await browser.until("document.querySelector('dialog[open]')?.textContent.includes('Open the job')")
                await browser.press("Escape", "/", *"copy")
                row = f"document.querySelector('[data-id=\"{copy}\"]')"
                await browser.until(f"document.querySelectorAll('[role=row][data-id]').length === 1 && {row}")
                report(daemon, copy, progress("Copying", 50, 100))
                await browser.until(f"{row}.textContent.includes('50%')")
                await browser.goto(f"{origin}/", "document.querySelector('progressd-job').state?.name === 'Copy'")
                report(daemon, copy, progress("Copying", 60, 100))
                await browser.until("document.querySelector('progressd-job').state.progress.percent === 60")
                running = f"{daemon.url}/jobs/{ids['running']}"
                log = "document.querySelector('progressd-log').shadowRoot"
                await browser.goto(running, f"{log}.querySelectorAll('.line').length > 20")
                await browser.press("/", *"test_44", "Enter")
                await browser.until(f"/^1 /.test({log}.querySelector('.matches').textContent)")
                await browser.press("Escape", "Escape", "c")
                await browser.until("document.querySelector('#state').textContent === 'Cancelling…'")
                await browser.press("z")
                await browser.until("document.querySelector('#state').textContent === 'Running'")
                await browser.goto(f"{daemon.url}/stats", "document.querySelector('.chart svg')")
                assert browser.errors == []
                await upload(browser, daemon, tmp_path / "large.pdf")


async def upload(browser: Firefox, daemon: ServedDaemon, file: Path) -> None:
    """Upload a file over a connection that is cut, and continue after a reload."""
    row = "[...document.querySelectorAll('[role=row][data-id]')].find((row) => row.textContent.includes('large.pdf'))"
    percent = f"Number({row}?.querySelector('[role=progressbar]').ariaValueNow)"
    large(file)
    with CuttingProxy(daemon.port) as proxy:
        await browser.goto(proxy.url, LIVE)
        proxy.hold_after = 5_000_000
        await browser.choose("input[type=file]", [file])
        await browser.until(f"{percent} > 10")
        proxy.cut()
        await browser.until(f"{percent} > 25")  # it continues by itself
        await browser.goto(proxy.url, f"{row}?.textContent.includes('drop the file again to continue')")
        proxy.release()
        await browser.choose("input[type=file]", [file])
        await browser.until(f"{row}?.querySelector('a[href^=\"jobs/\"]')")


def large(file: Path) -> None:
    file.write_bytes(b"%PDF-1.7\n".ljust(30_000_000))
