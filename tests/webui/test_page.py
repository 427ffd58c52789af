"""The page in a real browser, against the real daemon."""

import json
import re
from pathlib import Path

from playwright.sync_api import Browser, Page, Route, WebSocketRoute, expect
from progressd.http.app import WEBUI
from support.serving import ServedDaemon, served_daemon
from support.waiting import until

from .conftest import CARDS, opened_page

# Report a job of this kind with these events.
REPORT = """async ([kind, ...events]) => {
  const post = (path, body) => fetch(path, {method: 'POST', body: JSON.stringify(body),
                                           headers: {'Content-Type': 'application/json'}});
  const job = await (await post('api/jobs', {kind})).json();
  for (const event of events) await post(`api/jobs/${job.id}/events`, event);
  return job.id;
}"""

REPORT_AGAIN = """([id, event]) => fetch(`api/jobs/${id}/events`, {
  method: 'POST', body: JSON.stringify(event), headers: {'Content-Type': 'application/json'}})"""


def choose(page: Page, path: Path) -> None:
    page.locator("input[type=file]").set_input_files(path)


def progress(step: int, total: int, name: str) -> dict[str, object]:
    return {"type": "progress", "data": {"current_step": step, "total_steps": total, "step_name": name}}


def test_minified_styles_mean_the_same(page: Page) -> None:
    rules = r"""text => {
      const sheet = new CSSStyleSheet();
      sheet.replaceSync(text);
      return [...sheet.cssRules].map(({cssText}) => cssText.replace(/,\s*|\s+/g, (gap) => gap[0].trim() || ' '));
    }"""
    for path in WEBUI.glob("*.css"):
        served = page.evaluate("name => fetch(`static/${name}`).then((response) => response.text())", path.name)
        assert page.evaluate(rules, served) == page.evaluate(rules, path.read_text())


