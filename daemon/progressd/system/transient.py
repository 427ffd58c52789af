"""Which errors say that the machine is short of something for a while."""

import errno
from typing import Final

FULL: Final = {errno.ENOSPC, errno.EDQUOT}  # of the disk
UNWRITTEN: Final = FULL | {errno.EFBIG}  # that, or a file has become as large as it may (`ulimit -f`)
SHORT: Final = FULL | {
    errno.EAGAIN,  # of processes: fork(2)
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EIO,
    errno.EROFS,  # as a disk becomes by itself once it fails
}


def passes(error: BaseException) -> bool:
    """Whether the same may go well later, without anybody having changed what was asked for."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SHORT)
