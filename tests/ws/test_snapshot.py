"""Snapshots and resuming: a watcher gets what it missed, nothing twice and nothing missing."""

from pathlib import Path
from typing import Any

import pytest
import trio
from support.daemon import RunningDaemon, completed, failed, progress, registered, running_daemon, status_change
from support.peer import Peer, upgrade
from support.samples import ID, job_id
from support.waiting import PATIENCE, eventually

OTHER = job_id(2)
JOB = f"/ws/jobs/{ID}"


def brief(message: dict[str, Any]) -> str:
    """Return the message in one or two words."""
    match message["type"]:
        case "status_change":
            return str(message["data"]["new_status"])
        case "progress":
            return f"step {message['data']['current_step']}"
    return str(message["type"])


def about(message: dict[str, Any]) -> tuple[str, str]:
    return message["job_id"], brief(message)


def offset(message: dict[str, Any]) -> int:
    """Return the offset in the cursor, which is opaque to clients."""
    return int(message["cursor"].rpartition("-")[2])


async def first(daemon: RunningDaemon, path: str, count: int) -> list[dict[str, Any]]:
    """Return the first messages that a new watcher gets."""
    async with daemon.watch(path) as watcher:
        return [await watcher.receive() for _ in range(count)]


async def everything(daemon: RunningDaemon, path: str) -> list[dict[str, Any]]:
    """Return all messages of a stream that ends."""
    async with daemon.watch(path) as watcher:
        messages = await watcher.rest()
        assert watcher.hello is None
        assert await watcher.closed() == (1000, "job finished")
        return messages


# the snapshot


async def test_a_finished_job_sends_its_whole_stream(daemon: RunningDaemon) -> None:
    for number, (end, last) in enumerate(
        [
            (completed, ["completed", "completed"]),
            (lambda id_: failed(id_, "no"), ["failed", "error"]),
            (lambda id_: status_change(id_, "cancelled"), ["cancelled"]),
        ]
    ):
        id_ = job_id(100 + number)
        await daemon.report(registered(id_), progress(id_, 1), progress(id_, 2), end(id_))
        messages = await everything(daemon, f"/ws/jobs/{id_.upper()}")
        assert list(map(brief, messages)) == ["processing", "step 2", *last]


async def test_the_stream_of_all_jobs_starts_with_unfinished_jobs(daemon: RunningDaemon) -> None:
    done, running, queued = ID, OTHER, job_id(3)
    await daemon.report(registered(done), progress(done, 7), registered(running), progress(running, 3))
    await daemon.report(completed(done), registered(queued, kind="scan"))
    await daemon.report(progress(running, 4))
    async with daemon.watch("/ws/jobs") as watcher:
        messages = [await watcher.receive() for _ in range(4)]
        await daemon.report(registered(job_id(9)))
        assert about(await watcher.receive()) == (job_id(9), "job_created")
    assert list(map(about, messages)) == [
        (running, "job_created"),
        (running, "processing"),
        (queued, "job_created"),
        (running, "step 4"),
    ]
    assert messages[2]["data"]["kind"] == "scan"


async def test_the_stream_of_all_jobs_outlasts_a_job(daemon: RunningDaemon) -> None:
    async with daemon.watch("/ws/jobs") as watcher:
        await daemon.report(registered(ID), progress(ID, 1), completed(ID))
        assert list(map(brief, await watcher.receive_until("completed"))) == [
            "job_created",
            "processing",
            "step 1",
            "completed",
            "completed",
        ]
        await daemon.report(registered(OTHER))
        assert about(await watcher.receive()) == (OTHER, "job_created")


async def test_a_snapshot_of_large_messages_arrives(daemon: RunningDaemon) -> None:
    labels = {f"label-{number}": "x" * 200 for number in range(50)}
    ids = [job_id(number) for number in range(200)]
    await daemon.report(*(registered(id_, labels=labels) for id_ in ids))
    async with daemon.watch() as watcher:
        got = [(await watcher.receive())["job_id"] for _ in ids]
    assert got == ids


@pytest.mark.parametrize("path", [JOB, "/ws/jobs"])
async def test_no_message_is_missing_between_snapshot_and_live(daemon: RunningDaemon, path: str) -> None:
    """Watchers connect while a producer reports as fast as it can. Everything fits into their sockets."""
    steps = 400
    await daemon.report(registered(ID), registered(OTHER), progress(ID, 1, steps))
    seen: list[list[Any]] = []

    async def watch() -> None:
        async with daemon.watch(path) as watcher:
            seen.append(await watcher.rest() if path == JOB else await watcher.receive_until("completed"))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for step in range(2, steps, 20):
                nursery.start_soon(watch)
                await daemon.report(*(progress(ID, step + more, steps) for more in range(20)))
            nursery.start_soon(watch)
            await eventually(lambda: len(daemon.daemon.websockets) == 21)
            await daemon.report(completed(ID))
    assert len(seen) == 21
    for messages in seen:
        of_job = [message for message in messages if message["job_id"] == ID]
        offsets = list(map(offset, of_job))
        assert offsets == sorted(set(offsets))
        changes = [brief(message) for message in of_job if message["type"] != "progress"]
        assert changes == ["job_created"] * (path != JOB) + ["processing", "completed", "completed"]
        assert brief([message for message in of_job if message["type"] == "progress"][-1]) == "step 401"
        live = [message["data"]["current_step"] for message in of_job if message["type"] == "progress"]
        assert live == list(range(live[0], 402)), "a progress between the snapshot and the end is missing"


# resuming