def test_a_scan_is_converted_and_its_result_downloads(page: Page, scan: Path) -> None:
    expect(page.locator("[data-connection=live]")).to_be_visible()
    choose(page, scan)
    done = page.locator(".job[data-status=completed]").first
    expect(done).to_be_visible()
    expect(done.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")
    with page.expect_download() as download:
        done.locator("[data-action=download]").click()
    assert download.value.suggested_filename == scan.name
    assert Path(download.value.path()).read_bytes().startswith(b"%PDF-")


def test_a_broken_file_can_be_retried(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7\nnothing that follows")
    choose(page, broken)
    failed = page.locator(".job[data-status=failed]", has_text="broken.pdf").first
    expect(failed).to_be_visible()
    expect(failed).to_contain_text(re.compile("PDF", re.IGNORECASE))
    failed.locator("[data-action=retry]").click()
    expect(page.locator(".job[data-status=failed]", has_text="broken.pdf")).to_have_count(2)


def test_an_early_file_waits_for_the_auth_status(page: Page, tmp_path: Path) -> None:
    asked: list[Route] = []
    page.route("**/api/auth/status", lambda route: asked.append(route))
    with page.expect_request("**/api/auth/status"):
        page.reload()
    early = tmp_path / "early.pdf"
    early.write_text("Dear Sir or Madam")
    choose(page, early)
    asked[0].continue_()
    expect(page.locator(".job", has_text="early.pdf")).to_contain_text("early.pdf is not a PDF")


def test_a_rejected_file_shows_the_servers_error(page: Page, tmp_path: Path) -> None:
    text = tmp_path / "letter.pdf"
    text.write_text("Dear Sir or Madam")
    choose(page, text)
    rejected = page.locator(".job", has_text="letter.pdf")
    expect(rejected).to_contain_text("letter.pdf is not a PDF")
    expect(rejected).to_contain_text("17 B")
    expect(rejected.locator("[data-action=retry]")).to_be_hidden()
    rejected.locator("[data-action=dismiss]").click()
    expect(rejected).to_have_count(0)
    (tmp_path / "empty.pdf").touch()
    choose(page, tmp_path / "empty.pdf")
    expect(page.locator(".job", has_text="empty.pdf").locator("[data-part=step]")).to_have_text("empty.pdf is empty")


def test_several_files_are_one_batch(page: Page, tmp_path: Path) -> None:
    expect(page.locator("[data-connection=live]")).to_be_visible()
    files = [tmp_path / f"part-{number}.pdf" for number in (10, 1, 2)]
    for file in files:
        file.write_bytes(b"%PDF-1.7\nnothing that follows")
    page.locator("input[type=file]").set_input_files(files)
    batch = page.locator(".batch", has_text="part-10.pdf")
    for _ in ("by the stream", "by REST"):
        expect(batch).to_contain_text("Batch of 3 files")
        expect(batch.locator(".job[data-status=failed] [data-part=name]")).to_have_text(
            ["part-1.pdf", "part-2.pdf", "part-10.pdf"]
        )
        expect(page.locator("#jobs > .job", has_text="part-")).to_have_count(1)
        page.reload()


def test_a_batch_is_asked_for_again_after_a_rejection(browser: Browser, served: ServedDaemon, tmp_path: Path) -> None:
    rejecting: list[bool] = []

    def answer(route: Route) -> None:
        if not rejecting:
            counts = {"completed": 0, "processing": 0, "pending": 2, "failed": 0, "total": 2, "cancelled": 0}
            route.fulfill(json={"batch_id": "", "status": "queued", "priority": "normal", "progress": counts})
            rejecting.append(True)
        elif rejecting[-1]:
            route.fulfill(status=429, json={"error": "rate_limit_exceeded", "message": "too many", "retry_after": 1})
        else:
            route.continue_()

    files = [tmp_path / f"refused-{number}.pdf" for number in (1, 2)]
    for file in files:
        file.write_bytes(b"%PDF-1.7\nnothing that follows")
    with opened_page(browser, served.url, "status of 429", script=CARDS) as page:
        page.route(re.compile("/api/batch/."), answer)
        expect(page.locator("[data-connection=live]")).to_be_visible()
        page.locator("input[type=file]").set_input_files(files)
        batch = page.locator(".batch", has_text="refused-1.pdf")
        expect(batch.locator(".job[data-status=failed]")).to_have_count(2)
        rejecting.append(False)
        expect(batch).to_have_attribute("data-status", "failed")
        expect(batch.locator("[data-action=cancelAll]")).to_be_hidden()


def test_one_rejected_file_does_not_affect_others(page: Page, tmp_path: Path, scan: Path) -> None:
    files = [tmp_path / name for name in ("odd.pdf", "even.pdf", "large.pdf")]
    files[0].write_text("Dear Sir or Madam")
    files[1].write_bytes(scan.read_bytes())
    files[2].write_bytes(scan.read_bytes().ljust(20_000_000))  # still being sent when the first one is rejected
    page.locator("input[type=file]").set_input_files(files)
    expect(page.locator(".job[data-status=failed]", has_text="odd.pdf")).to_contain_text("odd.pdf is not a PDF")
    for name in ("even.pdf", "large.pdf"):
        expect(page.locator(".job[data-job-id]", has_text=name)).to_be_visible()


def test_the_page_reads_events_or_polls_without_websockets(browser: Browser, served: ServedDaemon) -> None:
    with opened_page(browser, served.url, "net::ERR_FAILED", "WebSocket", script=CARDS) as page:
        page.route_web_socket(re.compile(".*"), lambda route: route.close(code=1011))
        with page.expect_request("**/api/events*"):
            page.reload()
        expect(page.locator("[data-connection=live]")).to_be_visible()
        page.route("**/api/events*", lambda route: route.abort())
        page.reload()
        expect(page.locator("[data-connection=polling]")).to_be_visible()
        page.evaluate(REPORT, ["polled", progress(1, 1, "One"), {"type": "completed"}])
        expect(page.locator(".job[data-status=completed]", has_text="polled")).to_be_visible()


def test_a_stream_resumes_from_hello(page: Page) -> None:
    cursors: list[str] = []

    def cut_behind_hello(route: WebSocketRoute) -> None:
        server = route.connect_to_server()

        def pass_on(message: str | bytes) -> None:
            told = json.loads(message)
            if told["type"] != "hello":
                return
            route.send(message)
            if cursors:
                error = "since=" + route.url.partition("since=")[2]
                route.send(json.dumps({"type": "server_status", "data": {"status": "failing", "error": error}}))
            else:
                route.close(code=1001)
            cursors.append(told["cursor"])

        server.on_message(pass_on)

    page.route_web_socket(re.compile("/ws/jobs"), cut_behind_hello)
    page.reload()
    expect(page.locator("#notice")).to_contain_text("since=")
    expect(page.locator("#notice")).to_contain_text(f"since={cursors[0]}.")


def test_new_jobs_appear(page: Page, served: ServedDaemon) -> None:
    expect(page.locator("[data-connection=live]")).to_be_visible()
    page.evaluate(REPORT, ["backup", progress(3, 4, "Copying")])
    backup = page.locator(".job[data-status=processing]", has_text="backup")
    expect(backup).to_contain_text("Copying")
    expect(backup.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "75")


def test_the_job_of_a_producer_has_no_retry(page: Page) -> None:
    expect(page.locator("[data-connection=live]")).to_be_visible()
    page.evaluate(REPORT, ["export"])
    export = page.locator(".job[data-status=queued]", has_text="export")
    expect(export).to_contain_text("Not started yet")
    page.evaluate(REPORT, ["import", {"type": "error", "data": {"message": "The disk is full."}}])
    failed = page.locator(".job[data-status=failed]", has_text="import")
    expect(failed).to_contain_text("The disk is full.")
    expect(failed.locator("[data-action=retry]")).to_be_hidden()
    page.reload()  # the same from REST
    expect(export).to_contain_text("Not started yet")
    expect(failed.locator("[data-action=retry]")).to_be_hidden()


def test_a_stalled_job_is_marked(page: Page) -> None:
    expect(page.locator("[data-connection=live]")).to_be_visible()
    job_id = "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c"
    created = {"type": "job_created", "job_id": job_id, "data": {"kind": "mirror", "lease_seconds": 3}}
    moved = {**progress(1, 4, "Fetching"), "job_id": job_id}
    how = "{method: 'POST', body: lines, headers: {'Content-Type': 'application/x-ndjson'}}"
    send = f"lines => fetch('/api/events', {how})"
    page.evaluate(send, json.dumps(created) + "\n" + json.dumps(moved))
    mirror = page.locator(".job", has_text="mirror")
    expect(mirror).to_contain_text(re.compile("Silent for|Silent"))
    page.evaluate(f"line => void setInterval(() => ({send})(line), 500)", json.dumps(moved))
    expect(mirror).not_to_contain_text(re.compile("Silent for|Silent"))
    expect(mirror).to_have_attribute("data-status", "processing")


def test_the_rate_and_the_tasks_are_shown(page: Page) -> None:
    def task(number: int, current: int, **more: object) -> dict[str, object]:
        given = {"id": f"layer-{number}", "name": f"Layer {number}", "current": current, "total": 2_000_000}
        return {**given, "unit": "B", **more}

    first = {"phase": "Pulling", "unit": "B", "rate": 12_400_000, "tasks": [task(1, 500_000), task(2, 0)]}
    job_id = page.evaluate(REPORT, ["pull", {"type": "progress", "data": first}])
    card = page.locator(f"[data-job-id='{job_id}']")
    expect(card.locator("[data-part=rate]")).to_have_text("12.4 MB/s")
    expect(card.locator("[data-part=step]")).to_have_text("Pulling")
    expect(card.locator("[data-part=figure]")).to_have_text("12%")
    expect(card.locator(".job-tasks li")).to_have_text(["Layer 10.5 of 2.0 MB", "Layer 20.0 of 2.0 MB"])
    more = [task(2, 0, state="failed"), *(task(number, 0) for number in range(3, 13))]
    page.evaluate(REPORT_AGAIN, [job_id, {"type": "progress", "data": {"tasks": more}}])
    expect(card.locator(".job-tasks li")).to_have_count(9)
    expect(card.locator(".job-tasks li").last).to_have_text("and 4 more")
    expect(card.locator(".job-tasks")).not_to_contain_text("Failed")
    page.evaluate(REPORT_AGAIN, [job_id, {"type": "completed"}])
    expect(card.locator(".job-tasks")).to_be_hidden()


def test_an_external_result_is_linked(page: Page) -> None:
    url = "https://files.example/report.pdf?v=1"
    page.evaluate(REPORT, ["remote", progress(1, 1, "One"), {"type": "completed", "data": {"output_path": url}}])
    remote = page.locator(".job[data-status=completed]", has_text="remote")
    for _ in ("by the stream", "by REST"):
        link = remote.get_by_role("link", name="Open result remote")
        expect(link).to_have_attribute("href", url)
        expect(link).to_have_attribute("target", "_blank")
        expect(link).to_have_attribute("rel", "noopener noreferrer")
        assert link.get_attribute("download") is None
        page.reload()


def test_an_unsafe_link_is_hidden(page: Page) -> None:
    shown = """output => import(new URL('static/job-card.js', document.baseURI)).then(({ JobCard }) => {
      const card = new JobCard();
      card.show({id: 'x', kind: 'job', status: 'completed', output_path: output});
      const link = card.element.querySelector('[data-part=download]');
      return link.hidden ? null : link.getAttribute('href');
    })"""
    assert page.evaluate(shown, "https://files.example/x") == "https://files.example/x"
    assert page.evaluate(shown, "/api/jobs/x/download") == "api/jobs/x/download"
    for unsafe in ("javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "javascript://https://x"):
        assert page.evaluate(shown, unsafe) is None


def test_a_failing_store_shows_an_error(page: Page) -> None:
    streams: list[WebSocketRoute] = []

    def listen_in(route: WebSocketRoute) -> None:
        route.connect_to_server()
        streams.append(route)

    def say(**data: str) -> None:
        streams[-1].send(json.dumps({"type": "server_status", "data": data}))

    page.route_web_socket(re.compile("/ws/jobs"), listen_in)
    page.reload()
    expect(page.locator("[data-connection=live]")).to_be_visible()
    say(status="failing", error="cannot write to the database: the disk is full")
    notice = page.locator("#notice")
    expect(notice).to_have_text(
        "The server cannot save changes at the moment: cannot write to the database: the disk is full."
    )
    say(status="healthy")
    expect(notice).to_be_hidden()


def test_the_list_does_not_hide_the_daemons_status(browser: Browser, served: ServedDaemon) -> None:
    away = [True]
    streams: list[WebSocketRoute] = []

    def listen_in(route: WebSocketRoute) -> None:
        route.connect_to_server()
        streams.append(route)

    with opened_page(browser, served.url, "net::ERR_FAILED", script=CARDS) as page:
        page.evaluate(REPORT, ["listed", progress(1, 1, "One"), {"type": "completed"}])
        page.route(re.compile(r"/api/jobs\?"), lambda route: route.abort() if away else route.continue_())
        page.route_web_socket(re.compile("/ws/jobs"), listen_in)
        with page.expect_event("requestfailed"):
            page.reload()
        expect(page.locator("[data-connection=live]")).to_be_visible()
        status = {"status": "failing", "error": "the disk is full"}
        streams[-1].send(json.dumps({"type": "server_status", "data": status}))
        expect(page.locator("#notice")).to_be_visible()
        away.clear()
        expect(page.locator(".job", has_text="listed")).to_be_visible()
        expect(page.locator("#notice")).to_have_text("The server cannot save changes at the moment: the disk is full.")


def test_an_old_key_is_ignored_without_auth(browser: Browser, served: ServedDaemon) -> None:
    with opened_page(browser, served.url, "status of 401") as page:
        page.evaluate("sessionStorage.setItem('progressd-key', 'pgd_old')")
        page.reload()
        expect(page.locator("[data-connection=live]")).to_be_visible()
        expect(page.get_by_role("button", name="Sign out")).to_be_hidden()


def test_deleting_a_job_asks_first(page: Page) -> None:
    page.evaluate(REPORT, ["purge", {"type": "error", "data": {"message": "No."}}])
    failed = page.locator(".job[data-status=failed]", has_text="purge")
    delete = failed.locator("[data-action=delete]")
    delete.click()
    expect(delete).to_have_text("Really delete?")
    page.locator("h1").click()  # cancel the question
    expect(delete).to_have_text("Delete")
    delete.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(failed).to_have_count(0)
    page.reload()
    expect(page.locator("[data-connection=live]")).to_be_visible()
    expect(failed).to_have_count(0)


def test_a_deleted_job_disappears(page: Page, served: ServedDaemon) -> None:
    expect(page.locator("[data-connection=live]")).to_be_visible()
    job_id = page.evaluate(REPORT, ["elsewhere", {"type": "error", "data": {"message": "No."}}])
    failed = page.locator(".job[data-status=failed]", has_text="elsewhere")
    expect(failed).to_have_count(1)
    deleted = served.request("DELETE", f"/api/jobs/{job_id}?purge=true")
    deleted.raise_for_status()
    expect(failed).to_have_count(0)


def test_the_bar_shows_what_is_known(page: Page) -> None:
    page.evaluate(REPORT, ["crawl", progress(7, 0, "Following links")])
    crawl = page.locator(".job[data-status=processing]", has_text="crawl")
    expect(crawl).to_contain_text("Following links · 7")
    expect(crawl).not_to_contain_text(re.compile("of 0|%"))
    expect(crawl.locator("[data-open-ended]")).to_be_visible()
    assert crawl.get_by_role("progressbar").get_attribute("aria-valuenow") is None
    event = {"type": "progress", "data": {"current_step": 0, "total_steps": 0, "step_name": "Copying", "percent": 50}}
    page.evaluate(REPORT, ["mirroring", event])
    copy = page.locator(".job[data-status=processing]", has_text="mirroring")
    expect(copy).to_contain_text("50%")
    expect(copy.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "50")
    expect(copy.locator("[data-open-ended]")).to_have_count(0)
    page.evaluate(REPORT, ["unmeasured", {"type": "status_change", "data": {"new_status": "processing"}}])
    unmeasured = page.locator(".job[data-status=processing]", has_text="unmeasured")
    expect(unmeasured).to_contain_text("Starting")
    expect(unmeasured).not_to_contain_text("%")
    expect(unmeasured.locator("[data-open-ended]")).to_be_visible()


# The time that a card shows for a job with some seconds left.
TIME = """async ([percent, left]) => {
  const { JobCard } = await import(new URL('static/job-card.js', document.baseURI));
  const card = new JobCard(), progress = {percent, current_step: percent, total_steps: 100, step_name: ''};
  const [started_at, ends_at] = [new Date(Date.now() - 10_000).toISOString(), Date.now() + left * 1000];
  card.show({id: 'x', kind: 'job', status: 'processing', started_at, ends_at, progress});
  return card.element.querySelector('[data-part=time]').textContent.replace(/^1\\d s/, '…');
}"""


def test_an_exceeded_estimate_is_hidden(page: Page) -> None:
    assert [page.evaluate(TIME, [percent, 2]) for percent in (44, 90)] == ["…", "… · nearly there"]
    assert page.evaluate(TIME, [44, 12.5]) == "… · 13 s left"


# The remaining time in seconds, its interval, and the text. The command line has the same cases in test_display.py.
REMAINING = (
    (12, 11, 14, "12 s left"),
    (43, 38, 50, "about 45 s left"),
    (20, 10, 40, "10–40 s left"),
    (240, 200, 300, "about 4 min left"),
    (240, 170, 350, "3–6 min left"),
    (70, 20, 200, "up to 3 min left"),
    (9000, 5400, 14400, "1.5–4.0 h left"),
)


def test_an_uncertain_time_is_shown_as_interval(page: Page) -> None:
    code = """cases => import(new URL('static/format.js', document.baseURI))
        .then(({ remaining }) => cases.map(one => remaining(...one)))"""
    assert page.evaluate(code, [case[:3] for case in REMAINING]) == [case[3] for case in REMAINING]


def test_running_jobs_come_first_and_focus_stays(page: Page) -> None:
    def is_in_order() -> bool:
        statuses = page.locator(".job[data-job-id]").evaluate_all("cards => cards.map(card => card.dataset.status)")
        groups = [{"processing": 0, "queued": 1}.get(status, 2) for status in statuses]
        return groups == sorted(groups)

    expect(page.locator("[data-connection=live]")).to_be_visible()
    failure: dict[str, object] = {"type": "error", "data": {"message": "No."}}
    job_id = page.evaluate(REPORT, ["slow"])
    page.evaluate(REPORT, ["running", progress(1, 4, "Going")])
    page.evaluate(REPORT, ["over", failure])
    expect(page.locator(".job[data-status=failed]", has_text="over")).to_be_visible()
    slow = page.locator(f".job[data-job-id='{job_id}']")
    cancel = slow.locator("[data-action=cancel]")
    cancel.focus()
    for event, status in [(progress(1, 2, "Going"), "processing"), (failure, "failed")]:
        until(is_in_order)
        expect(cancel).to_be_focused()
        page.request.post(f"{page.url}api/jobs/{job_id}/events", data=event)
        expect(slow).to_have_attribute("data-status", status)
    until(is_in_order)
    expect(slow).to_be_focused()  # its button has disappeared


def test_the_form_has_the_configured_defaults(page: Page) -> None:
    expect(page.locator("#connection")).to_have_role("status")  # screen readers announce it
    expect(page.locator("input[name=dpi]")).to_have_value("150")
    expect(page.locator("input[name=deskew]")).not_to_be_checked()
    expect(page.locator("input[name=upscale]")).to_be_checked()


def test_the_page_works_below_a_base_path(browser: Browser, tmp_path: Path, scan: Path) -> None:
    config = '[server]\nbase_path = "/progress"\n[pipelines.pdf]\ncommand = ["cp", "{input}", "{output}"]\n'
    with (
        served_daemon(tmp_path / "state", config=config) as daemon,
        opened_page(browser, f"{daemon.url}/progress") as page,
    ):
        expect(page.locator("[data-connection=live]")).to_be_visible()
        assert page.url == f"{daemon.url}/progress/"
        choose(page, scan)
        done = page.locator(".job[data-status=completed]").first
        expect(done).to_be_visible()
        with page.expect_download() as download:
            done.locator("[data-action=download]").click()
        assert download.value.url.startswith(f"{daemon.url}/progress/api/jobs/")
        page.goto(f"{daemon.url}/progress/api/docs")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
