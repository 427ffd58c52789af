"""Watchers are told how the store is, whatever happens while that is being told."""

import json
from pathlib import Path
from typing import Any

import trio
from progressd.announcer import Announcer
from progressd.auth.identity import ANONYMOUS, Client
from progressd.broadcast.reader import ReaderOutbox
from progressd.core.errors import StoreFailed
from progressd.http.open_streams import StreamRegistry
from progressd.ws.server import WebSocketServer
from support.daemon import PATIENCE, running_daemon


async def test_a_failure_while_things_are_settled_after_the_one_before_is_told(tmp_path: Path) -> None:
    settling, settled = trio.Event(), trio.Event()

    async def settle() -> None:
        settling.set()
        await settled.wait()

    async with running_daemon(tmp_path) as running, trio.open_nursery() as nursery:
        daemon, outbox = running.daemon, ReaderOutbox(10_000)
        streams = StreamRegistry(daemon.connection_limiter)
        watchers = WebSocketServer(
            daemon.settings, daemon.authenticator, daemon.rate_limits, daemon.connection_limiter, daemon.scopes
        )

        async def told() -> Any:
            with trio.fail_after(PATIENCE):
                await outbox.wait()
            [item] = outbox.take(1)
            return json.loads(item.event.partition(b"data: ")[2])["data"]

        with streams.opened(outbox, Client("198.51.100.7", ANONYMOUS)):
            nursery.start_soon(Announcer(watchers, streams).run, daemon.ingest, settle)
            daemon.ingest._turn(StoreFailed("the disk is full"))
            assert await told() == {"status": "failing", "error": "the disk is full"}
            daemon.ingest._turn(None)
            assert (await told())["status"] == "healthy"
            await settling.wait()
            daemon.ingest._turn(StoreFailed("the disk fails"))
            settled.set()
            assert await told() == {"status": "failing", "error": "the disk fails"}
        nursery.cancel_scope.cancel()
