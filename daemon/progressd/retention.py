"""Retention: finished jobs and their files are deleted after a time, in small steps between other work.

A job goes first and its files after it, so that no job ever misses its files. What a kill between the two has left is
swept away by the next daemon.
"""

from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
import trio

from progressd.core.errors import StoreFailed
from progressd.files import Files
from progressd.registry import Registry
from progressd.store.base import Store

INTERVAL: Final = 600.0  # seconds between two looks
STEP: Final = 500  # jobs deleted in one transaction at most; the store takes fewer where that would take long
SWEEP_STEP: Final = 100  # directories looked at in one go
SWEPT_AFTER: Final = 3600.0  # seconds that files without a job are left alone: an upload comes before its job
DRIFT: Final = timedelta(hours=1)  # that a clock may be set ahead while the daemon runs, and is believed
PAUSE: Final = 0.05  # seconds between two steps

log = structlog.get_logger(__name__)


async def run_retention(keep: float, store: Store, registry: Registry, files: Files) -> None:
    """Delete what finished more than `keep` seconds ago, until cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_sweep, store, files)
        await _delete_old(keep, store, registry, files)


async def _sweep(store: Store, files: Files) -> None:
    """Delete the files of jobs that the store does not know."""
    count = 0
    try:
        async with aclosing(files.older_than(SWEPT_AFTER, SWEEP_STEP)) as steps:
            async for names in steps:
                known = await store.jobs(names)
                left_over = [name for name in names if name not in known]
                await files.remove(left_over)
                count += len(left_over)
                await trio.sleep(PAUSE)
    except (StoreFailed, OSError) as error:
        log.error("cannot look for files without a job", error=str(error))
    if count:
        log.info("files without a job deleted", count=count)


async def _delete_old(keep: float, store: Store, registry: Registry, files: Files) -> None:
    started, start = datetime.now(UTC), trio.current_time()
    while True:
        # A clock that jumps ahead makes nothing old: it counts only as far as time has gone by here.
        now = min(datetime.now(UTC), started + timedelta(seconds=trio.current_time() - start) + DRIFT)
        before = now - timedelta(seconds=keep)
        try:
            # Nor does one that jumps back: what ended after a job that is kept is kept.
            below = await store.first_finished_within(before, now)
            await _delete_finished(before, below, store, registry, files)
        except (StoreFailed, OSError) as error:
            log.error("cannot delete old jobs and their files, the next look will", error=str(error))
        await trio.sleep(INTERVAL)


async def _delete_finished(before: datetime, below: int | None, store: Store, registry: Registry, files: Files) -> None:
    count = 0
    try:
        while ids := await store.delete_finished(before, STEP, below):
            count += len(ids)
            registry.forget(ids)
            await files.remove(ids)
            await trio.sleep(PAUSE)
    finally:
        if count:
            log.info("old jobs deleted", count=count)
