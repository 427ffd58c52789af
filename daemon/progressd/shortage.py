"""What a machine may run short of for a while: which errors say so, and threads whose want is such an error too."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import trio

FULL: Final = {errno.ENOSPC, errno.EDQUOT}  # of the disk
UNWRITTEN: Final = FULL | {errno.EFBIG}  # that, or a file has become as large as it may (`ulimit -f`)
SHORT: Final = FULL | {
    errno.EAGAIN,  # of processes and threads: pthread_create(3), fork(2)
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EIO,
    errno.EROFS,  # as a disk becomes by itself once it fails
}

T = TypeVar("T")


def passes(error: BaseException) -> bool:
    """Whether the same may go well later, without anybody having changed what was asked for."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SHORT)


@contextmanager
def thread_told() -> Iterator[None]:
    """Raise OSError (EAGAIN) instead of Python's own error when no thread can be started."""
    try:
        yield
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), "a thread") from error


async def in_thread(function: Callable[[], T], limiter: trio.CapacityLimiter | None = None) -> T:
    """As `trio.to_thread.run_sync`. Raises OSError (EAGAIN) when no thread can be started, and nothing has run then."""
    with thread_told():
        return await trio.to_thread.run_sync(function, limiter=limiter)
