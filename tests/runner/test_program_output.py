"""A pipe after its program has exited: its output is complete, and other writers do not delay the end."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from progressd.runner.process import CHUNK, MAX_PIPE_BYTES, PIPE_TIMEOUT, ProgramOutput
from trio.testing import MockClock, wait_all_tasks_blocked


class Pipe:
    """A pipe with its reader `output`, on a clock that stands still."""

    def __init__(self, clock: MockClock) -> None:
        reading, self._end = os.pipe()
        self._clock = clock
        self.output = ProgramOutput(trio.lowlevel.FdStream(reading))

    def write(self, data: bytes) -> None:
        assert os.write(self._end, data) == len(data)

    async def received(self, seconds: float, written: bytes = b"", ended: bool = False) -> bytes | None:
        """Wait, write, and return what `output` receives; None if it still waits."""
        chunks = list[bytes]()

        async def receive() -> None:
            chunks.append(await self.output.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            self._clock.jump(seconds)
            if ended:
                self.output.has_ended()
            self.write(written)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return chunks[0] if chunks else None

    async def aclose(self) -> None:
        await self.output.aclose()
        os.close(self._end)


@asynccontextmanager
async def shared_pipe(clock: MockClock) -> AsyncIterator[Pipe]:
    """Give a pipe that another process holds open, too."""
    pipe = Pipe(clock)
    try:
        yield pipe
    finally:
        await pipe.aclose()


async def test_the_timeout_covers_all_waits(mock_clock: MockClock) -> None:
    async with shared_pipe(mock_clock) as pipe:
        assert await pipe.received(PIPE_TIMEOUT / 10, b"last", ended=True) == b"last"
        assert await pipe.received(PIPE_TIMEOUT * 0.4, b"tick") == b"tick"
        assert await pipe.received(PIPE_TIMEOUT * 0.4, b"tick") == b"tick"
        assert await pipe.received(PIPE_TIMEOUT * 0.4) == b""


async def test_a_running_program_has_no_timeout(mock_clock: MockClock) -> None:
    async with shared_pipe(mock_clock) as pipe:
        assert await pipe.received(1000 * PIPE_TIMEOUT, b"1%") == b"1%"
        assert await pipe.received(1000 * PIPE_TIMEOUT, b"2%", ended=True) == b"2%"
        assert await pipe.received(PIPE_TIMEOUT * 0.9, b"last") == b"last"


async def test_the_time_of_the_reader_does_not_count(mock_clock: MockClock) -> None:
    async with shared_pipe(mock_clock) as pipe:
        pipe.output.has_ended()
        for _ in range(3):
            pipe.write(b"there")
            assert await pipe.received(0) == b"there"
            mock_clock.jump(PIPE_TIMEOUT)
        assert await pipe.received(PIPE_TIMEOUT * 0.9, b"last") == b"last"


async def test_output_in_the_pipe_is_read_after_the_timeout(mock_clock: MockClock) -> None:
    async with shared_pipe(mock_clock) as pipe:
        pipe.output.has_ended()
        assert await pipe.received(PIPE_TIMEOUT) == b""
        for _ in range(2):
            pipe.write(b"x" * CHUNK)
            assert await pipe.received(0) == b"x" * CHUNK
        assert await pipe.received(0) == b""


async def test_endless_output_is_cut(mock_clock: MockClock) -> None:
    async with shared_pipe(mock_clock) as pipe:
        pipe.output.has_ended()
        for _ in range(MAX_PIPE_BYTES // CHUNK):
            pipe.write(b"y" * CHUNK)
            assert await pipe.received(0) == b"y" * CHUNK
        pipe.write(b"more")
        assert await pipe.received(0) == b""
