"""Jobs on pages of other sites: the elements and their messages."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, Route, WebSocketRoute, expect
from support import keys
from support.samples import job_id
from support.serving import ServedDaemon, served_daemon
from support.site import site

from .conftest import opened_page

JOB, OTHER, LOGGED = job_id(81), job_id(82), job_id(83)
COPY = """
[pipelines.copy]
command = ["cp", "{input}", "{output}"]
"""

# Submit two files with the module, and show their batch.
SUBMIT = """async ([url, key]) => {
  const { submit } = await import(`${url}/static/progressd.js`);
  const files = ['a.pdf', 'b.pdf'].map((name) => new File([`%PDF-1.7 ${name}`], name));
  const sent = [];
  const onprogress = ({ loaded, total }) => sent.push(loaded / total);
  const { batch_id: batch } = await submit(url, files, { pipeline: 'copy', labels: { team: 'a' }, key, onprogress });
  document.body.append(Object.assign(document.createElement('progressd-batch'), { batch, key }));
  return [batch, sent.at(-1)];
}"""


class Embedding(NamedTuple):
    """A daemon that requires a key, and a site that it allows."""

    daemon: ServedDaemon
    key: str
    origin: str
    pages: dict[str, str]

    def post(self, path: str, **body: Any) -> Any:
        """Send a request with the key."""
        response = self.daemon.request("POST", path, json=body, headers=keys.bearer(self.key))
        assert response.is_success, response.text
        return response.json()

    def token(self, id_: str) -> str:
        """Make a watch token."""
        return str(self.post(f"/api/jobs/{id_}/token")["token"])

    def show(self, tags: str, path: str = "/") -> str:
        """Make a page with the module and these tags, and return its address."""
        script = f'<script type="module" src="{self.daemon.url}/static/progressd.js"></script>'
        self.pages[path] = f'<!doctype html><html lang="en"><title>Site</title>{script}{tags}'
        return self.origin + path


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedding]:
    state_dir = tmp_path_factory.mktemp("embedding") / "state"
    key = keys.add(state_dir / "keys.json", "site", "read", "write")
    with site() as (origin, pages):
        config = f'[server]\nallowed_origins = ["{origin}"]\n[auth]\nrequired = true\n{COPY}'
        with served_daemon(state_dir, config=config) as daemon:
            yield Embedding(daemon, key, origin, pages)


def test_a_log_takes_a_key_and_its_own_language(browser: Browser, embedding: Embedding) -> None:
    embedding.post("/api/jobs", id=LOGGED, kind="import")
    embedding.post(f"/api/jobs/{LOGGED}/events", type="log", data={"text": "Reading invoices"})
    url = embedding.show(f'<progressd-log job="{LOGGED}" key="{embedding.key}" lang="ja"></progressd-log>')
    with opened_page(browser, url) as page:
        log = page.locator("progressd-log")
        expect(log).to_contain_text("Reading invoices")
        expect(log.get_by_placeholder("検索")).to_be_visible()


def test_two_lines_show_a_job(browser: Browser, embedding: Embedding) -> None:
    embedding.post("/api/jobs", id=JOB, kind="import", name="Import of 12 files")
    embedding.pages["/token.txt"] = embedding.token(JOB)
    renewed = f'<progressd-job id="renewed" job="{JOB}" token-url="/token.txt" compact></progressd-job>'
    url = embedding.show(f'<progressd-job job="{JOB}" token="{embedding.token(JOB)}"></progressd-job>{renewed}')
    with opened_page(browser, url) as page:
        element = page.locator("progressd-job").first
        expect(element).to_contain_text("Import of 12 files")
        page.evaluate("addEventListener('progressd-end', ({ detail }) => { window.ended = detail.status })")
        bar = element.get_by_role("progressbar", name="Progress of Import of 12 files")
        data = {"current_step": 5, "total_steps": 12, "step_name": "Reading invoices"}
        embedding.post(f"/api/jobs/{JOB}/events", type="progress", data=data)
        expect(bar).to_have_attribute("aria-valuenow", "41")
        expect(element).to_contain_text("Reading invoices · 5 of 12")
        embedding.post(f"/api/jobs/{JOB}/events", type="completed")
        expect(element).to_have_attribute("data-status", "completed")
        expect(page.locator("#renewed")).to_have_attribute("data-status", "completed")
        page.wait_for_function("window.ended === 'completed'")


def test_a_site_that_is_not_allowed_sees_why(browser: Browser, embedding: Embedding) -> None:
    embedding.post("/api/jobs", id=JOB)
    tag = f'<progressd-job job="{JOB}" token="{embedding.token(JOB)}"></progressd-job>'
    embedding.show(tag)
    with site() as (origin, pages):
        pages["/"] = embedding.pages["/"]
        with opened_page(browser, origin, "blocked by CORS policy", "WebSocket", "ERR_FAILED") as page:
            status = page.get_by_role("status")
            expect(status).to_contain_text(f"does not show its jobs on pages of {origin}.")
            expect(status).to_contain_text("server.allowed_origins")


def test_an_element_waits_for_a_server_that_is_away(browser: Browser, embedding: Embedding) -> None:
    embedding.post("/api/jobs", id=OTHER, kind="export", name="Export")
    url = embedding.show(f'<progressd-job job="{OTHER}" key="{embedding.key}"></progressd-job>')
    away = [True]

    def answer(route: Route) -> None:
        route.abort() if away else route.continue_()

    def connect(route: WebSocketRoute) -> None:
        if away:
            route.close(code=1011)
        else:
            route.connect_to_server()

    with opened_page(browser, "about:blank", "ERR_FAILED", "WebSocket") as page:
        page.route(re.compile("/api/|fallback"), answer)
        page.route_web_socket(re.compile("/ws/"), connect)
        page.goto(url)
        expect(page.get_by_role("status")).to_contain_text("cannot be reached")
        away.clear()
        expect(page.locator("progressd-job")).to_contain_text("Export")
        expect(page.get_by_role("status")).to_be_hidden()


def test_a_frame_shows_a_job_on_allowed_sites_only(browser: Browser, embedding: Embedding) -> None:
    embedding.post("/api/jobs", id=OTHER, kind="export", name="Export")
    frame = f'<iframe title="Job" src="{embedding.daemon.url}/embed/{OTHER}#token={embedding.token(OTHER)}"></iframe>'
    with opened_page(browser, embedding.show(frame)) as page:
        job = page.frame_locator("iframe").locator("progressd-job")
        expect(job).to_contain_text("Export")
        expect(job).to_have_attribute("data-status", "queued")
    with site() as (origin, pages), opened_page(browser, "about:blank", "frame-ancestors") as page:
        pages["/"] = frame
        with page.expect_event("console", lambda message: "frame-ancestors" in message.text):
            page.goto(origin)


def test_a_page_submits_files_and_shows_their_batch(browser: Browser, embedding: Embedding) -> None:
    with opened_page(browser, embedding.show("")) as page:
        batch, sent = page.evaluate(SUBMIT, [embedding.daemon.url, embedding.key])
        assert sent == 1
        element = page.locator("progressd-batch")
        expect(element).to_have_attribute("data-status", "completed")
        expect(element).to_contain_text("2 files")
        expect(element.get_by_role("progressbar", name="Progress of 2 files")).to_have_attribute("aria-valuenow", "100")
        expect(element.get_by_role("listitem")).to_have_text(["a.pdfDone", "b.pdfDone"])
        assert element.get_attribute("batch") == batch
