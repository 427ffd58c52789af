from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support.serving import ServedDaemon, served_daemon
from support.waiting import PATIENCE

expect.set_options(1000 * PATIENCE)

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


CONFIG = """
[pipelines.pdf.options.dpi]
default = 150

[pipelines.pdf.options.deskew]
default = false
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDaemon]:
    """A daemon whose form begins with other values than the page's own, and soon has a file converted."""
    with served_daemon(tmp_path_factory.mktemp("served") / "state", config=CONFIG) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened_page(browser: Browser, url: str, *expected: str) -> Iterator[Page]:
    """The page, open; whatever it complains of in its console fails the test, but for what is expected."""
    with browser.new_context() as context:
        page = context.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(url)
        yield page
        assert [text for text in complaints if not any(part in text for part in expected)] == []


@pytest.fixture
def page(browser: Browser, served: ServedDaemon) -> Iterator[Page]:
    """The page of a daemon that asks for no key."""
    with opened_page(browser, served.url, "WebSocket", "status of 415") as page:  # a blocked one, and a refused upload
        yield page


@pytest.fixture
def scan() -> Path:
    """The bundled scan."""
    import progressd_pdf

    return Path(progressd_pdf.__file__).parent / "scan" / "sample-scan.pdf"
