"""File system calls that the standard library lacks: regular files only, durable and whole writes, and ownership."""

import errno
import os
import pwd
import select
import stat
from collections.abc import Iterable
from pathlib import Path


def new_file(path: Path, like: Path | None = None) -> int:
    """Create a file with the owner of its directory and mode 0600, or with those of `like`; return its descriptor.

    Only root can set another owner. Raises OSError, and FileExistsError.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    model = (like or path.parent).stat()
    if os.geteuid() == 0:
        os.fchown(descriptor, model.st_uid, model.st_gid)
    if like is not None:
        os.fchmod(descriptor, stat.S_IMODE(model.st_mode))
    return descriptor


def obstacle(paths: Iterable[Path]) -> str | None:
    """Describe the first path that this process may not read and write."""
    for path in paths:
        if path.exists() and not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
            found = path.stat()
            mode = stat.S_IMODE(found.st_mode)
            return f"{path} belongs to {user(found.st_uid)}, mode {mode:04o}; this process runs as {user(os.geteuid())}"
    return None


def user(number: int) -> str:
    """Return the name of a user, or the number of a user without a name."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def read_regular(path: Path) -> bytes:
    """Read a regular file. Raises OSError, without blocking for a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError:  # the path contains a null byte
        raise OSError(errno.EINVAL, "invalid path", str(path)) from None
    with open(descriptor, "rb") as file:
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind):
            reason = os.strerror(errno.EISDIR) if stat.S_ISDIR(kind) else "it is not a regular file"
            raise OSError(errno.EINVAL, reason, str(path))
        return file.read()


def sync(*paths: Path) -> None:
    """Sync files to disk; for directories, sync their entries. Blocks. Raises OSError."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all bytes, and wait for room even if another process has set O_NONBLOCK. Raises OSError."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            writable = select.poll()
            writable.register(descriptor, select.POLLOUT)
            writable.poll()
