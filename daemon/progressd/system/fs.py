"""File system calls that the standard library lacks: regular files only, durable writes, and ownership."""

import errno
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


def read_regular(path: Path) -> bytes:
    """The content of a regular file. Raises OSError, at once also where one might wait forever, as at a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError:  # what has a zero byte names no file
        raise OSError(errno.EINVAL, "this is no path", str(path)) from None
    with open(descriptor, "rb") as file:
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind):
            reason = os.strerror(errno.EISDIR) if stat.S_ISDIR(kind) else "it is not a regular file"
            raise OSError(errno.EINVAL, reason, str(path))
        return file.read()


def sync(*paths: Path) -> None:
    """Of a directory it is the names in it. Blocks. Raises OSError."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
