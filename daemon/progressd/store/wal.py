"""The write-ahead log of the SQLite file: a separate connection keeps it short, so that no commit waits for it."""

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import structlog
import trio

from progressd.core.errors import StoreFailed

log = structlog.get_logger(__name__)
InThread = Callable[[Callable[[], None]], Awaitable[None]]


class WALLimits(NamedTuple):
    """Limits of the log, in bytes but for `interval`."""

    interval: float = 1.0  # seconds between two checks while commits come
    checkpoint: int = 4 * 2**20  # without a checkpoint; SQLite itself would run one in a commit
    restart: int = 16 * 2**20  # at which the log must restart, and to which its file is cut then
    warning: int = 256 * 2**20  # that only a long read by another program explains


class Checkpointer:
    """Moves what was committed from the log into the database, in another thread than the writer's."""

    def __init__(self, path: Path, db: sqlite3.Connection, limits: WALLimits) -> None:
        self._path = path.with_name(path.name + "-wal")
        self._db = db
        self._limits = limits
        self._written = trio.Event()
        self._warned = False

    def written(self) -> None:
        """Note a commit."""
        self._written.set()

    def size(self) -> int:
        """Return the bytes of the log. Raises OSError."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    async def run(self, beside_the_writer: InThread, instead_of_the_writer: InThread) -> None:
        """Keep the log short until cancelled. Both arguments run a function in a thread; the second blocks writes."""
        while True:
            await self._written.wait()
            await trio.sleep(self._limits.interval)
            self._written = trio.Event()
            try:
                if self.size() > self._limits.checkpoint:
                    await beside_the_writer(self.checkpoint)
                if self.size() > self._limits.restart:
                    # This moves the few pages written meanwhile too. The next commit restarts the log only when all
                    # pages have been moved and no reader needs them.
                    await instead_of_the_writer(self.checkpoint)
                self._warn_of_readers()
            except (StoreFailed, OSError) as error:
                log.error("cannot shorten the log of the store", error=str(error))

    def checkpoint(self) -> None:
        """Move pages from the log to the database, unless a reader needs them there. Blocks."""
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _warn_of_readers(self) -> None:
        size = self.size()
        if size > self._limits.warning and not self._warned:
            log.warning(
                "the log of the store grows: another program has been reading the store for a long time", bytes=size
            )
        self._warned = size > self._limits.warning
