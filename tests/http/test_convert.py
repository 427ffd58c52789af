"""`POST /api/convert`: what it accepts and rejects, and that rejected uploads leave no files."""

import json
import socket
import struct
import tracemalloc
from collections.abc import Iterable
from datetime import datetime
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from progressd.core.errors import StoreFailed
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.core.pipeline import Option, Pipeline
from progressd.store.base import Filter
from progressd.store.sqlite import SQLiteStore
from support.daemon import PATIENCE, RunningDaemon, running_daemon
from support.http_client import (
    BOUNDARY,
    FORM_TYPE,
    client_of,
    error_of,
    exchange,
    file_part,
    form,
    options_part,
    part,
    post_form,
    post_pieces,
)
from support.peer import Peer
from support.submitting import PDF, ended, running_job, shell
from support.waiting import eventually, jumping

DEFAULTS = {"dpi": 300, "deskew": True, "upscale": True, "ocr": False, "advanced": False}
MIB = 1 << 20


def no_files(running: RunningDaemon) -> bool:
    """Return whether there are no files of jobs and uploads."""
    state_dir = running.settings.state_dir
    return not any(list((state_dir / name).iterdir()) for name in ("uploads", "jobs"))


async def nothing_is_left(running: RunningDaemon) -> bool:
    """Return whether there are no jobs and no files."""
    return no_files(running) and await running.daemon.store.list_jobs(Filter(), 10, 0) == ([], 0)


def names_in(directory: Path) -> set[str]:
    """Return the names of all files below, except the store's."""
    return {path.name for path in directory.rglob("*") if not path.name.startswith("progressd.db")}


def id_of(response: httpx.Response) -> str:
    """Return the id of the new job."""
    assert response.status_code == 202, response.text
    return str(response.json()["job_id"])


