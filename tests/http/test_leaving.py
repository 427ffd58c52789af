"""A client may disconnect during the commit of its submission."""

import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.store.sqlite import SQLiteStore
from support.daemon import running_daemon
from support.http_client import FORM_TYPE, file_part, form
from support.submitting import PDF, cancel, ended, shell, submit
from support.waiting import PATIENCE, eventually

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class SlowStore(SQLiteStore):
    """Commit only after `may_commit` is set."""

    committing: trio.Event
    may_commit: trio.Event

    async def commit(self, jobs: Iterable[Job], changes: Any, *others: Any) -> None:
        self.committing.set()
        await self.may_commit.wait()
        await super().commit(jobs, changes, *others)


def hold_commits(monkeypatch: pytest.MonkeyPatch) -> tuple[trio.Event, trio.Event]:
    """Return an event that the next commit sets, and one that lets commits continue."""
    committing, may_commit = trio.Event(), trio.Event()
    monkeypatch.setattr(SlowStore, "committing", committing, raising=False)
    monkeypatch.setattr(SlowStore, "may_commit", may_commit, raising=False)
    return committing, may_commit


def upload(path: str, *parts: bytes) -> bytes:
    """Return a request with a form."""
    body = form(*parts)
    head = f"POST {path} HTTP/1.1\r\nHost: progressd\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Content-Type: {FORM_TYPE['Content-Type']}\r\n\r\n".encode() + body


@pytest.mark.parametrize(("how", "count"), [("file", 1), ("retry", 1), ("batch", 3)])
async def test_jobs_have_their_inputs_after_a_disconnect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, count: int
) -> None:
    committing, may_commit = hold_commits(monkeypatch)
    monkeypatch.setattr("progressd.app.SQLiteStore", SlowStore)
    go = tmp_path / "go"
    pipelines = {"pdf": shell(f"until [ -e {go} ]; do sleep 0.01; done; cat $0")}
    async with running_daemon(tmp_path, pipelines=pipelines) as daemon:
        match how:
            case "file":
                request = upload("/api/convert", file_part())
            case "batch":
                request = upload("/api/batch", *[file_part(name="files")] * count)
            case _:
                may_commit.set()
                first = await submit(daemon, "pdf")
                await cancel(daemon, first)
                committing, may_commit = hold_commits(monkeypatch)
                request = f"POST /api/jobs/{first}/retry HTTP/1.1\r\nHost: progressd\r\n\r\n".encode()
        async with await daemon.connect() as stream:
            await stream.send_all(request)
            with trio.fail_after(PATIENCE):
                await committing.wait()
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await trio.testing.wait_all_tasks_blocked(0.05)  # the daemon has noticed the disconnect
        may_commit.set()
        await eventually(lambda: daemon.daemon.registry.unfinished)
        job_ids = list(daemon.daemon.registry.unfinished)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert [daemon.daemon.files.input(job_id).read_bytes() for job_id in job_ids] == [PDF] * count
        go.touch()
        assert {(await ended(daemon, job_id)).status for job_id in job_ids} == {JobStatus.COMPLETED}
        assert list((daemon.settings.state_dir / "uploads").iterdir()) == []
