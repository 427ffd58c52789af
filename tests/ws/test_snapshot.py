"""Snapshots and resuming: a watcher gets what it missed, nothing twice and nothing missing."""

from pathlib import Path
from typing import Any

import pytest
import trio
from support.daemon import RunningDaemon, completed, failed, progress, registered, running_daemon, status_change
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
        assert await watcher.closed() == (1000, "job finished")
        return messages


async def mark(daemon: RunningDaemon, job: str = OTHER) -> None:
    """Cause a message that marks the end of a snapshot."""
    await daemon.report(registered(job))


# the snapshot


@pytest.mark.parametrize(
    ("end", "last"),
    [
        (completed(ID), ["completed", "completed"]),
        (failed(ID, "no"), ["failed", "error"]),
        (status_change(ID, "cancelled"), ["cancelled"]),
    ],
)
async def test_a_finished_job_sends_its_whole_stream(
    daemon: RunningDaemon, end: dict[str, Any], last: list[str]
) -> None:
    await daemon.report(registered(ID), progress(ID, 1), progress(ID, 2), end)
    messages = await everything(daemon, JOB)
    assert list(map(brief, messages)) == ["processing", "step 2", *last]


async def test_a_running_job_sends_its_changes_and_newest_progress(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), *(progress(ID, step) for step in range(1, 6)))
    async with daemon.watch(JOB) as watcher:
        messages = await watcher.receive_until("progress")
        await daemon.report(progress(ID, 6))
        messages.append(await watcher.receive())
    assert list(map(brief, messages)) == ["processing", "step 5", "step 6"]


async def test_a_queued_job_sends_nothing_until_it_starts(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    async with daemon.watch(JOB) as watcher:
        await daemon.report(status_change(ID, "processing"))
        assert brief(await watcher.receive()) == "processing"


async def test_an_upper_case_id_is_the_same_job(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1), completed(ID))
    assert await everything(daemon, f"/ws/jobs/{ID.upper()}") == await everything(daemon, JOB)


async def test_the_stream_of_all_jobs_starts_with_unfinished_jobs(daemon: RunningDaemon) -> None:
    done, running, queued = ID, OTHER, job_id(3)
    await daemon.report(registered(done), progress(done, 7), registered(running), progress(running, 3))
    await daemon.report(completed(done), registered(queued, kind="scan"), progress(running, 4))
    async with daemon.watch("/ws/jobs") as watcher:
        messages = [await watcher.receive() for _ in range(4)]
        await mark(daemon, job_id(9))
        assert about(await watcher.receive()) == (job_id(9), "job_created")
    assert list(map(about, messages)) == [
        (running, "job_created"),
        (running, "processing"),
        (queued, "job_created"),
        (running, "step 4"),
    ]
    assert messages[2]["data"]["kind"] == "scan"


async def test_the_end_of_a_job_does_not_end_the_stream_of_all_jobs(daemon: RunningDaemon) -> None:
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


async def test_cursors_grow(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1), registered(OTHER), progress(OTHER, 1))
    offsets = list(map(offset, await first(daemon, "/ws/jobs", 6)))
    assert offsets == sorted(set(offsets))


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
            await eventually(lambda: len(daemon.daemon.watchers) == 21)
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
    await daemon.report(progress(ID, 2))
    [moved] = await first(daemon, f"{JOB}?since={created['cursor']}", 1)
    assert about(moved) == (ID, "step 2")


async def test_a_producers_cursor_is_valid_for_watchers(daemon: RunningDaemon) -> None:
    *_, answer = await daemon.report(registered(ID), progress(ID, 1))
    await daemon.report(progress(ID, 2))
    [message] = await first(daemon, f"{JOB}?since={answer['cursor']}", 1)
    assert brief(message) == "step 2"


async def test_a_cursor_survives_a_restart(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as daemon:
        await daemon.report(registered(ID), progress(ID, 1), registered(OTHER), progress(OTHER, 1))
        *_, last = await first(daemon, "/ws/jobs", 6)
        await daemon.report(progress(ID, 2), completed(OTHER))
    async with running_daemon(tmp_path) as daemon:
        await daemon.report(progress(ID, 3))
        resumed = await first(daemon, f"/ws/jobs?since={last['cursor']}", 3)
        assert list(map(about, resumed)) == [(OTHER, "completed"), (OTHER, "completed"), (ID, "step 3")]
        ended = await everything(daemon, f"/ws/jobs/{OTHER}?since={last['cursor']}")
        assert list(map(brief, ended)) == ["completed", "completed"]


async def test_the_snapshot_is_the_same_after_a_restart(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as daemon:
        await daemon.report(registered(ID), progress(ID, 1), progress(ID, 2))
        await daemon.report(registered(OTHER), progress(OTHER, 5), completed(OTHER, page_count=3))
        running, done = await first(daemon, JOB, 2), await everything(daemon, f"/ws/jobs/{OTHER}")
    async with running_daemon(tmp_path) as daemon:
        assert await first(daemon, JOB, 2) == running
        assert await everything(daemon, f"/ws/jobs/{OTHER}") == done


# hello


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


async def test_types_and_interval_do_not_filter_hello(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    async with daemon.watch("/ws/jobs?types=completed&interval=60") as watcher:
        assert brief(await watcher.receive()) == "processing"
        await watcher.greeted()


async def test_the_stream_of_a_finished_job_has_no_hello(
    daemon: RunningDaemon,
) -> None:
    await daemon.report(registered(ID), progress(ID, 1), completed(ID))
    async with daemon.watch(JOB) as watcher:
        await watcher.rest()
        assert watcher.hello is None


# unknown cursors


@pytest.mark.parametrize(
    "cursor",
    ["garbage", "00000000-1", "%00", "-1", "%F0%9F%92%A5", "x" * 5000, "1-99999999999999999999", "None"],
)
async def test_an_unknown_cursor_gets_a_resync(daemon: RunningDaemon, cursor: str) -> None:
    await daemon.report(registered(ID), progress(ID, 1), completed(ID))
    resync, *messages = await everything(daemon, f"{JOB}?since={cursor}")
    assert resync == {"type": "resync"}
    assert messages == await everything(daemon, JOB)


async def test_a_cursor_from_the_future_gets_a_resync(daemon: RunningDaemon) -> None:
    *_, answer = await daemon.report(registered(ID), progress(ID, 1))
    store, _, newest = answer["cursor"].rpartition("-")
    messages = await first(daemon, f"/ws/jobs?since={store}-{int(newest) + 1}", 4)
    assert list(map(brief, messages)) == ["resync", "job_created", "processing", "step 1"]


async def test_the_cursor_of_another_daemon_gets_a_resync(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "one") as daemon:
        *_, foreign = await daemon.report(registered(ID), progress(ID, 1), progress(ID, 2))
    async with running_daemon(tmp_path / "two") as daemon:
        await daemon.report(registered(ID), progress(ID, 1), progress(ID, 2), progress(ID, 3))
        messages = await first(daemon, f"{JOB}?since={foreign['cursor']}", 3)
    assert list(map(brief, messages)) == ["resync", "processing", "step 3"]
