"""A child process in its own session: start it, read its output, and stop it with all its descendants."""

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

from progressd.detect.detector import STDERR, STDOUT
from progressd.producers.ndjson import LineSplitter, NumberedLine
from progressd.runner import exec_limited
from progressd.runner.orphans import JOB, MARK
from progressd.system.process_output import ProgramOutput
from progressd.system.process_tree import Process, Tree, environment_of
from progressd.system.reaper import reaper
from progressd.system.transient import is_transient

MAX_STDERR: Final = 65536  # last bytes of standard error to keep
MAX_LINE: Final = 1024 * 1024  # bytes of a line of output
QUIET: Final = 0.2  # seconds without output after which an unfinished line is searched for progress
RETRY_INTERVAL: Final = 1.0  # seconds, after a transient error of the system

# Read once, because an upgrade removes the file and then replaces it.
_SOURCE: Final = Path(exec_limited.__file__).read_text(encoding="utf-8")
_PROGRAM: Final = (  # tracebacks show the file name instead of the source as one line
    f"source = {_SOURCE!a}\nexec(compile(source, {exec_limited.__file__!a}, 'exec'))"
)
EXEC_LIMITED: Final = (sys.executable, "-I", "-S", "-X", "utf8", "-c", _PROGRAM)

OnLines: TypeAlias = Callable[[Sequence[NumberedLine]], Awaitable[None]]
OnChunk: TypeAlias = Callable[[int, bytes], Awaitable[None]]

log = structlog.get_logger(__name__)


class ChildProcess:
    """A started program. Call `run` once. On return or error, `run` stops the whole process tree.

    `marks`: environment variables that only this tree has. They identify descendants that left the session.
    """

    def __init__(self, process: trio.Process, kill_grace: float, marks: Sequence[str] = ()) -> None:
        self._process = process
        self._kill_grace = kill_grace
        self._tree = Tree(partial(_known, process.pid, {os.fsencode(mark) for mark in marks}))
        self.pid = process.pid
        self.stderr = b""  # last bytes of standard error
        self.left: list[Process] = []  # processes that could not be stopped

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        kill_grace: float,
        limits: Sequence[str] = (),
    ) -> "ChildProcess":
        """Start a program without a shell, with limits as NAME:SOFT:HARD. Raises OSError."""
        reading, writing = os.pipe()
        async with trio.lowlevel.FdStream(reading) as report:
            try:
                arguments = (*EXEC_LIMITED, str(writing), environment.get("LC_CTYPE", ""), *limits, "--", *command)
                process = await reaper.open_process(
                    arguments,
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
                await _wait_for_exec(command[0], report)
            except BaseException:
                await child._close()
                raise
            return child

    async def run(self, on_stdout: OnLines, on_chunk: OnChunk) -> int:
        """Read the output until the child has exited. Return the exit status, negative for a signal.

        `on_stdout` receives the lines of standard output, and `on_chunk` all output. A chunk is empty if the stream has
        ended or was silent for QUIET seconds.
        """
        process = self._process
        assert process.stdout is not None
        assert process.stderr is not None
        stdout, stderr = ProgramOutput(process.stdout), ProgramOutput(process.stderr)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_stdout, stdout, on_stdout, on_chunk)
                nursery.start_soon(self._read_stderr, stderr, on_chunk)
                await self._wait_for_exit()
                for output in (stdout, stderr):
                    output.has_ended()
        finally:
            await self._close()
        assert process.returncode is not None
        return process.returncode

    async def _read_stdout(self, output: ProgramOutput, on_lines: OnLines, on_chunk: OnChunk) -> None:
        splitter = LineSplitter(MAX_LINE)
        while chunk := await _next_chunk(output, STDOUT, on_chunk):
            await on_chunk(STDOUT, chunk)  # first, so that an event in the chunk replaces the progress of other text
            await on_lines(splitter.feed(chunk.replace(b"\r", b"\n")))
        await on_chunk(STDOUT, b"")
        await on_lines(splitter.end())

    async def _read_stderr(self, output: ProgramOutput, on_chunk: OnChunk) -> None:
        while chunk := await _next_chunk(output, STDERR, on_chunk):
            self.stderr = (self.stderr + chunk.replace(b"\r", b"\n"))[-MAX_STDERR:]
            await on_chunk(STDERR, chunk)
        await on_chunk(STDERR, b"")

    async def _wait_for_exit(self) -> None:
        """Wait until the program has exited. Do not reap it yet, because that would free its process id."""
        descriptor = None
        while descriptor is None:
            try:
                descriptor = os.pidfd_open(self.pid)
            except OSError as error:
                if not is_transient(error):
                    raise
                await trio.sleep(RETRY_INTERVAL)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)

    async def _close(self) -> None:
        with trio.CancelScope(shield=True):
            self.left = await self._end()
            for stream in (self._process.stdout, self._process.stderr):
                assert stream is not None
                await stream.aclose()  # not earlier: a write to a closed pipe would raise SIGPIPE
            if self.pid in [process.pid for process in self.left]:
                trio.lowlevel.spawn_system_task(reaper.exit_status, self._process)
            else:
                await reaper.exit_status(self._process)

    async def _end(self) -> list[Process]:
        """Stop the whole process tree. Return the processes that could not be stopped."""
        while True:
            try:
                return await self._tree.end(self._kill_grace)
            except OSError as error:
                if not is_transient(error):
                    raise
                log.warning("cannot list the processes of a program, retrying", pid=self.pid, error=str(error))
            with suppress(ProcessLookupError, PermissionError):  # this call works even without free resources
                os.killpg(self.pid, signal.SIGTERM)
            await trio.sleep(RETRY_INTERVAL)


async def _next_chunk(output: ProgramOutput, stream: int, on_chunk: OnChunk) -> bytes:
    """Return the next chunk of an output, or b"" at its end. Report a silence of QUIET seconds."""
    with trio.move_on_after(QUIET):
        return await output.receive()
    await on_chunk(stream, b"")
    return await output.receive()


def _known(session: int, marks: Set[bytes], processes: Sequence[Process]) -> Mapping[int, str]:
    """Find the processes with the marks or in the session. Until the child is reaped, its session id is not reused."""
    return {
        process.pid: ""
        for process in processes
        if process.session == session or (marks and marks <= set(environment_of(process.pid)))
    }


async def _wait_for_exec(program: str, report: trio.abc.ReceiveStream) -> None:
    """Wait until the child runs the program. Raises OSError if exec failed."""
    text = b""
    while chunk := await report.receive_some():
        text += chunk
    for line in text.decode().splitlines():
        what, number = line.split()
        reason = os.strerror(int(number))
        if what == exec_limited.PROGRAM:
            raise OSError(int(number), reason, program)
        log.warning("cannot set a limit", program=program, limit=what, error=reason)
