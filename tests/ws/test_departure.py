"""Watchers that leave at awkward moments, and messages of awkward sizes: the daemon goes on."""

import math
from pathlib import Path

import pytest
import trio
from support.daemon import PATIENCE, RunningDaemon, progress, registered, running_daemon
from support.peer import Peer
from support.samples import ID, job_id
from support.waiting import eventually


async def test_a_watcher_that_leaves_while_others_are_sent_away_does_not_disturb_the_stop(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as daemon, trio.open_nursery() as nursery:

        async def watch(hang_up: bool, there: trio.Event) -> None:
            async with daemon.watch() as watcher:
                there.set()
                await watcher.receive_until("server_shutdown")
                if hang_up:
                    await trio.aclose_forcefully(watcher.stream)
                else:
                    assert (await watcher.closed())[0] == 1001

        for number in range(6):
            there = trio.Event()
            nursery.start_soon(watch, number % 2 == 1, there)
            await there.wait()
        await daemon.stop()


async def test_another_signal_cuts_short_that_watchers_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progressd.app.CLOSE_TIMEOUT", math.inf)
    async with running_daemon(tmp_path) as daemon, Peer(await daemon.connect()) as peer:
        await peer.open()
        daemon.kill()
        assert await peer.close_code() == 1001  # which is not answered
        daemon.kill()
        with trio.fail_after(PATIENCE):
            await daemon.stopped.wait()


async def test_a_snapshot_of_large_messages_reaches_a_client_that_reads(daemon: RunningDaemon) -> None:
    labels = {f"label-{number}": "x" * 200 for number in range(50)}
    ids = [job_id(number) for number in range(200)]
    await daemon.report(*(registered(id_, labels=labels) for id_ in ids))
    async with daemon.watch() as watcher:
        got = [(await watcher.receive())["job_id"] for _ in ids]
    assert got == ids


async def test_labels_and_sentences_have_limits(daemon: RunningDaemon) -> None:
    many = {str(number): "x" for number in range(51)}
    refused, taken = await daemon.report(registered(ID, labels=many), registered(ID))
    assert (refused["ok"], taken["ok"]) == (False, True)
    await daemon.report(progress(ID, 1))
    too_long = {"type": "error", "job_id": ID, "data": {"message": "x" * 10_001}}
    [refused] = await daemon.report(too_long)
    assert not refused["ok"]


async def test_a_request_on_its_way_when_the_daemon_stops_is_answered(daemon: RunningDaemon) -> None:
    host, port = daemon.address.split(":")
    async with Peer(await trio.open_tcp_stream(host, int(port))) as peer:
        await eventually(lambda: daemon.daemon.connection_log.open == 1)
        daemon.kill()
        await eventually(lambda: not daemon.daemon.services.ready)
        response = await peer.ask("/api/health/live", {"Host": daemon.address, "Connection": "close"})
    assert response.status == 200
