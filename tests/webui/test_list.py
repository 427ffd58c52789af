"""The list of the page as rows: tabs, search, filters, keyboard, selection, and its URL."""

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, Request, Route, WebSocketRoute, expect
from support.serving import ServedDaemon, served_daemon

from .conftest import confirm, opened_page

RUNNING = 120

# The size of the files that the list needs, without compression. What sends files is loaded after them.
WEIGHT = """() => [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
  .filter(({name}) => !/\\/api\\/|(sending|intake|options)\\.\\w+$/.test(name))
  .reduce((sum, {decodedBodySize}) => sum + decodedBodySize, 0)"""
MAX_WEIGHT = 120_000


def job_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def report(daemon: ServedDaemon, *events: dict[str, object]) -> None:
    lines = "\n".join(json.dumps(event) for event in events)
    kind = {"Content-Type": "application/x-ndjson"}
    assert daemon.request("POST", "/api/events", content=lines.encode(), headers=kind).status_code == 200


def created(number: int, name: str, **more: object) -> dict[str, object]:
    return {"type": "job_created", "job_id": job_id(number), "data": {"kind": "backup", "name": name, **more}}


def event(kind: str, number: int, **data: object) -> dict[str, object]:
    return {"type": kind, "job_id": job_id(number), "data": data}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDaemon]:
    """A daemon with 120 running jobs, a waiting, a failed and a completed one."""
    with served_daemon(tmp_path_factory.mktemp("list") / "state") as daemon:
        for number in range(RUNNING):
            labels = {"host": f"worker-{number % 3}", "team": "scan" if number % 2 else "web"}
            report(
                daemon,
                created(number, f"Copy c{number:03}", labels=labels),
                event("progress", number, current_step=number % 100, total_steps=100, step_name="Copying"),
            )
        report(daemon, created(500, "Wait for it"))
        report(daemon, created(501, "Broken mirror"), event("error", 501, message="The disk is full."))
        report(daemon, created(502, "Good export"), event("progress", 502, percent=3), event("completed", 502))
        yield daemon


@pytest.fixture
def page(browser: Browser, served: ServedDaemon) -> Iterator[Page]:
    with opened_page(browser, served.url, "status of 409", "status of 415") as page:
        expect(page.locator("[data-connection=live]")).to_be_visible()
        expect(rows(page).first).to_be_visible()
        yield page


def rows(page: Page) -> Locator:
    return page.locator("[role=row][data-id]")


def row(page: Page, name: str) -> Locator:
    return rows(page).filter(has=page.get_by_role("link", name=name, exact=True))


def tab(page: Page, name: str) -> Locator:
    return page.get_by_role("navigation").get_by_role("link", name=name)


def expect_rows(page: Page, number: int) -> None:
    """Expect this number of lines, of which only some are in the document."""
    expect(page.get_by_role("treegrid")).to_have_attribute("aria-rowcount", str(number + 1))


def test_the_page_is_light(page: Page) -> None:
    assert 80_000 < page.evaluate(WEIGHT) < MAX_WEIGHT
    page.evaluate("localStorage.setItem('progressd-view', 'cards')")
    page.reload()
    expect(page.locator(".job").first).to_be_visible()
    assert page.evaluate(WEIGHT) < MAX_WEIGHT


def test_cards_have_keys_and_stars(page: Page) -> None:
    page.get_by_text("View", exact=True).click()
    page.get_by_role("radio", name="cards", exact=True).click()
    page.get_by_role("searchbox").fill("copy c00")
    expect(page.locator(".job")).to_have_count(10)
    page.get_by_role("searchbox").press("ArrowDown")
    expect(page.locator(".job").first).to_be_focused()
    page.keyboard.press("ArrowDown")
    second = page.locator(".job").nth(1)
    expect(second).to_be_focused()
    star = second.get_by_role("button", name="Star")
    star.click()
    expect(star).to_have_attribute("aria-pressed", "true")
    second.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/jobs/[0-9a-f-]{36}$"))


