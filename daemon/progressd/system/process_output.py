"""One output of a program, read to its end; it never waits long for others that hold the pipe once that has ended."""

import os
from contextlib import suppress
from typing import Final

import trio

PIPE_PATIENCE: Final = 1.0  # seconds of waiting for more once the program has ended, all waits together
PIPE_MOST: Final = 1024 * 1024  # bytes that are read then: what a pipe can hold, the rest is not the program's
CHUNK: Final = 65536  # bytes


class ProgramOutput:
    """`receive` until there is no more, and tell it once the program `has_ended`.

    Only waiting is limited: what the program has written lies in the pipe, however late we or our reader come to it.
    """

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        assert isinstance(stream, trio.lowlevel.FdStream)
        self._stream = stream
        self._ended = False
        self._patience = PIPE_PATIENCE  # what is left of it
        self._most = PIPE_MOST  # likewise
        self._wait = trio.CancelScope()

    def has_ended(self) -> None:
        """The program, not the output."""
        self._ended = True
        self._wait.deadline = trio.current_time() + self._patience

    async def receive(self) -> bytes:
        """The next bytes; b"" at the end, or where it is not the program any more that could write more."""
        chunk = await self._next() if self._most > 0 else b""
        if self._ended:
            self._most -= len(chunk)
        return chunk

    async def _next(self) -> bytes:
        with trio.CancelScope() as self._wait:
            if self._ended:
                self._wait.deadline = trio.current_time() + self._patience
            try:
                return bytes(await self._stream.receive_some(CHUNK))
            finally:
                self._patience = min(self._patience, self._wait.deadline - trio.current_time())
        with suppress(BlockingIOError):  # where we come late ourselves, the wait was over before it began
            return os.read(self._stream.fileno(), CHUNK)
        return b""

    async def aclose(self) -> None:
        """Read no more: the next write of whoever holds the pipe fails."""
        await self._stream.aclose()
