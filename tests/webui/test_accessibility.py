"""Every page in its states: axe finds nothing, in light and dark, wide and narrow."""

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from support.scenes import every_state, many
from support.serving import ServedDaemon, served_daemon

from .conftest import opened_page

COLOURS = {"runOnly": ["color-contrast", "link-in-text-block"]}  # the rules whose result depends on the theme
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 320, "height": 700}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDaemon]:
    with served_daemon(tmp_path_factory.mktemp("states") / "state") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def ids(served: ServedDaemon) -> dict[str, str]:
    """The ids of jobs in every state."""
    return every_state(served)


def findings(page: Page) -> list[str]:
    """Return what axe finds, in both themes and widths."""
    found = list[str]()
    for theme, rules in (("light", {}), ("dark", COLOURS)):
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        for size in (WIDE, NARROW):
            page.set_viewport_size(size)
            for violation in Axe().run(page, options={"resultTypes": ["violations"], **rules}).response["violations"]:
                places = "; ".join(" ".join(node["target"][-1:]) for node in violation["nodes"][:3])
                found.append(f"{theme}, {size['width']} px: {violation['id']}: {violation['help']}: {places}")
            wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wider > 0:
                found.append(f"{theme}, {size['width']} px: the page scrolls sideways by {wider} px")
    return found


def test_the_list(browser: Browser, served: ServedDaemon, ids: dict[str, str]) -> None:
    with opened_page(browser, served.url) as page:
        expect(page.get_by_text("docker compose pull").first).to_be_visible()
        assert findings(page) == []
        many(served, 30)
        page.reload()
        expect(page.get_by_text("encode part-").first).to_be_visible()
        assert findings(page) == []


@pytest.mark.parametrize("state", ["running", "tasks", "failed", "completed", "queued"])
def test_a_job(state: str, browser: Browser, served: ServedDaemon, ids: dict[str, str]) -> None:
    with opened_page(browser, f"{served.url}/jobs/{ids[state]}") as page:
        expect(page.get_by_role("heading", level=2).first).to_be_visible()
        assert findings(page) == []
