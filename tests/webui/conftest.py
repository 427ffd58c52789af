from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urljoin

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Locator, Page, expect, sync_playwright
from support.serving import ServedDaemon, served_daemon
from support.waiting import PATIENCE

expect.set_options(1000 * PATIENCE)

CHROMIUM = "/usr/bin/chromium-headless-shell"  # opens a page in less than half of the time that chromium takes
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--process-per-site"]  # otherwise each page starts a process


CONFIG = """
[pipelines.pdf.options.dpi]
default = 150

[pipelines.pdf.options.deskew]
default = false

[pipelines.pdf.options.rotate]
default = false
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDaemon]:
    """A daemon whose defaults differ from those of the page, and whose jobs are fast."""
    with served_daemon(tmp_path_factory.mktemp("served") / "state", config=CONFIG) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium without windows."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        browser.new_context().new_page()  # that of `opened_page`
        yield browser
        browser.close()


# The page has cards in place of rows, however many jobs there are, and asks before it cancels.
CARDS = "localStorage.setItem('progressd-view', 'cards'); localStorage.setItem('progressd-cancel', 'ask')"


@contextmanager
def opened_page(where: Browser | BrowserContext, url: str, *expected: str, script: str = "") -> Iterator[Page]:
    """Open the page, after `script`. Errors in its console fail the test, except those expected.

    All pages of the browser share a context, whose first page keeps their process. Nothing else is kept.
    """
    context = where.contexts[0] if isinstance(where, Browser) else where
    if isinstance(where, Browser):
        first = context.pages[0]
        if first.url == "about:blank" and url != first.url:
            with suppress(Error):  # a page of another site
                first.goto(urljoin(url, "/api/health/live"))
        session = context.new_cdp_session(first)
        session.send("Storage.clearDataForOrigin", {"origin": "*", "storageTypes": "local_storage"})
        session.detach()
    with context.new_page() as page:
        if script:
            page.add_init_script(script)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(url)
        yield page
        assert [text for text in errors if not any(part in text for part in expected)] == []


def confirm(button: Locator) -> None:
    """Press a button that asks first, twice at once: the question disappears after a few seconds."""
    button.focus()
    button.page.keyboard.press("Enter")
    button.page.keyboard.press("Enter")


@pytest.fixture
def page(browser: Browser, served: ServedDaemon) -> Iterator[Page]:
    """The page of a daemon that requires no key."""
    expected = "WebSocket", "status of 415"  # a blocked one, and a rejected upload
    with opened_page(browser, served.url, *expected, script=CARDS) as page:
        yield page


@pytest.fixture
def scan() -> Path:
    """The bundled scan."""
    import progressd_pdf

    return Path(progressd_pdf.__file__).parent / "scan" / "sample-scan.pdf"
