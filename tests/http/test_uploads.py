"""`/api/uploads`: resumable uploads with tus 1.0."""

import base64
import hashlib
import json
import random
import socket
import struct
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from progressd.core.errors import StoreFailed
from progressd.core.pipeline import Option, Pipeline
from progressd.http.routes import uploads
from progressd.store.sqlite import SQLiteStore
from support.daemon import PATIENCE, RunningDaemon, running_daemon
from support.http_client import client_of, error_of
from support.keys import add
from support.submitting import PDF, ended
from support.tus import OCTETS, TUS, encoded
from support.waiting import eventually

FILE = PDF + bytes(range(256)) * 400
COPY = {
    "copy": Pipeline(
        ("cp", "{input}", "{output}"), accept=("*/*",), output="x.txt", options={"n": Option("integer", 1)}
    )
}


async def created(
    client: httpx.AsyncClient, length: int = len(FILE), content: bytes | None = None, **metadata: str
) -> httpx.Response:
    headers = {
        **(TUS if content is None else OCTETS),
        "Upload-Length": str(length),
        "Upload-Metadata": encoded(**{"filename": "book.pdf", **metadata}),
    }
    return await client.post("/api/uploads", headers=headers, content=content or b"")


async def patched(
    client: httpx.AsyncClient, url: str, offset: int, content: bytes, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    headers = {**OCTETS, "Upload-Offset": str(offset), **(headers or {})}
    return await client.patch(url, headers=headers, content=content)


def partial(daemon: RunningDaemon) -> list[str]:
    """Return the files of uploads."""
    return sorted(path.suffix for path in (daemon.settings.state_dir / "partial").iterdir())


async def test_an_upload_in_two_pieces_becomes_one_job(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    options, labels = json.dumps({"dpi": 150, "priority": "high"}), json.dumps({"team": "scan"})
    response = await created(client, options=options, labels=labels)
    assert (response.status_code, response.headers["Upload-Offset"]) == (201, "0")
    url = response.headers["Location"]
    half = len(FILE) // 2
    response = await patched(client, url, 0, FILE[:half])
    assert (response.status_code, response.headers["Upload-Offset"]) == (204, str(half))
    assert "Progressd-Job-Id" not in response.headers
    assert daemon.daemon.files.usage.receiving == half
    assert (await patched(client, url, 0, FILE)).status_code == 409
    state = await client.head(url, headers=TUS)
    assert (state.status_code, state.headers["Upload-Offset"]) == (200, str(half))
    assert state.headers["Upload-Length"] == str(len(FILE))
    assert state.headers["Cache-Control"] == "no-store"
    response = await patched(client, url, half, FILE[half:])
    job = await daemon.daemon.registry.get(response.headers["Progressd-Job-Id"])
    assert (job.input_filename, job.priority, job.labels) == ("book.pdf", "high", {"team": "scan"})
    assert job.options["dpi"] == 150
    assert daemon.daemon.files.input(job.id).read_bytes() == FILE
    assert daemon.daemon.files.usage.receiving == 0
    assert partial(daemon) == [".json"]
    assert (await patched(client, url, half, FILE[half:])).status_code == 409  # the client repeats its last request
    for response in (await patched(client, url, len(FILE), b""), await client.head(url, headers=TUS)):
        assert (response.headers["Progressd-Job-Id"], response.headers["Upload-Offset"]) == (job.id, str(len(FILE)))
    assert (await client.get(url)).json()["job_id"] == job.id
    assert (await client.get("/api/jobs")).json()["total"] == 1


async def test_metadata_and_sizes_are_checked_at_the_creation(tmp_path: Path) -> None:
    limits = {"max_upload_bytes": 1000, "max_stored_bytes": 900}
    async with running_daemon(tmp_path, pipelines=COPY, limits=limits) as daemon, client_of(daemon) as client:
        for status, length, metadata in [
            (413, 1001, {}),
            (507, 901, {}),
            (415, 0, {}),
            (400, 9, {"pipeline": "unknown"}),
            (422, 9, {"pipeline": "copy", "options": '{"n": "many"}'}),
            (422, 9, {"options": "[]"}),
            (400, 9, {"labels": "[]"}),
            (400, 9, {"batch": "b", "batch_name": "x" * 256}),
        ]:
            response = await created(client, length, **metadata)
            assert (response.status_code, response.headers["Tus-Resumable"]) == (status, "1.0.0"), response.text
        for headers, status in [
            ({"Upload-Length": "9"}, 412),
            ({**TUS, "Upload-Length": "-9"}, 400),
            ({**TUS, "Upload-Defer-Length": "1"}, 400),
            ({**TUS, "Upload-Length": "9", "Upload-Metadata": "filename x"}, 400),
            ({**TUS, "Upload-Length": "9", "Upload-Metadata": "a YQ==,a YQ=="}, 400),
        ]:
            assert (await client.post("/api/uploads", headers=headers)).status_code == status
        assert partial(daemon) == []
        answer = await client.options("/api/uploads")
        assert (answer.status_code, answer.headers["Tus-Max-Size"]) == (204, "1000")
        assert answer.headers["Tus-Extension"].split(",")[0] == "creation"


async def test_a_wrong_type_deletes_the_upload(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    url = (await created(client, 5000)).headers["Location"]
    assert (await patched(client, url, 0, b"Dear Sir ")).status_code == 204  # the signature may follow
    response = await patched(client, url, 9, b"x" * 2000)
    assert (response.status_code, error_of(response)) == (415, "book.pdf is not a PDF")
    assert (await client.head(url, headers=TUS)).status_code == 404
    assert (await created(client, 5000, b"x" * 1024)).status_code == 415
    assert partial(daemon) == []
    assert daemon.daemon.files.usage.receiving == 0


async def test_wrong_requests_change_nothing(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    url = (await created(client, content=FILE[:5])).headers["Location"]
    wrong = base64.b64encode(hashlib.sha1(b"other", usedforsecurity=False).digest()).decode()
    for headers, content, status in [
        ({"Tus-Resumable": "0.2"}, b"x", 412),
        ({"Content-Type": "application/pdf"}, b"x", 415),
        ({"Upload-Offset": "4"}, b"x", 409),
        ({"Upload-Offset": str(len(FILE) + 1)}, b"x", 409),
        ({"Upload-Offset": "x"}, b"x", 400),
        ({}, FILE, 413),
        ({"Upload-Checksum": "md5 x"}, b"x", 400),
        ({"Upload-Checksum": f"sha1 {wrong}"}, FILE[5:], 460),
    ]:
        response = await patched(client, url, 5, content, headers)
        assert response.status_code == status, response.text
        assert (await client.head(url, headers=TUS)).headers["Upload-Offset"] == "5"
    assert (await client.head(url)).status_code == 412
    assert (await client.get(f"/api/uploads/{uuid.uuid4()}")).status_code == 404
    assert daemon.daemon.files.usage.receiving == 5
    right = base64.b64encode(hashlib.sha256(FILE[5:]).digest()).decode()
    override = {**OCTETS, "Upload-Offset": "5", "Upload-Checksum": f"sha256 {right}", "X-HTTP-Method-Override": "PATCH"}
    response = await client.post(url, headers=override, content=FILE[5:])
    assert (response.status_code, "Progressd-Job-Id" in response.headers) == (204, True)


async def test_an_upload_is_deleted_or_expires(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    url = (await created(client, content=FILE[:5])).headers["Location"]
    assert (await client.delete(url, headers=TUS)).status_code == 204
    assert (await client.head(url, headers=TUS)).status_code == 404
    assert partial(daemon) == []
    response = await created(client, content=FILE[:5])
    assert response.headers["Upload-Expires"].endswith(" GMT")
    resumable = daemon.daemon.files.resumable
    [upload] = resumable.all()
    upload.changed_at -= resumable.lifetime
    assert (await client.head(response.headers["Location"], headers=TUS)).status_code == 410
    await resumable.expire()
    assert (await client.head(response.headers["Location"], headers=TUS)).status_code == 404
    assert (partial(daemon), daemon.daemon.files.usage.receiving) == ([], 0)


async def cut_off(daemon: RunningDaemon, url: str, offset: int, announced: int, sent: bytes, *, reset: bool) -> None:
    """Send a PATCH whose connection is lost after some bytes of the body. Wait until the daemon has noticed that."""
    connections = daemon.daemon.connection_log
    accepted, others = connections.accepted, connections.open
    head = [f"PATCH {url} HTTP/1.1", "Host: progressd", *(f"{name}: {value}" for name, value in OCTETS.items())]
    head += [f"Upload-Offset: {offset}", f"Content-Length: {announced}", "\r\n"]
    async with await daemon.connect() as stream:
        await stream.send_all("\r\n".join(head).encode() + sent)
        if reset:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await eventually(lambda: connections.accepted > accepted and connections.open <= others)


async def test_an_upload_continues_after_cuts_at_any_byte(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    choose = random.Random(7)
    for _ in range(3):
        url, offset = (await created(client)).headers["Location"], 0
        for _ in range(3):
            sent = choose.choice([0, 1, choose.randrange(len(FILE) - offset + 1)])
            reset = choose.random() < 0.5
            await cut_off(daemon, url, offset, len(FILE) - offset, FILE[offset : offset + sent], reset=reset)
            state = await client.head(url, headers=TUS)
            assert offset <= int(state.headers["Upload-Offset"]) <= offset + sent
            if not reset:
                assert int(state.headers["Upload-Offset"]) == offset + sent
            offset = int(state.headers["Upload-Offset"])
        response = await patched(client, url, offset, FILE[offset:])
        job_id = response.headers["Progressd-Job-Id"]
        assert daemon.daemon.files.input(job_id).read_bytes() == FILE
    assert (await client.get("/api/jobs")).json()["total"] == 3
    assert daemon.daemon.files.usage.receiving == 0


async def test_one_of_two_requests_adds_bytes(
    daemon: RunningDaemon, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "LOCK_TIMEOUT", 0)
    url = (await created(client)).headers["Location"]
    resumable = daemon.daemon.files.resumable
    first = {**OCTETS, "Upload-Offset": "0", "Content-Length": str(len(FILE))}
    head = [f"PATCH {url} HTTP/1.1", "Host: progressd", *(f"{name}: {value}" for name, value in first.items()), "\r\n"]
    async with await daemon.connect() as stream:
        await stream.send_all("\r\n".join(head).encode() + FILE[:1000])
        await eventually(lambda: daemon.daemon.files.usage.receiving == 1000)
        with monkeypatch.context() as patient:
            patient.setattr(uploads, "SILENCE", 2 * PATIENCE)
            assert (await patched(client, url, 0, FILE)).status_code == 423
            assert (await client.head(url, headers=TUS)).status_code == 423
        monkeypatch.setattr(uploads, "LOCK_TIMEOUT", PATIENCE)
        monkeypatch.setattr(uploads, "SILENCE", 0.01)
        state = await client.head(url, headers=TUS)  # the other one is silent, as after a lost connection
        assert state.headers["Upload-Offset"] == "1000"
        assert (await patched(client, url, 1000, FILE[1000:])).status_code == 204
    assert [upload.done for upload in resumable.all()] == [True]


async def test_uploads_become_one_batch_that_continues(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, pipelines=COPY) as daemon, client_of(daemon) as client:
        metadata = {"pipeline": "copy", "batch": "a b", "batch_name": "Two"}
        for number in (1, 2):
            response = await created(client, 3, b"abc", **metadata)
            batch = f"/api/batch/{response.headers['Progressd-Batch-Id']}"
            job = await ended(daemon, response.headers["Progressd-Job-Id"])
            assert job.batch_id is not None
            async with daemon.watch(f"/ws/batch/{job.batch_id}") as watcher:
                assert (await watcher.rest())[-1]["data"]["success_count"] == number
                assert await watcher.closed() == (1000, "batch finished")
            body = (await client.get(batch)).json()
            assert (body["name"], body["progress"]["completed"], body["progress"]["total"]) == ("Two", number, number)
        again = await created(client, 3, **{**metadata, "batch": "c"})
        assert again.headers["Progressd-Batch-Id"] not in batch


async def test_only_its_key_continues_an_upload(tmp_path: Path) -> None:
    keys_file = tmp_path / "keys.json"
    keys = [add(keys_file, name, "write", team=name) for name in ("a", "b")]
    async with (
        running_daemon(tmp_path, auth={"required": True, "keys_file": keys_file}) as daemon,
        client_of(daemon) as client,
    ):
        one, other = ({"X-API-Key": key} for key in keys)
        client.headers.update(one)
        url = (await created(client)).headers["Location"]
        assert (await patched(client, url, 0, FILE, other)).status_code == 404
        assert (await client.head(url, headers={**TUS, **other})).status_code == 404
        assert (await client.delete(url, headers={**TUS, **other})).status_code == 404
        response = await patched(client, url, 0, FILE)
        job = await daemon.daemon.registry.get(response.headers["Progressd-Job-Id"])
        assert (job.labels, job.owner) == ({"team": "a"}, "key:a")


class Full(SQLiteStore):
    """A store that stores no jobs while it is `full`, or until `room` is set."""

    full = True
    room: trio.Event | None = None

    async def commit(self, *args: Any, **kwargs: Any) -> None:
        if self.room is not None:
            await self.room.wait()
        if self.full:
            raise StoreFailed("the store does not take it: disk full")
        await super().commit(*args, **kwargs)


async def test_an_upload_is_deleted_while_its_job_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Full, "full", True)
    async with running_daemon(tmp_path, open_store=Full.open) as daemon, client_of(daemon) as client:
        url = (await created(client)).headers["Location"]
        assert (await patched(client, url, 0, FILE)).status_code == 503
        [upload] = daemon.daemon.files.resumable.all()
        monkeypatch.setattr(Full, "full", False)
        monkeypatch.setattr(Full, "room", trio.Event())
        answers = list[httpx.Response]()

        async def delete() -> None:
            answers.append(await client.delete(url, headers=TUS))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.daemon.uploaded_jobs.create, upload)
            await eventually(lambda: daemon.daemon.files.usage.receiving == 0)
            nursery.start_soon(delete)
            await eventually(lambda: bool(answers or upload.creating.statistics().tasks_waiting))
            assert Full.room is not None
            Full.room.set()
        assert answers[0].status_code == 204
        assert daemon.daemon.files.input(upload.info.id).read_bytes() == FILE
        assert (partial(daemon), daemon.daemon.files.usage.receiving) == ([], 0)
        await daemon.daemon.uploaded_jobs.create(upload)  # as by the task that had seen it before
        assert (await client.get("/api/jobs")).json()["total"] == 1


async def test_a_failing_store_delays_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Full, "full", True)
    async with running_daemon(tmp_path, open_store=Full.open) as daemon, client_of(daemon) as client:
        url = (await created(client)).headers["Location"]
        assert (await patched(client, url, 0, FILE)).status_code == 503
        assert (await client.head(url, headers=TUS)).status_code == 503
        assert daemon.daemon.files.usage.receiving == len(FILE)
        assert (await created(client, content=FILE)).status_code == 503  # the client knows no URL, and sends it again
        assert len(daemon.daemon.files.resumable.all()) == 1
        monkeypatch.setattr(Full, "full", False)
        state = await client.head(url, headers=TUS)
        job_id = state.headers["Progressd-Job-Id"]
        assert daemon.daemon.files.input(job_id).read_bytes() == FILE
        assert daemon.daemon.files.usage.receiving == 0
