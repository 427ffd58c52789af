"""The specification's cases WS-001 to WS-008 over real sockets, with a producer at the Unix socket."""

from contextlib import AsyncExitStack
from typing import Any

import trio
from support.daemon import RunningDaemon, Watcher, completed, failed, progress, registered, status_change
from support.peer import Peer, close_frame, upgrade
from support.samples import ID
from support.waiting import PATIENCE

ADDED = {"cursor", "time"}  # by the daemon, at the top level of every message


def without_additions(message: dict[str, Any]) -> dict[str, Any]:
    assert message.keys() >= ADDED
    return {key: value for key, value in message.items() if key not in ADDED}


async def test_ws_001_a_watcher_connects_and_stays_connected(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    async with daemon.watch(f"/ws/jobs/{ID}") as watcher:
        assert len(daemon.daemon.websockets) == 1
        with trio.fail_after(PATIENCE):
            await watcher.websocket.ping()
        assert watcher.websocket.closed is None


async def test_ws_002_progress_is_received(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), status_change(ID, "processing"))
    async with daemon.watch(f"/ws/jobs/{ID}") as watcher:
        await watcher.receive_until("status_change")
        [answer] = await daemon.report(progress(ID, 5, 12, "AI Upscaling"))
        message = await watcher.receive()
    assert message["cursor"] == answer["cursor"]
    for added in ("eta_seconds", "eta"):
        message["data"].pop(added, None)
    assert without_additions(message) == {
        "type": "progress",
        "job_id": ID,
        "data": {"current_step": 5, "total_steps": 12, "step_name": "AI Upscaling", "percent": 41},
    }


async def test_ws_003_and_004_status_and_completion_arrive(daemon: RunningDaemon) -> None:
    result = f"/api/jobs/{ID}/download"
    await daemon.report(registered(ID))
    async with daemon.watch(f"/ws/jobs/{ID}") as watcher:
        await daemon.report(status_change(ID, "processing"))
        await daemon.report(completed(ID, output_path=result, elapsed_seconds=45.2, page_count=12))
        started, changed, ended = map(without_additions, await watcher.rest())
        assert await watcher.closed() == (1000, "job finished")
    for message, statuses in ((started, ("queued", "processing")), (changed, ("processing", "completed"))):
        data = dict(zip(("old_status", "new_status"), statuses, strict=True))
        assert message == {"type": "status_change", "job_id": ID, "data": data}
    assert ended == {
        "type": "completed",
        "job_id": ID,
        "data": {"output_path": result, "elapsed_seconds": 45.2, "page_count": 12, "download_url": result},
    }


async def test_ws_005_an_error_ends_the_stream(daemon: RunningDaemon) -> None:
    message = "Pipeline error: PDF extraction failed"
    await daemon.report(registered(ID), status_change(ID, "processing"), failed(ID, message))
    async with daemon.watch(f"/ws/jobs/{ID}") as watcher:
        *_, changed, ended = map(without_additions, await watcher.rest())
        assert await watcher.closed() == (1000, "job finished")
    assert changed["data"] == {"old_status": "processing", "new_status": "failed"}
    assert ended == {"type": "error", "job_id": ID, "data": {"message": message}}


async def close_cleanly(peer: Peer) -> None:
    await peer.send(close_frame(1001, "going away"))
    assert await peer.close_code() == 1001
    await peer.stream.aclose()


async def test_ws_006_a_disconnect_leaves_nothing_behind(daemon: RunningDaemon) -> None:
    """`test_leaks` has more ways to leave."""
    await daemon.report(registered(ID), progress(ID, 1))
    before = await daemon.settled()
    for leave in (close_cleanly, Peer.reset):
        async with AsyncExitStack() as leaving:
            peers = [await leaving.enter_async_context(Peer(await daemon.connect())) for _ in range(3)]
            for peer in peers:
                await peer.open(f"/ws/jobs/{ID}")
            during = daemon.census()
            assert (during.watchers, len(during.topics)) == (3, 1)
            assert during.tasks > before.tasks
            assert during.descriptors >= before.descriptors + 6  # both ends of each
            for peer in peers:
                await leave(peer)
        await daemon.leaves_only(before)


async def test_ws_007_all_clients_get_the_same_messages(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    got: list[list[Any]] = []

    async def collect(watcher: Watcher) -> None:
        got.append(await watcher.rest())

    async with AsyncExitStack() as leaving:
        watchers = [await leaving.enter_async_context(daemon.watch(f"/ws/jobs/{ID}")) for _ in range(20)]
        async with trio.open_nursery() as nursery:
            for watcher in watchers:
                nursery.start_soon(collect, watcher)
            for step in range(1, 11):
                await daemon.report(progress(ID, step, 10, f"Step {step}"))
            await daemon.report(completed(ID))
    assert len(got) == 20
    assert all(messages == got[0] for messages in got)
    steps = [message["data"]["current_step"] for message in got[0] if message["type"] == "progress"]
    assert steps == list(range(1, 11))
    assert got[0][-1]["type"] == "completed"


async def test_ws_008_the_handshake_rejects_an_invalid_id(daemon: RunningDaemon) -> None:
    for wrong in ("42", "not-a-uuid", ID[:-1], ID + "0", "%00", "%F0%9F", "{" + ID + "}", ""):
        async with Peer(await daemon.connect()) as peer:
            await peer.send(upgrade(f"/ws/jobs/{wrong}"))
            response = await peer.response()
        assert (response.status, response.headers["connection"]) == (400, "close")
        assert response.json.keys() == {"error", "code"}
