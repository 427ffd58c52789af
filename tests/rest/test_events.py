"""Producers over HTTP: one event or many, for one job or any, and what each is answered."""

import json
from itertools import repeat
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_client import client_of, error_of, post_pieces
from progressd.config import Pipeline
from progressd.core.status import JobStatus
from progressd.rest import events as module
from samples import ID, job_id

from daemon import RunningDaemon, completed, failed, progress, registered, running_daemon, status_change

LINES = {"Content-Type": "application/x-ndjson"}
OTHER = job_id(2)


def lines(*events: Any) -> bytes:
    """Events as lines; bytes are left as they are."""
    return b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in events)


def answers_in(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def without_id(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "job_id"}


async def test_one_event_is_answered_with_where_it_stands(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for event in (registered(ID), status_change(ID, "processing", "queued"), progress(ID, 5, 12), completed(ID)):
        response = await client.post("/api/events", json=event)
        assert response.status_code == 200
        job = await daemon.daemon.registry.get(ID)
        assert response.json() == {"ok": True, "cursor": daemon.daemon.history.cursor(job.offset), "job_id": ID}
    assert job.status is JobStatus.COMPLETED


async def test_a_new_job_without_an_id_is_answered_with_its_id(
    daemon: RunningDaemon, client: httpx.AsyncClient
) -> None:
    response = await client.post("/api/events", json={"type": "job_created", "data": {"kind": "scan"}})
    assert (await daemon.daemon.registry.get(response.json()["job_id"])).kind == "scan"


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "text/plain", None])
async def test_what_is_not_said_to_be_lines_is_one_event(
    daemon: RunningDaemon, client: httpx.AsyncClient, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = await client.post("/api/events", content=json.dumps(registered(ID), indent=4), headers=headers)
    assert response.json()["ok"]


async def test_an_event_for_a_job_need_not_name_it(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    url = f"/api/jobs/{ID}/events"
    for event in (registered(ID, kind="scan"), progress(ID, 3, 4), completed(ID)):
        response = await client.post(url.replace(ID, ID.upper()), json=without_id(event))
        assert (response.status_code, response.json()["job_id"]) == (200, ID)
    job = await daemon.daemon.registry.get(ID)
    assert (job.kind, job.status, job.progress.percent) == ("scan", JobStatus.COMPLETED, 75)


async def test_an_event_for_one_job_cannot_be_about_another(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), registered(OTHER))
    refused = await client.post(f"/api/jobs/{ID}/events", json=progress(OTHER, 1))
    assert refused.status_code == 400
    assert error_of(refused) == f"the event is about job '{OTHER}', not {ID}"
    many = await client.post(
        f"/api/jobs/{ID}/events", content=lines(progress(OTHER, 1), progress(ID, 1)), headers=LINES
    )
    assert [answer["ok"] for answer in answers_in(many)] == [False, True]
    assert (await daemon.daemon.registry.get(OTHER)).status is JobStatus.QUEUED


@pytest.mark.parametrize(
    ("event", "status", "sentence"),
    [
        (progress(ID, 1), 409, "is already completed: progress comes too late"),
        (failed(ID, "no"), 409, "is already completed: a failure comes too late"),
        (status_change(ID, "cancelled"), 409, "is already completed: a cancellation comes too late"),
        (status_change(ID, "processing", "queued"), 409, "is completed, not queued"),
        (completed(ID, page_count=9), 409, "is already completed: a completion comes too late"),
        (status_change(OTHER, "failed"), 409, "a job becomes failed with an event of type 'error'"),
        (completed(OTHER), 409, "must be processing before it can be completed"),
        (completed(OTHER, output_path="/etc/passwd"), 400, "output_path is the URL of the result"),
        (progress(job_id(9), 1), 404, f"no job {job_id(9)}"),
        (progress("me", 1), 400, "'me' is not a job id"),
        ({"type": "dance", "job_id": ID}, 400, "not an event"),
        ({"type": "progress", "job_id": ID, "data": {}}, 400, "not an event"),
        ({"type": "progress", "job_id": ID, "data": {"current_step": "1", "total_steps": 2}}, 400, "not an event"),
        ([], 400, "not an event"),
        (b"{", 400, "not an event"),
        (b"", 400, "not an event"),
        (b"\xff\xfe", 400, "not an event"),
        (b'{"type":"completed","job_id":"%b","x":' % ID.encode() + b"[" * 100_000, 400, "not an event"),
        (lines(progress(OTHER, 1), progress(OTHER, 2)), 400, "not an event"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_one_event_that_does_not_fit_is_refused_and_changes_nothing(
    daemon: RunningDaemon, client: httpx.AsyncClient, event: Any, status: int, sentence: str
) -> None:
    await daemon.report(registered(ID), progress(ID, 1), completed(ID, page_count=3), registered(OTHER))
    before = [await daemon.daemon.registry.get(one) for one in (ID, OTHER)]
    content = event if isinstance(event, bytes) else json.dumps(event).encode()
    refused = await client.post("/api/events", content=content)
    assert refused.status_code == status
    assert sentence in error_of(refused)
    assert [await daemon.daemon.registry.get(one) for one in (ID, OTHER)] == before


async def test_the_same_end_twice_is_accepted(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    first, second = [await client.post("/api/events", json=completed(ID, page_count=3)) for _ in range(2)]
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()


async def test_each_of_many_lines_has_its_answer_in_order(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    body = lines(
        {"ref": "a", **registered(ID)},
        b"\n",
        progress(ID, 1),
        b"not json\n",
        progress(job_id(9), 1),
        {"ref": [7], **completed(ID)},
        {"ref": None, **progress(ID, 2)},
    ).rstrip(b"\n")
    created, moved, bad, unknown, done, late = answers_in(await client.post("/api/events", content=body, headers=LINES))
    assert (created["ref"], created["ok"], created["job_id"]) == ("a", True, ID)
    assert moved.keys() == {"ok", "cursor"}
    assert (bad["ok"], bad["line"]) == (False, 4)
    assert unknown == {"ok": False, "error": f"no job {job_id(9)}", "status": 404, "line": 5}
    assert (done["ref"], done["ok"]) == ([7], True)
    assert (late["ref"], late["ok"], late["line"]) == (None, False, 7)
    assert (await daemon.daemon.registry.get(ID)).status is JobStatus.COMPLETED


async def test_no_lines_have_no_answers(client: httpx.AsyncClient) -> None:
    for body in (b"", b"\n\n"):
        assert answers_in(await client.post("/api/events", content=body, headers=LINES)) == []


async def test_lines_may_be_cut_anywhere(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    body = lines({"ref": 0, **registered(ID, input_filename="Bücher.pdf")}, {"ref": 1, **progress(ID, 1)}, b"x\n")
    pieces = [body[start : start + 7] for start in range(0, len(body), 7)]
    answers = answers_in(await post_pieces(client, "/api/events", pieces, LINES))
    assert [(answer.get("ref"), answer["ok"]) for answer in answers] == [(0, True), (1, True), (None, False)]


async def test_lines_are_seen_by_watchers_before_the_request_has_ended(
    daemon: RunningDaemon, client: httpx.AsyncClient
) -> None:
    head = f"POST /api/events HTTP/1.1\r\nHost: progressd\r\nContent-Type: {LINES['Content-Type']}\r\n"
    async with daemon.watch("/ws/jobs") as watcher, await daemon.connect() as stream:
        await stream.send_all(f"{head}Content-Length: 100000\r\n\r\n".encode() + lines(registered(ID), progress(ID, 1)))
        types = [(await watcher.receive())["type"] for _ in range(3)]
    assert types == ["job_created", "status_change", "progress"]


async def test_a_line_that_is_too_long_is_named_and_the_others_are_taken(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, ingest={"max_line_bytes": 1024}) as daemon, client_of(daemon) as client:
        body = lines(registered(ID), b"x" * 300_000 + b"\n", progress(ID, 1))
        created, long, moved = answers_in(await client.post("/api/events", content=body, headers=LINES))
        assert created["ok"]
        assert long == {"ok": False, "error": "the line has more than 1024 bytes", "status": 400, "line": 2}
        assert moved["ok"]


async def test_one_event_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, ingest={"max_line_bytes": 1024}) as daemon, client_of(daemon) as client:
        for pieces, headers in (([b"x" * 1025], {"Content-Length": "1025"}), (repeat(b"x" * 1000), {})):
            refused = await post_pieces(client, "/api/events", pieces, headers)
            assert refused.status_code == 413
            assert "1024" in error_of(refused) or "1025" in error_of(refused)
        fits = json.dumps(registered(ID)).encode()
        assert (await client.post("/api/events", content=fits.ljust(1024))).status_code == 200


async def test_lines_without_end_are_refused(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAM_MOST", 1_000_000)
    refused = await post_pieces(client, "/api/events", repeat(b" " * 50_000 + b"\n"), LINES)
    assert refused.status_code == 413
    assert "1000000" in error_of(refused)


async def test_answers_do_not_fill_the_memory(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWERS_MOST", 100_000)
    refused = await post_pieces(client, "/api/events", repeat(b"x\n" * 1000), LINES)
    assert refused.status_code == 413
    assert error_of(refused).startswith("too many lines for one request: ")


async def test_ten_thousand_lines_in_one_request(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    body = lines(registered(ID), *(progress(ID, step, 10_000) for step in range(1, 10_001)))
    answers = answers_in(await client.post("/api/events", content=body, headers=LINES))
    assert len(answers) == 10_001
    assert all(answer["ok"] for answer in answers)
    assert (await daemon.daemon.registry.get(ID)).progress.current_step == 10_000


async def test_a_result_is_told_as_a_url_and_never_as_a_path(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    end = {"type": "completed", "data": {"output_path": "/etc/passwd"}}
    response = await client.post(f"/api/jobs/{ID}/events", json=end)
    assert response.status_code == 400
    assert "URL" in response.json()["error"]
    assert (await client.get(f"/api/jobs/{ID}")).json()["status"] == "processing"


async def test_a_producer_cannot_end_a_job_of_the_runner(tmp_path: Path) -> None:
    forever = Pipeline(("{python}", "-c", "import time; time.sleep(60)"), accept=("*/*",))
    async with running_daemon(tmp_path, pipelines={"wait": forever}) as daemon, client_of(daemon) as client:
        submitted = await client.post("/api/convert?pipeline=wait", files={"file": ("a.txt", b"text")})
        path = f"/api/jobs/{submitted.json()['job_id']}"
        response = await client.post(f"{path}/events", json={"type": "error", "data": {"message": "no paper"}})
        assert response.status_code == 409
        assert (await client.delete(path)).json()["status"] == "cancelled"
