"""Jobs over REST: their fields, lists, registration, cancellation and retries."""

import re
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from msgspec.structs import replace
from progressd.core.eta import KeyedRun, Run, key_of
from progressd.core.event_limits import MAX_STEP_NAME
from progressd.core.messages import JobStatus
from progressd.core.pipeline import Pipeline
from progressd.http.list_query import list_query, token_of
from progressd.store.base import Position, Sort
from progressd.store.sqlite import SQLiteStore
from support.daemon import (
    PATIENCE,
    RunningDaemon,
    completed,
    failed,
    progress,
    registered,
    running_daemon,
    status_change,
)
from support.http_client import client_of, error_of
from support.samples import ID, job_id
from support.submitting import PDF, ended, run, running_job, shell, submit
from support.waiting import alive, eventually
from trio.testing import wait_all_tasks_blocked
from werkzeug.datastructures import MultiDict

ALWAYS = {"id", "job_id", "status", "kind", "options", "progress", "created_at", "attempt", "labels", "cursor"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


async def job_of(client: httpx.AsyncClient, job_id: str = ID) -> dict[str, Any]:
    response = await client.get(f"/api/jobs/{job_id}")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert None not in body.values(), "what is not known is absent, not null"
    assert body["id"] == body["job_id"] == job_id
    return body


def is_now(text: str) -> bool:
    """Return whether this is the current time in UTC."""
    return TIME.fullmatch(text) is not None and abs(datetime.now(UTC) - datetime.fromisoformat(text)) < timedelta(
        minutes=1
    )


async def test_a_job_has_its_fields_in_each_state(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    given = {
        "kind": "scan",
        "name": "Scan of a book",
        "input_filename": "book.pdf",
        "total_steps": 12,
        "options": {"dpi": 300},
        "labels": {"by": "eve"},
    }
    await daemon.report(registered(ID, **given))
    queued = await job_of(client)
    assert queued.keys() == ALWAYS | {"name", "input_filename"}
    assert is_now(queued["created_at"])
    assert {name: queued[name] for name in given if name != "total_steps"} == {
        name: value for name, value in given.items() if name != "total_steps"
    }
    assert (queued["status"], queued["attempt"]) == ("queued", 1)
    assert queued["progress"] == {"current_step": 0, "total_steps": 12, "step_name": "", "percent": 0}
    await daemon.report(progress(ID, 5, 12, "AI Upscaling"))
    processing = await job_of(client)
    assert processing.keys() == queued.keys() | {"started_at", "progress_at", "steps"}
    assert (processing["status"], is_now(processing["started_at"])) == ("processing", True)
    assert processing["progress"].pop("eta_seconds", 0) >= 0
    assert processing["progress"] == {"current_step": 5, "total_steps": 12, "step_name": "AI Upscaling", "percent": 41}
    result = {"output_path": f"/api/jobs/{ID}/download", "page_count": 12, "elapsed_seconds": 45.2}
    await daemon.report(completed(ID, **result))
    done = await job_of(client)
    assert done.keys() == processing.keys() - {"progress_at"} | {"completed_at", *result}
    assert {name: done[name] for name in result} == result
    assert (done["status"], done["progress"]["percent"], is_now(done["completed_at"])) == ("completed", 100, True)


async def test_unknown_fields_are_absent(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID))
    body = await job_of(client)
    assert body.keys() == ALWAYS
    assert (body["kind"], body["options"], body["labels"]) == ("job", {}, {})
    await daemon.report(status_change(ID, "processing"), completed(ID))
    body = await job_of(client)
    assert body.keys() == ALWAYS | {"started_at", "completed_at", "elapsed_seconds"}
    assert 0 <= body["elapsed_seconds"] < 60  # measured
    await daemon.report(registered(job_id(2)), failed(job_id(2), "Pipeline error: no paper"))
    body = await job_of(client, job_id(2))
    assert body.keys() == ALWAYS | {"completed_at", "error"}
    assert (body["status"], body["error"]) == ("failed", "Pipeline error: no paper")


async def test_a_silent_job_is_stalled(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    registered = await client.post("/api/jobs", json={"id": ID, "lease_seconds": 1, "total_steps": 12})
    assert registered.json()["lease_seconds"] == 1
    await daemon.report(progress(ID, 5, 12))
    body = await job_of(client)
    while "stalled" not in body["progress"]:
        body = await job_of(client)
    assert body["progress"] == {"current_step": 5, "total_steps": 12, "step_name": "", "percent": 41, "stalled": True}
    assert body["created_at"] <= body["progress_at"]
    assert body["status"] == "processing"
    await daemon.report(progress(ID, 6, 12))
    assert "stalled" not in (await job_of(client))["progress"]


@pytest.mark.parametrize("end", [completed(ID), failed(ID, "no paper")])
async def test_a_finished_job_is_deleted_with_its_files(
    end: dict[str, object], daemon: RunningDaemon, client: httpx.AsyncClient
) -> None:
    await daemon.report(registered(ID), progress(ID, 5, 12))
    files = daemon.daemon.files.input(ID).parent
    files.mkdir()
    rejected = await client.delete(f"/api/jobs/{ID}?purge=true")
    assert (rejected.status_code, rejected.json()["error"]) == (
        409,
        f"job {ID} is processing: only finished jobs can be deleted, so cancel it first",
    )
    await daemon.report(end)
    deleted = await client.delete(f"/api/jobs/{ID}?purge=true")
    assert (deleted.status_code, deleted.json()["id"]) == (200, ID)
    assert (await client.get(f"/api/jobs/{ID}")).status_code == 404
    assert (await client.delete(f"/api/jobs/{ID}?purge=true")).status_code == 404
    assert (await client.get("/api/jobs")).json()["total"] == 0
    assert not files.exists()
    assert (await daemon.report(progress(ID, 6, 12)))[0]["error"] == f"no job {ID}"


async def test_a_finished_job_has_no_remaining_time(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for number, end in enumerate((completed(ID), failed(ID, "no paper"), status_change(ID, "cancelled"))):
        job = job_id(number)
        await daemon.report(registered(job), progress(job, 5, 12))
        await daemon.report(progress(job, 6, 12))  # separately, so that time passes
        assert (await client.get(f"/api/jobs/{job}")).json()["progress"]["eta_seconds"] >= 0
        await daemon.report({**end, "job_id": job})
        assert "eta_seconds" not in (await client.get(f"/api/jobs/{job}")).json()["progress"]
    assert "eta_seconds" not in (await client.get("/api/jobs")).text


async def test_output_path_is_a_url(tmp_path: Path) -> None:
    copy = Pipeline(("cp", "{input}", "{output}"))
    async with running_daemon(tmp_path, pipelines={"pdf": copy}) as daemon, client_of(daemon) as client:
        done = await run(daemon, "pdf")
        body = await job_of(client, done.id)
        assert body["output_path"] == f"/api/jobs/{done.id}/download"
        assert str(tmp_path) not in (await client.get(f"/api/jobs/{done.id}")).text


async def test_a_watcher_resumes_from_a_jobs_cursor(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), progress(ID, 5))
    cursor = (await job_of(client))["cursor"]
    await daemon.report(progress(ID, 6))
    async with daemon.watch(f"/ws/jobs/{ID}?since={cursor}") as watcher:
        assert (await watcher.receive())["data"]["current_step"] == 6


async def test_ids_ignore_case(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID))
    for method in ["GET", "DELETE"]:
        response = await client.request(method, f"/api/jobs/{ID.upper()}")
        assert (response.status_code, response.json()["id"]) == (200, ID)


ENDPOINTS = [("GET", ""), ("DELETE", ""), ("POST", "/retry"), ("GET", "/download"), ("HEAD", "/download")]
MALFORMED = [
    "nonsense",
    "123",
    ID[:-1],
    ID + "0",
    ID.replace("-", ""),
    "{" + ID + "}",
    "%20" + ID,
    ID + "%0A",
    "%00",
    "ä" * 36,
]


async def test_a_malformed_id_returns_400(client: httpx.AsyncClient) -> None:
    for method, rest in [*ENDPOINTS, ("POST", "/events")]:
        for text in MALFORMED:
            response = await client.request(method, f"/api/jobs/{text}{rest}")
            assert response.status_code == 400, text
            if method != "HEAD":
                assert "is not a job id" in error_of(response)


async def test_an_unknown_id_returns_404(client: httpx.AsyncClient) -> None:
    for method, rest in ENDPOINTS:
        response = await client.request(method, f"/api/jobs/{job_id(9)}{rest}")
        assert response.status_code == 404
        if method != "HEAD":
            assert error_of(response) == f"no job {job_id(9)}"


async def some_jobs(daemon: RunningDaemon) -> None:
    """Report jobs 1 to 6, in all states and of two kinds."""
    answers = await daemon.report(
        registered(job_id(1), kind="scan", labels={"by": "eve"}),
        registered(job_id(2), kind="ocr", labels={"by": "bob", "a=b": "c=d"}),
        registered(job_id(3), kind="scan", labels={"by": "eve"}),
        registered(job_id(4), kind="scan"),
        registered(job_id(5), kind="ocr", labels={"by": "eve"}),
        registered(job_id(6), kind="scan", labels={"by": ""}),
        progress(job_id(2), 1),
        progress(job_id(3), 1),
        completed(job_id(3)),
        failed(job_id(4), "no paper"),
        status_change(job_id(5), "cancelled"),
        progress(job_id(6), 1),
        completed(job_id(6)),
    )
    assert all(answer["ok"] for answer in answers)


async def numbers_at(client: httpx.AsyncClient, path: str) -> list[int]:
    """Return the numbers of the listed jobs, in order."""
    response = await client.get(path)
    assert response.status_code == 200, response.text
    body = response.json()
    more = (
        {"next"}
        if body["offset"] + len(body["jobs"]) < body["total"] and "after=" not in path
        else body.keys() & {"next"}
    )
    assert body.keys() == {"jobs", "total", "limit", "offset"} | more
    numbers = [int(one["id"][-12:], 16) for one in body["jobs"]]
    if len(numbers) < body["limit"] and body["offset"] == 0:
        assert body["total"] == len(numbers)
    return numbers


async def test_jobs_are_listed_newest_first(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await some_jobs(daemon)
    for query, numbers in [
        ("", [6, 5, 4, 3, 2, 1]),
        ("?status=queued", [1]),
        ("?status=processing", [2]),
        ("?status=completed", [6, 3]),
        ("?kind=scan", [6, 4, 3, 1]),
        ("?label=by=eve", [5, 3, 1]),
        ("?label=by=", [6]),
        ("?kind=scan&label=by=eve&status=completed", [3]),
        ("?limit=2&offset=3", [3, 2]),
        ("?offset=6", []),
        ("?offset=9007199254740992", []),
        ("?status=completed&limit=1&offset=1", [3]),
        ("?limit=&offset=&status=&kind=&label=", [6, 5, 4, 3, 2, 1]),
        ("?status=queued&status=processing", [2, 1]),
        ("?status=completed,failed&kind=scan", [6, 4, 3]),
        ("?sort=created&limit=4&offset=1", [2, 3, 4, 5]),
        ("?label=by=bob&label=by=bob", [2]),
        ("?label=by=bob&label=by=eve", []),
    ]:
        assert await numbers_at(client, f"/api/jobs{query}") == numbers


async def test_the_history_lists_finished_jobs(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await some_jobs(daemon)
    for query, numbers in [
        ("", [6, 5, 4, 3]),
        ("?status=failed", [4]),
        ("?status=queued", []),
        ("?status=processing", []),
        ("?limit=1&offset=2", [4]),
        ("?kind=ocr", [5]),
    ]:
        assert await numbers_at(client, f"/api/jobs/history{query}") == numbers


async def test_a_list_has_its_limit_offset_and_total(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await some_jobs(daemon)
    body = (await client.get("/api/jobs?limit=2&offset=1")).json()
    assert {**body, "jobs": len(body["jobs"])} == {
        "jobs": 2,
        "total": 6,
        "limit": 2,
        "offset": 1,
        "next": body["next"],
    }
    default = (await client.get("/api/jobs/history")).json()
    assert (default["limit"], default["offset"], default["total"]) == (50, 0, 4)
    most = (await client.get("/api/jobs?limit=1000000")).json()
    assert most["limit"] == 1000


@pytest.mark.parametrize("query", ["sort=-created", "sort=created", "status=completed,failed&kind=scan"])
async def test_the_token_leads_to_the_next_page(query: str, daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await some_jobs(daemon)
    expected = await numbers_at(client, f"/api/jobs?{query}")
    walked, after = list[int](), ""
    while True:
        page = (await client.get(f"/api/jobs?{query}&limit=2{after}")).json()
        walked += [int(one["id"][-12:], 16) for one in page["jobs"]]
        if "next" not in page:
            break
        after = f"&after={page['next']}"
    assert walked == expected


async def test_a_list_has_counts(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await some_jobs(daemon)
    for query, counts in [
        ("", {"running": 1, "waiting": 1, "attention": 1, "done": 4, "all": 6}),
        ("&status=failed&limit=1", {"running": 1, "waiting": 1, "attention": 1, "done": 4, "all": 6}),
        ("&kind=ocr", {"running": 1, "waiting": 0, "attention": 0, "done": 1, "all": 2}),
        ("&kind=scan&label=by=eve", {"running": 0, "waiting": 1, "attention": 0, "done": 1, "all": 2}),
    ]:
        assert (await client.get(f"/api/jobs?counts=true{query}")).json()["counts"] == counts
    history = (await client.get("/api/jobs/history?counts=true")).json()["counts"]
    assert history == {"running": 0, "waiting": 0, "attention": 1, "done": 4, "all": 4}


def test_the_longest_name_fits_into_a_token() -> None:
    position = Position(2**53, "図" * MAX_STEP_NAME)  # of a file
    given = MultiDict({"sort": "name", "after": token_of(position, Sort.NAME)})
    assert list_query(given, None).paging.after == position


async def test_jobs_are_searched_by_words(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await some_jobs(daemon)
    for query, numbers in [
        ("q=scan", [6, 4, 3, 1]),
        ("q=SCAN%20EVE", [3, 1]),
        ("q=no%20paper", [4]),
        ("q=c&q=", [6, 5, 4, 3, 2, 1]),
        ("q=scan&label=by=eve&status=completed", [3]),
        (f"q={job_id(5)}", [5]),
        ("q=eve&sort=created", [1, 3, 5]),
        ("sort=-finished", [6, 5, 4, 3]),
        ("sort=-updated", [6, 5, 4, 3, 2, 1]),
        ("sort=name&limit=3", [2, 5, 1]),
    ]:
        assert await numbers_at(client, f"/api/jobs?{query}") == numbers, query
    counts = (await client.get("/api/jobs?q=eve&counts=true&status=queued")).json()
    assert (counts["total"], counts["counts"]) == (
        1,
        {"running": 0, "waiting": 1, "attention": 0, "done": 2, "all": 3},
    )


async def test_jobs_that_need_attention_are_listed(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await some_jobs(daemon)
    assert await numbers_at(client, "/api/jobs?attention=true") == [4]
    parts = daemon.daemon
    slow = parts.registry.unfinished[job_id(2)]
    assert slow.started_at is not None
    parts.forecasts.add([KeyedRun(key_of(slow), Run((), 20.0, 0, ()))])
    parts.forecasts.finish([slow], [])  # its estimate was made without this run
    parts.registry.unfinished[slow.id] = replace(slow, started_at=slow.started_at - timedelta(minutes=5))
    await client.post("/api/jobs", json={"id": job_id(7), "kind": "ocr", "lease_seconds": 1})
    found = await numbers_at(client, "/api/jobs?attention=true")
    while found != [7, 4, 2]:
        found = await numbers_at(client, "/api/jobs?attention=true")
    assert await numbers_at(client, "/api/jobs?attention=true&kind=ocr&sort=created") == [2, 7]
    assert await numbers_at(client, "/api/jobs?attention=true&status=processing") == [2]
    assert await numbers_at(client, "/api/jobs?attention=true&sort=-updated&q=ocr") == [7, 2]
    body = (await client.get("/api/jobs?counts=true&kind=ocr")).json()
    assert body["counts"] == {"running": 1, "waiting": 1, "attention": 2, "done": 1, "all": 3}
    assert [one["progress"].get("slow") for one in body["jobs"]] == [None, None, True]
    response = await client.get(f"/api/jobs/{slow.id}")
    assert response.json()["progress"]["slow"] is True
    await daemon.report(completed(slow.id))
    done = await client.get(f"/api/jobs/{slow.id}", headers={"If-None-Match": response.headers["ETag"]})
    assert "slow" not in done.json()["progress"]


async def test_a_page_of_large_jobs_ends_early(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    many, large = 150, {"a": "x" * 60_000}
    await daemon.report(*[registered(job_id(number), options=large) for number in range(1, many + 1)])
    listed, pages = list[str](), list[int]()
    while len(listed) < many:
        response = await client.get(f"/api/jobs?limit=1000&offset={sum(pages)}")
        assert len(response.content) < 5 * 2**20
        page = response.json()
        assert (page["total"], page["offset"]) == (many, sum(pages))
        listed += [job["id"] for job in page["jobs"]]
        pages.append(page["limit"])
    assert listed == [job_id(number) for number in range(many, 0, -1)]
    assert (pages[0], pages[1], pages[2]) == (69, 69, 1000)


async def test_too_large_options_are_rejected(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    large = {"a": ["x"] * 20_000}
    rejected = await client.post("/api/jobs", json={"options": large})
    assert (rejected.status_code, error_of(rejected)) == (400, "the options are larger than 64 KiB")
    [line] = await daemon.report(registered(ID, options=large))
    assert (line["ok"], line["status"], line["error"]) == (False, 400, error_of(rejected))


async def test_a_list_has_unsaved_progress(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    for step in range(2, 20):
        await daemon.report(progress(ID, step))
        [listed] = (await client.get("/api/jobs")).json()["jobs"]
        assert listed["progress"]["current_step"] == step
        assert listed == await job_of(client)


async def test_an_invalid_query_is_rejected(client: httpx.AsyncClient) -> None:
    for query, named in [
        ("limit=0", "limit"),
        ("limit=many", "limit"),
        ("offset=-1", "offset"),
        ("offset=99999999999999999999", "offset"),
        ("status=asleep", "status"),
        ("label=by", "label 'by' is not of the form NAME=VALUE"),
        ("label==eve", "label '=eve' is not of the form NAME=VALUE"),
        (
            "status=queued,asleep",
            "there is no status 'asleep' (known: queued, processing, completed, failed, cancelled)",
        ),
        ("sort=size", "sort"),
        ("counts=maybe", "counts"),
        ("kind=a&kind=b", "kind is given 2 times"),
        ("after=newest", "after 'newest' is not the next of a page"),
        ("after=newest.99999999999999999", "is not the next of a page"),
        ("sort=created&after=newest.1", "after is from a list in another order than created"),
        (f"q={'+'.join('abcdefghijk')}", "q has more than 10 words"),
        (f"q={'a' * 201}", "q"),
        ("q=a%00", "q contains the control character"),
        ("attention=perhaps", "attention"),
        ("sort=name&after=name.1.%C3%A4", "is not the next of a page"),
        ("after=newest.1&offset=1", "after and offset exclude each other"),
    ]:
        for path in ["/api/jobs", "/api/jobs/history"]:
            response = await client.get(f"{path}?{query}")
            assert response.status_code == 400
            assert named in error_of(response)


async def test_a_job_is_registered_once(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    given = {"id": ID, "kind": "scan", "input_filename": "book.pdf", "total_steps": 12, "labels": {"by": "eve"}}
    first = await client.post("/api/jobs", json=given)
    assert first.status_code == 201
    assert first.json() == await job_of(client)
    assert first.json()["progress"]["total_steps"] == 12
    again = await client.post("/api/jobs", json={"id": ID.upper(), "kind": "another"})
    assert (again.status_code, again.json()) == (200, first.json())
    await daemon.report(failed(ID, "no paper"))
    again = await client.post("/api/jobs", json={"id": ID})
    assert (again.status_code, again.json()["status"]) == (200, "failed")


async def test_a_job_without_an_id_gets_one(client: httpx.AsyncClient) -> None:
    for body in [b"", b"{}", b'{"kind":"scan","unknown":1}']:
        made = [await client.post("/api/jobs", content=body) for _ in range(2)]
        assert [one.status_code for one in made] == [201, 201]
        first, second = (one.json()["id"] for one in made)
        assert first != second
        assert (await job_of(client, first))["status"] == "queued"


async def test_an_invalid_job_is_rejected(client: httpx.AsyncClient) -> None:
    for body, named in [
        (b"{", ""),
        (b"[]", "object"),
        (b"\xff", ""),
        (b'{"id":7}', "id"),
        (b'{"id":"x"}', "'x' is not a job id"),
        (b'{"kind":""}', "kind"),
        (b'{"kind":"%b"}' % (b"x" * 201), "kind"),
        (b'{"total_steps":-1}', "total_steps"),
        (b'{"options":[]}', "options"),
        (b'{"options":{"a":' + b"[" * 40 + b"]" * 40 + b"}}", "options"),
        (b'{"options":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", ""),
        (b'{"labels":{"by":1}}', "labels"),
        (b'{"name":""}', "name"),
        (b'{"name":"%b"}' % (b"x" * 256), "name"),
        (b'{"input_filename":"%b"}' % (b"x" * 1001), "input_filename"),
    ]:
        response = await client.post("/api/jobs", content=body)
        assert response.status_code == 400
        sentence = error_of(response)
        assert named in sentence
        assert len(sentence) < 300
        assert (await client.get("/api/jobs")).json()["total"] == 0


async def test_a_queued_job_is_cancelled(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID))
    response = await client.delete(f"/api/jobs/{ID}")
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    assert response.json() == await job_of(client)
    assert response.json().keys() == ALWAYS | {"completed_at"}


async def test_cancelling_ends_the_program(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pipelines = {"pdf": shell(f"echo $$ > {pids}.part; mv {pids}.part {pids}; sleep 1000")}
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon, client_of(daemon) as client:
        submitted = await submit(daemon, "pdf")
        await eventually(pids.exists)
        child = int(await trio.Path(pids).read_text())
        response = await client.delete(f"/api/jobs/{submitted}")
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")
        await eventually(lambda: not alive(child))


async def test_a_finished_job_cannot_be_cancelled(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    ends = {"completed": completed(ID), "failed": failed(ID, "no"), "cancelled": status_change(ID, "cancelled")}
    for number, (end, event) in enumerate(ends.items()):
        job = job_id(number)
        await daemon.report(registered(job), progress(job, 1), {**event, "job_id": job})
        before = await job_of(client, job)
        response = await client.delete(f"/api/jobs/{job}")
        assert (response.status_code, error_of(response)) == (409, f"job {job} is already {end}")
        assert await job_of(client, job) == before


async def test_a_failed_job_can_be_retried(tmp_path: Path) -> None:
    good = tmp_path / "good"
    pipelines = {"pdf": shell(f"test -e {good}")}
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon, client_of(daemon) as client:
        first = await submit(daemon, "pdf", options={"dpi": 150})
        assert (await ended(daemon, first)).status is JobStatus.FAILED
        before = await job_of(client, first)
        good.touch()
        response = await client.post(f"/api/jobs/{first}/retry")
        assert response.status_code == 200
        assert response.json().keys() == {"job_id", "status", "message"}
        assert response.json()["status"] == "queued"
        again = await ended(daemon, response.json()["job_id"])
        assert again.id != first
        assert (again.status, again.kind, again.pipeline) == (JobStatus.COMPLETED, "pdf", "pdf")
        assert (again.input_filename, again.options, again.attempt) == ("book.pdf", {"dpi": 150}, 1)
        assert daemon.daemon.files.input(again.id).read_bytes() == PDF
        assert await job_of(client, first) == before


async def test_a_job_that_has_not_failed_cannot_be_retried(tmp_path: Path) -> None:
    go = tmp_path / "go"
    pipelines = {"pdf": shell(f"until [ -e {go} ]; do sleep 0.01; done")}
    async with (
        running_daemon(tmp_path, pipelines=pipelines, runner={"concurrency": 1}) as daemon,
        client_of(daemon) as client,
    ):
        first, second = await submit(daemon, "pdf"), await submit(daemon, "pdf")
        await eventually(lambda: daemon.daemon.registry.known(first).status == "processing")  # type: ignore[union-attr]

        async def retry(job: str, state: str) -> None:
            response = await client.post(f"/api/jobs/{job}/retry")
            assert response.status_code == 409
            assert error_of(response) == f"job {job} is {state}: only failed or cancelled jobs can be retried"

        await retry(first, "processing")
        await retry(second, "queued")
        go.touch()
        await ended(daemon, first)
        await retry(first, "completed")
        assert (await client.get("/api/jobs")).json()["total"] == 2


async def test_a_producers_job_cannot_be_retried(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), failed(ID, "no"))
    response = await client.post(f"/api/jobs/{ID}/retry")
    assert response.status_code == 409
    assert error_of(response) == f"job {ID} is not run by the daemon: only its producer can retry it"


async def test_a_job_without_its_input_cannot_be_retried(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, pipelines={"pdf": shell("false")}) as daemon, client_of(daemon) as client:
        done = await run(daemon, "pdf")
        await daemon.daemon.files.remove([done.id])
        response = await client.post(f"/api/jobs/{done.id}/retry")
        assert (response.status_code, error_of(response)) == (409, f"the input of job {done.id} is gone")
        assert (await client.get("/api/jobs")).json()["total"] == 1
        assert list((daemon.settings.state_dir / "jobs").iterdir()) == []


async def test_a_stopping_daemon_accepts_no_retry(tmp_path: Path) -> None:
    go = tmp_path / "go"
    pipelines = {"bad": shell("false"), "slow": shell(f"until [ -e {go} ]; do sleep 0.01; done")}
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon:
        done = await run(daemon, "bad")
        await running_job(daemon, "slow")
        daemon.kill()
        await eventually(lambda: not daemon.daemon.services.ready)
        async with client_of(daemon) as client:
            response = await client.post(f"/api/jobs/{done.id}/retry")
            assert response.status_code == 503
            assert (await client.get(f"/api/jobs/{done.id}")).status_code == 200, "it still answers"
        go.touch()
        with trio.fail_after(PATIENCE):
            await daemon.stopped.wait()


async def test_concurrent_registrations_return_201_once(client: httpx.AsyncClient) -> None:
    statuses: list[int] = []

    async def register() -> None:
        statuses.append((await client.post("/api/jobs", json={"id": ID})).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(register)
    assert sorted(statuses) == [200] * 7 + [201]


@pytest.mark.parametrize("named", [False, True])
async def test_jobs_that_are_registered_together_share_a_commit(tmp_path: Path, named: bool) -> None:
    statuses: list[int] = []
    patient = partial(SQLiteStore.open, busy_timeout=PATIENCE)
    async with (
        running_daemon(tmp_path, open_store=patient) as daemon,
        client_of(daemon) as client,
        trio.open_nursery() as nursery,
    ):

        async def register() -> None:
            body = {"id": str(uuid.uuid4())} if named else {}
            statuses.append((await client.post("/api/jobs", json=body)).status_code)

        with closing(sqlite3.connect(daemon.settings.state_dir / "progressd.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # blocks the first write
            with trio.fail_after(PATIENCE):
                while not daemon.daemon.ingest.queued:  # the first ones share a write
                    nursery.start_soon(register)
                    await wait_all_tasks_blocked(0.01)
    assert set(statuses) == {201}
