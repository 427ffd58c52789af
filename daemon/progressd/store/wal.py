"""The write-ahead log (WAL) of the SQLite file. A separate connection keeps it short, so that no commit waits."""

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
    """Limits of the write-ahead log (WAL), in bytes except `interval`."""

    interval: float = 1.0  # seconds between two checks while commits occur
    checkpoint: int = 4 * 2**20  # size at which a checkpoint runs; SQLite's own checkpoints would run in a commit
    restart: int = 16 * 2**20  # size at which the WAL must restart, and to which its file is then truncated
    warning: int = 256 * 2**20  # size that only a long read by another program can cause


class Checkpointer:
    """Move committed pages from the write-ahead log (WAL) to the database, in a separate thread from the writer."""

    def __init__(self, path: Path, db: sqlite3.Connection, limits: WALLimits) -> None:
        self._path = path.with_name(path.name + "-wal")
        self._db = db
        self._limits = limits
        self._written = trio.Event()
        self._warned = False

    def written(self) -> None:
        """Record that a commit was written."""
        self._written.set()

    def size(self) -> int:
        """Return the size of the WAL in bytes. Raises OSError."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    async def run(self, beside_the_writer: InThread, instead_of_the_writer: InThread) -> None:
        """Keep the WAL short until cancelled. Both arguments run a function in a thread; the second blocks writes."""
        while True:
            await self._written.wait()
            await trio.sleep(self._limits.interval)
            self._written = trio.Event()
            try:
                if self.size() > self._limits.checkpoint:
                    await beside_the_writer(self.checkpoint)
                if self.size() > self._limits.restart:
                    # This also moves the few pages written during the first checkpoint. The next commit restarts the
                    # WAL only if all pages have been moved and no reader needs them.
                    await instead_of_the_writer(self.checkpoint)
                self._warn_of_readers()
            except (StoreFailed, OSError) as error:
                log.error("cannot shorten the log of the store", error=str(error))

    def checkpoint(self) -> None:
        """Move pages from the WAL to the database, unless a reader still needs them in the WAL. Blocks."""
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _warn_of_readers(self) -> None:
        size = self.size()
        if size > self._limits.warning and not self._warned:
            log.warning(
                "the log of the store grows: another program has been reading the store for a long time", bytes=size
            )
        self._warned = size > self._limits.warning
