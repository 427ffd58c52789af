"""`limits.max_stored_bytes`: the total size of the files of jobs."""

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from msgspec.structs import replace
from progressd.config.settings import Settings
from structlog.testing import capture_logs
from support.daemon import PATIENCE, RunningDaemon, running_daemon, settings_in
from support.http_client import FORM_TYPE, client_of, error_of, file_part, form, post_form, post_pieces
from support.submitting import COPY, PDF, ended, python, shell
from support.waiting import eventually

KIB = 1024
PIPELINES = {
    "copy": python(COPY, result=True, accept=("*/*",)),
    "fail": shell("echo no paper >&2; exit 1", accept=("*/*",)),
    "true": shell("true", accept=("*/*",)),
}


def pieces_of(body: bytes) -> Iterator[bytes]:
    return (body[start : start + 16 * KIB] for start in range(0, len(body), 16 * KIB))


async def submitted(daemon: RunningDaemon, client: httpx.AsyncClient, size: int, pipeline: str = "true") -> str:
    """Submit a file of this size and wait for the end of its job. Returns the id."""
    answer = await post_form(client, file_part(PDF.ljust(size)), pipeline=pipeline)
    assert answer.status_code == 202
    return (await ended(daemon, answer.json()["job_id"])).id


def left(directory: Path) -> set[str]:
    """Return the names of the files of jobs and uploads."""
    state_dir = directory / "state"
    return {path.name for name in ("jobs", "uploads") for path in (state_dir / name).iterdir()}


async def stored(client: httpx.AsyncClient) -> int:
    """Return the size in the metrics."""
    lines = (await client.get("/api/metrics")).text.splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("progressd_job_files_bytes"))))


@pytest.mark.parametrize(
    ("path", "names", "sizes", "told"), [("convert", "file", [600], True), ("batch", "files", [200] * 3, False)]
)
async def test_uploads_above_the_quota_return_507(
    tmp_path: Path, path: str, names: str, sizes: list[int], told: bool
) -> None:
    given: Any = {"max_stored_bytes": 1000 * KIB}
    async with running_daemon(tmp_path, limits=given, pipelines=PIPELINES) as daemon, client_of(daemon) as client:
        first = await submitted(daemon, client, 500 * KIB)
        body = form(*[file_part(PDF.ljust(size * KIB), name=names) for size in sizes])
        headers = {**FORM_TYPE, **({"Content-Length": str(len(body))} if told else {})}
        with capture_logs() as logs:
            rejected = await post_pieces(client, f"/api/{path}?pipeline=true", pieces_of(body), headers)
        assert rejected.status_code == 507
        [line] = [line for line in logs if line["event"] == "request rejected"]
        assert (line["log_level"], line["path"]) == ("info", f"/api/{path}")
        sentence = error_of(rejected)
        assert "of the 1000 KiB allowed (delete finished jobs to make room)" in sentence
        await eventually(lambda: left(tmp_path) == {first})
        assert await stored(client) == 500 * KIB
        assert (await client.delete(f"/api/jobs/{first}?purge=true")).status_code == 200
        assert await stored(client) == 0
        assert (await post_pieces(client, f"/api/{path}?pipeline=true", pieces_of(body), headers)).status_code == 202
        assert await stored(client) == 600 * KIB


async def test_concurrent_uploads_stay_within_the_quota(tmp_path: Path) -> None:
    given: Any = {"max_stored_bytes": 1000 * KIB}
    async with running_daemon(tmp_path, limits=given, pipelines=PIPELINES) as daemon, client_of(daemon) as client:
        body, answers, most = form(file_part(PDF.ljust(400 * KIB))), Counter[int](), list[int]()

        def pieces() -> Iterator[bytes]:
            for piece in pieces_of(body):
                most.append(daemon.daemon.files.usage.total)
                yield piece

        async def submit(headers: dict[str, str]) -> None:
            answers[(await post_pieces(client, "/api/convert?pipeline=true", pieces(), headers)).status_code] += 1

        async with trio.open_nursery() as nursery:
            for length in ({}, {"Content-Length": str(len(body))}):
                for _ in range(3):
                    nursery.start_soon(submit, {**FORM_TYPE, **length})
        assert answers.keys() <= {202, 507}
        assert answers[507] >= 4
        assert max(most) <= 1000 * KIB
        assert await stored(client) == answers[202] * 400 * KIB


