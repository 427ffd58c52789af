"""The connections to the SQLite file, one for each kind of work, and the size of its write-ahead log (WAL)."""

import contextlib
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import structlog
import trio

from progressd.core.errors import StoreFailed
from progressd.store import schema
from progressd.store.errors import file_errors
from progressd.store.offline import copy
from progressd.store.schema import inspect, migrate, old_copy, require_search
from progressd.system.fs import new_file

BUSY_TIMEOUT: Final = 5.0  # seconds to wait for another process that reads the file, such as a backup

log = structlog.get_logger(__name__)
InThread: TypeAlias = Callable[[Callable[[], None]], Awaitable[None]]


@contextlib.contextmanager
def connected(path: Path, synchronous: str, wal_bytes: int, busy_timeout: float) -> Iterator[list[sqlite3.Connection]]:
    """Open a connection that writes, two that only read, and one for checkpoints. Close them if the block raises.

    `wal_bytes`: the size to which the file of the write-ahead log (WAL) is truncated. Raises SettingsError for a file
    that is not a store of this or an older version, and does not change that file.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        require_search(db)
    with file_errors(path):
        version = inspect(path)
    with file_errors(path), contextlib.ExitStack() as opened:
        if not path.exists():
            os.close(new_file(path))
        writer = opened.enter_context(contextlib.closing(_connect(path, busy_timeout)))
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute(f"PRAGMA synchronous = {synchronous}")
        if version < len(schema.MIGRATIONS):
            if version:
                log.info("migrating the database", file=str(path), version=version, to_version=len(schema.MIGRATIONS))
                copy(writer, old_copy(path, version))
            migrate(writer, version)
        writer.execute("PRAGMA wal_autocheckpoint = 0")  # see Checkpointer
        writer.execute(f"PRAGMA journal_size_limit = {wal_bytes}")
        others = [opened.enter_context(contextlib.closing(_connect(path, busy_timeout))) for _ in range(3)]
        for reader in others[:2]:
            reader.execute("PRAGMA query_only = ON")
        for other in others:  # open the file now, because later no file descriptor may be left
            other.execute("PRAGMA schema_version").fetchall()
        yield [writer, *others]
        opened.pop_all()


def _connect(path: Path, timeout: float) -> sqlite3.Connection:
    # check_same_thread: Trio's worker threads vary, but the limiter lets only one thread use the connection at a time.
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=timeout)


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
        self.written = trio.Event()  # set after each commit
        self._warned = False

    def size(self) -> int:
        """Return the size of the WAL in bytes. Raises OSError."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    async def run(
        self,
        beside_the_writer: InThread,
        instead_of_the_writer: InThread,
    ) -> None:
        """Keep the WAL short until cancelled. Both arguments run a function in a thread; the second blocks writes."""
        while True:
            await self.written.wait()
            await trio.sleep(self._limits.interval)
            self.written = trio.Event()
            try:
                if self.size() > self._limits.checkpoint:
                    await beside_the_writer(self.checkpoint)
                if self.size() > self._limits.restart:
                    # This also moves the few pages written during the first checkpoint. The next commit restarts the
                    # WAL only if all pages have been moved and no reader needs them.
                    await instead_of_the_writer(self.checkpoint)
                self._warn_of_readers()
            except (StoreFailed, OSError) as error:
                log.error("cannot checkpoint the WAL", error=str(error))

    def checkpoint(self) -> None:
        """Move pages from the WAL to the database, unless a reader still needs them in the WAL. Blocks."""
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _warn_of_readers(self) -> None:
        size = self.size()
        if size > self._limits.warning and not self._warned:
            log.warning("the WAL grows: another program has been reading the database for a long time", bytes=size)
        self._warned = size > self._limits.warning
