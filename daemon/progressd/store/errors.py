"""What SQLite's errors mean for a store, in sentences."""

import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from progressd.core.errors import CorruptRecord, SettingsError, StoreDamaged, StoreFailed, StoreFull
from progressd.system.fs import obstacle

BESIDE: Final = ("-wal", "-shm", "-journal")  # what SQLite may have beside a file
NO_JSON: Final = "malformed JSON"  # of a document that a column comes from; SQLite does not say of which
NO_UTF8: Final = "Could not decode to UTF-8"  # says the module itself, without a code


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the file into a SettingsError that names it, StoreDamaged for its content."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if isinstance(error, sqlite3.Error) and damaged(error):
            raise StoreDamaged(
                f"the store {path} is damaged, or is no store at all ({error}); it is left as it is:"
                f" `{repair_command(path.parent)}` saves what can be read, or put a backup in its place, and"
                f" no {path.name}-wal beside it, or name another --state-dir"
            ) from error
        mine = obstacle([path, *(path.with_name(path.name + suffix) for suffix in BESIDE)])
        raise SettingsError(f"cannot open the store {path}: {error}{'' if mine is None else f' ({mine})'}") from error


def cannot_begin(path: Path, error: StoreFailed) -> SettingsError:
    """What is said of a store that failed a daemon before it served anybody."""
    cause = error.__cause__
    if isinstance(cause, sqlite3.Error) and damaged(cause):
        why = f"{cause}; `{repair_command(path.parent)}` saves what can be read"
    else:
        why = str(error)
    return SettingsError(f"the daemon cannot begin with the store {path}: {why}")


def repair_command(state_dir: Path) -> str:
    """What saves of a damaged store what can be read."""
    return f"progressd check --repair --state-dir {shlex.quote(str(state_dir))}"


def refusal(error: sqlite3.Error) -> StoreFailed:
    """What whoever wanted something of the store is told."""
    code = _code(error)
    if isinstance(error, UnreadableRow):
        return CorruptRecord(f"{error}: stop the daemon, and see progressd check --repair", error.row_id)
    if code == sqlite3.SQLITE_FULL:
        return StoreFull("the disk of the daemon's store is full")
    if damaged(error):
        return StoreFailed(f"the daemon's store is damaged: stop it, and see progressd check --repair ({error})")
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreFailed(f"the disk of the daemon's store fails: {error}")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreFailed(f"the store does not take it: {error}")
    return StoreFailed("the store does not take it: the daemon's log says why")  # the sentence may be about its tables


def shortage(error: MemoryError | OSError) -> StoreFailed:
    """The same, where the machine has run short of something before SQLite did."""
    what = error.strerror if isinstance(error, OSError) else "no memory left"
    return StoreFailed(f"the store does not take it for now: {what}")


class UnreadableRow(sqlite3.DatabaseError):
    """What SQLite would raise, had it noticed that a row makes no sense."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    sqlite_errorname = "SQLITE_CORRUPT"

    def __init__(self, what: str, name: object, reason: object) -> None:
        super().__init__(f"{what} {name} cannot be read: {reason}")
        self.row_id = str(name)


def damaged(error: sqlite3.Error) -> bool:
    """Whether it says that the file's content is wrong, rather than that it cannot be read or written."""
    code = _code(error)
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or str(error).startswith((NO_JSON, NO_UTF8))


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # errors of the module itself have none
