"""An idle watcher costs one task and few objects. The benchmark `idle` measures it in KiB."""

import gc
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from progressd.ws.websocket import PING_BATCH
from support.daemon import RunningDaemon, progress, registered, running_daemon
from support.peer import upgrade
from support.samples import ID
from support.waiting import PATIENCE, eventually

WATCHERS = PING_BATCH + 50
LIMITS = {"max_connections": 1000, "max_connections_per_address": 1000}


def watch(daemon: RunningDaemon, held: ExitStack, query: str = "") -> socket.socket:
    """Connect a client that is only a socket."""
    host, port = daemon.address.split(":")
    sock = held.enter_context(socket.create_connection((host, int(port))))
    sock.sendall(upgrade(f"/ws/jobs/{ID}{query}"))
    return sock


@pytest.mark.parametrize("query", ["", "?types=error"])
async def test_an_idle_watcher_is_small(tmp_path: Path, query: str) -> None:
    async with running_daemon(tmp_path, limits=LIMITS) as daemon:
        await daemon.report(registered(ID), progress(ID, 1))
        with ExitStack() as held:
            watch(daemon, held, query)
            await eventually(lambda: daemon.census().topics)
            before = await daemon.settled()
            gc.collect()
            blocks = sys.getallocatedblocks()
            for _ in range(WATCHERS):
                watch(daemon, held, query)
            await eventually(lambda: len(daemon.daemon.websockets) == 1 + WATCHERS)
            await daemon.leaves_only(
                before._replace(
                    tasks=before.tasks + WATCHERS,
                    descriptors=before.descriptors + 2 * WATCHERS,
                    watchers=1 + WATCHERS,
                )
            )
            gc.collect()
            assert (sys.getallocatedblocks() - blocks) / WATCHERS < 150  # 85 to 105 were measured


async def test_more_clients_than_a_batch_are_pinged(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, limits={**LIMITS, "heartbeat_interval": 1}) as daemon:
        await daemon.report(registered(ID))
        with ExitStack() as held:
            socks = [watch(daemon, held) for _ in range(WATCHERS)]
            await eventually(lambda: len(daemon.daemon.websockets) == WATCHERS)
            for sock in socks:
                sock.setblocking(False)
                data = b""
                with trio.fail_after(PATIENCE):
                    while not data.endswith(b"\x89\x00"):
                        await trio.lowlevel.wait_readable(sock)
                        data += sock.recv(65536)