def test_tabs_search_and_filters_are_in_the_url(page: Page) -> None:
    expect_rows(page, RUNNING + 3)
    tab(page, "Waiting").click()
    expect(page).to_have_url(re.compile(r"\?tab=waiting$"))
    expect_rows(page, 1)
    expect(tab(page, "Waiting")).to_have_attribute("aria-current", "page")
    tab(page, "Needs a look").click()
    expect(row(page, "Broken mirror")).to_contain_text("The disk is full.")
    expect_rows(page, 1)
    tab(page, "Running").click()
    page.get_by_role("searchbox").fill("copy c01")
    expect_rows(page, 10)
    expect(page).to_have_url(re.compile(r"\?q=copy\+c01&tab=running$"))
    page.reload()
    expect_rows(page, 10)
    expect(page.get_by_role("searchbox")).to_have_value("copy c01")
    page.go_back()
    expect_rows(page, RUNNING)
    page.go_back()
    expect_rows(page, 1)
    page.go_forward()
    page.get_by_text("Filter", exact=True).click()
    page.get_by_role("combobox", name="Host").fill("worker-1")
    page.get_by_role("combobox", name="Label").fill("team=scan")
    page.get_by_role("combobox", name="Label").press("Enter")
    expect_rows(page, RUNNING // 6)
    page.get_by_role("button", name="Remove the filter Host: worker-1").click()
    expect_rows(page, RUNNING // 2)
    page.get_by_role("searchbox").fill("nothing of the kind")
    expect(page.get_by_text("No job matches")).to_be_visible()
    page.get_by_role("button", name="Clear search and filters").click()
    expect_rows(page, RUNNING)


def test_a_narrow_window_cuts_off_neither_the_filters_nor_the_names(page: Page) -> None:
    page.set_viewport_size({"width": 320, "height": 800})
    expect(tab(page, "All")).to_be_in_viewport(ratio=0.99)
    page.get_by_text("Filter", exact=True).click()
    expect(page.locator(".filters form")).to_be_in_viewport(ratio=0.99)
    page.keyboard.press("Escape")
    first = rows(page).first
    expect(first.locator(".row-step")).to_be_in_viewport()
    assert first.get_by_role("link").evaluate("(link) => link.scrollWidth <= link.clientWidth")


def test_a_rejected_upload_needs_a_look_and_has_no_percentage(page: Page) -> None:
    expect(tab(page, "Needs a look")).to_contain_text("1")
    file = {"name": "not.pdf", "mimeType": "application/pdf", "buffer": b"This is no PDF."}
    page.locator("[type=file]").set_input_files(files=[file])
    expect(rows(page).filter(has_text="not.pdf is not a PDF")).not_to_contain_text("%")
    expect(rows(page).filter(has_text="not.pdf is not a PDF")).not_to_contain_text(" B")
    expect(tab(page, "Needs a look")).to_contain_text("2")


def test_a_slow_search_goes_on_after_an_empty_page(browser: Browser, served: ServedDaemon) -> None:
    """Let the first pages of finished jobs be empty, as if the search had stopped, and the numbers not be exact."""
    held = list[Route]()
    empty = {"jobs": [], "total": 0, "limit": 1, "offset": 0, "exact": False}

    def answer(route: Route) -> None:
        url = route.request.url
        after = re.search(r"&after=(\d)$", url)
        if "counts=true" in url:
            counts = dict.fromkeys(("running", "waiting", "attention", "done", "all"), 5000)
            route.fulfill(json={**empty, "counts": counts})
        elif "status=completed" not in url:
            route.fallback()
        elif after is None:
            held.append(route)
        elif after[1] == "9":
            route.continue_(url=url.removesuffix(after[0]))
        else:
            route.fulfill(json={**empty, "next": str(int(after[1]) + 1)})

    with opened_page(browser, "about:blank") as page:
        page.route(re.compile(r"/api/jobs\?.*q=export"), answer)
        page.goto(f"{served.url}/?q=export")
        expect(tab(page, "Finished")).to_contain_text("5,000+")
        assert page.get_by_text("No job matches").is_hidden()
        held[0].fulfill(json={**empty, "next": "1"})
        expect(page.get_by_role("link", name="Good export", exact=True)).to_be_visible()


def test_only_visible_rows_exist_and_keys_reach_all(page: Page) -> None:
    expect_rows(page, RUNNING + 3)
    assert rows(page).count() < 60
    page.keyboard.press("ArrowDown")
    expect(rows(page).first).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator(":focus")).to_have_attribute("aria-rowindex", str(RUNNING + 4))
    expect(row(page, "Broken mirror")).to_be_in_viewport()
    for key, index in (("ArrowUp", RUNNING + 3), ("Home", 2), ("ArrowDown", 3)):
        page.keyboard.press(key)
        expect(page.locator(":focus")).to_have_attribute("aria-rowindex", str(index))
    focused = page.locator(":focus")
    name = focused.get_by_role("link").first.text_content()
    page.mouse.wheel(0, 1500)
    expect(row(page, "Copy c075")).to_be_in_viewport()
    expect(focused.get_by_role("link").first).to_have_text(name or "")  # it keeps the focus outside of the window
    page.keyboard.press("PageDown")
    expect(page.locator(":focus")).to_be_in_viewport()
    assert page.locator("[role=row][tabindex='0']").count() == 1
    link = page.locator(":focus").get_by_role("link").first
    assert re.fullmatch(r"jobs/[0-9a-f-]{36}", link.get_attribute("href") or "")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Open the job")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("[role=row]:focus")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/jobs/[0-9a-f-]{36}$"))


