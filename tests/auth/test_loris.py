"""Deliberately slow clients in the head, the body, an upload or a download do not delay others."""

import contextlib
import resource
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from support.daemon import PATIENCE, RunningDaemon, running_daemon
from support.http_client import FORM_TYPE, file_part, form
from support.peer import Peer, request
from support.submitting import python, run, shell
from support.waiting import eventually

ATTACKER = "127.0.0.2"
LARGE = python("import sys; open(sys.argv[2], 'wb').truncate(20 << 20)", result=True)
FORM = form(file_part())
LIMITS = {
    "exempt_addresses": ("127.0.0.1/32",),
    "rate_limit_per_minute": 1_000_000,
    "rate_limit_burst": 1_000_000,
    "max_sockets_per_address": 20_000,
    "max_uploads": 10,
    "max_uploads_per_address": 5,
}
BEGINNINGS = {
    "says nothing": b"",
    "head": b"GET / HTTP/1.1\r\nHost: daemon\r\nX: ",
    "body": request("/api/jobs", {"Content-Length": "100000"}, method="POST") + b'{"kind":"',
    "upload": request("/api/convert", {**FORM_TYPE, "Content-Length": "100000"}, method="POST") + FORM[:-60],
    "reading": request("/api/jobs/LARGE/download"),
}


async def slowly(stream: trio.SocketStream, kind: str, pause: float) -> None:
    """Send or read a byte at a time, until the daemon disconnects."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while True:
            if kind == "reading":
                if not await stream.receive_some(1):
                    return
            elif kind == "says nothing":
                await trio.sleep_forever()
            else:
                await stream.send_all(b"x")
            await trio.sleep(pause)


@asynccontextmanager
async def besieged(daemon: RunningDaemon, counts: dict[str, int], pause: float) -> AsyncGenerator[None]:
    """Within this, so many slow clients of each kind are connected. `pause`: seconds between two bytes."""
    large = await run(daemon, "large")
    async with contextlib.AsyncExitStack() as leaving, trio.open_nursery() as nursery:
        for kind, count in counts.items():
            for _ in range(count):
                stream = await leaving.enter_async_context(await daemon.connect(local=ATTACKER, receive_buffer=4096))
                await stream.send_all(BEGINNINGS[kind].replace(b"LARGE", large.id.encode()))
                nursery.start_soon(slowly, stream, kind, pause)
        yield
        nursery.cancel_scope.cancel()


async def slowest_of(daemon: RunningDaemon, rounds: int) -> float:
    """Return the longest time in which another client connects, gets responses, uploads a file and opens a stream."""
    slowest = 0.0
    for _ in range(rounds):
        began = trio.current_time()
        async with Peer(await daemon.connect()) as peer:
            assert (await peer.ask("/api/health/ready")).status == 200
            assert (await peer.ask("/api/jobs?limit=1")).status == 200
            size = {"Content-Length": str(len(FORM))}
            await peer.send(request("/api/convert?pipeline=quick", {**FORM_TYPE, **size}, method="POST") + FORM)
            assert (await peer.response()).status == 202
            await peer.open("/ws/jobs")
        slowest = max(slowest, trio.current_time() - began)
    return slowest


async def siege(tmp_path: Path, counts: dict[str, int], rounds: int, pause: float = 1.0, **limits: float) -> float:
    pipelines = {"large": LARGE, "quick": shell("true")}
    async with running_daemon(tmp_path, pipelines=pipelines, limits={**LIMITS, **limits}) as daemon:
        async with besieged(daemon, counts, pause):
            slowest = await slowest_of(daemon, rounds)
            await eventually(lambda: daemon.daemon.connection_log.open == 0, 2 * PATIENCE)
        assert not daemon.daemon.services.transfers.uploads
    return slowest


async def test_slow_clients_are_disconnected_and_delay_nobody(tmp_path: Path) -> None:
    short = {"handshake_timeout": 2, "idle_timeout": 2, "min_body_rate": 10_000, "max_handshakes": 50}
    await siege(tmp_path, dict.fromkeys(BEGINNINGS, 60), rounds=5, pause=0.05, **short)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Allow this process as many descriptors as possible."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert before[1] >= 12_000, "this takes ulimit -Hn 12000"
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.torture
@pytest.mark.parametrize("kind", BEGINNINGS)
@pytest.mark.usefixtures("many_descriptors")
async def test_a_thousand_slow_clients_delay_nobody(tmp_path: Path, kind: str) -> None:
    slowest = await siege(tmp_path, {kind: 1_000}, rounds=20, idle_timeout=5, handshake_timeout=5)
    print(f"others waited for {slowest:.3f} s at most")
    assert slowest < 1


@pytest.mark.torture
@pytest.mark.usefixtures("many_descriptors")
async def test_ten_thousand_silent_clients_delay_nobody(tmp_path: Path) -> None:
    slowest = await siege(tmp_path, {"says nothing": 10_000}, rounds=50)
    print(f"others waited for {slowest:.3f} s at most")
    assert slowest < 1
