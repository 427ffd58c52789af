"""Copies of the SQLite file, made while others write to it: whole and synced, or not there at all."""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from progressd.core.errors import Conflict, SettingsError
from progressd.ownership import new_file
from progressd.store.failures import damaged
from progressd.store.reading import reading
from progressd.store.schema import NEW_ID
from progressd.syncing import sync


def backup(path: Path, target: Path) -> int:
    """Copy the store to a file that does not exist yet, and check the copy; its size in bytes.

    Raises Conflict where there is such a file, SettingsError where the store cannot be read or the copy written.
    """
    _require_new(target)
    with reading(path) as db:
        copy(db, target, new=True)
    return target.stat().st_size


def copy(db: sqlite3.Connection, target: Path, *, new: bool = False) -> None:
    """Copy the database as it is now. `new`: check the copy, and take the place of no file that has come meanwhile.

    The copy is a store of its own: who goes on with it gives offsets a second time, and a cursor from before is not to
    be taken for one of those. Raises SettingsError, Conflict, sqlite3.DatabaseError for a damaged database.
    """
    partial = target.with_name(target.name + ".part")
    try:
        _write(db, partial, checked=new)
        if new:
            _require_new(target)
        os.replace(partial, target)
        sync(target.parent)
    except (sqlite3.Error, OSError) as error:
        if isinstance(error, sqlite3.Error) and damaged(error):
            raise
        raise SettingsError(f"cannot write {target}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _write(db: sqlite3.Connection, partial: Path, *, checked: bool) -> None:
    partial.unlink(missing_ok=True)  # of a copy that was killed
    os.close(new_file(partial))
    with closing(sqlite3.connect(partial, isolation_level=None)) as copied:
        db.backup(copied)
        copied.execute("PRAGMA journal_mode = DELETE")  # one file, that needs no other beside it
        copied.execute(f"UPDATE meta SET value = {NEW_ID} WHERE key = 'store_id'")
        if checked:
            _check(copied)
    sync(partial)


def _require_new(target: Path) -> None:
    if os.path.lexists(target):
        raise Conflict(f"{target} exists already, and a backup overwrites nothing")


def _check(db: sqlite3.Connection) -> None:
    [found] = db.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        problem = found.splitlines()[-1]
        raise SettingsError(f"the store is damaged ({problem}), and so would the backup be: see progressd check")
