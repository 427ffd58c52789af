"""The write-ahead log of the SQLite file: kept short by a connection of its own, so that no commit waits for that."""

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog
import trio

from progressd.core.errors import StoreFailed

INTERVAL: Final = 1.0  # seconds between two looks while something is written
SHORT: Final = 4 * 2**20  # bytes that may wait in the log; SQLite itself would stop a commit after as many
LONG: Final = 16 * 2**20  # bytes from where on the log has to begin anew, and what is left of its file then
TOO_LONG: Final = 256 * 2**20  # bytes that only somebody who reads for a long time can make it grow to

log = structlog.get_logger(__name__)
InThread = Callable[[Callable[[], None]], Awaitable[None]]


class Checkpointer:
    """Moves what was committed from the log into the database, in another thread than the writer's."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._path = path.with_name(path.name + "-wal")
        self._db = db
        self._written = trio.Event()
        self._told = False

    def written(self) -> None:
        """To be called after each commit."""
        self._written.set()

    def size(self) -> int:
        """Bytes. Raises OSError."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    async def run(self, beside_the_writer: InThread, instead_of_the_writer: InThread) -> None:
        """Until cancelled; the two run a function in a thread, and the second one while nothing is written."""
        while True:
            await self._written.wait()
            await trio.sleep(INTERVAL)
            self._written = trio.Event()
            try:
                if self.size() > SHORT:
                    await beside_the_writer(self.checkpoint)
                if self.size() > LONG:
                    # What has been written meanwhile, a little, is moved as well: only when all of it has been, and
                    # no reader needs it any more, does the next commit begin at the front of the log.
                    await instead_of_the_writer(self.checkpoint)
                self._tell_of_readers()
            except (StoreFailed, OSError) as error:
                log.error("cannot shorten the log of the store", error=str(error))

    def checkpoint(self) -> None:
        """Move to the database what is in the log, as far as no reader needs it there. Blocks."""
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _tell_of_readers(self) -> None:
        size = self.size()
        if size > TOO_LONG and not self._told:
            log.warning("another program has been reading the store for a long time, and its log grows", bytes=size)
        self._told = size > TOO_LONG
