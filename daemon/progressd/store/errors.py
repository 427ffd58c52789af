"""Convert SQLite's errors to the errors of a store."""

import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from progressd.core.errors import CorruptRecord, SettingsError, StoreDamaged, StoreFailed, StoreFull
from progressd.system.fs import obstacle

BESIDE: Final = ("-wal", "-shm", "-journal")  # suffixes of SQLite's other files
NO_JSON: Final = "malformed JSON"  # in a document that a generated column reads; SQLite does not report which
NO_UTF8: Final = "Could not decode to UTF-8"  # from the sqlite3 module itself, without a code


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Convert errors to a SettingsError that names the file; StoreDamaged if its content is invalid."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if isinstance(error, sqlite3.Error) and damaged(error):
            raise StoreDamaged(
                f"the database {path} is damaged or is not a database ({error}); it was not changed:"
                f" `{repair_command(path.parent)}` recovers the readable data; or restore a backup and delete"
                f" {path.name}-wal; or use another --state-dir"
            ) from error
        mine = obstacle([path, *(path.with_name(path.name + suffix) for suffix in BESIDE)])
        raise SettingsError(
            f"cannot open the database {path}: {error}{'' if mine is None else f' ({mine})'}"
        ) from error


def cannot_open(path: Path, error: StoreFailed) -> SettingsError:
    """Return the error for a store that failed while the daemon started."""
    cause = error.__cause__
    if isinstance(cause, sqlite3.Error) and damaged(cause):
        why = f"{cause}; `{repair_command(path.parent)}` recovers the readable data"
    else:
        why = str(error)
    return SettingsError(f"cannot open the database {path}: {why}")


def repair_command(state_dir: Path) -> str:
    """Return the command that saves the readable data of a damaged store."""
    return f"progressd check --repair --state-dir {shlex.quote(str(state_dir))}"


def store_error(error: sqlite3.Error) -> StoreFailed:
    """Return the error that clients receive."""
    code = _code(error)
    if isinstance(error, UnreadableRow):
        return CorruptRecord(f"{error}: stop the daemon and run progressd check --repair", error.row_id)
    if code == sqlite3.SQLITE_FULL:
        return StoreFull("cannot write to the database: the disk is full")
    if damaged(error):
        return StoreFailed(f"the database is damaged: stop the daemon and run progressd check --repair ({error})")
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreFailed(f"cannot use the database: {error}")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreFailed(f"cannot write to the database: {error}")
    return StoreFailed("cannot use the database: see the daemon's log")  # SQLite's error may name tables


def shortage(error: MemoryError | OSError) -> StoreFailed:
    """Return the error that clients receive during a shortage of memory or another resource."""
    what = error.strerror if isinstance(error, OSError) else "no memory left"
    return StoreFailed(f"cannot use the database: {what}")


class UnreadableRow(sqlite3.DatabaseError):
    """A row with invalid content, as an error like those of SQLite."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT

    def __init__(self, what: str, name: object, reason: object) -> None:
        super().__init__(f"{what} {name} cannot be read: {reason}")
        self.row_id = str(name)


def damaged(error: sqlite3.Error) -> bool:
    """Return whether the content of the file is invalid, in contrast to an I/O error."""
    if index_damaged(error):
        return False
    code = _code(error)
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or str(error).startswith((NO_JSON, NO_UTF8))


def index_damaged(error: sqlite3.Error) -> bool:
    """Return whether only the index for searches is invalid, which the store builds again."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_CORRUPT_VTAB


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # errors of the module itself have none
