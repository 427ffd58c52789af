"""The page of one job, at a daemon that requires keys and is below a base path."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from playwright.sync_api import Browser, Page, WebSocketRoute, expect
from support import keys
from support.samples import job_id
from support.serving import PATIENCE, served_daemon

from .conftest import opened_page

CONFIG = """
[server]
base_path = "/progress"

[auth]
required = true

[pipelines.failing]
command = ["sh", "-c", "echo one; echo 'page 3 is empty' >&2; exit 3"]
"""
# A picture of 3 × 4 pixels.
JPEG = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAFA3PEY8MlBGQUZaVVBfeMiCeG5uePWvuZHI//////////////////////////////////////////"
    "//////////wAALCAAEAAMBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAA//EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8Ad//Z"
)
EXPECTED = ("status of 401", "status of 404", "WebSocket")


class Keyed(NamedTuple):
    """A daemon that requires keys, and a key that may read and write."""

    url: str
    key: str

    def post(self, path: str, body: object = None, **options: Any) -> Any:
        """Send a request that must succeed."""
        with httpx.Client(trust_env=False, verify=False, headers=keys.bearer(self.key), timeout=PATIENCE) as client:
            response = client.post(f"{self.url}{path}", json=body, **options)
        assert response.is_success, response.text
        return response.json()

    def report(self, id_: str, type_: str, **data: object) -> None:
        """Report an event of a job."""
        self.post(f"/api/jobs/{id_}/events", {"type": type_, "data": data})


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    state_dir = tmp_path_factory.mktemp("keyed") / "state"
    key = keys.add(state_dir / "keys.json", "ops", "read", "write")
    with served_daemon(state_dir, config=CONFIG) as served:
        yield Keyed(f"{served.url}/progress", key)


@pytest.fixture
def page(browser: Browser, daemon: Keyed) -> Iterator[Page]:
    """A page that is signed in."""
    with opened_page(browser, f"{daemon.url}/static/favicon.svg", *EXPECTED) as page:
        page.add_init_script(f"sessionStorage.setItem('progressd-key', '{daemon.key}')")
        yield page


def progress(step: int, name: str) -> dict[str, object]:
    return {"current_step": step, "total_steps": 4, "step_name": name, "unit": "files"}


def test_a_job_is_shown_live_until_its_end(page: Page, daemon: Keyed) -> None:
    id_ = job_id(1)
    job = {"id": id_, "kind": "build", "name": "Nightly build", "labels": {"host": "build7"}, "options": {"lto": True}}
    daemon.post("/api/jobs", job)
    daemon.report(id_, "progress", **progress(1, "Compile"))
    sockets: list[WebSocketRoute] = []

    def connect(route: WebSocketRoute) -> None:
        sockets.append(route)
        route.connect_to_server()

    page.route_web_socket(re.compile(f"/ws/jobs/{id_}$"), connect)
    page.goto(f"{daemon.url}/jobs/{id_}")
    expect(page.locator("[data-connection=live]")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text("Nightly build")
    expect(page.get_by_role("progressbar", name="Progress of Nightly build")).to_have_attribute("aria-valuenow", "25")
    expect(page.locator("#details")).to_contain_text("build7")
    expect(page.locator("#details")).to_contain_text("lto=true")
    daemon.report(id_, "log", text="\x1b[31mred\x1b[0m line")
    expect(page.locator("progressd-log").get_by_text("red", exact=True)).to_have_class("f1")
    daemon.report(id_, "page_preview", page_number=7, preview_base64=JPEG, stage="Linked", width=3, height=4)
    expect(page.get_by_role("img", name="Page 7 · Linked")).to_have_js_property("naturalWidth", 3)
    daemon.report(id_, "progress", **progress(2, "Link"))
    expect(page).to_have_title("50% Nightly build – progressd")
    expect(page.locator(".lane-name")).to_have_text(["Compile", "Link"])
    sockets[0].close(code=1001)  # the page reconnects
    daemon.report(id_, "progress", **progress(3, "Link"), eta_seconds=3000)
    expect(page.locator("#figure")).to_have_text("75%")
    page.reload()
    expect(page.locator("#figures")).to_contain_text("about 50 min left")
    expect(page.locator("#figures")).to_contain_text("as its program reports")
    expect(page.get_by_role("img", name="Page 7 · Linked")).to_have_js_property("naturalWidth", 3)
    expect(page.locator("[data-connection=live]")).to_be_visible()
    daemon.report(id_, "completed", output_path="https://example.org/build.tar.gz")
    expect(page.locator("#state")).to_have_text("Done")
    expect(page.locator("#announcements")).to_have_text("Nightly build is done.")
    link = page.get_by_role("link", name="Open result")
    expect(link).to_have_attribute("href", "https://example.org/build.tar.gz")
    assert link.get_attribute("download") is None
    expect(page.locator("#connection")).to_be_hidden()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Really delete?").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("This job was deleted")
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("There is no such job")
    page.get_by_role("link", name="All jobs").last.click()
    expect(page).to_have_url(f"{daemon.url}/")


def test_a_failed_job_is_run_again(page: Page, daemon: Keyed) -> None:
    id_ = daemon.post("/api/convert?pipeline=failing", files={"file": ("book.pdf", b"%PDF-1.4")})["job_id"]
    page.goto(f"{daemon.url}/jobs/{id_}")
    expect(page.locator("#error")).to_contain_text("exit status 3")
    expect(page.locator("#stderr")).to_have_text("page 3 is empty")
    expect(page.locator("progressd-log [data-s=e]")).to_have_text("page 3 is empty")
    page.get_by_role("button", name="Run again").click()
    expect(page).not_to_have_url(f"{daemon.url}/jobs/{id_}")
    expect(page.get_by_role("heading", level=1)).to_have_text("book.pdf")
    expect(page.locator("#state")).to_have_text("Failed")
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_a_shared_link_works_without_a_key(page: Page, browser: Browser, daemon: Keyed) -> None:
    id_ = job_id(2)
    daemon.post("/api/jobs", {"id": id_, "kind": "backup"})
    daemon.report(id_, "log", text="a line of the log")
    page.goto(f"{daemon.url}/jobs/{id_}")
    links = []
    for shows_log in (False, True):
        page.get_by_role("button", name="Share").click()
        page.get_by_label("Show the log too").set_checked(shows_log)
        page.get_by_role("button", name="Copy the link").click()
        expect(page.locator("#share-link")).to_have_value(re.compile("#token="))
        links.append(page.locator("#share-link").input_value())
        page.get_by_role("button", name="Close").click()
    hidden, shown = links
    with opened_page(browser, hidden, *EXPECTED, "status of 403") as visitor:
        sent: list[str] = []
        visitor.on("request", lambda request: sent.append(request.headers.get("referer", "")))
        expect(visitor.locator("[data-connection=live]")).to_be_visible()
        expect(visitor.get_by_text("This link does not show the log.")).to_be_visible()
        expect(visitor.locator("#actions button:visible")).to_have_count(0)
        visitor.goto(shown)  # only the fragment differs
        expect(visitor.get_by_text("a line of the log")).to_be_visible()
        daemon.report(id_, "log", text="another line")
        expect(visitor.get_by_text("another line")).to_be_visible()
        visitor.goto(f"{shown}x")
        expect(visitor.get_by_role("heading", level=1)).to_have_text("This link no longer works")
        assert set(sent) == {""}
        visitor.get_by_role("link", name="Open it with a key").click()
        expect(visitor.get_by_label("Key", exact=True)).to_be_focused()
        visitor.get_by_label("Key", exact=True).fill("pgd_wrong")
        visitor.keyboard.press("Enter")
        expect(visitor.get_by_role("alert").filter(visible=True)).to_contain_text("unknown")
        visitor.get_by_label("Key", exact=True).fill(daemon.key)
        visitor.keyboard.press("Enter")
        expect(visitor.get_by_role("heading", level=1)).to_have_text("backup")
        visitor.goto(f"{daemon.url}/no/such/page")
        expect(visitor.get_by_role("heading", level=1)).to_be_visible()
        expect(visitor.get_by_label("Language")).to_be_visible()
        visitor.keyboard.press("?")
        expect(visitor.get_by_role("dialog")).to_contain_text("All jobs")
        visitor.keyboard.press("Escape")
        visitor.keyboard.press("u")
        expect(visitor.locator("[data-connection=live]")).to_be_visible()


def test_a_batch_and_the_statistics_have_pages(page: Page, daemon: Keyed) -> None:
    files = [("files[]", (f"part-{n}.pdf", b"%PDF-1.4")) for n in range(2)]
    id_ = daemon.post("/api/batch?pipeline=failing", files=files)["batch_id"]
    page.goto(f"{daemon.url}/batches/{id_}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Batch of 2 files")
    expect(page.locator(".member-name")).to_have_text(["part-0.pdf", "part-1.pdf"])
    expect(page.locator("#state")).to_have_text("Failed")
    expect(page.locator("#step")).to_have_text("2 failed")
    page.get_by_role("link", name="part-1.pdf").click()
    expect(page.locator("#error")).to_contain_text("exit status 3")
    page.get_by_role("link", name="Part of a batch").click()
    expect(page).to_have_url(f"{daemon.url}/batches/{id_}")
    page.goto(f"{daemon.url}/batches/{job_id(9)}")
    expect(page.get_by_role("heading", level=1)).to_have_text("There is no such batch")
    page.goto(f"{daemon.url}/stats")
    expect(page.locator("#tiles")).to_contain_text("Failed")
    expect(page.get_by_role("img", name=re.compile("^Unfinished jobs: now "))).to_be_visible()
    expect(page.locator("#longest").get_by_role("link").first).to_be_visible()


def test_keys_press_the_buttons_and_a_cancellation_can_be_undone(page: Page, daemon: Keyed) -> None:
    first, second = job_id(3), job_id(4)
    for id_ in (first, second):
        daemon.post("/api/jobs", {"id": id_, "kind": "backup"})
    for number in range(3):
        daemon.report(first, "log", text=f"needle {number}")
    page.goto(f"{daemon.url}/jobs/{first}")
    expect(page.get_by_text("needle 2")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Next or previous match")
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    expect(page.locator("#state")).to_have_text("Cancelling…")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    page.keyboard.press("z")
    expect(page.locator("#state")).to_have_text("Waiting")
    page.keyboard.press("/")
    find = page.get_by_label("Find in the log")
    expect(find).to_be_focused()
    page.keyboard.type("needle")
    page.keyboard.press("Enter")  # before the search has begun
    expect(page.locator("progressd-log .matches")).to_have_text("3 of 3")
    page.keyboard.press("Shift+Enter")
    expect(page.locator("progressd-log .matches")).to_have_text("2 of 3")
    page.keyboard.press("Escape")
    expect(find).to_have_value("")
    page.keyboard.press("Escape")
    expect(page.get_by_role("log")).to_be_focused()
    page.keyboard.press("c")
    expect(page.locator("#state")).to_have_text("Cancelling…")
    page.goto(f"{daemon.url}/stats")  # cancels it at once
    expect(page.locator("#tiles")).to_contain_text("Running")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("All jobs")
    page.get_by_label("Use these keys").uncheck()
    page.get_by_role("button", name="Close").click()
    page.goto(f"{daemon.url}/jobs/{first}")
    expect(page.locator("#state")).to_have_text("Cancelled")
    page.evaluate("localStorage.setItem('progressd-cancel', 'ask')")
    page.goto(f"{daemon.url}/jobs/{second}")
    cancel = page.get_by_role("button", name="Cancel")
    expect(cancel).to_be_visible()
    page.keyboard.press("c")
    expect(cancel).to_be_visible()
    page.evaluate("localStorage.removeItem('progressd-keys')")
    page.keyboard.press("c")
    expect(page.get_by_role("button", name="Really cancel?")).to_be_focused()
    page.keyboard.press("c")
    expect(page.locator("#state")).to_have_text("Cancelled")
    page.keyboard.press("u")
    expect(page).to_have_url(f"{daemon.url}/")
