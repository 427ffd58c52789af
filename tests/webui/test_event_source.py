"""EventSource and fetch in a browser."""

from playwright.sync_api import Page, expect
from support.samples import job_id
from support.serving import ServedDaemon
from support.waiting import until

COLLECT = """id => new Promise(done => {
    const messages = window.messages = [], source = new EventSource(`/api/jobs/${id}/events`)
    source.onmessage = event => messages.push([event.lastEventId, JSON.parse(event.data)])
    source.onerror = () => source.readyState === EventSource.CLOSED && done(messages)
})"""
WAIT = """async id => {
    const job = await (await fetch(`/api/jobs/${id}`)).json()
    return (await fetch(`/api/jobs/${id}?since=${job.cursor}&wait=20`)).json()
}"""


def report(served: ServedDaemon, id_: str, **event: object) -> None:
    assert served.request("POST", f"/api/jobs/{id_}/events", json=event).status_code == 200


def registered(served: ServedDaemon, number: int) -> str:
    id_ = job_id(number)
    assert served.request("POST", "/api/jobs", json={"id": id_}).status_code in (200, 201)
    return id_


def test_an_event_source_receives_each_message_once(page: Page, served: ServedDaemon) -> None:
    id_ = registered(served, 71)
    page.evaluate(f"void (window.received = ({COLLECT})('{id_}'))")
    until(lambda: page.evaluate("window.messages.length") > 0)  # otherwise `hello` may come later, or not at all
    for step in (1, 2, 3):
        report(served, id_, type="progress", data={"current_step": step, "total_steps": 3})
    report(served, id_, type="completed")
    received = page.evaluate("window.received")  # after the browser has reconnected and got 204
    assert [message["type"] for _, message in received if message["type"] != "progress"] == [
        *("hello", "status_change", "status_change", "completed")
    ]
    assert [message["data"]["current_step"] for _, message in received if message["type"] == "progress"][-1] == 3
    assert [id_ for id_, _ in received] == [message["cursor"] for _, message in received]


def test_a_long_poll_returns_the_next_change(page: Page, served: ServedDaemon) -> None:
    id_ = registered(served, 72)
    with page.expect_request("**/api/jobs/*wait=20"):
        page.evaluate(f"void (window.waited = ({WAIT})('{id_}'))")
    report(served, id_, type="progress", data={"current_step": 1, "total_steps": 3})
    assert page.evaluate("window.waited")["status"] == "processing"
    report(served, id_, type="completed")


def test_the_reference_page_opens_without_errors(page: Page, served: ServedDaemon) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    page.goto(f"{served.url}/api/docs")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360  # fits a phone
    page.get_by_role("link", name="POST /api/convert").click()
    expect(page).to_have_url(f"{served.url}/api/docs#convert.convert")
