"""Transient faults: no acknowledged event is lost, errors name the reason, and the daemon recovers."""

import errno
import json
import os
import random
import resource
import shutil
import socket
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from support.daemon import completed, progress, registered
from support.http_client import FORM_TYPE, file_part, form
from support.peer import frame
from support.samples import ID, job_id
from support.submitting import PDF
from support.waiting import PATIENCE, eventually
from torture.disk import Power
from torture.fork_server import ForkedDaemon, ForkServer, client_of
from torture.ledger import Ledger
from torture.load import Clients
from wsproto.frame_protocol import Opcode


class FaultyDaemon:
    """A daemon with a simulated disk and clock."""

    def __init__(self, url: str, power: Power, daemon: ForkedDaemon, client: httpx.AsyncClient) -> None:
        self.url = url
        self.control = power.control
        self.state_dir = power.state_dir
        self.daemon = daemon
        self.client = client
        self._socket_path = str(power.state_dir / "ingest.sock")

    async def report(self, event: dict[str, Any]) -> Any:
        """Report an event on the Unix socket, and return the answer."""
        with trio.fail_after(30):
            async with await trio.open_unix_socket(self._socket_path) as stream:
                await stream.send_all(json.dumps({"ref": 1, **event}).encode() + b"\n")
                await stream.send_eof()
                return json.loads(b"".join([chunk async for chunk in stream]))

    async def status(self, id_: str) -> str:
        answer = await self.client.get(f"/api/jobs/{id_}")
        return str(answer.json()["status"])

    async def upload(self, key: str | None = None) -> httpx.Response:
        headers = {"Host": self.client.base_url.netloc.decode(), **FORM_TYPE}
        if key is not None:
            headers["Idempotency-Key"] = key
        return await self.client.post("/api/convert", content=form(file_part()), headers=headers)

    async def recovered(self) -> None:
        """Wait until the health check says so."""
        with trio.fail_after(30):
            while (await self.client.get("/api/health/ready")).status_code != 200:  # noqa: ASYNC110, nothing tells
                await trio.sleep(0.05)
        assert (await self.client.get("/api/health")).json()["status"] == "healthy"


@asynccontextmanager
async def faulty_daemon(fork_server: ForkServer, directory: Path) -> AsyncGenerator[FaultyDaemon]:
    power = Power(directory, random.Random(1))
    async with fork_server.daemon(power.state_dir, power.plug_in()) as daemon:
        url = await daemon.listening()
        async with client_of(url) as client:
            yield FaultyDaemon(url, power, daemon, client)


@pytest.mark.parametrize(
    ("faults", "number"),
    [
        (["sync_errno"], errno.EIO),
        (["write_errno"], errno.ENOSPC),
        (["write_errno", "open_errno"], errno.EROFS),
    ],
    ids=["errors", "a full disk", "a read-only disk"],
)
async def test_a_failing_disk_loses_no_event(
    fork_server: ForkServer, tmp_path: Path, faults: list[str], number: int
) -> None:
    async with faulty_daemon(fork_server, tmp_path) as it:
        assert (await it.report(registered(ID)))["ok"]
        assert (await it.report(progress(ID, 1, 3)))["ok"]
        for name in faults:
            it.control[name] = number
        rejected = await it.report(completed(ID))
        assert not rejected["ok"]
        assert "the database: " in rejected["error"]
        status = 507 if number == errno.ENOSPC else 503
        assert (await it.client.post("/api/jobs", json={"id": job_id(2)})).status_code == status
        assert (await it.upload()).status_code == status
        assert it.control["failed"] > 0
        health = (await it.client.get("/api/health")).json()
        assert (health["status"], health["error"]) == ("failing", rejected["error"])
        assert (await it.client.get("/api/health/ready")).status_code == 503
        assert await it.status(ID) == "processing"
        assert (await it.report(progress(ID, 2, 3)))["ok"], "progress costs no write and goes on"
        for name in faults:
            it.control[name] = 0
        await it.recovered()
        assert (await it.report(completed(ID)))["ok"]
        assert await it.status(ID) == "completed"
        assert (await it.client.get(f"/api/jobs/{job_id(2)}")).status_code == 404
        assert (await it.upload()).status_code == 202


@pytest.mark.parametrize("times", [1, 2], ids=["sent once", "sent again"])
@pytest.mark.parametrize("mended", [False, True], ids=["killed while it fails", "killed afterwards"])
async def test_a_failed_commit_leaves_a_whole_job_or_none(
    fork_server: ForkServer, tmp_path: Path, times: int, mended: bool
) -> None:
    async with faulty_daemon(fork_server, tmp_path) as it:
        state_dir = it.state_dir
        assert (await it.report(registered(ID)))["ok"]  # otherwise, the first frame of the log would fail
        it.control["log_errno"] = errno.EIO
        for _ in range(times):
            assert (await it.upload("key")).status_code == 503
        if mended:
            it.control["log_errno"] = 0
            await it.recovered()  # it has written something, over what failed
        it.daemon.kill()
        await it.daemon.ended()
    async with fork_server.daemon(state_dir) as daemon, client_of(await daemon.listening()) as client:
        jobs = (await client.get("/api/jobs")).json()["jobs"]
        found = [job["id"] for job in jobs if job["id"] != ID]
        assert len(found) == (0 if mended else 1)
        assert os.listdir(state_dir / "jobs") == found
        assert os.listdir(state_dir / "uploads") == []
        headers = {"Host": client.base_url.netloc.decode(), "Idempotency-Key": "key", **FORM_TYPE}
        answer = await client.post("/api/convert", content=form(file_part()), headers=headers)
        assert answer.status_code == 202
        assert ("Idempotency-Replayed" in answer.headers) is not mended
        assert (state_dir / "jobs" / answer.json()["job_id"] / "input").read_bytes() == PDF


