"""Copy the SQLite file while a daemon writes to it. The copy is complete and synced, or does not exist."""

import errno
import os
import re
import secrets
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from progressd.core.errors import Conflict, SettingsError
from progressd.store.errors import damaged
from progressd.store.offline import reading
from progressd.store.schema import NEW_ID
from progressd.system.fs import new_file, sync

NO_LINKS: Final = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP}  # from link(2) on a file system without hard links

PARTIAL_MIN_AGE: Final = 3600.0  # seconds without a write after which a partial copy was left by a killed backup
PAGES: Final = 1000  # pages copied between two checks for a signal
STEPS: Final = 10_000  # steps of `integrity_check` between two checks for a signal, some milliseconds


def backup(path: Path, target: Path) -> int:
    """Copy the store to a new file, check the copy, and return its size in bytes.

    Raises Conflict if the file exists, SettingsError if the store cannot be read or the copy cannot be written.
    """
    _require_new(target)
    with reading(path) as db:
        copy(db, target, new=True)
    return target.stat().st_size


def copy(db: sqlite3.Connection, target: Path, *, new: bool = False) -> None:
    """Copy the current database. `new`: check the copy, and do not replace an existing file.

    The copy has a new store id. A daemon that continues with the copy assigns some offsets a second time, and old
    cursors must not match these offsets. Raises SettingsError, Conflict, sqlite3.DatabaseError for a damaged store.
    """
    # The directory of a backup may contain other files, and a second backup may be in progress. In the directory of the
    # store, a partial copy was always left by an earlier run.
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part" if new else f"{target.name}.part")
    try:
        if new:
            _delete_remains(target)
        else:
            partial.unlink(missing_ok=True)
        try:
            os.close(new_file(partial))
            _write(db, partial, checked=new)
            (_place if new else os.replace)(partial, target)
        finally:
            with suppress(OSError):
                partial.unlink()
        sync(target.parent)
    except (sqlite3.Error, OSError) as error:
        if isinstance(error, sqlite3.Error) and damaged(error):
            raise
        raise SettingsError(f"cannot write {target}: {getattr(error, 'strerror', None) or error}") from error


def _delete_remains(target: Path) -> None:
    """Delete partial copies that were left by killed backups to the same file."""
    names = re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}\.part(?:-(?:journal|wal|shm))?")
    with suppress(OSError):  # another backup may do the same
        for path in target.parent.iterdir():
            if names.fullmatch(path.name) and path.lstat().st_mtime < time.time() - PARTIAL_MIN_AGE:
                path.unlink()


def _write(db: sqlite3.Connection, partial: Path, *, checked: bool) -> None:
    with closing(sqlite3.connect(partial, isolation_level=None)) as copied:
        copied.execute("PRAGMA journal_mode = OFF")  # if anything fails, the copy is deleted
        _copy_pages(db, copied)
        copied.execute("PRAGMA journal_mode = MEMORY")  # creates no journal file
        copied.execute(f"UPDATE meta SET value = {NEW_ID} WHERE key = 'store_id'")
        if checked:
            _check(copied)
    sync(partial)


def _copy_pages(db: sqlite3.Connection, copied: sqlite3.Connection) -> None:
    db.execute("BEGIN")
    try:
        db.execute(
            "SELECT 1 FROM meta"
        ).fetchall()  # starts a read transaction, so that a write does not restart the backup
        db.backup(copied, pages=PAGES, progress=lambda *_: None)  # a Python call, in which signals are handled
    finally:
        db.rollback()


def _place(partial: Path, target: Path) -> None:
    """Give the copy its final name. Raises Conflict if a file with that name exists."""
    try:
        try:
            os.link(partial, target)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            os.close(new_file(target))
            os.replace(partial, target)
    except FileExistsError:
        raise _taken(target) from None


def _require_new(target: Path) -> None:
    if os.path.lexists(target):
        raise _taken(target)


def _taken(target: Path) -> Conflict:
    return Conflict(f"{target} exists already: a backup overwrites no file")


def _check(db: sqlite3.Connection) -> None:
    db.set_progress_handler(lambda: None, STEPS)  # a Python call, as above
    [found] = db.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        problem = found.splitlines()[-1]
        raise SettingsError(f"cannot back up the store: it is damaged ({problem}); run progressd check")
