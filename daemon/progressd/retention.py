"""Retention: finished jobs and their files are deleted after a time, in small steps between other work."""

from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
import trio

from progressd.core.errors import StoreFailed
from progressd.files import Files
from progressd.registry import Registry
from progressd.store.base import Store

INTERVAL: Final = 600.0  # seconds between two looks
STEP: Final = 50  # jobs deleted in one transaction, which holds the writer for some milliseconds
PAUSE: Final = 0.05  # seconds between two steps

log = structlog.get_logger(__name__)


async def run_retention(keep: float, store: Store, registry: Registry, files: Files) -> None:
    """Delete what finished more than `keep` seconds ago, until cancelled."""
    while True:
        before = datetime.now(UTC) - timedelta(seconds=keep)
        try:
            ids = await store.delete_finished(before, STEP)
        except StoreFailed as error:
            log.error("cannot delete old jobs", error=str(error))
            ids = []
        registry.forget(ids)
        await files.remove(ids)
        if ids:
            log.info("old jobs deleted", count=len(ids))
        await trio.sleep(PAUSE if len(ids) == STEP else INTERVAL)
