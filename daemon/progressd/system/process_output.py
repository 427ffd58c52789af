"""Read the output of a program to its end, without waiting long for other processes that hold the pipe open."""

import os
from contextlib import suppress
from typing import Final

import trio

PIPE_TIMEOUT: Final = 1.0  # seconds to wait after the exit of the program, in total
MAX_PIPE_BYTES: Final = 1024 * 1024  # bytes to read after the exit: the capacity of a pipe
CHUNK: Final = 65536  # bytes


class ProgramOutput:
    """The output of a program. Call `receive` until it returns b"", and `has_ended` when the program has exited.

    Only the wait is limited: the program's own output stays in the pipe until it is read.
    """

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        assert isinstance(stream, trio.lowlevel.FdStream)
        self._stream = stream
        self._ended = False
        self._seconds_left = PIPE_TIMEOUT
        self._bytes_left = MAX_PIPE_BYTES
        self._wait = trio.CancelScope()

    def has_ended(self) -> None:
        """Note that the program has exited."""
        self._ended = True
        self._wait.deadline = trio.current_time() + self._seconds_left

    async def receive(self) -> bytes:
        """Return the next bytes, or b"" at the end, or if only other processes can still write."""
        chunk = await self._next() if self._bytes_left > 0 else b""
        if self._ended:
            self._bytes_left -= len(chunk)
        return chunk

    async def _next(self) -> bytes:
        with trio.CancelScope() as self._wait:
            if self._ended:
                self._wait.deadline = trio.current_time() + self._seconds_left
            try:
                return bytes(await self._stream.receive_some(CHUNK))
            finally:
                self._seconds_left = min(self._seconds_left, self._wait.deadline - trio.current_time())
        with suppress(BlockingIOError):  # output from before the timeout
            return os.read(self._stream.fileno(), CHUNK)
        return b""

    async def aclose(self) -> None:
        """Close the pipe. Later writes to it fail."""
        await self._stream.aclose()