def test_a_page_older_than_the_daemon_loads_itself_again(browser: Browser, served: ServedDaemon) -> None:
    """Let a module of the page be gone, as after an update of the daemon, and stay so after the reload."""
    gone = re.compile(r"/static/v-[\w-]+/(cards|lazy)\.js(\?|$)")

    def answer(route: Route) -> None:
        if route.request.method == "HEAD" or "cards" in route.request.url:
            route.fulfill(status=404)
        else:
            route.continue_()

    with opened_page(browser, "about:blank", "status of 404") as page:
        page.route(gone, answer)
        page.goto(served.url)
        expect(rows(page).first).to_be_visible()
        page.evaluate("document.body.dataset.old = ''")
        page.get_by_text("View", exact=True).click()
        page.get_by_role("radio", name="cards", exact=True).click()
        expect(page.locator("body[data-old]")).to_have_count(0)
        expect(page.get_by_text("The server was updated. Reload the page.").first).to_be_visible()
        page.unroute_all()
        expect(page.locator(".job").first).to_be_visible()


def test_an_open_page_offers_a_reload_after_an_update(browser: Browser, served: ServedDaemon) -> None:
    with opened_page(browser, "about:blank", "status of 404") as page:
        sockets: list[WebSocketRoute] = []

        def connect(route: WebSocketRoute) -> None:
            sockets.append(route)
            route.connect_to_server()

        page.route_web_socket(re.compile("/ws/jobs"), connect)
        page.goto(served.url)
        expect(page.locator("[data-connection=live]")).to_be_visible()
        page.locator("#options summary").click()
        number = page.locator("#options .number").first
        number.fill("123")
        page.route(re.compile(r"/static/v-[\w-]+/lazy\.js\?"), lambda route: route.fulfill(status=404))
        sockets[0].close(code=1001)
        page.get_by_role("button", name="Reload the page").click()
        expect(page.locator("[data-connection=live]")).to_be_visible()
        expect(page.get_by_role("button", name="Reload the page")).to_be_hidden()
        expect(number).to_have_value("123")


DAMAGED = """
for (const name of ['stars', 'view', 'cancel', 'language', 'keys', 'upload / 1', 'pipeline /']) {
  localStorage.setItem(`progressd-${name}`, '{"');
}
localStorage.setItem('progressd-upload / 2', '{"id": 2}');
sessionStorage.setItem('progressd-key', 'a\\nb');
sessionStorage.setItem('progressd-typed', '[');
"""