def copy_of(state_dir: Path, target: Path) -> Path:
    return Path(shutil.copytree(state_dir, target, ignore=shutil.ignore_patterns("*.sock")))


async def first(url: str, target: str, type_: str, said: bytes = b"") -> Any:
    """Return the first message of this type that a watcher receives."""
    with trio.fail_after(30):
        async with aclosing(Clients(Ledger(), url, random.Random(1)).messages(target, said)) as messages:
            async for message in messages:
                if message["type"] == type_:
                    return message
    raise AssertionError(f"no {type_}")


async def test_a_change_that_appears_after_a_kill_is_replayed(fork_server: ForkServer, tmp_path: Path) -> None:
    async with faulty_daemon(fork_server, tmp_path) as it:
        state_dir = it.state_dir
        assert (await it.report(registered(ID)))["ok"]
        known = (await it.report(progress(ID, 1, 3)))["cursor"]
        it.control["log_errno"] = errno.EIO
        async with aclosing(Clients(Ledger(), it.url, random.Random(1)).messages("/ws/jobs")) as messages:
            assert not (await it.report(completed(ID)))["ok"]
            # As a kill leaves it now; soon, something else is written at that place.
            killed = await trio.to_thread.run_sync(copy_of, state_dir, tmp_path / "killed")
            assert (await it.report(progress(ID, 2, 3)))["ok"]
            async for message in messages:
                if message.get("data", {}).get("current_step") == 2:
                    assert "cursor" not in message
                    break
        assert (await first(it.url, "/ws/jobs", "hello"))["cursor"] == known
        request = frame(Opcode.TEXT, b'{"type": "subscribe", "topics": ["jobs"]}')
        assert (await first(it.url, "/ws", "subscribed", request))["cursor"] == known
        it.daemon.kill()
        await it.daemon.ended()
    async with fork_server.daemon(killed) as daemon:
        assert await first(await daemon.listening(), f"/ws/jobs?since={known}", "completed")


async def test_a_repeated_upload_becomes_its_job(fork_server: ForkServer, tmp_path: Path) -> None:
    async with faulty_daemon(fork_server, tmp_path) as it:
        assert (await it.report(registered(ID)))["ok"]
        it.control["log_errno"] = errno.EIO
        assert (await it.upload("key")).status_code == 503
        it.control["log_errno"] = 0
        with trio.fail_after(PATIENCE):  # until it is decided whether the job is stored
            while (answer := await it.upload("key")).status_code == 503:  # noqa: ASYNC110, there is no event
                await trio.sleep(0.1)
        assert answer.status_code == 202
        assert "Idempotency-Replayed" not in answer.headers
        assert (it.state_dir / "jobs" / answer.json()["job_id"] / "input").read_bytes() == PDF
        assert os.listdir(it.state_dir / "uploads") == []


async def test_a_daemon_out_of_descriptors_loses_nothing(fork_server: ForkServer, tmp_path: Path) -> None:
    async with faulty_daemon(fork_server, tmp_path) as it:
        assert (await it.report(registered(ID)))["ok"]
        before = resource.prlimit(it.daemon.pid, resource.RLIMIT_NOFILE)
        host, port = it.url.removeprefix("http://").split(":")
        descriptors = Path(f"/proc/{it.daemon.pid}/fd")
        async with await trio.open_unix_socket(str(it._socket_path)) as producer:
            await producer.send_all(json.dumps({"ref": 1, **progress(ID, 1, 3)}).encode() + b"\n")
            assert json.loads(await producer.receive_some())["ok"]
            assert await it.status(ID) == "processing"  # over a connection that stays
            low = sum(int(name) < 1000 for name in os.listdir(descriptors)) + 3
            resource.prlimit(it.daemon.pid, resource.RLIMIT_NOFILE, (low, before[1]))
            with ExitStack() as crowd:
                for _ in range(10):
                    crowd.enter_context(socket.create_connection((host, int(port)), 5))
                await eventually(lambda: sum(int(name) < 1000 for name in os.listdir(descriptors)) >= low)
                assert (await it.upload()).status_code == 503
                await producer.send_all(json.dumps({"ref": 2, **completed(ID)}).encode() + b"\n")
                assert json.loads(await producer.receive_some())["ok"], "what is open already goes on"
        resource.prlimit(it.daemon.pid, resource.RLIMIT_NOFILE, before)
        await it.recovered()
        assert await it.status(ID) == "completed"
        assert (await it.upload()).status_code == 202


@pytest.mark.parametrize("seconds", [3600 * 24 * 3650, -3600 * 24 * 3650])
async def test_a_clock_jump_keeps_the_order(fork_server: ForkServer, tmp_path: Path, seconds: int) -> None:
    async with faulty_daemon(fork_server, tmp_path) as it:
        cursors = []
        for number in range(1, 7):
            it.control["clock_shift"] = seconds if number % 2 else 0
            cursors += [(await it.report(event))["cursor"] for event in (registered(job_id(number)),)]
            cursors.append((await it.report(progress(job_id(number), 1, 3)))["cursor"])
        for number in range(1, 7):
            it.control["clock_shift"] = 0 if number % 2 else seconds
            cursors.append((await it.report(completed(job_id(number))))["cursor"])
            job = (await it.client.get(f"/api/jobs/{job_id(number)}")).json()
            assert job["status"] == "completed"
            assert job["elapsed_seconds"] >= 0
        offsets = [int(cursor.partition("-")[2]) for cursor in cursors]
        assert offsets == sorted(set(offsets))
