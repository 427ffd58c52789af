"""Copies of the SQLite file, made while others write to it: whole and synced, or not there at all."""

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

NO_LINKS: Final = {
    errno.EPERM,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
}  # link(2): of a file system that has none, as on a stick

LEFT_OVER: Final = 3600.0  # seconds without a write after which a partial copy is one that a kill has left
PAGES: Final = 1000  # copied between two looks at whether a signal has come
STEPS: Final = 10_000  # of a check, some milliseconds, between two such looks


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
    # Beside a backup there may be files of others, and another backup; beside the store is only what a killed one left.
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part" if new else f"{target.name}.part")
    try:
        if new:
            _clear_away(target)
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


def _clear_away(target: Path) -> None:
    """Remove what killed backups to this place have left, of which nobody needs anything."""
    names = re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}\.part(?:-(?:journal|wal|shm))?")
    with suppress(OSError):  # another backup may do the same
        for path in target.parent.iterdir():
            if names.fullmatch(path.name) and path.lstat().st_mtime < time.time() - LEFT_OVER:
                path.unlink()


def _write(db: sqlite3.Connection, partial: Path, *, checked: bool) -> None:
    with closing(sqlite3.connect(partial, isolation_level=None)) as copied:
        copied.execute("PRAGMA journal_mode = OFF")  # if anything fails, all of it is thrown away
        _copy_pages(db, copied)
        copied.execute("PRAGMA journal_mode = MEMORY")  # one file, that needs no other beside it
        copied.execute(f"UPDATE meta SET value = {NEW_ID} WHERE key = 'store_id'")
        if checked:
            _check(copied)
    sync(partial)


def _copy_pages(db: sqlite3.Connection, copied: sqlite3.Connection) -> None:
    db.execute("BEGIN")
    try:
        db.execute("SELECT 1 FROM meta").fetchall()  # from here on it stays as it is, and no step begins anew
        db.backup(copied, pages=PAGES, progress=lambda *_: None)  # a call of Python, in which a signal is heard
    finally:
        db.rollback()


def _place(partial: Path, target: Path) -> None:
    """Give the copy its name. Raises Conflict where something else has it by now."""
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
    return Conflict(f"{target} exists already, and a backup overwrites nothing")


def _check(db: sqlite3.Connection) -> None:
    db.set_progress_handler(lambda: None, STEPS)  # a call of Python, as above
    [found] = db.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        problem = found.splitlines()[-1]
        raise SettingsError(f"the store is damaged ({problem}), and so would the backup be: see progressd check")