def test_damaged_choices_in_the_browser_do_not_break_the_page(browser: Browser, served: ServedDaemon) -> None:
    with opened_page(browser, served.url, script=DAMAGED) as page:
        expect(page.locator("[data-connection=live]")).to_be_visible()
        expect(page.locator(".job").first).to_be_visible()
        expect(page.locator("#options .number").first).to_be_attached()
        page.get_by_role("link", name="Statistics").click()
        expect(page.locator("#tiles")).to_contain_text("Running")


def test_changes_reach_the_rows_and_the_numbers(page: Page, served: ServedDaemon) -> None:
    page.get_by_role("searchbox").fill("copy c119")
    expect_rows(page, 1)
    report(served, event("progress", 119, current_step=77, total_steps=100, step_name="Nearly"))
    copy = row(page, "Copy c119")
    expect(copy).to_contain_text("77%")
    expect(copy.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "77")
    report(served, created(600, "Copy c1199 is new"))
    expect_rows(page, 2)
    tab(page, "Running").click()
    expect_rows(page, 1)
    report(served, event("progress", 600, current_step=1, total_steps=2))
    expect_rows(page, 2)
    report(served, event("completed", 600))
    expect_rows(page, 1)
    tab(page, "Finished").click()
    done = row(page, "Copy c1199 is new")
    confirm(done.get_by_role("button", name="Delete"))
    expect(page.get_by_text("No job matches")).to_be_visible()


def test_a_cancellation_can_be_undone(page: Page, served: ServedDaemon) -> None:
    asked = list[str]()

    def note(request: Request) -> None:
        if request.method == "DELETE":
            asked.append(request.url)

    page.on("request", note)
    page.get_by_role("searchbox").fill("copy c00")
    expect_rows(page, 10)
    row(page, "Copy c005").get_by_role("button", name="Cancel").click()
    expect(row(page, "Copy c005")).to_contain_text("Cancelling…")
    page.get_by_role("button", name="Undo").click()
    expect(row(page, "Copy c005")).to_contain_text("Running")
    row(page, "Copy c005").focus()
    page.keyboard.press("c")
    expect(row(page, "Copy c005")).to_contain_text("Cancelling…")
    page.keyboard.press("z")
    expect(row(page, "Copy c005")).to_contain_text("Running")
    row(page, "Copy c009").get_by_role("checkbox").click()
    row(page, "Copy c007").get_by_role("checkbox").click(modifiers=["Shift"])
    bar = page.get_by_role("toolbar")
    expect(bar).to_contain_text("3 jobs selected")
    expect(bar.get_by_role("button", name="Retry")).to_be_disabled()
    bar.get_by_role("button", name="Cancel").click()
    expect(bar).to_be_hidden()
    assert asked == []
    page.goto("about:blank")  # cancels them at once
    for number in (7, 8, 9):
        assert served.ended(job_id(number))["status"] == "cancelled"
    assert served.job(job_id(5))["status"] == "processing"


def test_several_jobs_are_deleted_and_failures_are_one_sentence(page: Page, served: ServedDaemon) -> None:
    for number in (701, 702, 703):
        report(served, created(number, f"Old {number}"), event("error", number, message="No."))
    page.get_by_role("searchbox").fill("old 70")
    expect_rows(page, 3)
    row(page, "Old 703").focus()
    page.keyboard.press("Control+a")
    bar = page.get_by_role("toolbar")
    expect(bar).to_contain_text("3 jobs selected")
    page.keyboard.press("Escape")
    expect(bar).to_be_hidden()
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowDown")
    expect(bar).to_contain_text("2 jobs selected")
    page.route(re.compile("purge=true"), lambda route: route.fulfill(status=409, json={"error": "It is in use."}))
    bar.get_by_role("button", name="Delete", exact=True).click()
    expect(bar.get_by_role("button", name="Really delete?", exact=True)).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_text("2 jobs were not deleted: It is in use.")).to_be_visible()
    page.unroute_all()
    page.keyboard.press("Control+a")
    expect_rows(page, 3)
