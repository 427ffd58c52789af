"""The write-ahead log of the SQLite file: a separate connection keeps it short, so that no commit waits for it."""

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog
import trio

from progressd.core.errors import StoreFailed

INTERVAL: Final = 1.0  # seconds between two checks while commits come
SHORT: Final = 4 * 2**20  # bytes of the log without a checkpoint; SQLite itself would run one in a commit
LONG: Final = 16 * 2**20  # bytes at which the log must restart, and to which its file is cut then
TOO_LONG: Final = 256 * 2**20  # bytes that only a long read by another program explains

log = structlog.get_logger(__name__)
InThread = Callable[[Callable[[], None]], Awaitable[None]]


class Checkpointer:
    """Moves what was committed from the log into the database, in another thread than the writer's."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._path = path.with_name(path.name + "-wal")
        self._db = db
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
            await trio.sleep(INTERVAL)
            self._written = trio.Event()
            try:
                if self.size() > SHORT:
                    await beside_the_writer(self.checkpoint)
                if self.size() > LONG:
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
        if size > TOO_LONG and not self._warned:
            log.warning(
                "the log of the store grows: another program has been reading the store for a long time", bytes=size
            )
        self._warned = size > TOO_LONG
