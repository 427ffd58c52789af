"""`GET /api/jobs/:id/download`: names, ranges and missing results."""

import socket
import struct
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

import httpx
import pytest
from progressd.core.events import Registration, SubmitEvent
from progressd.core.messages import JobStatus
from progressd.core.pipeline import Pipeline
from progressd.http.response import attachment
from support.daemon import RunningDaemon, completed, progress, registered, running_daemon
from support.http_client import client_of, error_of, get
from support.samples import job_id
from support.scarcity import no_descriptors_left
from support.submitting import PDF, cancel, ended, python, run, shell, submit
from support.waiting import eventually, open_files
from werkzeug.http import parse_options_header

COPY = Pipeline(("cp", "{input}", "{output}"))
CONTENT = PDF + bytes(range(256)) * 4
MIB = 1 << 20


@asynccontextmanager
async def downloadable(
    directory: Path, pipeline: Pipeline = COPY, content: bytes = CONTENT
) -> AsyncGenerator[tuple[httpx.AsyncClient, str]]:
    """Yield a client and the path of a result."""
    async with running_daemon(directory, pipelines={"pdf": pipeline}) as daemon, client_of(daemon) as client:
        done = await ended(daemon, await submit(daemon, "pdf", content))
        assert done.status is JobStatus.COMPLETED
        assert done.output_path is not None
        yield client, done.output_path


def name_in(response: httpx.Response) -> str:
    """Return the file name (RFC 6266), decoded as browsers do."""
    disposition, options = parse_options_header(response.headers["Content-Disposition"])
    assert disposition == "attachment"
    return options["filename"]


async def test_a_result_has_its_length_and_name(tmp_path: Path) -> None:
    async with downloadable(tmp_path) as (client, url):
        response = await client.get(url)
    assert (response.status_code, response.content) == (200, CONTENT)
    headers = response.headers
    assert headers["Content-Type"] == "application/pdf"
    assert headers["Content-Length"] == str(len(CONTENT))
    assert headers["Content-Disposition"] == 'attachment; filename="book.pdf"'
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "private, no-cache"


async def test_head_returns_the_headers_of_get(tmp_path: Path) -> None:
    async with downloadable(tmp_path) as (client, url):
        whole, head = await client.get(url), await client.head(url)
        of_a_part = await client.head(url, headers={"Range": "bytes=0-0"})  # ranges are only for GET
    for one in (head, of_a_part):
        assert (one.status_code, one.content) == (200, b"")
        for name in ("Content-Type", "Content-Length", "Content-Disposition", "ETag", "Last-Modified", "Accept-Ranges"):
            assert one.headers[name] == whole.headers[name]


NAMES = [
    ("book.pdf", "book.pdf"),
    ("photo.jpeg", "photo.pdf"),
    ('say "hi".pdf', 'say "hi".pdf'),
    ("Bücher — 書 📚.pdf", "Bücher — 書 📚.pdf"),
    ("../../etc/passwd", "passwd.pdf"),
    ("a\r\nX-Evil: yes.pdf", "a__X-Evil: yes.pdf"),
    ("a\0b\x7f.pdf", "a_b_.pdf"),
    ("gpj\u202efdp.pdf", "gpj_fdp.pdf"),
    ("x" * 300, "x" * 300 + ".pdf"),
    (".pdf", ".pdf.pdf"),
    (None, "pdf.pdf"),
]


async def test_the_result_is_named_after_the_input(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, pipelines={"pdf": COPY}) as daemon, client_of(daemon) as client:
        for number, (uploaded, name) in enumerate(NAMES):
            job = job_id(number)
            async with daemon.daemon.files.upload(job) as upload:
                await upload.write(PDF)
                await upload.finish()
                await daemon.daemon.ingest.submit_one(SubmitEvent(job, Registration("pdf", uploaded), "pdf"))
            await ended(daemon, job)
            response = await client.get(f"/api/jobs/{job}/download")
            assert (response.status_code, response.content) == (200, PDF)
            assert name_in(response) == name
            assert "X-Evil" not in response.headers
            assert all(value.isascii() for _, value in response.headers.raw)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("book.pdf", 'attachment; filename="book.pdf"'),
        ("Bücher.pdf", "attachment; filename=\"Bucher.pdf\"; filename*=UTF-8''B%C3%BCcher.pdf"),
        ("書 1.pdf", "attachment; filename=\"_ 1.pdf\"; filename*=UTF-8''%E6%9B%B8%201.pdf"),
        (
            "＂; x=／＼.pdf",
            "attachment; filename=\"_; x=__.pdf\"; filename*=UTF-8''%EF%BC%82%3B%20x%3D%EF%BC%8F%EF%BC%BC.pdf",
        ),
        ('a"b.pdf', "attachment; filename=\"a_b.pdf\"; filename*=UTF-8''a%22b.pdf"),
        ("a\\b.pdf", "attachment; filename=\"a_b.pdf\"; filename*=UTF-8''a%5Cb.pdf"),
        ("it's (1)*.pdf", 'attachment; filename="it\'s (1)*.pdf"'),
        ("ß's*.pdf", "attachment; filename=\"_'s*.pdf\"; filename*=UTF-8''%C3%9F%27s%2A.pdf"),
    ],
)
def test_a_name_has_an_ascii_fallback(name: str, header: str) -> None:
    assert attachment(name) == header


