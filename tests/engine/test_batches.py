"""Batches through ingest: counts, messages to watchers, restarts."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from progressd.core.batch import JobBatch
from progressd.core.events import (
    CompletedEvent,
    Event,
    Priority,
    Registration,
    RunnerEvent,
    StartEvent,
    SubmitEvent,
)
from progressd.core.messages import BatchProgress, Progress, TopicMessage, batch_topic, type_of
from progressd.store.sqlite import SQLiteStore
from support.samples import job_id
from support.spine import Spine, progress, running, started_again

BATCH = job_id(99)


def submitted(number: int) -> SubmitEvent:
    return SubmitEvent(job_id(number), Registration("pdf"), "pdf", BATCH, Priority.HIGH)


def done(number: int) -> tuple[Event, Event]:
    return StartEvent(job_id(number)), RunnerEvent(job_id(number), CompletedEvent(job_id(number)))


async def batch_in(spine: Spine) -> JobBatch:
    return await spine.batches.get(BATCH)


async def test_one_batch_message_counts_events_that_came_together(store: SQLiteStore) -> None:
    async with running(store) as spine:
        messages = []
        await spine.submit(submitted(1), submitted(2))
        with spine.broadcaster.subscribe(topic=batch_topic(BATCH)) as reader:
            for events, count in (((), 3), (done(1), 4), (done(2), 5)):
                await spine.submit(*events)
                messages += [await anext(reader) for _ in range(count)]
            assert [message async for message in reader] == []
    assert [type_of(message) for message in messages] == [
        *("job_created", "job_created", "batch_progress"),
        *("status_change", "status_change", "completed", "batch_progress"),
        *("status_change", "status_change", "completed", "batch_progress", "batch_completed"),
    ]
    assert all(message.batch_id == BATCH for message in messages)
    cursors = [int(str(message.cursor).rpartition("-")[2]) for message in messages]
    assert cursors == sorted(set(cursors))


async def test_each_batch_status_is_counted_once(store: SQLiteStore) -> None:
    async with running(store) as spine:
        await spine.submit(submitted(1), submitted(2))
        await spine.submit(StartEvent(job_id(1)))
        await spine.submit(StartEvent(job_id(2)))
        for number in (1, 2):
            await spine.submit(RunnerEvent(job_id(number), CompletedEvent(job_id(number))))
        assert spine.ingest.counters.batches == {"queued": 1, "processing": 1, "completed": 1}


async def test_a_batch_survives_a_restart(tmp_path: Path) -> None:
    async with started_again(tmp_path / "store") as spine:
        await spine.submit(submitted(1), submitted(2), submitted(3))
        await spine.submit(*done(1), StartEvent(job_id(2)))
        before = await batch_in(spine)
    assert (before.priority, before.completed, before.processing, before.pending) == ("high", 1, 1, 1)
    async with started_again(tmp_path / "store") as spine:
        assert await batch_in(spine) == before
        await spine.submit(RunnerEvent(job_id(2), CompletedEvent(job_id(2))), *done(3))
        ended = await batch_in(spine)
    assert ended.status == "completed"
    async with started_again(tmp_path / "store") as spine:
        assert await batch_in(spine) == ended
        assert [job.id for job in await spine.store.jobs_of_batch(BATCH)] == [job_id(1), job_id(2), job_id(3)]


async def test_a_batch_is_deleted_with_its_last_job(store: SQLiteStore) -> None:
    async with running(store) as spine:
        await spine.submit(submitted(1), submitted(2))
        await spine.submit(*done(1), *done(2))
    later = datetime.now(UTC) + timedelta(days=1)
    assert len(await store.delete_finished(later, 1)) == 1
    assert await store.batches([BATCH])
    assert len(await store.delete_finished(later, 1)) == 1
    assert not await store.batches([BATCH])


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_late_watcher_gets_past_batch_messages(tmp_path: Path, restarted: bool) -> None:
    async with started_again(tmp_path / "store") as spine:
        await spine.submit(submitted(1), submitted(2))
        with spine.broadcaster.subscribe(topic=batch_topic(BATCH)) as reader:
            await spine.submit(*done(1))
            await spine.submit(StartEvent(job_id(2)), progress(5, 2))
            await spine.submit(RunnerEvent(job_id(2), CompletedEvent(job_id(2))))
            live = [message async for message in reader]
        if not restarted:
            assert await past(spine) == newest_only(live)
    async with started_again(tmp_path / "store") as spine:
        assert await past(spine) == newest_only(live)
        middle = live[len(live) // 2].cursor
        after = spine.history.offset(str(middle), spine.broadcaster.offset)
        assert await past(spine, after) == newest_only(live[len(live) // 2 + 1 :])


async def past(spine: Spine, after: int | None = None) -> list[TopicMessage]:
    with spine.broadcaster.subscribe(topic=batch_topic(BATCH), after=after) as reader:
        return [message async for message in reader]


def newest_only(messages: list[TopicMessage]) -> list[TopicMessage]:
    """Return the messages without progress that newer progress replaces."""
    newest = {
        (type(message), getattr(message, "job_id", "")): message
        for message in messages
        if isinstance(message, Progress | BatchProgress)
    }
    return [
        message
        for message in messages
        if not isinstance(message, Progress | BatchProgress) or message in newest.values()
    ]
