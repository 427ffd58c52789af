"""The core of the daemon without producers and watchers: store, ingest, registry, broadcaster and history."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import datetime
from pathlib import Path
from typing import Any

import trio
from progressd.broadcast.broadcaster import Broadcaster
from progressd.commit_log.local import LocalLog
from progressd.core.events import (
    CompletedEvent,
    ErrorEvent,
    Event,
    ProgressEvent,
    RegisterEvent,
    Registration,
    ReportedProgress,
    ReportedStatus,
    StatusEvent,
    SubmitEvent,
)
from progressd.core.job import MaySee, sees_all
from progressd.core.messages import ErrorData, JobStatus
from progressd.engine.commands import Outcome
from progressd.engine.follower import Follower
from progressd.engine.health import StoreHealth
from progressd.engine.history import MAX_SNAPSHOTS, PAGE, SNAPSHOT_MAX_AGE, History
from progressd.engine.ingest import Ingest, utc_now
from progressd.engine.registry import MAX_FINISHED, Batches, Registry
from progressd.files.job_files import JobFiles
from progressd.store.sqlite import SQLiteStore

from support.samples import job_id


class Spine:
    """Built as in `app.py`."""

    def __init__(
        self,
        store: SQLiteStore,
        nursery: trio.Nursery,
        max_finished: int = MAX_FINISHED,
        page_size: int = PAGE,
        snapshot_max_age: int = SNAPSHOT_MAX_AGE,
        max_snapshots: int = MAX_SNAPSHOTS,
        now: Callable[[], datetime] = utc_now,
        **follower_options: Any,
    ) -> None:
        self.store = store
        self.registry = Registry(store, max_finished)
        self.batches = Batches(store)
        self.health = StoreHealth()
        self.history = History(
            store,
            self.registry,
            self.batches,
            self.health,
            page_size=page_size,
            snapshot_max_age=snapshot_max_age,
            max_snapshots=max_snapshots,
        )
        self.broadcaster = Broadcaster(self.history, nursery=nursery, offset=store.first_offset - 1)
        self.files = JobFiles(Path("/nonexistent"))
        self.follower = Follower(store, self.registry, self.batches, self.broadcaster, self.health, **follower_options)
        self.ingest = Ingest(LocalLog(self.follower.apply), self.follower, store, self.registry, self.files.logs, now)

    async def submit(self, *events: Event, may_see: MaySee = sees_all) -> list[Outcome]:
        """Submit events to ingest."""
        return await self.ingest.submit(*events, may_see=may_see)


@asynccontextmanager
async def running(store: SQLiteStore, **options: Any) -> AsyncIterator[Spine]:
    """Run until the end of the block, and stop as the daemon does."""
    async with trio.open_nursery() as nursery:
        spine = Spine(store, nursery, **options)
        await spine.registry.load()
        await spine.batches.load()
        nursery.start_soon(spine.ingest.run)
        yield spine
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def started_again(path: Path) -> AsyncIterator[Spine]:
    """Open the file again, as the next daemon does."""
    with closing(SQLiteStore.open(path)) as store:
        async with running(store) as spine:
            yield spine


def register(number: int = 1) -> RegisterEvent:
    return RegisterEvent(job_id(number), Registration("scan"))


def submit(number: int = 1) -> SubmitEvent:
    return SubmitEvent(job_id(number), Registration("pdf"), "pdf")


def start(number: int = 1) -> StatusEvent:
    return StatusEvent(job_id(number), ReportedStatus(JobStatus.PROCESSING))


def progress(step: int, number: int = 1) -> ProgressEvent:
    return ProgressEvent(job_id(number), ReportedProgress(step, 100, f"Step {step}"))


def complete(number: int = 1) -> CompletedEvent:
    return CompletedEvent(job_id(number))


def fail(number: int = 1, message: str = "no paper") -> ErrorEvent:
    return ErrorEvent(job_id(number), ErrorData(message))


def cancel(number: int = 1) -> StatusEvent:
    return StatusEvent(job_id(number), ReportedStatus(JobStatus.CANCELLED))
