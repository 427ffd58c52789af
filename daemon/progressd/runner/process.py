"""A child process in a session of its own: its output by lines, and its end by itself, by time, or by us.

Nothing that it has started outlives it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import structlog
import trio

from progressd.producers.ndjson import LineSplitter, NumberedLine
from progressd.runner import exec_limited
from progressd.runner.orphans import JOB, MARK
from progressd.system.process_output import ProgramOutput
from progressd.system.process_tree import Process, Tree, environment_of
from progressd.system.reaper import reaper
from progressd.system.transient import passes

STDERR_KEPT: Final = 65536  # bytes of standard error that are kept, the last ones
MAX_LINE: Final = 1024 * 1024  # bytes of a line of output
RETRY_AFTER: Final = 1.0  # seconds until another try, when the machine was short of something

# Read once: while a new version is being installed, the file is away, and then it is one for another daemon.
_SOURCE: Final = Path(exec_limited.__file__).read_text(encoding="utf-8")
_PROGRAM: Final = (  # named, for its tracebacks, and without the source in the line that they show
    f"source = {_SOURCE!a}\nexec(compile(source, {exec_limited.__file__!a}, 'exec'))"
)
EXEC_LIMITED: Final = (sys.executable, "-I", "-S", "-X", "utf8", "-c", _PROGRAM)

OnLines: TypeAlias = Callable[[Sequence[NumberedLine]], Awaitable[None]]

log = structlog.get_logger(__name__)


class ChildProcess:
    """A started program. `run` it once; a cancellation, like everything else that ends `run`, ends its whole tree.

    `marks`: variables that only its tree has in its environment, by which what leaves the session is found.
    """

    def __init__(self, process: trio.Process, kill_grace: float, marks: Sequence[str] = ()) -> None:
        self._process = process
        self._kill_grace = kill_grace
        self._tree = Tree(partial(_known, process.pid, {os.fsencode(mark) for mark in marks}))
        self.pid = process.pid
        self.stderr = b""  # the end of it
        self.left: list[Process] = []  # what could not be ended

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        kill_grace: float,
        limits: Sequence[str] = (),
    ) -> "ChildProcess":
        """Start a program without a shell, with limits as NAME:SOFT:HARD. Raises OSError when it cannot be started."""
        reading, writing = os.pipe()
        async with trio.lowlevel.FdStream(reading) as report:
            try:
                words = (*EXEC_LIMITED, str(writing), environment.get("LC_CTYPE", ""), *limits, "--", *command)
                process = await reaper.open_process(
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
            child = cls(
                process, kill_grace, [f"{name}={environment[name]}" for name in (MARK, JOB) if name in environment]
            )
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
                await self._ended()
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
        splitter = LineSplitter(MAX_LINE)
        while chunk := await output.receive():
            await on_lines(splitter.feed(chunk.replace(b"\r", b"\n")))  # progress bars rewrite their line
        await on_lines(splitter.end())

    async def _ended(self) -> None:
        """Wait until the program has ended. Its exit status stays: until that is taken, its id is not used again."""
        descriptor = None
        while descriptor is None:
            try:
                descriptor = os.pidfd_open(self.pid)
            except OSError as error:
                if not passes(error):
                    raise
                await trio.sleep(RETRY_AFTER)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)

    async def _close(self) -> None:
        with trio.CancelScope(shield=True):
            self.left = await self._end()
            for stream in (self._process.stdout, self._process.stderr):
                assert stream is not None
                await stream.aclose()  # not before: its last words would kill it (SIGPIPE)
            if self.pid in [process.pid for process in self.left]:
                trio.lowlevel.spawn_system_task(reaper.exit_status, self._process)
            else:
                await reaper.exit_status(self._process)

    async def _end(self) -> list[Process]:
        """End the program, if it still runs, and all that it has started. Return what could not be ended."""
        while True:
            try:
                return await self._tree.end(self._kill_grace)
            except OSError as error:
                if not passes(error):
                    raise
                log.warning("cannot search for the processes of a program yet", pid=self.pid, error=str(error))
            with suppress(ProcessLookupError, PermissionError):  # at least, and it takes nothing
                os.killpg(self.pid, signal.SIGTERM)
            await trio.sleep(RETRY_AFTER)


def _known(session: int, marks: Set[bytes], processes: Sequence[Process]) -> Mapping[int, str]:
    """Find what has the marks or is in the session. No other has its id before the exit status is taken."""
    return {
        process.pid: ""
        for process in processes
        if process.session == session or (marks and marks <= set(environment_of(process.pid)))
    }


async def _has_become(program: str, report: trio.abc.ReceiveStream) -> None:
    """Wait until a child has become a program. Raises OSError when it cannot."""
    text = b""
    while chunk := await report.receive_some():
        text += chunk
    for line in text.decode().splitlines():
        what, number = line.split()
        reason = os.strerror(int(number))
        if what == exec_limited.PROGRAM:
            raise OSError(int(number), reason, program)
        log.warning("cannot limit a child", program=program, what=what, error=reason)
