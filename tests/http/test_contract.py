"""The REST contract: every field that existing clients rely on, and no null."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from progressd.config.settings import BUILT_IN_PIPELINES
from progressd.core.errors import CODES
from progressd.core.pipeline import Pipeline
from support.contract import DONE, FAILED, QUEUED, ROWS, RUNNING, Row
from support.daemon import RunningDaemon, completed, failed, progress, registered, running_daemon
from support.http_client import client_of
from support.submitting import PDF

IDLE = Pipeline(("sleep", "60"), options=BUILT_IN_PIPELINES["pdf"].options)
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"


class World:
    """A daemon with a job in each state and a batch."""

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
    """Return the values of a dotted name, one for each item of a list; none if it is absent."""
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


READS = [row for row in ROWS if row.request.startswith("GET ") and "BATCH" not in row.request]


async def check(world: World, row: Row) -> None:
    """Check that the daemon answers as the row says."""
    response = await world.ask(row.request)
    body = response.json()
    assert response.status_code == row.status, body
    assert [field for field in row.fields.split() if not at(body, field)] == []
    assert [field for field in row.absent.split() if at(body, field)] == []
    assert {field: at(body, field)[0] for field in row.values} == dict(row.values)
    assert not nulls(body)
    if response.status_code >= 400:
        assert isinstance(body["error"], str)
        assert body["code"] in CODES.values()
    for name in ("created_at", "started_at", "completed_at"):
        assert all(re.fullmatch(TIME, time) for time in at(body, name))


async def test_each_read_of_the_contract_holds(world: World) -> None:
    for row in READS:
        await check(world, row)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row not in READS], ids=lambda row: f"{row.request} {row.status}"
)
async def test_the_row_of_the_contract_holds(world: World, row: Row) -> None:
    await check(world, row)