async def test_the_type_follows_the_pipelines_output(tmp_path: Path) -> None:
    types = [
        ("pages.zip", "book.zip", "application/zip"),
        ("text.txt", "book.txt", "text/plain; charset=utf-8"),
        ("page.html", "book.html", "text/html; charset=utf-8"),
        ("data.unknown", "book.unknown", "application/octet-stream"),
        ("result", "book", "application/octet-stream"),
    ]
    pipelines = {output: Pipeline(COPY.command, output=output) for output, _, _ in types}
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon, client_of(daemon) as client:
        for output, name, type_ in types:
            done = await run(daemon, output)
            response = await client.get(f"/api/jobs/{done.id}/download")
            assert (name_in(response), response.headers["Content-Type"]) == (name, type_)
            assert response.content == PDF


RANGES = [
    ("bytes=0-4", 0, 5),
    ("bytes=0-0", 0, 1),
    ("bytes=10-", 10, len(CONTENT)),
    ("bytes=-7", len(CONTENT) - 7, len(CONTENT)),
    (f"bytes=5-{10**12}", 5, len(CONTENT)),
    (f"bytes={len(CONTENT) - 1}-", len(CONTENT) - 1, len(CONTENT)),
]
NO_RANGES = ["pages=1-2", "bytes", "bytes=", "bytes=x-y", "bytes=5-2", "bytes=-", "", "bytes=0-1,5-6", "bytes=0-0,-1"]


async def test_ranges_are_returned(tmp_path: Path) -> None:
    async with downloadable(tmp_path) as (client, url):
        for asked, start, end in RANGES:
            response = await client.get(url, headers={"Range": asked})
            assert (response.status_code, response.content) == (206, CONTENT[start:end]), asked
            assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"
            assert response.headers["Content-Length"] == str(end - start)
        for asked in (f"bytes={len(CONTENT)}-", f"bytes={10**9}-{10**9 + 5}"):  # past the end
            response = await client.get(url, headers={"Range": asked})
            assert (response.status_code, response.headers["Content-Range"]) == (416, f"bytes */{len(CONTENT)}"), asked
            error_of(response)
        for asked in NO_RANGES:
            for method, content in (("GET", CONTENT), ("HEAD", b"")):
                response = await client.request(method, url, headers={"Range": asked})
                assert (response.status_code, response.content) == (200, content), asked
                assert response.headers["Content-Length"] == str(len(CONTENT))
                assert "Content-Range" not in response.headers


async def test_an_unchanged_file_returns_304_or_the_range(tmp_path: Path) -> None:
    async with downloadable(tmp_path) as (client, url):
        whole = await client.get(url)
        etag, modified = whole.headers["ETag"], whole.headers["Last-Modified"]
        for headers in ({"If-None-Match": etag}, {"If-Modified-Since": modified}):
            response = await client.get(url, headers=headers)
            assert (response.status_code, response.content) == (304, b"")
        earlier = format_datetime(parsedate_to_datetime(modified) - timedelta(days=1), usegmt=True)
        for known, status in ((etag, 206), (modified, 206), ('"another"', 200), (earlier, 200)):
            response = await client.get(url, headers={"Range": "bytes=5-", "If-Range": known})
            assert (response.status_code, response.content) == (status, CONTENT[5:] if status == 206 else CONTENT)


async def test_an_empty_result_can_be_downloaded(tmp_path: Path) -> None:
    async with downloadable(tmp_path, Pipeline(("cp", "/dev/null", "{output}"))) as (client, url):
        response = await client.get(url)
    assert (response.status_code, response.content, response.headers["Content-Length"]) == (200, b"", "0")


async def test_a_large_result_is_not_held_in_memory(tmp_path: Path) -> None:
    pipeline = python("import sys; open(sys.argv[2], 'wb').truncate(24 << 20)", result=True)
    size = 0
    async with downloadable(tmp_path, pipeline) as (client, url):
        await client.head(url)
        tracemalloc.start()
        try:
            async with client.stream("GET", url) as response:
                assert response.headers["Content-Length"] == str(24 * MIB)
                async for chunk in response.aiter_raw():
                    size += len(chunk)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert size == 24 * MIB
    assert peak < 4 * MIB


