"""What of a pipe is read once its program has ended: all that it wrote, and not for long what others write."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from progressd.system.process_output import CHUNK, PIPE_MOST, PIPE_PATIENCE, ProgramOutput
from trio.testing import MockClock, wait_all_tasks_blocked


class Pipe:
    """`output` reads what is written to it, and time passes only while somebody says so."""

    def __init__(self, clock: MockClock) -> None:
        reading, self._end = os.pipe()
        self._clock = clock
        self.output = ProgramOutput(trio.lowlevel.FdStream(reading))

    def write(self, data: bytes) -> None:
        assert os.write(self._end, data) == len(data)

    async def received(self, seconds: float, written: bytes = b"", ended: bool = False) -> bytes | None:
        """What a reader has got that has waited for so long when this is written; None where it still waits."""
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
    """One that others hold, too."""
    pipe = Pipe(clock)
    try:
        yield pipe
    finally:
        await pipe.aclose()


async def test_who_goes_on_writing_now_and_then_is_waited_for_only_so_long_in_all(mock_clock: MockClock) -> None:
    async with shared_pipe(mock_clock) as pipe:
        assert await pipe.received(PIPE_PATIENCE / 10, b"last", ended=True) == b"last"
        assert await pipe.received(PIPE_PATIENCE * 0.4, b"tick") == b"tick"
        assert await pipe.received(PIPE_PATIENCE * 0.4, b"tick") == b"tick"
        assert await pipe.received(PIPE_PATIENCE * 0.4) == b""


async def test_while_the_program_runs_it_is_waited_for_however_long_that_takes(mock_clock: MockClock) -> None:
    async with shared_pipe(mock_clock) as pipe:
        assert await pipe.received(1000 * PIPE_PATIENCE, b"1%") == b"1%"
        assert await pipe.received(1000 * PIPE_PATIENCE, b"2%", ended=True) == b"2%"
        assert await pipe.received(PIPE_PATIENCE * 0.9, b"last") == b"last"


async def test_what_its_reader_takes_is_no_time_that_was_waited(mock_clock: MockClock) -> None:
    async with shared_pipe(mock_clock) as pipe:
        pipe.output.has_ended()
        for _ in range(3):
            pipe.write(b"there")
            assert await pipe.received(0) == b"there"
            mock_clock.jump(PIPE_PATIENCE)
        assert await pipe.received(PIPE_PATIENCE * 0.9, b"last") == b"last"


async def test_what_lies_in_it_is_read_though_all_waiting_is_over(mock_clock: MockClock) -> None:
    async with shared_pipe(mock_clock) as pipe:
        pipe.output.has_ended()
        assert await pipe.received(PIPE_PATIENCE) == b""
        for _ in range(2):
            pipe.write(b"x" * CHUNK)
            assert await pipe.received(0) == b"x" * CHUNK
        assert await pipe.received(0) == b""


async def test_who_writes_without_end_is_left_also_where_nothing_is_ever_waited_for(mock_clock: MockClock) -> None:
    async with shared_pipe(mock_clock) as pipe:
        pipe.output.has_ended()
        for _ in range(PIPE_MOST // CHUNK):
            pipe.write(b"y" * CHUNK)
            assert await pipe.received(0) == b"y" * CHUNK
        pipe.write(b"more")
        assert await pipe.received(0) == b""
