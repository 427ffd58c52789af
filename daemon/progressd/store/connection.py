"""How the SQLite file is opened: made if there is none, brought up to date, with a connection for each kind of work."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from progressd.core.errors import SettingsError
from progressd.store import schema
from progressd.store.backup import copy
from progressd.store.errors import BESIDE, told_of
from progressd.store.schema import inspect, migrate, old_copy
from progressd.store.wal import LONG
from progressd.system.fs import new_file

BUSY_TIMEOUT: Final = 5.0  # seconds to wait for another process that reads the file, such as a backup


@contextlib.contextmanager
def connected(path: Path, synchronous: str) -> Iterator[list[sqlite3.Connection]]:
    """The connection that writes, two that only read, and one for checkpoints; closed where what is within fails.

    Raises SettingsError for a file that is not a store of this or an older version, and leaves it as it is.
    """
    with told_of(path):
        version = inspect(path)
    with told_of(path), _made(path), contextlib.ExitStack() as opened:
        writer = opened.enter_context(contextlib.closing(_connect(path)))
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute(f"PRAGMA synchronous = {synchronous}")
        if version < len(schema.MIGRATIONS):
            if version:
                copy(writer, old_copy(path, version))
            migrate(writer, version)
        writer.execute("PRAGMA wal_autocheckpoint = 0")  # see WriteAheadLog
        writer.execute(f"PRAGMA journal_size_limit = {LONG}")
        others = [opened.enter_context(contextlib.closing(_connect(path))) for _ in range(3)]
        for reader in others[:2]:
            reader.execute("PRAGMA query_only = ON")
        for other in others:  # else its files are opened when it is first used, and there may be no descriptor left
            other.execute("PRAGMA schema_version").fetchall()
        yield [writer, *others]
        opened.pop_all()


@contextlib.contextmanager
def _made(path: Path) -> Iterator[None]:
    """Make the file if there is none; it goes again where nothing comes of it, as on a full disk."""
    new = not path.exists()
    if new and path.is_symlink():
        raise SettingsError(f"cannot open the store {path}: it is a link to {path.readlink()}, and nothing is there")
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
    # check_same_thread: Trio's worker threads change, but the limiter lets only one at a time use the connection.
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT)
