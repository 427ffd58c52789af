"""Files that have all their content at once, as those have to that are read while the daemon works."""

import errno
import os
import stat
from pathlib import Path


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
