"""A child process in its own session, with resource limits: start it, read its output, and stop its whole tree."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import structlog
import trio

from progressd.config.settings import RunnerSettings
from progressd.config.units import seconds_text, size_text
from progressd.core.last_lines import last_lines
from progressd.core.pipeline import Pipeline
from progressd.detect.detector import DESCRIPTOR, STDERR, STDOUT
from progressd.detect.output_filter import OutputFilter
from progressd.detect.plan import Plan
from progressd.producers.ndjson import LineSplitter, NumberedLine
from progressd.runner.orphans import JOB, MARK, cgroup_prefix
from progressd.system.cgroup import Cgroup
from progressd.system.file_offsets import open_files
from progressd.system.process_tree import Process, Tree, describe_exit, environment_of, running
from progressd.system.reaper import reaper
from progressd.system.transient_errors import is_transient

MAX_STDERR: Final = 65536  # last bytes of standard error to keep
MAX_LINE: Final = 1024 * 1024  # bytes of a line of output
PIPE_TIMEOUT: Final = 1.0  # seconds to wait after the exit of the program, in total
MAX_PIPE_BYTES: Final = 1024 * 1024  # bytes to read after the exit: the capacity of a pipe
CHUNK: Final = 65536  # bytes
QUIET: Final = 0.2  # seconds without output after which an unfinished line is searched for progress
RETRY_INTERVAL: Final = 1.0  # seconds, after a transient error of the system

# prlimit(1) sets limits before exec. A process with threads must not run Python code between fork and exec.
PRLIMIT: Final = shutil.which("prlimit") or "prlimit"
# sh enters a cgroup before anything is started there.
ENTER: Final = ("/bin/sh", "-c", 'echo 0 >"$0"; exec "$@"')
OOM_SCORE_ADJ: Final = 500  # the maximum is 1000; the kernel kills the child before the daemon (proc(5))

CPU_GRACE: Final = 5  # seconds of processor time from SIGXCPU to SIGKILL
MAX_SUMMARY: Final = 300  # characters

_DIRECTORIES: Final = re.compile(r"""(?<![\w:/.])/(?:[^\s/:'"]+/)*(?=[^\s/])""")  # does not match the file name
_OUT_OF_MEMORY = re.compile(rb"out ?of ?memory|MemoryError|bad_alloc|cannot allocate memory", re.IGNORECASE)
# Signals of the kernel or the allocator when memory runs out.
_FATAL = (signal.SIGKILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGILL)

OnLines: TypeAlias = Callable[[Sequence[NumberedLine]], Awaitable[None]]
OnChunk: TypeAlias = Callable[[int, bytes], Awaitable[None]]
OnText: TypeAlias = Callable[[int, bytes], None]

log = structlog.get_logger(__name__)


class ResourceLimits(NamedTuple):
    """Limits in bytes and seconds of CPU time. They apply to each process separately."""

    memory: int
    cpu: float
    file: int
    open_files: int

    @classmethod
    def of(cls, pipeline: Pipeline, runner: RunnerSettings) -> "ResourceLimits":
        """Return the limits of the pipeline. The defaults are the limits of the runner."""
        return cls(
            pipeline.max_memory_bytes or runner.max_memory_bytes,
            pipeline.max_cpu_seconds or runner.max_cpu_seconds,
            pipeline.max_file_bytes or runner.max_file_bytes,
            pipeline.max_open_files or runner.max_open_files,
        )

    def arguments(self) -> list[str]:
        """Return the limits as options of prlimit(1). No limit exceeds the daemon's own."""
        cpu = max(1, round(self.cpu))
        limits = {  # not RLIMIT_AS: some runtimes reserve terabytes of address space
            "data": (self.memory, self.memory),
            "cpu": (cpu, cpu + CPU_GRACE),
            "fsize": (self.file, self.file),
            "nofile": (self.open_files, self.open_files),
            "core": (0, 0),
        }
        return [f"--{name}={_within(name, soft)}:{_within(name, hard)}" for name, (soft, hard) in limits.items()]

    def describe_exit(self, program: str, status: int, stderr: bytes) -> str:
        """Return the reason of a failure, and its cause if it is known. A negative status is a signal."""
        number = -status if status < 0 else status - 128  # a shell adds 128 to the signal of its command
        if number == signal.SIGXCPU:
            return f"{program} used more than {seconds_text(self.cpu)} of processor time, its limit"
        if number == signal.SIGXFSZ:
            return f"{program} wrote a file larger than {size_text(self.file)}, its limit"
        end = describe_exit(program, status)
        if number in _FATAL or _OUT_OF_MEMORY.search(stderr):
            return f"{end}, perhaps because it exceeded its memory limit of {size_text(self.memory)}"
        reason = summary(stderr)
        return f"{end}: {reason}" if reason else end


def summary(stderr: bytes) -> str:
    """Return the last line that contains text, shortened and without directories; "" if there is none."""
    words = _DIRECTORIES.sub("", "".join(last_lines(stderr)))
    return words if len(words) <= MAX_SUMMARY else words[: MAX_SUMMARY - 1] + "…"


class ProgramOutput:
    """Read the output of a program to its end, without waiting long for other processes that hold the pipe open.

    Call `receive` until it returns b"", and `has_ended` when the program has exited. Only the wait is limited: the
    program's own output stays in the pipe until it is read.
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


class _Text:
    """The output of one stream for `on_text`: without the frames that the options of progressd add."""

    def __init__(self, stream: int, plan: Plan, on_text: OnText) -> None:
        self._stream = stream
        self._on_text = on_text
        self._filter = OutputFilter(plan) if plan.hides else None

    def feed(self, chunk: bytes) -> None:
        self._pass_on(chunk if self._filter is None else self._filter.feed(chunk))

    def quiet(self) -> None:
        """Note that the stream is silent."""
        if self._filter is not None:
            self._pass_on(self._filter.quiet())
        self._on_text(self._stream, b"")

    def end(self) -> None:
        """Note the end of the stream."""
        if self._filter is not None:
            self._pass_on(self._filter.end())
        self._on_text(self._stream, b"")

    def _pass_on(self, text: bytes) -> None:
        if text:
            self._on_text(self._stream, text)


def _ignored(_stream: int, _text: bytes) -> None:
    pass


class ChildProcess:
    """A started program. Call `run` once. On return or error, `run` stops the whole process tree.

    `marks`: environment variables that only this tree has. They identify descendants that left the session. `cgroup`:
    contains the whole tree. `progress`: the pipe in which the program reports its progress, if the plan has one.
    """

    def __init__(
        self,
        process: trio.Process,
        plan: Plan,
        kill_grace: float,
        marks: Sequence[str],
        cgroup: Cgroup | None,
        progress: trio.lowlevel.FdStream | None,
    ) -> None:
        self._process = process
        self._plan = plan
        self._progress = progress
        self._kill_grace = kill_grace
        self._cgroup = cgroup
        self._tree = Tree(partial(_known, process.pid, {os.fsencode(mark) for mark in marks}), cgroup)
        self.pid = process.pid
        self.stderr = b""  # last bytes of standard error
        self.left: list[Process] = []  # processes that could not be stopped

    @classmethod
    async def start(
        cls,
        plan: Plan,
        cwd: Path,
        environment: Mapping[str, str],
        kill_grace: float,
        limits: ResourceLimits,
    ) -> "ChildProcess":
        """Start the command of a plan without a shell. Raises OSError."""
        command = plan.command
        program = str(cwd / command[0]) if "/" in command[0] else command[0]
        found = shutil.which(program, path=environment.get("PATH", os.defpath))
        if found is None:
            raise OSError(errno.ENOENT, "not installed or not executable", command[0])
        if not await trio.to_thread.run_sync(_is_program, found):  # prlimit would pass it to a shell
            raise OSError(errno.ENOEXEC, "neither a program nor a script that begins with #!", command[0])
        marked = MARK in environment and JOB in environment
        cgroup = Cgroup.new(cgroup_prefix(environment[MARK]) + environment[JOB]) if marked else None
        enter = () if cgroup is None else (*ENTER, cgroup.entrance)
        with ExitStack() as on_failure, ExitStack() as inherited:
            if cgroup is not None:
                on_failure.callback(cgroup.remove)
            progress, passed = None, []
            if plan.progress_fd:
                reading, writing = os.pipe()
                inherited.callback(os.close, writing)
                on_failure.callback(os.close, reading)
                passed = [writing]
                command = tuple(plan.arguments(writing))
            process = await reaper.open_process(
                (*enter, PRLIMIT, *limits.arguments(), "--", *command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=environment,
                start_new_session=True,
                pass_fds=passed,
            )
            on_failure.pop_all()
            if passed:
                progress = trio.lowlevel.FdStream(reading)
        with suppress(OSError):  # the process has exited, or /proc is hidden
            _raise_oom_score(process.pid)
        marks = [f"{name}={environment[name]}" for name in (MARK, JOB) if name in environment]
        return cls(process, plan, kill_grace, marks, cgroup, progress)

    @property
    def processes(self) -> int:
        """Return the number of processes of the program that received a signal."""
        return len(self._tree)

    async def run(self, on_stdout: OnLines, on_chunk: OnChunk, on_text: OnText = _ignored) -> int:
        """Read the output until the child has exited. Return the exit status, negative for a signal.

        `on_stdout` receives the lines of standard output, and `on_chunk` all output. `on_text` receives standard output
        and standard error without the lines that the plan's options add. A chunk or a text is empty if the stream has
        ended or was silent for QUIET seconds.
        """
        process = self._process
        assert process.stdout is not None
        assert process.stderr is not None
        stdout, stderr = ProgramOutput(process.stdout), ProgramOutput(process.stderr)
        progress = None if self._progress is None else ProgramOutput(self._progress)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_stdout, stdout, on_stdout, on_chunk, on_text)
                nursery.start_soon(self._read_stderr, stderr, on_chunk, on_text)
                if progress is not None:
                    nursery.start_soon(_read_progress, progress, on_chunk)
                await self._wait_for_exit()
                for output in filter(None, (stdout, stderr, progress)):
                    output.has_ended()
        finally:
            await self._close()
        assert process.returncode is not None
        return process.returncode

    def position_in(self, path: Path) -> tuple[int, int] | None:
        """Return how far the program has read a file, and the size of the file. None if it does not read it. Blocks."""
        try:
            real, pids = os.path.realpath(path), [one.pid for one in running() if one.session == self.pid]
        except OSError:
            return None
        found = [file for pid in pids for _, file in open_files(pid, 1) if file.path == real]
        return max(((min(file.offset, file.size), file.size) for file in found), default=None)

    async def _read_stdout(self, output: ProgramOutput, on_lines: OnLines, on_chunk: OnChunk, on_text: OnText) -> None:
        splitter, text = LineSplitter(MAX_LINE), _Text(STDOUT, self._plan, on_text)
        while chunk := await next_chunk(output, STDOUT, on_chunk, text):
            text.feed(chunk)
            await on_chunk(STDOUT, chunk)  # first, so that an event in the chunk replaces the progress of other text
            await on_lines(splitter.feed(chunk.replace(b"\r", b"\n")))
        text.end()
        await on_chunk(STDOUT, b"")
        await on_lines(splitter.end())

    async def _read_stderr(self, output: ProgramOutput, on_chunk: OnChunk, on_text: OnText) -> None:
        def keep(stream: int, text: bytes) -> None:
            self.stderr = (self.stderr + text.replace(b"\r", b"\n"))[-MAX_STDERR:]
            on_text(stream, text)

        text = _Text(STDERR, self._plan, keep)
        while chunk := await next_chunk(output, STDERR, on_chunk, text):
            text.feed(chunk)
            await on_chunk(STDERR, chunk)
        text.end()
        await on_chunk(STDERR, b"")

    async def _wait_for_exit(self) -> None:
        """Wait until the program has exited. Do not reap it yet, because that would free its process id."""
        wait = partial(os.waitid, os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        await trio.to_thread.run_sync(wait, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))

    async def _close(self) -> None:
        with trio.CancelScope(shield=True):
            self.left = await self._end()
            if self._cgroup is not None:
                self._cgroup.remove()
            else:  # a program that forks and exits all the time stays in its group, and this signal cannot miss it
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            assert self._process.stdout is not None
            assert self._process.stderr is not None
            for stream in filter(None, (self._process.stdout, self._process.stderr, self._progress)):
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


async def _read_progress(output: ProgramOutput, on_chunk: OnChunk) -> None:
    while chunk := await next_chunk(output, DESCRIPTOR, on_chunk):
        await on_chunk(DESCRIPTOR, chunk)
    await on_chunk(DESCRIPTOR, b"")


async def next_chunk(output: ProgramOutput, stream: int, on_chunk: OnChunk, text: _Text | None = None) -> bytes:
    """Return the next chunk of an output, or b"" at its end. Report a silence of QUIET seconds."""
    with trio.move_on_after(QUIET):
        return await output.receive()
    if text is not None:
        text.quiet()
    await on_chunk(stream, b"")
    return await output.receive()


def _known(session: int, marks: Set[bytes], processes: Sequence[Process]) -> Mapping[int, str]:
    """Find the processes with the marks or in the session. Until the child is reaped, its session id is not reused."""
    return {
        process.pid: ""
        for process in processes
        if process.session == session or (marks and marks <= set(environment_of(process.pid)))
    }


def _is_program(path: str) -> bool:
    with suppress(PermissionError), open(path, "rb") as file:  # a program may be executable but not readable
        return file.read(4).startswith((b"#!", b"\x7fELF"))
    return True


def _raise_oom_score(pid: int) -> None:
    path = Path(f"/proc/{pid}/oom_score_adj")
    path.write_text(str(max(OOM_SCORE_ADJ, int(path.read_text()))))


def _within(name: str, limit: int) -> int:
    maximum = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
    return limit if maximum == resource.RLIM_INFINITY else min(limit, maximum)
