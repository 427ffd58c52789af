"""What clients of the converter that came before rely on, row by row: every old name is there, and nothing is null.

A row may have fields added to it, but none taken away: whoever changes one breaks somebody's script.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import pytest
from http_client import client_of
from progressd.config import Pipeline
from progressd.config.settings import BUILT_IN
from samples import job_id
from submitting import PDF

from daemon import RunningDaemon, completed, failed, progress, registered, running_daemon

QUEUED, RUNNING, DONE, FAILED, UNKNOWN = map(job_id, range(1, 6))
IDLE = Pipeline(("sleep", "60"), options=BUILT_IN["pdf"].options)
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
JOB = "id job_id status options progress input_filename created_at"


class Row(NamedTuple):
    """A request and its answer. `fields`: with a dot for those within; `absent`: what is not known yet."""

    request: str
    status: int
    fields: str
    absent: str = ""
    values: Mapping[str, object] = MappingProxyType({})


ROWS = [
    Row("POST /api/convert", 202, "job_id status created_at", values={"status": "queued"}),
    Row(
        f"GET /api/jobs/{QUEUED}",
        200,
        JOB + " progress.current_step progress.total_steps progress.step_name progress.percent",
        "output_path started_at completed_at error",
        {"id": QUEUED, "job_id": QUEUED, "status": "queued", "input_filename": "a.pdf"},
    ),
    Row(f"GET /api/jobs/{RUNNING}", 200, f"{JOB} started_at", "output_path completed_at error"),
    Row(
        f"GET /api/jobs/{DONE}",
        200,
        f"{JOB} started_at completed_at output_path",
        "error",
        {"output_path": f"/api/jobs/{DONE}/download", "progress.percent": 25},
    ),
    Row(f"GET /api/jobs/{FAILED}", 200, f"{JOB} started_at completed_at error", "output_path", {"error": "no paper"}),
    Row("GET /api/jobs/me", 400, "error"),
    Row(f"GET /api/jobs/{UNKNOWN}", 404, "error"),
    Row(f"PUT /api/jobs/{QUEUED}", 405, "error"),
    Row(f"DELETE /api/jobs/{RUNNING}", 200, f"{JOB} started_at completed_at", values={"status": "cancelled"}),
    Row(f"DELETE /api/jobs/{DONE}", 409, "error"),
    Row(f"DELETE /api/jobs/{UNKNOWN}", 404, "error"),
    Row(f"GET /api/jobs/{UNKNOWN}/download", 404, "error"),
    *(Row(f"GET /api/jobs/{job}/download", 409, "error") for job in (QUEUED, RUNNING, FAILED)),
    Row("POST /api/jobs/CANCELLED/retry", 200, "job_id status message", values={"status": "queued"}),
    Row(f"POST /api/jobs/{DONE}/retry", 409, "error"),
    Row(
        "GET /api/jobs/history?limit=50&offset=0&status=",
        200,
        "jobs total limit offset",
        values={"limit": 50, "total": 2},
    ),
    Row("GET /api/jobs/history?status=failed", 200, "jobs total limit offset", values={"total": 1}),
    Row("GET /api/jobs?limit=1", 200, "jobs total limit offset", values={"limit": 1, "total": 4}),
    Row("POST /api/batch", 202, "batch_id status job_count created_at", values={"status": "queued", "job_count": 2}),
    Row(
        "GET /api/batch/BATCH",
        200,
        "batch_id status progress.completed progress.processing progress.pending progress.failed progress.total"
        " created_at",
        "completed_at",
        {"progress.total": 2},
    ),
    Row(
        "GET /api/batch/BATCH/jobs",
        200,
        "batch_id jobs.job_id jobs.filename jobs.status jobs.progress.percent jobs.progress.step_name",
        "jobs.download_url",
    ),
    Row(
        "DELETE /api/batch/BATCH",
        200,
        "batch_id status cancelled_jobs completed_jobs",
        values={"status": "cancelled", "cancelled_jobs": 2, "completed_jobs": 0},
    ),
    Row(f"GET /api/batch/{UNKNOWN}", 404, "error"),
    Row("GET /api/health", 200, "status version tools", values={"status": "healthy"}),
    Row("GET /api/health/live", 200, "status"),
    Row("GET /api/health/ready", 200, "status"),
    Row(
        "GET /api/stats",
        200,
        "server.version server.uptime_seconds server.started_at jobs.total_jobs jobs.completed_jobs jobs.failed_jobs"
        " jobs.active_jobs jobs.queued_jobs jobs.avg_processing_time jobs.total_pages_processed batches.total"
        " batches.completed batches.processing system.memory_used_mb system.worker_count system.websocket_connections",
        values={"jobs.total_jobs": 4, "jobs.completed_jobs": 1, "jobs.total_pages_processed": 12},
    ),
    Row(
        "GET /api/stats/jobs",
        200,
        "total_jobs completed_jobs failed_jobs active_jobs queued_jobs avg_processing_time total_pages_processed",
        values={"active_jobs": 1, "queued_jobs": 1, "failed_jobs": 1},
    ),
    Row("GET /api/stats/system", 200, "memory_used_mb worker_count websocket_connections", values={"worker_count": 2}),
    Row(
        "GET /api/auth/status",
        200,
        "authenticated auth_required message",
        values={"authenticated": False, "auth_required": False},
    ),
]


class World:
    """A daemon with a job in each state, and what makes the other things that a row is about."""

    def __init__(self, daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
        self.daemon = daemon
        self.client = client

    async def ask(self, row: str) -> httpx.Response:
        method, _, path = row.partition(" ")
        if "CANCELLED" in path:
            job = (await self.convert()).json()["job_id"]
            await self.client.delete(f"/api/jobs/{job}")
            path = path.replace("CANCELLED", job)
        if "BATCH" in path:
            path = path.replace("BATCH", (await self.submit_batch()).json()["batch_id"])
        match row:
            case "POST /api/convert":
                return await self.convert()
            case "POST /api/batch":
                return await self.submit_batch()
        return await self.client.request(method, path)

    async def convert(self) -> httpx.Response:
        options = {"dpi": 300, "deskew": True, "upscale": True, "ocr": False, "advanced": False}
        return await self.client.post(
            "/api/convert", files={"file": ("a.pdf", PDF)}, data={"options": json.dumps(options)}
        )

    async def submit_batch(self) -> httpx.Response:
        files = [("files[]", ("a.pdf", PDF)), ("files[]", ("b.pdf", PDF))]
        return await self.client.post("/api/batch", files=files, data={"options": '{"priority": "high"}'})


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with (
        running_daemon(tmp_path, pipelines={"pdf": IDLE}, shutdown={"wait_for_jobs": False}) as daemon,
        client_of(daemon) as client,
    ):
        await daemon.report(
            registered(QUEUED, input_filename="a.pdf"),
            *(registered(job, kind="pdf", input_filename="a.pdf") for job in (RUNNING, DONE, FAILED)),
            *(progress(job, 3, 12, "AI Upscaling") for job in (RUNNING, DONE, FAILED)),
            completed(DONE, output_path=f"/api/jobs/{DONE}/download", page_count=12),
            failed(FAILED, "no paper"),
        )
        yield World(daemon, client)


def at(body: Any, field: str) -> list[Any]:
    """What is there under a name, of each item where there are several; nothing where it is absent."""
    found = [body]
    for name in field.split("."):
        items = [item for value in found for item in (value if isinstance(value, list) else [value])]
        found = [item[name] for item in items if name in item]
    return found


def nulls(body: Any) -> bool:
    match body:
        case dict():
            return any(map(nulls, body.values()))
        case list():
            return any(map(nulls, body))
    return body is None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.request} {row.status}")
async def test_the_row_holds(world: World, row: Row) -> None:
    response = await world.ask(row.request)
    body = response.json()
    assert response.status_code == row.status, body
    assert [field for field in row.fields.split() if not at(body, field)] == []
    assert [field for field in row.absent.split() if at(body, field)] == []
    assert {field: at(body, field)[0] for field in row.values} == dict(row.values)
    assert not nulls(body)
    if response.status_code >= 400:
        assert isinstance(body["error"], str)
    for name in ("created_at", "started_at", "completed_at"):
        assert all(re.fullmatch(TIME, time) for time in at(body, name))


async def test_a_job_with_a_file_has_its_download(tmp_path: Path) -> None:
    copy = Pipeline(("cp", "{input}", "{output}"), output="result.pdf")
    async with running_daemon(tmp_path, pipelines={"pdf": copy}) as daemon, client_of(daemon) as client:
        job = (await client.post("/api/convert", files={"file": ("Mein Buch.pdf", PDF)})).json()["job_id"]
        await daemon.daemon.registry.wait_finished(job)
        path = (await client.get(f"/api/jobs/{job}")).json()["output_path"]
        assert path == f"/api/jobs/{job}/download"
        response = await client.get(path)
        part = await client.get(path, headers={"Range": "bytes=0-3"})
    assert (response.headers["Content-Type"], response.headers["Content-Length"]) == ("application/pdf", str(len(PDF)))
    assert response.headers["Content-Disposition"] == 'attachment; filename="Mein Buch.pdf"'
    assert (part.status_code, part.content) == (206, PDF[:4])