async def test_head_does_not_read_the_file(tmp_path: Path) -> None:
    pipeline = python("import sys; open(sys.argv[2], 'wb').truncate(100 << 30)", result=True, max_file_bytes=100 << 30)
    async with downloadable(tmp_path, pipeline) as (client, url):
        for _ in range(2):  # on one connection, so the second waits for the end of the first
            assert (await client.head(url)).headers["Content-Length"] == str(100 << 30)


@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_an_aborted_download_closes_its_file(tmp_path: Path, ending: str) -> None:
    pipeline = python("import sys; open(sys.argv[2], 'wb').truncate(24 << 20)", result=True)
    async with running_daemon(tmp_path, pipelines={"pdf": pipeline}) as daemon:
        done = await run(daemon, "pdf")
        async with await daemon.connect(receive_buffer=4096) as stream:
            await stream.send_all(get(f"/api/jobs/{done.id}/download"))
            result = str(daemon.daemon.files.output(done.id))
            await eventually(lambda: result in open_files())
            if ending == "reset":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await eventually(lambda: result not in open_files())


async def test_an_unfinished_job_has_no_result(tmp_path: Path) -> None:
    go = tmp_path / "go"
    pipelines = {"pdf": shell(f"until [ -e {go} ]; do sleep 0.01; done")}
    async with (
        running_daemon(tmp_path, pipelines=pipelines, runner={"concurrency": 1}) as daemon,
        client_of(daemon) as client,
    ):
        running, waiting = await submit(daemon, "pdf"), await submit(daemon, "pdf")
        await eventually(lambda: daemon.daemon.registry.unfinished[running].status is JobStatus.PROCESSING)
        for job, state in ((running, "processing"), (waiting, "queued")):
            response = await client.get(f"/api/jobs/{job}/download")
            assert response.status_code == 409
            assert error_of(response) == f"job {job} has no result to download: its status is {state}"
        await cancel(daemon, waiting)
        response = await client.get(f"/api/jobs/{waiting}/download")
        assert (response.status_code, error_of(response)) == (
            409,
            f"job {waiting} has no result to download: its status is cancelled",
        )
        go.touch()


async def test_a_failed_job_has_no_result(tmp_path: Path) -> None:
    pipeline = python("import sys; open(sys.argv[2], 'w').write('half'); sys.exit(1)", result=True)
    async with running_daemon(tmp_path, pipelines={"pdf": pipeline}) as daemon, client_of(daemon) as client:
        done = await run(daemon, "pdf")
        response = await client.get(f"/api/jobs/{done.id}/download")
        assert response.status_code == 409
        assert error_of(response) == f"job {done.id} has no result to download: its status is failed"


async def test_a_producers_job_may_have_no_result(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for number, result, said in (
        (1, {}, "has no result to download: it completed without one"),
        (2, {"output_path": "/api/elsewhere"}, "is not on this server"),
    ):
        job = job_id(number)
        await daemon.report(registered(job), progress(job, 1), completed(job, **result))
        response = await client.get(f"/api/jobs/{job}/download")
        assert (response.status_code, error_of(response).removeprefix("the result of ")) == (404, f"job {job} {said}")


LOCATIONS = [
    ("https://files.example/x.pdf?v=1&s=%41#p2", "https://files.example/x.pdf?v=1&s=%41#p2"),
    ("http://[::1]:8081/it's (1).pdf", "http://[::1]:8081/it's%20(1).pdf"),
    ("https://bücher.example/書.pdf", "https://b%C3%BCcher.example/%E6%9B%B8.pdf"),
    ("https://a.example/\r\nX-Evil: yes", "https://a.example/%0D%0AX-Evil:%20yes"),
]


async def test_an_external_result_redirects(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for number, (url, location) in enumerate(LOCATIONS):
        job = job_id(number)
        await daemon.report(registered(job), progress(job, 1), completed(job, output_path=url))
        for method in ("GET", "HEAD"):
            response = await client.request(method, f"/api/jobs/{job}/download")
            assert (response.status_code, response.headers["Location"], response.content) == (303, location, b"")
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert "X-Evil" not in response.headers


async def test_a_missing_result_returns_404(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, pipelines={"pdf": COPY}) as daemon, client_of(daemon) as client:
        done = await run(daemon, "pdf")
        await daemon.daemon.files.remove([done.id])
        for method in ("GET", "HEAD"):
            assert (await client.request(method, f"/api/jobs/{done.id}/download")).status_code == 404


async def test_without_descriptors_a_download_returns_503(tmp_path: Path) -> None:
    async with downloadable(tmp_path) as (client, path):
        assert (await client.head(path)).status_code == 200
        with no_descriptors_left():
            response = await client.get(path)
        assert response.status_code == 503
        assert error_of(response) == "the daemon cannot respond at the moment: Too many open files"
        assert (await client.get(path)).content == CONTENT
