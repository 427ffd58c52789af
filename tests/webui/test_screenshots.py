"""`make screenshots`: a picture of each page in its states, in both themes, languages and widths, to look at."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect
from support import keys
from support.scenes import every_state, many, stalled
from support.serving import ServedDaemon, served_daemon

pytestmark = pytest.mark.screenshots

PICTURES = Path(__file__).parents[2] / "screenshots"
README = Path(__file__).parents[2] / "docs/images/page.png"
SIZES: dict[str, ViewportSize] = {"wide": {"width": 1280, "height": 900}, "narrow": {"width": 320, "height": 700}}
THEMES: dict[str, Literal["light", "dark"]] = {"light": "light", "dark": "dark"}
LOCALES = {"en": "en-GB", "ja": "ja-JP"}
VARIANTS = list(product(THEMES, LOCALES, SIZES))
SETTLE_MS = 1000  # until charts and transitions have ended
STALLED_AFTER = 25.0  # seconds; the job fails after three times as long
UNKNOWN = "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c"

Prepare = Callable[[Page], object]


class State(NamedTuple):
    """A page in a state: its path, where `{name}` is the id of a job, and what to do there before the picture."""

    name: str
    path: str
    prepare: Prepare | None = None


def press(*names: str) -> Prepare:
    def prepare(page: Page) -> None:
        for name in names:
            page.keyboard.press(name)

    return prepare


def share(page: Page) -> None:
    page.locator("[data-action=share]").click()


EMPTY = [State("list-empty", "")]
FEW = [
    State("list", ""),
    State("list-waiting", "?tab=waiting"),
    State("list-nothing-found", "?q=nothing+like+this"),
    State("job-running", "jobs/{running}"),
    State("job-tasks", "jobs/{tasks}"),
    State("job-open-ended", "jobs/{open_ended}"),
    State("job-waiting", "jobs/{queued}"),
    State("job-failed", "jobs/{failed}"),
    State("job-completed", "jobs/{completed}"),
    State("job-cancelled", "jobs/{cancelled}"),
    State("job-share", "jobs/{running}", share),
    State("job-unknown", f"jobs/{UNKNOWN}"),
    State("stats", "stats"),
    State("error", "nothing/here"),
]
SILENT = [State("list-attention", "?tab=attention"), State("job-stalled", "jobs/{stalled}")]
MANY = [
    State("rows", ""),
    State("rows-selected", "?tab=running", press("ArrowDown", "Space", "ArrowDown", "ArrowDown", "Space")),
    State("rows-keys", "", press("?")),
    State("rows-filtered", "?tab=running&q=part&kind=ffmpeg&label=host%3Ddb1"),
]
LOCKED = [State("gate", "")]


def take(browser: Browser, daemon: ServedDaemon, states: list[State], ids: dict[str, str]) -> None:
    """Take the pictures of states."""
    for variant, state in product(VARIANTS, states):
        with ExitStack() as stack:
            page = opened(stack, browser, f"{daemon.url}/{state.path.format(**ids)}", variant)
            if state.prepare is not None:
                state.prepare(page)
            save(page, state.name, variant)


def opened(stack: ExitStack, browser: Browser, url: str, variant: tuple[str, str, str]) -> Page:
    theme, language, size = variant
    context = browser.new_context(
        reduced_motion="reduce", locale=LOCALES[language], viewport=SIZES[size], color_scheme=THEMES[theme]
    )
    page = stack.enter_context(context).new_page()
    page.goto(url)
    expect(page.locator("main:visible, #gate:visible").first).to_be_visible()
    page.wait_for_timeout(SETTLE_MS)
    return page


def save(page: Page, name: str, variant: tuple[str, str, str]) -> None:
    PICTURES.mkdir(exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}-{'-'.join(variant)}.png")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ServedDaemon]:
    with served_daemon(tmp_path / "state") as daemon:
        yield daemon


def test_few_jobs(browser: Browser, daemon: ServedDaemon) -> None:
    take(browser, daemon, EMPTY, {})
    take(browser, daemon, FEW, every_state(daemon))
    README.write_bytes((PICTURES / "list-light-en-wide.png").read_bytes())


def test_a_stalled_job(browser: Browser, daemon: ServedDaemon) -> None:
    take(browser, daemon, SILENT, {"stalled": stalled(daemon, STALLED_AFTER)})


def test_many_jobs(browser: Browser, daemon: ServedDaemon) -> None:
    ids = every_state(daemon)
    many(daemon, 30)
    take(browser, daemon, MANY, ids)
    with ExitStack() as stack:
        pages = {variant: opened(stack, browser, f"{daemon.url}/?tab=running", variant) for variant in VARIANTS}
        daemon.kill()
        for variant, page in pages.items():
            expect(page.locator("#away")).to_be_visible()
            save(page, "rows-away", variant)


def test_a_server_that_requires_a_key(browser: Browser, tmp_path: Path) -> None:
    keys.add(tmp_path / "keys.json", "ann", "read")
    config = f'[auth]\nrequired = true\nkeys_file = "{tmp_path}/keys.json"\n'
    with served_daemon(tmp_path / "state", config=config) as daemon:
        take(browser, daemon, LOCKED, {})
