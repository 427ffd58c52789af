"""Connections leave nothing behind, however they end: no tasks, descriptors, topics, objects or reference cycles."""

import gc
import json
import socket
import ssl
import struct
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType

import pytest
import trio
from support.certificates import certificate
from support.daemon import Census, RunningDaemon, completed, progress, registered, running_daemon
from support.http_client import FORM_TYPE, file_part, form
from support.peer import close_frame, frame, request, upgrade
from support.samples import ID, job_id
from support.submitting import shell
from support.waiting import PATIENCE
from wsproto.frame_protocol import Opcode

ROUNDS = 2
MAX_GARBAGE = 10  # objects in cycles for each connection: werkzeug leaves 8 for each request
FEW = 8  # objects of one type that all connections together leave: a leak leaves 4 for each kind of connection
CACHED = {weakref.ref, BuiltinFunctionType}  # sqlite3 keeps up to 200 cursors, abc what it has found of classes
JOB = f"/ws/jobs/{ID}"
LINE = json.dumps(progress(ID, 1)).encode() + b"\n"
CHUNKED = {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"}
PARTS = [file_part(b"%PDF-" + b"x" * 50_000, name=name) for name in ("files", "files")]
SUBSCRIBE = frame(Opcode.TEXT, json.dumps({"type": "subscribe", "topics": [f"job:{ID}"]}).encode())


def post(path: str, body: bytes, **headers: str) -> bytes:
    return request(path, {"Content-Length": str(len(body)), **FORM_TYPE, **headers}, method="POST") + body


# what a client sends, and what it waits for: a response, or a number of uploads
Step = tuple[bytes, bytes | int]
KINDS: dict[str, list[Step]] = {
    "nothing": [],
    "half a head": [(request("/api/stats")[:20], b"")],
    "half a handshake": [(upgrade(JOB)[:60], b"")],
    "a fast read": [(request(f"/api/jobs/{ID}"), b" 200 ")],
    "a route": [(request("/api/stats"), b" 200 ")],
    "an unread response": [(request("/api/stats"), b"")],
    "no route": [(request("/api/none"), b" 404 ")],
    "a malformed id": [(request("/api/jobs/none/events"), b" 400 ")],
    "no request": [(b"NONSENSE\r\n\r\n", b" 400 ")],
    "an event stream": [(request(f"/api/jobs/{ID}/events"), b"retry")],
    "an event stream with an interval": [(request("/api/events?interval=1"), b"retry")],
    "an event stream of a finished job": [(request(f"/api/jobs/{job_id(2)}/events"), b"completed")],
    "a long poll": [(request(f"/api/jobs/{ID}?wait=60&since=CURSOR"), b"")],
    "a stream of lines": [
        (request("/api/events", CHUNKED, method="POST") + b"%x\r\n%b\r\n" % (len(LINE), LINE), b'"ok"')
    ],
    "a cut upload": [(post("/api/convert", form(file_part(b"%PDF-" + b"x" * 50_000)))[:40_000], 1)],
    "a cut batch": [(post("/api/batch", form(*PARTS))[:90_000], 2)],
    "a WebSocket": [(upgrade(JOB), b"status_change")],
    "a WebSocket with filters": [(upgrade(f"{JOB}?interval=5&types=error"), b"status_change")],
    "a WebSocket of all jobs": [(upgrade("/ws/jobs"), b" 101 ")],
    "a WebSocket of a finished job": [(upgrade(f"/ws/jobs/{job_id(2)}"), b"job finished")],
    "a WebSocket after a request": [(request("/api/stats"), b" 200 "), (upgrade(JOB), b"status_change")],
    "a WebSocket that is closed": [(upgrade(JOB), b"status_change"), (close_frame(1000), b"\x88")],
    "a WebSocket with invalid frames": [(upgrade(JOB), b"status_change"), (b"\xff" * 100, b"\x88")],
    "half a frame": [(upgrade(JOB) + frame(Opcode.TEXT, b"x" * 60_000)[:30_000], b"status_change")],
    "half a message": [(upgrade("/ws") + frame(Opcode.TEXT, b"x" * 1000, final=False) * 10, b" 101 ")],
    "a socket of many topics": [(upgrade("/ws"), b" 101 "), (SUBSCRIBE, b"subscribed")],
    "a producer's WebSocket": [(upgrade("/ws/publish"), b" 101 "), (frame(Opcode.TEXT, LINE), b'"ok"')],
    "a handshake that is rejected": [(upgrade("/ws/jobs/none"), b" 400 ")],
    "a handshake of another site": [(upgrade(JOB, {"Origin": "http://elsewhere"}), b" 403 ")],
    "an unread handshake": [(upgrade(JOB), b"")],
}
UPLOAD: list[Step] = [(post("/api/convert", form(file_part())), b" 202 ")]


def hang_up(client: socket.socket) -> None:
    client.close()


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def say_all(client: socket.socket) -> None:
    with client:
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass


LEAVINGS = (hang_up, reset, say_all)


def come_and_go(
    daemon: RunningDaemon,
    steps: list[Step],
    leave: Callable[[socket.socket], None],
    tls: ssl.SSLContext | None = None,
) -> None:
    host, port = daemon.address.split(":")
    cursor = daemon.daemon.history.cursor(daemon.daemon.broadcaster.offset).encode()
    client = socket.create_connection((host, int(port)), PATIENCE)
    if tls is not None:
        client = tls.wrap_socket(client, server_hostname="localhost")
    for sent, awaited in steps:
        client.sendall(sent.replace(b"CURSOR", cursor))
        answer = b""
        while isinstance(awaited, bytes) and awaited not in answer:
            data = client.recv(65536)
            assert data, answer
            answer += data
        while isinstance(awaited, int) and len(list((daemon.settings.state_dir / "uploads").iterdir())) < awaited:
            time.sleep(0.001)
    leave(client)


@contextmanager
def only_new_objects() -> Iterator[None]:
    """Let the collector see only objects that are created in the block, and collect only on request."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def new_objects() -> Counter[str]:
    """Count objects by type."""
    trio._core._run.GLOBAL_RUN_CONTEXT.runner.deadlines._prune()  # Trio keeps up to 1,000 that are over
    gc.collect()
    return Counter(
        f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects() if type(one) not in CACHED
    )


async def garbage(
    daemon: RunningDaemon,
    before: Census,
    steps: list[Step],
    leave: Callable[[socket.socket], None],
    tls: ssl.SSLContext | None = None,
) -> int:
    """Return how many objects in reference cycles a connection leaves."""
    gc.collect()
    for _ in range(ROUNDS):
        await trio.to_thread.run_sync(come_and_go, daemon, steps, leave, tls)
    await daemon.leaves_only(before)
    return gc.collect() // ROUNDS


async def prepare(daemon: RunningDaemon) -> Census:
    """Report the jobs of KINDS, and create what is created once and kept."""
    labels = {f"label-{number}": "x" * 200 for number in range(50)}
    await daemon.report(registered(ID, labels=labels), progress(ID, 1))
    await daemon.report(registered(job_id(2)), progress(job_id(2), 1), completed(job_id(2)))
    await trio.to_thread.run_sync(come_and_go, daemon, KINDS["a socket of many topics"], hang_up)
    return await daemon.settled()


async def test_connections_leave_nothing_behind(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, pipelines={"pdf": shell("true")}) as daemon:
        before = await prepare(daemon)
        found = {}
        with only_new_objects():
            for leave in LEAVINGS:
                found[f"an upload, {leave.__name__}"] = await garbage(daemon, before, UPLOAD, leave)
            for leave in LEAVINGS:
                for kind, steps in KINDS.items():
                    found[f"{kind}, {leave.__name__}"] = await garbage(daemon, before, steps, leave)
                if leave is LEAVINGS[0]:
                    objects, blocks = new_objects(), sys.getallocatedblocks()
            left, more_blocks = new_objects() - objects, sys.getallocatedblocks() - blocks
        assert {kind: count for kind, count in found.items() if count > MAX_GARBAGE} == {}
        assert {kind: count for kind, count in left.items() if count > FEW} == {}
        assert more_blocks < 100 * FEW
        assert daemon.daemon.websockets.budget.used == 0
        connection_log = daemon.daemon.connection_log
        assert (connection_log.open, connection_log.accepted) == (0, connection_log.counts.total())
        assert connection_log.counts["failed", "error"] == 0


async def test_tls_connections_leave_no_reference_cycles(tmp_path: Path) -> None:
    cert = certificate(tmp_path)
    tls = ssl.create_default_context(cafile=str(cert))
    server = {"port": 0, "allowed_hosts": ("daemon",), "tls_cert": str(cert)}
    async with running_daemon(tmp_path, server=server) as daemon:
        daemon.address = daemon.url.removeprefix("https://")
        await daemon.report(registered(ID), progress(ID, 1))
        before = await daemon.settled()
        with only_new_objects():
            for kind in ("a route", "a WebSocket"):
                assert await garbage(daemon, before, KINDS[kind], hang_up, tls) <= MAX_GARBAGE, kind


@pytest.mark.torture
async def test_20_000_connections_leave_nothing_behind(tmp_path: Path) -> None:
    """They overlap, and events arrive meanwhile."""
    kinds = [(steps, leave) for steps in KINDS.values() for leave in LEAVINGS]
    limits = {"max_connections": 1000, "max_connections_per_address": 1000}
    async with running_daemon(tmp_path, limits=limits, pipelines={"pdf": shell("true")}) as daemon:
        before = await prepare(daemon)
        for step in range(20_000 // len(kinds)):
            async with trio.open_nursery() as nursery:
                for steps, leave in kinds:
                    nursery.start_soon(trio.to_thread.run_sync, partial(come_and_go, daemon, steps, leave))
                await daemon.report(progress(ID, 2 + step, 10**6))
            if step == 0:
                await daemon.leaves_only(before)
                gc.collect()
                blocks = sys.getallocatedblocks()
        await daemon.leaves_only(before)
        gc.collect()
        assert sys.getallocatedblocks() - blocks < 100 * FEW
