"""A child process in its own process group: its output by lines, its end by itself, by time, or by us."""

import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

import trio

from progressd.producers.lines import LineSplitter, NumberedLine

STDERR_KEPT: Final = 65536  # bytes of standard error that are kept, the last ones
LINE_MOST: Final = 1024 * 1024  # bytes of a line of output
PIPE_PATIENCE: Final = 1.0  # seconds for the rest of the output once the child has ended, should others hold its pipes

OnLines: TypeAlias = Callable[[Sequence[NumberedLine]], Awaitable[None]]


class Child:
    """A started program. `run` it once; a cancellation, like everything else that ends `run`, ends its whole group."""

    def __init__(self, process: trio.Process, kill_grace: float) -> None:
        self._process = process
        self._kill_grace = kill_grace
        self.stderr = b""  # the end of it

    @classmethod
    async def start(
        cls, command: Sequence[str], cwd: Path, environment: Mapping[str, str], kill_grace: float
    ) -> "Child":
        """Start a program without a shell. Raises OSError when it cannot be started."""
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )
        return cls(process, kill_grace)

    async def run(self, on_stdout: OnLines, on_stderr: OnLines) -> int:
        """Read until the child has ended; its exit status, negative for a signal."""
        process = self._process
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read, process.stdout, on_stdout)
                nursery.start_soon(self._read_stderr, process.stderr, on_stderr)
                await process.wait()
                nursery.cancel_scope.deadline = trio.current_time() + PIPE_PATIENCE
        finally:
            with trio.CancelScope(shield=True):
                await self._end()
        assert process.returncode is not None
        return process.returncode

    async def _read_stderr(self, stream: trio.abc.ReceiveStream, on_lines: OnLines) -> None:
        async def kept(lines: Sequence[NumberedLine]) -> None:
            for _, line in lines:
                if isinstance(line, bytes):
                    self.stderr = (self.stderr + line + b"\n")[-STDERR_KEPT:]
            await on_lines(lines)

        await _read(stream, kept)

    async def _end(self) -> None:
        """End the group: the child if it still runs, and whatever it has started and left behind."""
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            with trio.move_on_after(self._kill_grace):
                await self._process.wait()
        self._signal(signal.SIGKILL)
        await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(self._process.pid, number)


async def _read(stream: trio.abc.ReceiveStream, on_lines: OnLines) -> None:
    splitter = LineSplitter(LINE_MOST)
    async with stream:
        async for chunk in stream:
            await on_lines(splitter.feed(bytes(chunk).replace(b"\r", b"\n")))  # progress bars rewrite their line
        await on_lines(splitter.end())
