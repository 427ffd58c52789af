"""Retention: finished jobs and their files are deleted after a time, in small steps between other work.

A job goes first and its files after it, so that no job ever misses its files. What a kill between the two has left is
swept away by a later daemon, once it is as old as what retention deletes: a store that has lost jobs, or is an older
copy, does not take the files of the others along.
"""

from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
import trio

from progressd.core.errors import StoreFailed
from progressd.engine.registry import Registry
from progressd.files.job_files import ORPHAN_MIN_AGE, JobFiles
from progressd.store.base import Store

FIRST_DELAY: Final = 60.0  # seconds between the first two looks, for daemons that never run for long
INTERVAL: Final = 600.0  # between all others
DELETE_STEP: Final = 500  # jobs deleted in one transaction at most; the store takes fewer where that would take long
SWEEP_STEP: Final = 100  # directories looked at in one go
PAUSE: Final = 0.05  # seconds between two steps

log = structlog.get_logger(__name__)


async def run_retention(keep: float, store: Store, registry: Registry, files: JobFiles) -> None:
    """Delete what finished more than `keep` seconds ago, until cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_sweep, keep, store, files)
        await _delete_old(keep, store, registry, files)


async def _sweep(keep: float, store: Store, files: JobFiles) -> None:
    """Delete the files of jobs that the store does not know and would not keep any longer."""
    count, now = 0, datetime.now(UTC)  # files that are older than this start cannot be of a new job
    try:
        seen = await store.last_seen()
        if seen is not None and _far_ahead(now, seen, keep):
            return
        before = now if seen is None else now - timedelta(seconds=max(keep, ORPHAN_MIN_AGE))
        async with aclosing(files.older_than(before, SWEEP_STEP)) as steps:
            async for names in steps:
                if seen is None:
                    log.error(
                        "there are files of jobs but no job was in the store, is it the right one?"
                        " They are left; `progressd check --repair` deletes them",
                    )
                    break
                count += await files.remove_unknown(names, store)
                await trio.sleep(PAUSE)
    except (StoreFailed, OSError) as error:
        log.error("cannot look for files without a job", error=str(error))
    if count:
        log.info("files without a job deleted", count=count)


async def _delete_old(keep: float, store: Store, registry: Registry, files: JobFiles) -> None:
    wait, last = FIRST_DELAY, None
    while True:
        await _count(files)
        now = datetime.now(UTC)
        try:
            if left := await files.remove_left(store):
                log.error("files of deleted jobs cannot be deleted, the next look will", jobs=left)
            last = last or await store.last_seen() or now
            if _far_ahead(now, last, keep):
                log.warning("the clock is far ahead of the last look or job: nothing is deleted until the next look")
            else:
                await _delete_finished(now - timedelta(seconds=keep), store, registry, files)
            last = now
        except (StoreFailed, OSError) as error:
            log.error("cannot delete old jobs and their files, the next look will", error=str(error))
        await trio.sleep(wait)
        wait = INTERVAL


async def _count(files: JobFiles) -> None:
    """Find out anew how much is stored."""
    try:
        await files.usage.count()
    except OSError as error:
        log.error("cannot count what is stored, the next look will", error=str(error))


def _far_ahead(now: datetime, last: datetime, keep: float) -> bool:
    """Return whether all jobs have become old since then. If the clock is wrong, there is time to set it right."""
    return now - last > timedelta(seconds=keep + INTERVAL)


async def _delete_finished(before: datetime, store: Store, registry: Registry, files: JobFiles) -> None:
    count = 0
    try:
        while ids := await store.delete_finished(before, DELETE_STEP):
            count += len(ids)
            registry.forget(ids)
            await files.remove(ids)
            await trio.sleep(PAUSE)
    finally:
        if count:
            log.info("old jobs deleted", count=count)
