"""Open the SQLite file: create or migrate it, with one connection for each kind of work."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from progressd.core.errors import SettingsError
from progressd.store import schema
from progressd.store.backup import copy
from progressd.store.errors import BESIDE, file_errors
from progressd.store.schema import inspect, migrate, old_copy
from progressd.system.fs import new_file

BUSY_TIMEOUT: Final = 5.0  # seconds to wait for another process that reads the file, such as a backup


@contextlib.contextmanager
def connected(path: Path, synchronous: str, wal_bytes: int) -> Iterator[list[sqlite3.Connection]]:
    """Open a connection that writes, two that only read, and one for checkpoints. Close them if the block raises.

    `wal_bytes`: the size to which the file of the write-ahead log (WAL) is truncated. Raises SettingsError for a file
    that is not a store of this or an older version, and does not change that file.
    """
    with file_errors(path):
        version = inspect(path)
    with file_errors(path), _created(path), contextlib.ExitStack() as opened:
        writer = opened.enter_context(contextlib.closing(_connect(path)))
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute(f"PRAGMA synchronous = {synchronous}")
        if version < len(schema.MIGRATIONS):
            if version:
                copy(writer, old_copy(path, version))
            migrate(writer, version)
        writer.execute("PRAGMA wal_autocheckpoint = 0")  # see Checkpointer
        writer.execute(f"PRAGMA journal_size_limit = {wal_bytes}")
        others = [opened.enter_context(contextlib.closing(_connect(path))) for _ in range(3)]
        for reader in others[:2]:
            reader.execute("PRAGMA query_only = ON")
        for other in others:  # open the file now, because later no file descriptor may be left
            other.execute("PRAGMA schema_version").fetchall()
        yield [writer, *others]
        opened.pop_all()


@contextlib.contextmanager
def _created(path: Path) -> Iterator[None]:
    """Create a missing file, and delete it again if the block raises, as on a full disk."""
    new = not path.exists()
    if new and path.is_symlink():
        raise SettingsError(f"cannot open the store {path}: it is a dangling link to {path.readlink()}")
    if new:
        os.close(new_file(path))
    try:
        yield
    except BaseException:
        if new:
            for suffix in (*BESIDE, ""):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        raise


def _connect(path: Path) -> sqlite3.Connection:
    # check_same_thread: Trio's worker threads vary, but the limiter lets only one thread use the connection at a time.
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT)
