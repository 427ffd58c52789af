"""Whose the files of a state directory are: root's commands make them its owner's, lest the daemon cannot use them."""

import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path


def new_file(path: Path, like: Path | None = None) -> int:
    """Make a file that nobody but its owner may read, or with the mode of `like`; its descriptor, to write.

    Made by root it belongs to whom `like` does, or the directory. Raises OSError, and FileExistsError.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        give(descriptor, like or path.parent)
        if like is not None:
            os.fchmod(descriptor, stat.S_IMODE(like.stat().st_mode))
    except BaseException:
        os.close(descriptor)
        path.unlink()
        raise
    return descriptor


def give(descriptor: int, like: Path) -> None:
    """Where this is root: make a file that is open belong to whom another one does. Raises OSError."""
    if os.geteuid() == 0:
        owner = like.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def obstacle(paths: Iterable[Path]) -> str | None:
    """The first of these, or of the directories they are in, that may not be read and changed, and whose it is."""
    for path in paths:
        for one in (*reversed(path.absolute().parents), path):
            needed = os.R_OK | os.W_OK if one == path else os.X_OK
            if one == path.parent:
                needed |= os.W_OK
            if os.path.exists(one) and not os.access(one, needed, effective_ids=True):
                found = one.stat()
                mode = stat.S_IMODE(found.st_mode)
                return f"{one} is {user(found.st_uid)}'s, with mode {mode:04o}; this runs as {user(os.geteuid())}"
    return None


def user(number: int) -> str:
    """The name of a user, or the number where there is none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
