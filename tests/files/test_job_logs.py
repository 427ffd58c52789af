"""The writer of all logs and its watchers: full disks, slow watchers, deletions, and the order of lines."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from progressd.core.errors import NotFound
from progressd.core.events import LogStream
from progressd.detect.detector import STDOUT
from progressd.files.job_files import JobFiles
from progressd.files.job_logs import MAX_QUEUED, JobLogs, LogWatcher
from progressd.files.log_file import Record
from progressd.runner.output import PipelineLog
from structlog.testing import capture_logs
from support.samples import ID, job_id
from support.waiting import PATIENCE, eventually
from trio.testing import MockClock, wait_all_tasks_blocked

MAX = 1 << 20


def lines(text: str) -> Record:
    return Record("2026-01-01T00:00:00.000Z", LogStream.STDOUT, text.encode())


@asynccontextmanager
async def writing(files: JobFiles) -> AsyncGenerator[JobLogs]:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(files.logs.run)
            yield files.logs
            nursery.cancel_scope.cancel()


async def read_all(watcher: LogWatcher) -> tuple[bytes, int]:
    """Return the text up to the current end, and the number of missed bytes."""
    text, missed = b"", 0
    while not watcher.at_end and (chunk := await watcher.read()) is not None:
        text += b"".join([piece.text for piece in chunk.pieces])
        missed += chunk.missed
    return text, missed


async def test_a_slow_watcher_learns_how_much_it_misses(tmp_path: Path) -> None:
    async with writing(JobFiles(tmp_path, max_log_bytes=MAX)) as logs:
        watcher = await logs.watch(ID, position=0)
        await logs.append(ID, [lines("first\n")])
        assert await read_all(watcher) == (b"first\n", 0)
        begin = watcher.position
        for number in range(40):
            await logs.append(ID, [lines(f"{number:07d}\n" * 8000)])
        text, missed = await read_all(watcher)
        assert missed > MAX
        assert len(text) < MAX
        headers = 40 * len(lines("x" * 64000).encoded()) - 40 * 64000
        assert begin + missed + len(text) <= watcher.position <= begin + missed + len(text) + headers
        assert text.endswith(b"0000039\n")


@pytest.mark.parametrize("watchers", [0, 3])
async def test_every_watcher_reads_every_line_in_order(watchers: int, tmp_path: Path) -> None:
    async with writing(JobFiles(tmp_path)) as logs:
        early = [await logs.watch(ID, position=0) for _ in range(watchers)]
        for number in range(0, 500, 5):
            await logs.append(ID, [lines(f"{one}\n") for one in range(number, number + 5)])
        late = await logs.watch(ID, position=0)
        expected = "".join([f"{one}\n" for one in range(500)]).encode()
        for watcher in [*early, late]:
            assert await read_all(watcher) == (expected, 0)
            watcher.close()


async def test_a_watcher_reads_unpublished_records_from_disk(tmp_path: Path) -> None:
    async with writing(JobFiles(tmp_path)) as logs:
        watcher = await logs.watch(ID, position=0)
        await logs.append(ID, [lines("first\n")])
        assert await read_all(watcher) == (b"first\n", 0)
        file = watcher._log.file
        assert file is not None
        file.append([lines("second\n")])  # the thread has written, and the event loop does not know it yet
        assert await read_all(watcher) == (b"second\n", 0)


async def test_a_cancelled_watcher_leaves_no_records_in_memory(tmp_path: Path) -> None:
    async with writing(JobFiles(tmp_path)) as logs:
        first = await logs.watch(ID, position=0)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await logs.append(ID, [lines("first\n")])
                async with logs._lock:
                    nursery.start_soon(logs.watch, ID)
                    await eventually(lambda: logs._lock.statistics().tasks_waiting == 1)
                    first.close()
                    scope.cancel()
        await logs.append(ID, [lines("unwatched\n")])
        later = await logs.watch(ID, position=0)
        await logs.append(ID, [lines("last\n")])
        assert await read_all(later) == (b"first\nunwatched\nlast\n", 0)


async def test_a_full_disk_loses_lines_with_a_notice(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    async with writing(files) as logs:
        await logs.append(ID, [lines("before\n")])
        files.usage.max_bytes = 1
        with capture_logs() as logged:
            for _ in range(3):
                await logs.append(ID, [lines("lost\n")])
            await logs.append(job_id(2), [lines("lost, too\n")])
            files.usage.max_bytes = 0
            await logs.append(ID, [lines("after\n")])
        assert [entry["event"] for entry in logged] == [
            "lines of the logs of jobs are lost",
            "the logs of jobs are written again",
        ]
        watcher = await logs.watch(ID, position=0)
        text, _ = await read_all(watcher)
        assert text == b"before\n15 bytes of the log are lost: they could not be written\nafter\n"


async def test_a_deleted_log_is_not_created_again(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    async with writing(files) as logs:
        await logs.append(ID, [lines("x\n")])
        watcher = await logs.watch(ID, position=0)
        await read_all(watcher)
        assert files.usage.total > 0
        async with trio.open_nursery() as nursery, logs._lock:
            nursery.start_soon(files.remove, [ID])
            await eventually(lambda: logs._lock.statistics().tasks_waiting == 1)
            nursery.start_soon(rejected, logs)  # its lines wait during the deletion
            await eventually(lambda: logs._lock.statistics().tasks_waiting == 2)
        assert (await watcher.read(), watcher.deleted) == (None, True)
        assert not (tmp_path / "jobs" / ID).exists()


async def test_waiting_lines_do_not_recreate_a_deleted_log(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    assert files.logs.append_nowait(job_id(2), [lines("x" * MAX_QUEUED)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rejected, files.logs)
        await wait_all_tasks_blocked()
        await files.remove([ID])
        async with writing(files) as logs:
            await logs.written()
            await wait_all_tasks_blocked()
    assert not (tmp_path / "jobs" / ID).exists()


async def test_a_pipeline_does_not_recreate_a_deleted_log(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    async with writing(files) as logs:
        pipeline = PipelineLog(logs, ID, attempt=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipeline.run)
            pipeline.put(STDOUT, b"first\n")
            await eventually(lambda: logs.directory(ID).exists())
            await files.remove([ID])
            pipeline.put(STDOUT, b"late\n")
            pipeline.close()
    assert not (tmp_path / "jobs" / ID).exists()


async def rejected(logs: JobLogs) -> None:
    with pytest.raises(NotFound):
        await logs.append(ID, [lines("late\n")])


async def test_a_full_queue_makes_producers_wait(tmp_path: Path, autojump_clock: MockClock) -> None:
    logs = JobFiles(tmp_path).logs
    assert logs.append_nowait(ID, [lines("x" * MAX_QUEUED)])
    assert not logs.append_nowait(ID, [lines("y")])
    with trio.move_on_after(1000) as waiting:
        await logs.append(ID, [lines("y")])
    assert waiting.cancelled_caught


async def test_records_without_text_use_bounded_memory(tmp_path: Path) -> None:
    empty = [lines("")] * 5000
    queueing = JobFiles(tmp_path / "queue").logs
    for _ in range(3):
        queueing.append_nowait(ID, empty)
    assert not queueing.append_nowait(ID, empty)
    async with writing(JobFiles(tmp_path / "watched")) as logs:
        watcher = await logs.watch(ID, position=0)
        await logs.append(ID, empty)
        assert len(watcher._log.recent) < 3000


async def test_a_count_of_the_disk_usage_includes_logs(tmp_path: Path) -> None:
    files = JobFiles(tmp_path, max_log_bytes=MAX)
    async with writing(files) as logs:
        for _ in range(40):
            await logs.append(ID, [lines("x" * 50_000)])
        counted = files.usage.total
        await files.usage.count()
        assert files.usage.total == counted <= MAX + 200_000


async def test_only_old_logs_are_deleted(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    async with writing(files) as logs:
        for job in (ID, job_id(2)):
            await logs.append(job, [lines("x\n")])
        for path in logs.directory(ID).iterdir():
            os.utime(path, (0, 0))
        before = datetime.fromtimestamp(1, UTC)
        found = [name async for names in files.with_logs_older_than(before, 10) for name in names]
        assert found == [ID]
        await files.remove_logs(found)
        assert not logs.directory(ID).parent.exists()
        assert logs.directory(job_id(2)).exists()
        await logs.append(ID, [lines("again\n")])
        watcher = await logs.watch(ID, position=0)
        assert await read_all(watcher) == (b"again\n", 0)