async def test_resuming_sends_only_newer_messages(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    async with daemon.watch(JOB) as watcher:
        await daemon.report(progress(ID, 1))
        await daemon.report(progress(ID, 2))
        await daemon.report(progress(ID, 3), completed(ID))
        whole = await watcher.rest()
    assert list(map(brief, whole)) == ["processing", "step 1", "step 2", "step 3", "completed", "completed"]
    for had, message in enumerate(whole, 1):
        resumed = await everything(daemon, f"{JOB}?since={message['cursor']}")
        newer = whole[had:]
        newest = [one for one in newer if one["type"] == "progress"][-1:]
        assert resumed == [one for one in newer if one["type"] != "progress" or one in newest]


async def test_resuming_all_jobs_sends_jobs_that_have_ended(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1), registered(OTHER), progress(OTHER, 1))
    *_, last = await first(daemon, "/ws/jobs", 6)
    await daemon.report(progress(ID, 2), progress(OTHER, 2), completed(OTHER), progress(ID, 3))
    resumed = await first(daemon, f"/ws/jobs?since={last['cursor']}", 4)
    assert sorted(map(about, resumed)) == sorted(
        [(OTHER, "step 2"), (OTHER, "completed"), (OTHER, "completed"), (ID, "step 3")]
    )
    offsets = list(map(offset, resumed))
    assert offsets == sorted(offsets)


async def test_a_cursor_is_valid_on_other_streams(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1), registered(OTHER), progress(OTHER, 1))
    [_, of_job] = await first(daemon, JOB, 2)
    resumed = await first(daemon, f"/ws/jobs?since={of_job['cursor']}", 3)
    assert list(map(about, resumed)) == [(OTHER, "job_created"), (OTHER, "processing"), (OTHER, "step 1")]
    [created, *_] = resumed
    *_, answer = await daemon.report(progress(ID, 2))
    [moved] = await first(daemon, f"{JOB}?since={created['cursor']}", 1)
    assert about(moved) == (ID, "step 2")
    await daemon.report(progress(ID, 3))
    [moved] = await first(daemon, f"{JOB}?since={answer['cursor']}", 1)  # a producer's cursor
    assert brief(moved) == "step 3"


async def test_a_cursor_survives_a_restart(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as daemon:
        await daemon.report(registered(ID), progress(ID, 1), registered(OTHER), progress(OTHER, 1))
        *_, last = await first(daemon, "/ws/jobs", 6)
        await daemon.report(progress(ID, 2), completed(OTHER))
        running, done = await first(daemon, JOB, 2), await everything(daemon, f"/ws/jobs/{OTHER}")
    async with running_daemon(tmp_path) as daemon:
        assert (await first(daemon, JOB, 2), await everything(daemon, f"/ws/jobs/{OTHER}")) == (running, done)
        await daemon.report(progress(ID, 3))
        resumed = await first(daemon, f"/ws/jobs?since={last['cursor']}", 3)
        assert list(map(about, resumed)) == [(OTHER, "completed"), (OTHER, "completed"), (ID, "step 3")]
        ended = await everything(daemon, f"/ws/jobs/{OTHER}?since={last['cursor']}")
        assert list(map(brief, ended)) == ["completed", "completed"]


# hello


async def test_types_and_interval_do_not_filter_hello(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    async with daemon.watch("/ws/jobs?types=completed&interval=60") as watcher:
        assert brief(await watcher.receive()) == "processing"
        await watcher.greeted()


async def test_a_watcher_without_messages_resumes_from_hello(daemon: RunningDaemon) -> None:
    async with daemon.watch("/ws/jobs") as watcher:
        cursor = await watcher.greeted()
    await daemon.report(registered(ID), failed(ID, "no paper"))
    resumed = await first(daemon, f"/ws/jobs?since={cursor}", 3)
    assert list(map(about, resumed)) == [(ID, "job_created"), (ID, "failed"), (ID, "error")]


@pytest.mark.parametrize("path", [JOB, "/ws/jobs"])
async def test_hello_comes_between_snapshot_and_live(daemon: RunningDaemon, path: str) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    async with daemon.watch(path) as watcher:
        await watcher.receive_until("progress")
        cursor = await watcher.greeted()
        await daemon.report(progress(ID, 2))
        assert brief(await watcher.receive()) == "step 2"
    async with daemon.watch(f"{path}?since={cursor}") as watcher:
        assert brief(await watcher.receive()) == "step 2"
        assert offset({"cursor": await watcher.greeted()}) > offset({"cursor": cursor})


@pytest.mark.parametrize("path", [JOB, "/ws/jobs"])
async def test_the_handshake_and_the_snapshot_share_a_packet(daemon: RunningDaemon, path: str) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    async with Peer(await daemon.connect()) as peer:
        await peer.send(upgrade(path))
        packet = await peer.receive()
    assert packet.startswith(b"HTTP/1.1 101")
    assert b'"type":"progress"' in packet
    assert b'"type":"hello"' in packet


# unknown cursors


async def test_an_unknown_cursor_gets_a_resync(daemon: RunningDaemon) -> None:
    *_, answer = await daemon.report(registered(ID), progress(ID, 1))
    store, _, newest = answer["cursor"].rpartition("-")
    future = f"{store}-{int(newest) + 1}"
    unknown = ("garbage", "00000000-1", "%00", "-1", "%F0%9F%92%A5", "x" * 5000, "1-99999999999999999999", "None")
    for cursor in (future, *unknown):
        messages = await first(daemon, f"{JOB}?since={cursor}", 3)
        assert list(map(brief, messages)) == ["resync", "processing", "step 1"], cursor
