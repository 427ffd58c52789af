"""`<progressd-log>` on the page of a job: many lines, search, following, and copying."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from support.samples import job_id
from support.serving import ServedDaemon, served_daemon

from .conftest import opened_page

ID = job_id(1)
LINES = 3000
MODULE = "await import(new URL('static/ansi.js', document.baseURI))"
SELECT = """log => {
  const lines = [...log.shadowRoot.querySelectorAll('.text')];
  const from = lines.find(line => line.textContent.startsWith('line 2990 '));
  window.getSelection().setBaseAndExtent(from.firstChild, 5, lines.at(-1).firstChild, 4);
}"""

GAP = """async log => {
  const scroller = log.shadowRoot.querySelector('.scroller');
  const frame = () => new Promise(resume => requestAnimationFrame(() => setTimeout(resume)));
  for (let top = 0; top < scroller.scrollHeight; top += 1500) {
    scroller.scrollTop = top;
    for (let n = 0; n < 3; n += 1) await frame();
    const gap = log.shadowRoot.querySelector('.gap');
    if (gap) return gap.textContent;
  }
  return '';
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDaemon]:
    with served_daemon(
        tmp_path_factory.mktemp("log") / "state", config="[log]\nmax_bytes_per_job = '1MiB'\n"
    ) as daemon:
        assert daemon.request("POST", "/api/jobs", json={"id": ID, "kind": "build"}).is_success
        write(daemon, "\n".join(f"line {number} {'*' * 40}" for number in range(LINES)))
        yield daemon


@pytest.fixture
def page(browser: Browser, served: ServedDaemon) -> Iterator[Page]:
    with opened_page(browser, f"{served.url}/jobs/{ID}") as page:
        yield page


def write(served: ServedDaemon, text: str, **data: object) -> None:
    event = {"type": "log", "data": {"text": text, **data}}
    assert served.request("POST", f"/api/jobs/{ID}/events", json=event).is_success


def at_end(log: Locator) -> bool:
    code = "log => { const s = log.shadowRoot.querySelector('.scroller'); return s.scrollTop + s.clientHeight }"
    return bool(log.evaluate(code) >= log.evaluate("log => log.shadowRoot.querySelector('.lines').offsetHeight"))


def test_a_long_log_is_followed_searched_and_copied(page: Page, served: ServedDaemon) -> None:
    log = page.locator("progressd-log")
    status, matches = log.locator(".status"), log.locator(".matches")
    follow, find = log.get_by_role("button", name="Follow"), log.get_by_label("Find in the log")
    expect(log.get_by_text(f"line {LINES - 1} ")).to_be_visible()
    expect(status).to_have_text("The last 1,000 lines")
    assert log.locator(".line").count() < 500  # only lines near the visible part have elements
    write(served, "newest line", stream="stderr")
    expect(log.get_by_text("newest line")).to_be_visible()
    assert at_end(log)

    log.evaluate(SELECT)  # the end of the selection is kept, the lines between are not
    text = log.evaluate("log => log.selectedText()").split("\n")
    assert (text[0], text[1][:9], text[-1], len(text)) == (f"2990 {'*' * 40}", "line 2991", "newe", 11)

    log.locator(".scroller").hover()
    page.mouse.wheel(0, -3000)
    expect(follow).to_have_attribute("aria-pressed", "false")
    write(served, "\x1b[1mlater\x1b[0m line")
    expect(log.get_by_text("later")).not_to_be_in_viewport()
    log.get_by_role("button", name="Jump to the newest").click()
    expect(log.get_by_text("later")).to_be_in_viewport()
    expect(follow).to_have_attribute("aria-pressed", "true")

    find.fill("LINE 12 ")  # in the part that is loaded only now
    expect(status).to_have_text(f"{LINES + 2:,} lines")
    expect(matches).to_have_text("1 of 1")
    find.press("Enter")
    expect(log.locator("mark.current")).to_have_text("line 12 ")
    expect(log.locator("mark.current")).to_be_in_viewport()
    find.fill("line")
    expect(matches).to_contain_text(f"of {LINES + 2:,}")
    before = matches.inner_text()
    find.press("Shift+Enter")
    expect(matches).not_to_have_text(before)
    find.press("Escape")
    expect(matches).to_have_text("")

    log.get_by_role("button", name="Times").click()
    log.get_by_role("button", name="Wrap").click()
    expect(log.locator("time").first).to_be_visible()
    with page.expect_download() as download:
        log.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "build.log"
    page.locator("progressd-log .scroller").focus()
    page.keyboard.press("End")
    expect(log.get_by_text("later")).to_be_in_viewport()


# A line with escape sequences, and the parts that are shown with their styles.
STYLES: list[tuple[str, list[tuple[str, dict[str, object] | None]]]] = [
    ("plain\ttext\x07", [("plain\ttext", None)]),
    ("\x1b[1;31mbold\x1b[22m red\x1b[39m", [("bold", {"bold": True, "fg": 1}), (" red", {"fg": 1})]),
    ("\x1b[92;104mbright\x1b[m", [("bright", {"fg": 10, "bg": 12})]),
    ("\x1b[38;5;9m9\x1b[38;5;196mcube", [("9", {"fg": 9}), ("cube", {"fg": "rgb(255 0 0)"})]),
    ("\x1b[38;5;244mgrey", [("grey", {"fg": "rgb(128 128 128)"})]),
    ("\x1b[38;2;1;2;3;4mtrue", [("true", {"fg": "rgb(1 2 3)", "underline": True})]),
    ("\x1b[48:2::1:2:3mcolons\x1b[49m", [("colons", {"bg": "rgb(1 2 3)"})]),
    ("\x1b]0;title\x07\x1b[2K\x1b]8;;https://a.b\x1b\\link\x1b]8;;\x1b\\", [("link", None)]),
    ("\x1b[38;5;999mwrong\x1b[38;2;1mshort\x1b[?25l\x1b[", [("wrong", None), ("short", None)]),
]  # fmt: skip


def test_escape_sequences_become_styles(page: Page) -> None:
    shown = page.evaluate(
        f"async lines => {{ const {{ parts }} = {MODULE}; return lines.map(l => parts(l, null)) }}",
        [line for line, _ in STYLES],
    )
    assert shown == [[list(part) for part in parts] for _, parts in STYLES]
    plain = page.evaluate(
        f"async lines => {{ const {{ plain }} = {MODULE}; return lines.map(plain) }}", [line for line, _ in STYLES]
    )
    assert plain == ["".join(text for text, _ in parts) for _, parts in STYLES]


def test_a_gap_is_shown(page: Page, served: ServedDaemon) -> None:
    log = page.locator("progressd-log")
    for _ in range(8):
        write(served, "\n".join("x" * 600 for _ in range(350)))
    write(served, "after the gap")
    expect(log.get_by_text("after the gap")).to_be_visible()
    page.reload()
    log.get_by_label("Find in the log").fill("line 12 ")  # before the gap
    expect(log.locator("mark.current")).to_have_text("line 12 ")
    assert re.fullmatch(r"[\d.]+ [KM]iB of the log are missing here", log.evaluate(GAP))
