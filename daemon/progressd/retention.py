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
from progressd.files import LEFT_OVER, Files
from progressd.registry import Registry
from progressd.store.base import Store

FIRST: Final = 60.0  # seconds between the first two looks, for daemons that never run for long
INTERVAL: Final = 600.0  # between all others
STEP: Final = 500  # jobs deleted in one transaction at most; the store takes fewer where that would take long
SWEEP_STEP: Final = 100  # directories looked at in one go
DRIFT: Final = timedelta(hours=1)  # that a clock may be set ahead, and is believed at once
FASTEST: Final = 24  # seconds by which retention follows the clock in one: an hour off takes it minutes, a month a day
PLACES: Final = 40  # in the stream that are noted in the time that jobs are kept
PAUSE: Final = 0.05  # seconds between two steps

log = structlog.get_logger(__name__)


async def run_retention(keep: float, store: Store, registry: Registry, files: Files) -> None:
    """Delete what finished more than `keep` seconds ago, until cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_sweep, keep, store, files)
        await _delete_old(keep, store, registry, files)


async def _sweep(keep: float, store: Store, files: Files) -> None:
    """Delete the files of jobs that the store does not know and would not keep any longer."""
    count, now = 0, datetime.now(UTC)  # files that are older than this start cannot be of a new job
    try:
        seen = await store.last_seen()
        before = now if seen is None else await _time(store, keep) - timedelta(seconds=max(keep, LEFT_OVER))
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


async def _delete_old(keep: float, store: Store, registry: Registry, files: Files) -> None:
    looked, wait = trio.current_time(), FIRST
    while True:
        await _count(files)
        elapsed, looked = trio.current_time() - looked, trio.current_time()
        try:
            if left := await files.remove_left(store):
                log.error("files of deleted jobs cannot be deleted, the next look will", jobs=left)
            before = await _time(store, keep, elapsed) - timedelta(seconds=keep)
            below = await store.reached_after(before)  # what ended later is kept, where a clock that was late says else
            await _delete_finished(before, below, store, registry, files)
        except (StoreFailed, OSError) as error:
            log.error("cannot delete old jobs and their files, the next look will", error=str(error))
        await trio.sleep(wait)
        wait = INTERVAL


async def _count(files: Files) -> None:
    """Find out anew how much is stored."""
    try:
        await files.stored.count()
    except OSError as error:
        log.error("cannot count what is stored, the next look will", error=str(error))


async def _time(store: Store, keep: float, elapsed: float = 0) -> datetime:
    """The time that retention goes by, with `elapsed` seconds since it was asked for: the clock's, unless that jumps.

    It follows the clock, ahead or back, no faster than FASTEST allows, also from one daemon to the next: a wrong clock
    makes jobs old only as far as it has been wrong for long.
    """
    clock = datetime.now(UTC)
    kept = await store.kept_time() or await store.last_seen() or clock
    most = timedelta(seconds=FASTEST * elapsed)
    kept += max(-most, min(clock - kept, most))
    await store.keep_time(kept, keep / PLACES, kept == clock)
    return min(clock, kept + DRIFT)


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
