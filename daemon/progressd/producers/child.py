"""A child process in its own process group: its output by lines, its end by itself, by time, or by us."""

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import structlog
import trio

from progressd.producers import become
from progressd.producers.lines import LineSplitter, NumberedLine
from progressd.program_output import ProgramOutput
from progressd.shortage import thread_told

STDERR_KEPT: Final = 65536  # bytes of standard error that are kept, the last ones
LINE_MOST: Final = 1024 * 1024  # bytes of a line of output
GONE_MOST: Final = 1.0  # seconds for the killed ones to be gone, which takes them a moment and somebody to reap them

# Read once: while a new version is being installed, the file is away, and then it is one for another daemon.
_SOURCE: Final = Path(become.__file__).read_text(encoding="utf-8")
_PROGRAM: Final = (  # named, for its tracebacks, and without the source in the line that they show
    f"source = {_SOURCE!a}\nexec(compile(source, {become.__file__!a}, 'exec'))"
)
BECOME: Final = (sys.executable, "-I", "-S", "-X", "utf8", "-c", _PROGRAM)

OnLines: TypeAlias = Callable[[Sequence[NumberedLine]], Awaitable[None]]

log = structlog.get_logger(__name__)


class Child:
    """A started program. `run` it once; a cancellation, like everything else that ends `run`, ends its whole group."""

    def __init__(self, process: trio.Process, kill_grace: float) -> None:
        self._process = process
        self._kill_grace = kill_grace
        self.pid = process.pid
        self.stderr = b""  # the end of it

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        kill_grace: float,
        limits: Sequence[str] = (),
    ) -> "Child":
        """Start a program without a shell, with limits as NAME:SOFT:HARD. Raises OSError when it cannot be started."""
        reading, writing = os.pipe()
        async with trio.lowlevel.FdStream(reading) as report:
            try:
                words = (*BECOME, str(writing), environment.get("LC_CTYPE", ""), *limits, "--", *command)
                with thread_told():  # of the one in which Trio starts it
                    process = await trio.lowlevel.open_process(
                        words,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        cwd=cwd,
                        env=environment,
                        start_new_session=True,
                        pass_fds=[writing],
                    )
            finally:
                os.close(writing)
            child = cls(process, kill_grace)
            try:
                await _has_become(command[0], report)
            except BaseException:
                await child._close()
                raise
            return child

    async def run(self, on_stdout: OnLines, on_stderr: OnLines) -> int:
        """Read until the child has ended; its exit status, negative for a signal."""
        process = self._process
        assert process.stdout is not None
        assert process.stderr is not None
        stdout, stderr = ProgramOutput(process.stdout), ProgramOutput(process.stderr)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, stdout, on_stdout)
                nursery.start_soon(self._read_stderr, stderr, on_stderr)
                await process.wait()
                for output in (stdout, stderr):
                    output.has_ended()
        finally:
            await self._close()
        assert process.returncode is not None
        return process.returncode

    async def _read_stderr(self, output: ProgramOutput, on_lines: OnLines) -> None:
        async def kept(lines: Sequence[NumberedLine]) -> None:
            text = b"".join([line + b"\n" for _, line in lines if isinstance(line, bytes)])
            self.stderr = (self.stderr + text)[-STDERR_KEPT:]
            await on_lines(lines)

        await self._read(output, kept)

    async def _read(self, output: ProgramOutput, on_lines: OnLines) -> None:
        splitter = LineSplitter(LINE_MOST)
        while chunk := await output.receive():
            await on_lines(splitter.feed(chunk.replace(b"\r", b"\n")))  # progress bars rewrite their line
        await on_lines(splitter.end())

    async def _close(self) -> None:
        with trio.CancelScope(shield=True):
            await self._end()
            for stream in (self._process.stdout, self._process.stderr):
                assert stream is not None
                await stream.aclose()  # not before: its last words would kill it (SIGPIPE)

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


async def _has_become(program: str, report: trio.abc.ReceiveStream) -> None:
    """Wait until a child has become a program. Raises OSError when it cannot."""
    text = b""
    while chunk := await report.receive_some():
        text += chunk
    for line in text.decode().splitlines():
        what, number = line.split()
        reason = os.strerror(int(number))
        if what == become.PROGRAM:
            raise OSError(int(number), reason, program)
        log.warning("cannot limit a child", program=program, what=what, error=reason)