async def test_a_file_becomes_a_job(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    given = {"dpi": 150, "upscale": False}
    response = await client.post(
        "/api/convert", files={"file": ("Mein Buch.pdf", PDF)}, data={"options": json.dumps(given)}
    )
    assert response.status_code == 202
    body = response.json()
    assert body.keys() == {"job_id", "status", "created_at"}
    assert body["status"] == "queued"
    assert datetime.fromisoformat(body["created_at"]).tzinfo is not None
    job = await daemon.daemon.registry.get(body["job_id"])
    assert (job.kind, job.pipeline, job.input_filename) == ("pdf", "pdf", "Mein Buch.pdf")
    assert job.options == {**DEFAULTS, **given}
    assert daemon.daemon.files.input(job.id).read_bytes() == PDF
    assert list((daemon.settings.state_dir / "uploads").iterdir()) == []


async def test_omitted_options_have_defaults(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for parts in [
        [file_part()],
        [options_part({}), file_part()],
        [file_part(), options_part({})],
        [file_part(), options_part(b"")],
        [part("csrf", b"x"), file_part(), part("unknown", b"y"), file_part(b"other", name="cover")],
    ]:
        job = await daemon.daemon.registry.get(id_of(await post_form(client, *parts)))
        assert job.options == DEFAULTS
        assert daemon.daemon.files.input(job.id).read_bytes() == PDF


async def test_any_bytes_are_stored_unchanged(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    content = PDF + bytes(range(256)) * 1000 + f"\r\n--{BOUNDARY[:-1]}\r\n\r\n--".encode() + b"\r\n\n\r\r\n"
    whole = form(file_part(content))
    for size in (len(whole), 1000, 7919):
        pieces = (whole[start : start + size] for start in range(0, len(whole), size))
        response = await post_pieces(client, "/api/convert", pieces, FORM_TYPE)
        assert daemon.daemon.files.input(id_of(response)).read_bytes() == content


async def test_the_query_selects_a_pipeline(tmp_path: Path) -> None:
    other = Pipeline(("true",), accept=("image/png", "image/jpeg"), options={"size": Option("integer", 4)})
    async with running_daemon(tmp_path, pipelines={"thumb": other}) as daemon, client_of(daemon) as client:
        job_id = id_of(await post_form(client, file_part(b"no signature is looked for", "a.PNG"), pipeline="thumb"))
        job = await daemon.daemon.registry.get(job_id)
        assert (job.kind, job.pipeline, job.options) == ("thumb", "thumb", {"size": 4})
        rejected = await post_form(client, file_part(PDF), pipeline="thumb")
        assert (rejected.status_code, error_of(rejected)) == (
            415,
            "book.pdf is not a file of the type image/png or image/jpeg",
        )


async def test_labels_and_priority_survive_a_retry(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    labels, options = {"team": "scan", "größe": ""}, options_part({"dpi": 150, "priority": "high"})
    made = await post_form(client, part("labels", json.dumps(labels).encode()), options, file_part())
    assert (await client.delete(f"/api/jobs/{id_of(made)}")).status_code == 200
    again = (await client.post(f"/api/jobs/{id_of(made)}/retry")).json()["job_id"]
    for job in [await daemon.daemon.registry.get(job_id) for job_id in (id_of(made), again)]:
        assert (job.labels, job.priority, job.options) == (labels, "high", {**DEFAULTS, "dpi": 150})


async def test_a_pipeline_may_have_an_option_named_priority(tmp_path: Path) -> None:
    other = Pipeline(("true",), options={"priority": Option("integer", 4)})
    async with running_daemon(tmp_path, pipelines={"nice": other}) as daemon, client_of(daemon) as client:
        job_id = id_of(await post_form(client, file_part(), options_part({"priority": 7}), pipeline="nice"))
        job = await daemon.daemon.registry.get(job_id)
        assert (job.priority, job.options) == ("normal", {"priority": 7})


async def test_invalid_labels_and_priorities_are_rejected(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for field, status, sentence in [
        (part("labels", b"[]"), 400, "the field labels is not a JSON object of texts: Expected `object`"),
        (part("labels", b'{"team": 1}'), 400, "the field labels is not a JSON object of texts: Expected `str`"),
        (part("labels", b"{"), 400, "the field labels is not a JSON object of texts: Input data was truncated"),
        (options_part({"priority": "urgent"}), 422, 'option priority: "urgent" is not one of low, normal, high'),
    ]:
        rejected = await post_form(client, file_part(), field)
        assert rejected.status_code == status
        assert error_of(rejected).startswith(sentence)
        assert await nothing_is_left(daemon)


async def test_an_unknown_pipeline_is_rejected(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    rejected = await post_form(client, file_part(), pipeline="../pdf")
    assert (rejected.status_code, error_of(rejected)) == (400, "there is no pipeline '../pdf': choose from pdf")
    assert await nothing_is_left(daemon)


@pytest.mark.parametrize(("blocks", "announced"), [(40, True), (40, False)], ids=["Content-Length", "chunked"])
async def test_a_large_upload_is_not_held_in_memory(tmp_path: Path, blocks: int, announced: bool) -> None:
    block = bytes(MIB)
    size = blocks * len(block)
    head, tail = file_part(b"%PDF-").removesuffix(b"\r\n"), b"\r\n" + form()
    headers = {**FORM_TYPE, **({"Content-Length": str(len(head) + size + len(tail))} if announced else {})}
    async with running_daemon(tmp_path, pipelines={"pdf": shell("true")}) as daemon, client_of(daemon) as client:
        await client.get("/api/health")
        tracemalloc.start()
        try:
            response = await post_pieces(client, "/api/convert", chain([head], repeat(block, blocks), [tail]), headers)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert daemon.daemon.files.input(id_of(response)).stat().st_size == size + len(b"%PDF-")
    assert peak < 4 * MIB  # most of it is the client's


async def test_a_too_large_upload_is_rejected(tmp_path: Path) -> None:
    head = (
        "POST /api/convert HTTP/1.1\r\nHost: progressd\r\nContent-Length: 99999999999\r\n"
        f"Content-Type: {FORM_TYPE['Content-Type']}\r\n\r\n"
    )
    async with running_daemon(tmp_path, limits={"max_upload_bytes": 1000}) as daemon, client_of(daemon) as client:
        rejected = await post_form(client, file_part(PDF.ljust(1001)))
        assert (rejected.status_code, error_of(rejected)) == (413, "book.pdf is larger than 1000 B, the limit")
        answer = await exchange(daemon, head.encode())
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"the file is larger than 1000 B, the limit" in answer
        pieces = repeat(part("cover", bytes(60_000), '; filename="cover.png"'), 15)
        rejected = await post_pieces(client, "/api/convert", cycle(pieces), FORM_TYPE)
        assert (rejected.status_code, "error" in rejected.json()) == (413, True)
        assert await nothing_is_left(daemon)
        id_of(await post_form(client, file_part(PDF.ljust(1000))))


async def test_too_many_or_too_large_fields_are_rejected(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for parts, sentence in [
        ([part("note", b"x" * 70_000), file_part()], "the field 'note' is larger than 64 KiB"),
        ([file_part(), options_part(b"{" + b" " * 70_000 + b"}")], "the field 'options' is larger than 64 KiB"),
        (
            [part(f"field-{number}", b"x") for number in range(50)],
            "the form has too many fields besides the file",
        ),
        ([part("x" * 2_000_000, b"")], "a part of the form has more than 8 headers, or one larger than 4 KiB"),
    ]:
        rejected = await post_form(client, *parts)
        assert rejected.status_code == 413
        assert error_of(rejected).startswith(sentence)
        assert await nothing_is_left(daemon)


async def test_the_limits_of_fields_are_settings(tmp_path: Path) -> None:
    limits = {"max_form_fields": 2, "max_form_field_bytes": 5}
    async with running_daemon(tmp_path, limits=limits) as daemon, client_of(daemon) as client:
        rejected = await post_form(client, part("note", b"x" * 6), file_part())
        assert error_of(rejected) == "the field 'note' is larger than 5 B"
        assert (await post_form(client, *[part(name, b"x") for name in "abc"], file_part())).status_code == 413
        id_of(await post_form(client, part("a", b"x"), part("b", b"12345"), file_part()))


async def test_a_pdf_is_recognized_by_its_content(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for content, accepted in [
        (b"%PDF-1.4", True),
        (b"\xef\xbb\xbf%PDF-1.4", True),
        (b"x" * 1019 + b"%PDF-1.4", True),
        (b"x" * 1020 + b"%PDF-1.4", False),
        (b"%PDX-1.4", False),
        (b"<html>", False),
        (b"", False),
    ]:
        response = await post_form(client, file_part(content, "book.pdf" if not accepted else "book.txt"))
        if accepted:
            id_of(response)
        else:
            assert (response.status_code, error_of(response)) == (
                415,
                f"book.pdf is {'not a PDF' if content else 'empty'}",
            )


async def test_an_invalid_option_is_named(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for options, named in [
        ({"dpi": "300"}, "dpi"),
        ({"dpi": 0}, "dpi"),
        ({"dpi": None}, "dpi"),
        ({"deskew": 1}, "deskew"),
        ({"dip": 300}, "dip"),
        ({"x" * 1000: 1}, "xxxx"),
        (b"not json", "options"),
        (b"[]", "options"),
        (b"\xff", "options"),
        (b'{"dpi":' + b"[" * 50_000 + b"}", "options"),
    ]:
        rejected = await post_form(client, file_part(), options_part(options))
        assert rejected.status_code == 422
        sentence = error_of(rejected)
        assert named in sentence
        assert len(sentence) < 300
        assert await nothing_is_left(daemon)


async def test_an_option_without_its_program_is_rejected(tmp_path: Path) -> None:
    pipeline = shell("true", options={"ocr": Option("boolean", False, needs="no-such-program")})
    async with running_daemon(tmp_path, pipelines={"pdf": pipeline}) as daemon, client_of(daemon) as client:
        rejected = await post_form(client, file_part(), options_part({"ocr": True}))
        assert rejected.status_code == 422
        assert (
            error_of(rejected)
            == "option ocr: true is not possible, because no-such-program is not installed on the server"
        )
        id_of(await post_form(client, file_part(), options_part({"ocr": False})))


async def test_invalid_forms_are_rejected(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    for body, content_type, sentence in [
        (form(options_part({})), FORM_TYPE["Content-Type"], "the form has no file: send one in the field file"),
        (
            form(file_part(name="document")),
            FORM_TYPE["Content-Type"],
            "the form has no file: send one in the field file",
        ),
        (form(file_part(b"", "")), FORM_TYPE["Content-Type"], "the form has no file: send one in the field file"),
        (
            form(file_part(), file_part()),
            FORM_TYPE["Content-Type"],
            "the form has several files: send only one here, or all of them to /api/batch",
        ),
        (form(file_part())[:-20], FORM_TYPE["Content-Type"], "the form is malformed or was cut off: send it again"),
        (b"", FORM_TYPE["Content-Type"], "the form is malformed or was cut off: send it again"),
        (
            form(file_part()),
            "multipart/form-data; boundary=other",
            "the form is malformed or was cut off: send it again",
        ),
        (
            form(file_part()),
            "multipart/form-data",
            "the body is not a form: send it as multipart/form-data, with a boundary",
        ),
        (
            form(file_part()),
            "multipart/form-data; boundary=",
            "the body is not a form: send it as multipart/form-data, with a boundary",
        ),
        (
            form(file_part()),
            "multipart/form-data; boundary=ä",
            "the body is not a form: send it as multipart/form-data, with a boundary",
        ),
        (PDF, "application/pdf", "the body is not a form: send it as multipart/form-data, with a boundary"),
    ]:
        rejected = await client.post("/api/convert", content=body, headers={"Content-Type": content_type.encode()})
        assert (rejected.status_code, error_of(rejected)) == (400, sentence)
        assert await nothing_is_left(daemon)


LABELS_OF_NAMES = [
    ('; filename="../../etc/passwd"', "../../etc/passwd"),
    (r'; filename="C:\\books\\a.pdf"', "C:\\books\\a.pdf"),
    (r'; filename="say \"hi\".pdf"', 'say "hi".pdf'),
    ('; filename="say %22hi%22.pdf"', 'say "hi".pdf'),
    ('; filename="Bücher — 書.pdf"', "Bücher — 書.pdf"),
    ("; filename*=UTF-8''B%C3%BCcher%20%E6%9B%B8.pdf", "Bücher 書.pdf"),
    ("; filename*=UTF-8''..%2F..%2Fa%0D%0AX-Evil%3A%20yes%00.pdf", "../../a\r\nX-Evil: yes\0.pdf"),
    (f'; filename="{"x" * 3_000}.pdf"', "x" * 255),
]


async def test_a_file_name_is_never_a_path(tmp_path: Path) -> None:
    pipeline = Pipeline(("cp", "{input}", "{output}"))
    files = {"state", "lock", "ingest.sock", "children", "token-secret", "uploads", "partial", "jobs"}
    files |= {"input", "output"}
    async with running_daemon(tmp_path, pipelines={"pdf": pipeline}) as daemon, client_of(daemon) as client:
        for disposition, label in LABELS_OF_NAMES:
            job_id = id_of(await post_form(client, part("file", PDF, disposition)))
            files.add(job_id)
            assert (await client.get(f"/api/jobs/{job_id}")).json()["input_filename"] == label
            assert (await ended(daemon, job_id)).status is JobStatus.COMPLETED
            result = await client.get(f"/api/jobs/{job_id}/download")
            assert result.content == PDF
            assert "X-Evil" not in result.headers
            assert names_in(tmp_path) == files


async def test_an_interrupted_upload_leaves_no_files(daemon: RunningDaemon) -> None:
    head = (
        "POST /api/convert HTTP/1.1\r\nHost: progressd\r\nContent-Length: 1000000\r\n"
        f"Content-Type: {FORM_TYPE['Content-Type']}\r\n\r\n"
    )
    uploads = daemon.settings.state_dir / "uploads"
    for ending in ["close", "reset", "half-close"]:
        async with await daemon.connect() as stream:
            await stream.send_all(head.encode() + file_part(PDF.ljust(500_000)))
            await eventually(lambda: [path.stat().st_size >= 100_000 for path in uploads.iterdir()] == [True])
            if ending == "reset":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif ending == "half-close":
                await stream.send_eof()
                with trio.fail_after(PATIENCE):
                    while await stream.receive_some():
                        pass
        await eventually(lambda: no_files(daemon))
        assert await nothing_is_left(daemon)


@pytest.mark.parametrize(
    ("rate", "sentence"),
    [
        (0, "the body stopped: nothing arrived for 60 s"),
        (10**9, "the body arrived too slowly: send at least 953.7 MiB per second on average"),
    ],
)
async def test_a_stalled_upload_returns_408(
    slow_clock: trio.testing.MockClock, tmp_path: Path, rate: int, sentence: str
) -> None:
    head = (
        "POST /api/convert HTTP/1.1\r\nHost: progressd\r\nContent-Length: 1000000\r\n"
        f"Content-Type: {FORM_TYPE['Content-Type']}\r\n\r\n"
    )
    async with running_daemon(tmp_path, limits={"min_body_rate": rate}) as daemon, Peer(await daemon.connect()) as peer:
        await peer.send(head.encode() + file_part(PDF.ljust(5000)))
        await eventually(lambda: list((daemon.settings.state_dir / "uploads").iterdir()))
        await jumping(slow_clock, 10, lambda: daemon.daemon.connection_log.open == 0)
        answer = await peer.rest()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert f'{{"error":"{sentence}",'.encode() in answer
        assert await nothing_is_left(daemon)


async def test_expect_100_continue_is_answered(daemon: RunningDaemon) -> None:
    body = form(file_part())
    head = (
        f"POST /api/convert HTTP/1.1\r\nHost: progressd\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        f"Expect: 100-continue\r\nContent-Type: {FORM_TYPE['Content-Type']}\r\n\r\n"
    )
    async with await daemon.connect() as stream:
        with trio.fail_after(PATIENCE):
            await stream.send_all(head.encode())
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
            await stream.send_all(body)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 202 ")


async def test_concurrent_uploads_all_become_jobs(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, pipelines={"pdf": shell("true")}) as daemon, client_of(daemon) as client:
        made: dict[int, str] = {}

        async def upload(number: int) -> None:
            made[number] = id_of(await post_form(client, file_part(PDF + bytes([number]) * 100_000)))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(upload, number)
        for number, job_id in made.items():
            assert daemon.daemon.files.input(job_id).read_bytes().endswith(bytes([number]) * 100_000)
        assert len(set(made.values())) == 20


@pytest.mark.parametrize("size", [100, 100_000], ids=["found at the end", "found on the way"])
async def test_a_full_disk_returns_507(
    daemon: RunningDaemon, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    open_file = trio.open_file

    async def open_full(path: Path, mode: str) -> Any:
        if path.parent.name != "uploads":
            return await open_file(path, mode)
        await trio.Path(path).touch(exist_ok=False)
        return await open_file("/dev/full", "wb")

    monkeypatch.setattr("progressd.files.job_files.trio.open_file", open_full)
    rejected = await post_form(client, file_part(PDF.ljust(size)))
    assert (rejected.status_code, error_of(rejected)) == (507, "no space left on the daemon's disk")
    assert await nothing_is_left(daemon)


class FullStore(SQLiteStore):
    """Rejects every commit."""

    async def commit(self, jobs: Iterable[Job], changes: Any, *others: Any) -> None:
        raise StoreFailed("the store does not take it: disk full")


async def test_a_failing_store_leaves_no_files(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, open_store=FullStore.open) as daemon, client_of(daemon) as client:
        rejected = await post_form(client, file_part())
        assert (rejected.status_code, error_of(rejected)) == (503, "the store does not take it: disk full")
        assert rejected.headers["Retry-After"] == str(rejected.json()["retry_after"])
        assert await nothing_is_left(daemon)


async def test_a_stopping_daemon_accepts_no_work(tmp_path: Path) -> None:
    go = tmp_path / "go"
    pipelines = {"pdf": shell(f"until [ -e {go} ]; do sleep 0.01; done")}
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon:
        await running_job(daemon, "pdf")
        daemon.kill()
        await eventually(lambda: not daemon.daemon.services.ready)
        async with client_of(daemon) as client:
            rejected = await post_form(client, file_part())
        assert rejected.status_code == 503
        assert error_of(rejected) == "the daemon is stopping and accepts no new jobs"
        assert rejected.headers["Retry-After"] == str(rejected.json()["retry_after"])
        go.touch()
        with trio.fail_after(PATIENCE):
            await daemon.stopped.wait()
