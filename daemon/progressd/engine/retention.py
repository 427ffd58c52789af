"""Retention: delete old finished jobs and their files, in small steps.

A job is deleted before its files, so no job ever lacks its files. If the daemon is killed between these two steps, a
later daemon deletes the files once they are older than the retention period. Until then, files of unknown jobs are
kept, in case the store has lost jobs or was restored from an older copy.
"""

import math
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
import trio

from progressd.core.errors import StoreFailed
from progressd.engine.registry import Registry
from progressd.files.job_files import ORPHAN_MIN_AGE, JobFiles
from progressd.store.base import Store

FIRST_DELAY: Final = 60.0  # seconds between the first two runs, for daemons that only run for a short time
INTERVAL: Final = 600.0  # seconds between later runs
DELETE_BATCH: Final = 500  # jobs or directories at once; the store deletes fewer jobs if that would be slow
PAUSE: Final = 0.05  # seconds between two batches

log = structlog.get_logger(__name__)


async def run_retention(
    keep: float,
    store: Store,
    registry: Registry,
    files: JobFiles,
    *,
    keep_logs: float = math.inf,
    batch: int = DELETE_BATCH,
) -> None:
    """Delete jobs that finished more than `keep` seconds ago, until cancelled.

    Logs of finished jobs are deleted earlier if nothing was written to them for `keep_logs` seconds.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_sweep, keep, store, files, batch)
        if keep_logs < keep:
            nursery.start_soon(_delete_old_logs, keep_logs, registry, files, batch)
        await _delete_old(keep, store, registry, files, batch)


async def _sweep(keep: float, store: Store, files: JobFiles, batch: int) -> None:
    """Delete files that are older than `keep` seconds and belong to no job in the store."""
    count, now = 0, datetime.now(UTC)  # files from before this start belong to no new job
    try:
        seen = await store.last_seen()
        if seen is not None and _far_ahead(now, seen, keep):
            return
        before = now if seen is None else now - timedelta(seconds=max(keep, ORPHAN_MIN_AGE))
        async with aclosing(files.older_than(before, batch)) as steps:
            async for names in steps:
                if seen is None:
                    log.error(
                        "files without a job are kept: the database has no jobs (check that it is the right one;"
                        " `progressd check --repair` deletes the files)",
                    )
                    break
                count += await files.remove_unknown(names, store)
                await trio.sleep(PAUSE)
    except (StoreFailed, OSError) as error:
        log.error("cannot check for files without a job", error=str(error))
    if count:
        log.info("files without a job deleted", count=count)


async def _delete_old_logs(keep: float, registry: Registry, files: JobFiles, batch: int) -> None:
    while True:
        before, count = datetime.now(UTC) - timedelta(seconds=keep), 0
        try:
            async with aclosing(files.with_logs_older_than(before, batch)) as steps:
                async for names in steps:
                    finished = [name for name in names if name not in registry.unfinished]
                    await files.remove_logs(finished)
                    count += len(finished)
                    await trio.sleep(PAUSE)
        except OSError as error:
            log.error("cannot delete old logs of jobs, will retry", error=str(error))
        if count:
            log.info("old logs of jobs deleted", count=count)
        await trio.sleep(INTERVAL)


async def _delete_old(keep: float, store: Store, registry: Registry, files: JobFiles, batch: int) -> None:
    wait, last = FIRST_DELAY, None
    while True:
        await _count(files)
        now = datetime.now(UTC)
        try:
            last = last or await store.last_seen() or now
            if _far_ahead(now, last, keep):
                log.warning(
                    "no old jobs are deleted in this run: the clock is far ahead of the previous run or the newest job"
                )
            else:
                await _delete_finished(now - timedelta(seconds=keep), store, registry, files, batch)
            last = now
        except (StoreFailed, OSError) as error:
            log.error("cannot delete old jobs and their files, will retry", error=str(error))
        await trio.sleep(wait)
        wait = INTERVAL


async def _count(files: JobFiles) -> None:
    """Measure the disk usage again."""
    try:
        await files.usage.count()
    except OSError as error:
        log.error("cannot measure the disk usage, will retry", error=str(error))


def _far_ahead(now: datetime, last: datetime, keep: float) -> bool:
    """Return whether all jobs have expired since `last`. A wrong clock can then be corrected before the next run."""
    return now - last > timedelta(seconds=keep + INTERVAL)


async def _delete_finished(before: datetime, store: Store, registry: Registry, files: JobFiles, batch: int) -> None:
    count = 0
    try:
        while ids := await store.delete_finished(before, batch):
            count += len(ids)
            registry.forget(ids)
            await files.remove(ids)
            await trio.sleep(PAUSE)
    finally:
        if count:
            log.info("old jobs deleted", count=count)