async def test_an_interrupted_upload_frees_its_bytes(tmp_path: Path) -> None:
    given: Any = {"max_stored_bytes": 1000 * KIB}
    async with running_daemon(tmp_path, limits=given, pipelines=PIPELINES) as daemon:
        head = "\r\n".join(
            [
                "POST /api/convert?pipeline=true HTTP/1.1",
                "Host: progressd",
                *[f"{name}: {value}" for name, value in FORM_TYPE.items()],
                "Transfer-Encoding: chunked",
                "\r\n",
            ]
        )
        body = form(file_part(PDF.ljust(800 * KIB)))[: 700 * KIB]
        async with await daemon.connect() as stream:
            with trio.fail_after(PATIENCE):
                await stream.send_all(head.encode() + f"{len(body):x}\r\n".encode() + body + b"\r\n")
            await eventually(lambda: daemon.daemon.files.usage.receiving > 600 * KIB)
            async with client_of(daemon) as client:
                assert await stored(client) > 600 * KIB
                assert (await post_form(client, file_part(PDF.ljust(500 * KIB)), pipeline="true")).status_code == 507
        await eventually(lambda: daemon.daemon.files.usage.total == 0)
        await eventually(lambda: left(tmp_path) == set())


async def test_a_result_counts_but_is_never_rejected(tmp_path: Path) -> None:
    given: Any = {"max_stored_bytes": 500 * KIB}
    async with running_daemon(tmp_path, limits=given, pipelines=PIPELINES) as daemon, client_of(daemon) as client:
        first = await submitted(daemon, client, 300 * KIB, "copy")
        assert len((await client.get(f"/api/jobs/{first}/download")).content) == 300 * KIB
        assert await stored(client) == 600 * KIB
        health = (await client.get("/api/health")).json()
        assert health["status"] == "degraded"
        assert "the files of all jobs take 600 KiB of the 500 KiB allowed" in health["error"]
        assert (await client.get("/api/health/ready")).status_code == 200
        assert (await post_form(client, file_part(), pipeline="true")).status_code == 507
        await client.delete(f"/api/jobs/{first}?purge=true")
        assert (await client.get("/api/health")).json()["status"] == "healthy"


async def test_a_retry_counts_but_is_never_rejected(tmp_path: Path) -> None:
    given: Any = {"max_stored_bytes": 500 * KIB}
    async with running_daemon(tmp_path, limits=given, pipelines=PIPELINES) as daemon, client_of(daemon) as client:
        first = await submitted(daemon, client, 300 * KIB, "fail")
        complaint = len("no paper\n") + len("2026-01-31T12:00:00.123Z stderr 9\nno paper\n")  # stderr, and the log
        await eventually(lambda: daemon.daemon.files.usage.bytes == 300 * KIB + complaint)
        assert await stored(client) == 300 * KIB + complaint
        again = await client.post(f"/api/jobs/{first}/retry")
        assert again.status_code == 200
        await ended(daemon, again.json()["job_id"])
        await eventually(lambda: daemon.daemon.files.usage.bytes == 600 * KIB + complaint + len("no paper\n"))


async def test_the_next_daemon_counts_existing_files(tmp_path: Path) -> None:
    given: Any = {"max_stored_bytes": 700 * KIB}
    async with running_daemon(tmp_path, limits=given, pipelines=PIPELINES) as daemon, client_of(daemon) as client:
        first = await submitted(daemon, client, 300 * KIB, "copy")
    async with running_daemon(tmp_path, limits=given, pipelines=PIPELINES) as daemon, client_of(daemon) as client:
        await eventually(lambda: daemon.daemon.files.usage.bytes == 600 * KIB)
        assert (await post_form(client, file_part(PDF.ljust(200 * KIB)), pipeline="true")).status_code == 507
        await client.delete(f"/api/jobs/{first}?purge=true")
        await submitted(daemon, client, 200 * KIB)
        assert await stored(client) == 200 * KIB


async def test_a_reload_changes_the_quota(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "state", PIPELINES)
    most = 0

    def read() -> Settings:
        return replace(settings, limits=replace(settings.limits, max_stored_bytes=most))

    async with (
        running_daemon(tmp_path, read_settings=read, pipelines=PIPELINES) as daemon,
        client_of(daemon) as client,
    ):
        await submitted(daemon, client, 300 * KIB)
        for most, status in ((300 * KIB, 507), (0, 202)):
            daemon.kill(signal.SIGHUP)
            await eventually(lambda most=most: daemon.daemon.settings.limits.max_stored_bytes == most)
            assert (await post_form(client, file_part(), pipeline="true")).status_code == status
