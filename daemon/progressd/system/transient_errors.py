"""Errors of the operating system that are transient, such as a full disk."""

import errno
from typing import Final

FULL: Final = {errno.ENOSPC, errno.EDQUOT}
UNWRITTEN: Final = FULL | {errno.EFBIG}  # EFBIG: a file has reached its maximum size (`ulimit -f`)
TRANSIENT: Final = FULL | {
    errno.EAGAIN,  # fork(2): no more processes
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EIO,
    errno.EROFS,  # a failing disk becomes read-only
}


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed later."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in TRANSIENT)
