"""How a new file takes the place of a damaged database: neither that without its log, nor the new one with it.

SQLite applies whatever log it finds beside a database, and a file and its log cannot both be renamed in one go. So the
damaged one gets its other name as a link first: as long as both are the same file, a kill has cut this off, and the log
belongs beside it.
"""

import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

from progressd.syncing import sync

KEPT: Final = ".damaged"  # and a number


def put_aside(path: Path, new: Path) -> Path:
    """Put a new database in the place of one that nobody has open; the name under which that is kept, with its log.

    Whatever cuts this off, either the new one is in place, or `put_back` makes all as it was. Raises OSError.
    """
    numbered = (path.with_name(f"{path.name}{KEPT}{number}") for number in count(1))
    kept = next(name for name in numbered if not (os.path.lexists(name) or os.path.lexists(_log(name))))
    try:
        os.link(path, kept)
        sync(path.parent)
        if _has_log(path):
            os.replace(_log(path), _log(kept))  # first: SQLite would apply it to the new file
            sync(path.parent)
        _forget_index(path)
        os.replace(new, path)
        sync(path.parent)
    except BaseException:
        put_back(path)
        raise
    return kept


def put_back(path: Path) -> bool:
    """Whether a repair was cut off that has left a database in two places; it is as before then. Raises OSError."""
    path = path.resolve()
    links = _links(path)
    for kept in links:
        if _has_log(kept) and not _has_log(path):
            os.replace(_log(kept), _log(path))
            _forget_index(path)
            sync(path.parent)
        kept.unlink()
        sync(path.parent)
    return bool(links)


def without_log(path: Path) -> bool:
    """Whether a repair was cut off after it had taken the log of the database away: without it jobs are missing."""
    path = path.resolve()
    return not _has_log(path) and any(_has_log(kept) for kept in _links(path))


def cut_off(path: Path) -> bool:
    """Whether a repair was cut off before a new database was in the place of the old one."""
    return bool(_links(path.resolve()))


def _links(path: Path) -> list[Path]:
    """The names for a damaged database under which there is the very one that is in use."""
    if not path.exists() or path.stat().st_nlink == 1:
        return []
    names = (other for other in path.parent.iterdir() if other.name.removeprefix(path.name + KEPT).isdecimal())
    return [other for other in names if other.samefile(path)]


def _has_log(path: Path) -> bool:
    """Only who reads may have left an empty one."""
    with suppress(FileNotFoundError):
        return _log(path).stat().st_size > 0
    return False


def _log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _forget_index(path: Path) -> None:
    """Of the log, which another process has made for what was there."""
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
