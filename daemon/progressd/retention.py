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
from progressd.files import Files
from progressd.registry import Registry
from progressd.store.base import Store

INTERVAL: Final = 600.0  # seconds between two looks
STEP: Final = 500  # jobs deleted in one transaction at most; the store takes fewer where that would take long
SWEEP_STEP: Final = 100  # directories looked at in one go
SWEPT_AFTER: Final = 3600.0  # seconds at least that files without a job are left: an upload comes before its job
DRIFT: Final = timedelta(hours=1)  # that a clock may be set ahead, and is believed
BELIEVED_AFTER: Final = timedelta(days=1)  # of running with it: a clock that was ahead of all jobs at the start
PAUSE: Final = 0.05  # seconds between two steps

log = structlog.get_logger(__name__)


async def run_retention(keep: float, store: Store, registry: Registry, files: Files) -> None:
    """Delete what finished more than `keep` seconds ago, until cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_sweep, keep, store, files)
        await _delete_old(keep, store, registry, files)


async def _sweep(keep: float, store: Store, files: Files) -> None:
    """Delete the files of jobs that the store does not know and would not keep any longer."""
    count = 0
    try:
        seen = await store.last_seen()
        now = datetime.now(UTC) if seen is None else min(datetime.now(UTC), seen + DRIFT)
        before = now - timedelta(seconds=max(keep, SWEPT_AFTER))
        async with aclosing(files.older_than(before, SWEEP_STEP)) as steps:
            async for names in steps:
                if seen is None:
                    log.error(
                        "there are files of jobs but no job was in the store, is it the right one?"
                        " They are left; `progressd check --repair` deletes them",
                    )
                    break
                known = await store.known(names)
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
        gone = timedelta(seconds=trio.current_time() - start)
        try:
            # A clock that jumps ahead makes nothing old: it counts only as far as time has gone by here, since the
            # newest job before the start, or since the start once it had time to be set right.
            seen = await store.last_seen()
            since = started if seen is None or gone >= BELIEVED_AFTER else min(started, seen)
            now = min(datetime.now(UTC), since + gone + DRIFT)
            before = now - timedelta(seconds=keep)
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
