"""A client may disconnect during the commit of its submission."""

import socket
import struct
from pathlib import Path

import pytest
import trio
from progressd.core.messages import JobStatus
from support.daemon import CommitGate, running_daemon
from support.http_client import FORM_TYPE, file_part, form
from support.submitting import PDF, cancel, ended, shell, submit
from support.waiting import PATIENCE, eventually

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


def upload(path: str, *parts: bytes) -> bytes:
    """Return a request with a form."""
    body = form(*parts)
    head = f"POST {path} HTTP/1.1\r\nHost: progressd\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Content-Type: {FORM_TYPE['Content-Type']}\r\n\r\n".encode() + body


@pytest.mark.parametrize(("how", "count"), [("file", 1), ("retry", 1), ("batch", 3)])
async def test_jobs_have_their_inputs_after_a_disconnect(tmp_path: Path, how: str, count: int) -> None:
    gate = CommitGate()
    go = tmp_path / "go"
    pipelines = {"pdf": shell(f"until [ -e {go} ]; do sleep 0.01; done; cat $0")}
    async with running_daemon(tmp_path, pipelines=pipelines, open_store=gate.open_store) as daemon:
        match how:
            case "file":
                request = upload("/api/convert", file_part())
            case "batch":
                request = upload("/api/batch", *[file_part(name="files")] * count)
            case _:
                gate.may_commit.set()
                first = await submit(daemon, "pdf")
                await cancel(daemon, first)
                gate.close()
                request = f"POST /api/jobs/{first}/retry HTTP/1.1\r\nHost: progressd\r\n\r\n".encode()
        async with await daemon.connect() as stream:
            await stream.send_all(request)
            with trio.fail_after(PATIENCE):
                await gate.committing.wait()
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await trio.testing.wait_all_tasks_blocked(0.05)  # the daemon has noticed the disconnect
        gate.may_commit.set()
        await eventually(lambda: daemon.daemon.registry.unfinished)
        job_ids = list(daemon.daemon.registry.unfinished)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert [daemon.daemon.files.input(job_id).read_bytes() for job_id in job_ids] == [PDF] * count
        go.touch()
        assert {(await ended(daemon, job_id)).status for job_id in job_ids} == {JobStatus.COMPLETED}
        assert list((daemon.settings.state_dir / "uploads").iterdir()) == []
