"""A child process in its own process group: its output by lines, its end by itself, by time, or by us."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import trio

from progressd.producers.lines import LineSplitter, NumberedLine
from progressd.shortage import in_thread, thread_told

STDERR_KEPT: Final = 65536  # bytes of standard error that are kept, the last ones
LINE_MOST: Final = 1024 * 1024  # bytes of a line of output
PIPE_PATIENCE: Final = 1.0  # seconds for more of the output once the child has ended, should others hold its pipes
GONE_MOST: Final = 1.0  # seconds for the killed ones to be gone, which takes them a moment and somebody to reap them
PIPE_MOST: Final = 1024 * 1024  # bytes of it that are read then: what a pipe can hold, the rest is not the child's

OnLines: TypeAlias = Callable[[Sequence[NumberedLine]], Awaitable[None]]


class Child:
    """A started program. `run` it once; a cancellation, like everything else that ends `run`, ends its whole group."""

    def __init__(self, process: trio.Process, kill_grace: float) -> None:
        self._process = process
        self._kill_grace = kill_grace
        self._waiting: dict[trio.abc.ReceiveStream, trio.CancelScope] = {}
        self.pid = process.pid
        self.stderr = b""  # the end of it

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        kill_grace: float,
        around: Callable[[Sequence[str]], Sequence[str]] = list,
    ) -> "Child":
        """Start a program without a shell. Raises OSError when it cannot be started.

        `around` makes of the command one that becomes it: same process, same errors, but those in the file itself.
        """

        def checked() -> Sequence[str]:
            _require_program(command[0], cwd, environment)
            return around(command)

        started = await in_thread(checked)  # a thread, for file systems may be slow
        with thread_told():  # of the one in which Trio starts it
            process = await trio.lowlevel.open_process(
                started,
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
                nursery.start_soon(self._read, process.stdout, on_stdout)
                nursery.start_soon(self._read_stderr, process.stderr, on_stderr)
                await process.wait()
                for waiting in self._waiting.values():
                    waiting.deadline = trio.current_time() + PIPE_PATIENCE
        finally:
            with trio.CancelScope(shield=True):
                await self._end()
                for stream in (process.stdout, process.stderr):  # not before: its last words would kill it (SIGPIPE)
                    await stream.aclose()
        assert process.returncode is not None
        return process.returncode

    async def _read_stderr(self, stream: trio.abc.ReceiveStream, on_lines: OnLines) -> None:
        async def kept(lines: Sequence[NumberedLine]) -> None:
            text = b"".join([line + b"\n" for _, line in lines if isinstance(line, bytes)])
            self.stderr = (self.stderr + text)[-STDERR_KEPT:]
            await on_lines(lines)

        await self._read(stream, kept)

    async def _read(self, stream: trio.abc.ReceiveStream, on_lines: OnLines) -> None:
        splitter = LineSplitter(LINE_MOST)
        left_over = 0
        while left_over < PIPE_MOST and (chunk := await self._chunk(stream)):
            if self._process.returncode is not None:
                left_over += len(chunk)
            await on_lines(splitter.feed(chunk.replace(b"\r", b"\n")))  # progress bars rewrite their line
        await on_lines(splitter.end())

    async def _chunk(self, stream: trio.abc.ReceiveStream) -> bytes:
        """The next bytes; b"" at the end, and when nothing more comes though the child has ended."""
        with trio.CancelScope() as waiting:
            self._waiting[stream] = waiting
            if self._process.returncode is not None:
                waiting.deadline = trio.current_time() + PIPE_PATIENCE
            return bytes(await stream.receive_some())
        return b""

    async def _end(self) -> None:
        """End the group: the child if it still runs, and whatever it has started and left behind."""
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            with trio.move_on_after(self._kill_grace):
                await self._process.wait()
        there = self._signal(signal.SIGKILL)
        await self._process.wait()
        with trio.move_on_after(GONE_MOST):
            while there:
                await trio.sleep(0.01)
                there = self._signal(0)

    def _signal(self, number: int) -> bool:
        """Send the group a signal, with 0 none; whether there is anybody in it."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True


def _require_program(name: str, cwd: Path, environment: Mapping[str, str]) -> None:
    """Raise the error that execvpe(3) would, where there is no such program."""
    path = os.pathsep.join(os.get_exec_path(environment))
    program = str(cwd / name) if os.path.dirname(name) else name
    if shutil.which(program, path=path) is None:
        number = errno.EACCES if shutil.which(program, os.F_OK, path=path) else errno.ENOENT
        raise OSError(number, os.strerror(number), name)
