"""Report running processes as jobs: `progressd attach`.

The progress is the position in the largest file that a process, or one of its descendants, reads or writes.
"""

import contextlib
import fcntl
import os
import signal
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import trio
from msgspec.structs import replace

from progressd.client.errors import ClientError
from progressd.client.rest import RestClient
from progressd.client.run import registration as registering
from progressd.client.run.reporter import END_TIMEOUT, POLL_INTERVAL, JobReporter, event_of, failure_of
from progressd.core.event_limits import MAX_JOB_NAME, MAX_KIND
from progressd.core.events import ReportedProgress
from progressd.core.messages import JobStatus
from progressd.system.file_offsets import FileOffsets
from progressd.system.process_tree import Process, describe_exit, is_running, look, running

INTERVAL: Final = 0.5  # seconds between two checks of the positions, or for new processes
MIN_SIZE: Final = 1  # bytes of a file
SETTLE: Final = 0.05  # seconds in which a new process gets its arguments
EXIT_WAIT: Final = 1.0  # seconds in which the parent of an ended process may reap it
MAX_DIGITS: Final = 10  # of a process id
INTERPRETERS: Final = ("python", "sh", "bash", "dash", "perl", "ruby", "node")
UNITS: Final = (".service", ".scope", ".slice")
ENDED: Final = "Ended, exit status unknown"
WAITING: Final = f"waiting up to {END_TIMEOUT:g} s for the daemon (Ctrl-C stops the wait)"
# ioctl_pidfd(2): PIDFD_GET_INFO, since Linux 6.13, and PIDFD_INFO_EXIT, since 6.15
PIDFD_INFO: Final = struct.Struct("=Q52xi")  # mask and exit code
PIDFD_GET_INFO: Final = 0xC000FF0B | PIDFD_INFO.size << 16
PIDFD_INFO_EXIT: Final = 1 << 3
STAT_EXIT: Final = 49  # index of the exit code among the fields after the name in proc(5), stat


class Target(NamedTuple):
    """A process to report. `descriptor` refers to it (pidfd_open(2))."""

    process: Process
    descriptor: int
    command: Sequence[str]

    def __str__(self) -> str:
        return f"{self.process.name} ({self.process.pid})"

    @property
    def name(self) -> str:
        """Return the command line, without secrets."""
        return registering.shortened(registering.name_of(self.command), MAX_JOB_NAME)

    def registration(self, name: str | None, labels: Mapping[str, str], lease: float) -> dict[str, Any]:
        """Return the registration of its job."""
        process = self.process
        unit = unit_of(process.pid)
        own = {"pid": str(process.pid), "user": process.user, **({"unit": unit} if unit else {})}
        program = os.path.basename(self.command[0]) or process.name
        return {
            "kind": registering.shortened(program, MAX_KIND),
            "name": registering.shortened(name, MAX_JOB_NAME) if name else self.name,
            "labels": registering.with_origin({**own, **labels}),
            "lease_seconds": lease,
            "options": {"progress_from": "file positions"},
        }


def find(given: str) -> list[Process]:
    """Return the process with an id, or the processes with a name or in a systemd unit.

    In a unit, a process whose parent is also in the unit is left out. Raises ClientError for an unknown id.
    """
    if given.isdecimal():
        process = look(int(given)) if len(given) <= MAX_DIGITS else None
        if process is None:
            raise ClientError(f"there is no process {given}")
        return [process]
    found = running()
    if given.endswith(UNITS):
        inside = {one.pid: one for one in found if unit_of(one.pid) == given}
        return [one for one in inside.values() if one.parent not in inside]
    return [one for one in found if _is_called(one, given)]


def _is_called(process: Process, name: str) -> bool:
    program, *arguments = command_of(process)
    if name in (process.name, os.path.basename(program)):
        return True
    is_script = process.name.startswith(INTERPRETERS) and bool(arguments)
    return is_script and os.path.basename(arguments[0]) == name


def command_of(process: Process) -> Sequence[str]:
    """Return the command line; for a kernel thread, its name."""
    try:
        with open(f"/proc/{process.pid}/cmdline", "rb") as file:
            words = file.read().removesuffix(b"\0").split(b"\0")
    except OSError:
        words = []
    return [os.fsdecode(word) for word in words] if any(words) else [process.name]


def unit_of(pid: int) -> str:
    """Return the innermost systemd unit of a process, by its cgroup; "" if there is none."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return ""
    paths = [
        path for _, controllers, path in lines if controllers in ("", "name=systemd")
    ]  # cgroups(7), version 2 or 1
    names = [name for path in paths for name in path.split("/") if name.endswith(UNITS)]
    return names[-1] if names else ""


def opened(process: Process) -> Target:
    """Return a target. Raises ClientError if the process has ended, or this user may not see its files."""
    named = f"process {process}"
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        raise ClientError(f"{named} has ended") from None
    try:
        now = look(process.pid)
        if now is None or now.started != process.started:
            raise ClientError(f"{named} has ended")
        command = command_of(process)
        if command == [process.name]:  # perhaps it is being started, and has no arguments yet
            time.sleep(SETTLE)
            command = command_of(process)
        os.readlink(f"/proc/{process.pid}/cwd")  # needs the same permission as the files do
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, PermissionError):
            raise ClientError(f"cannot see the open files of {named}: permission denied (use sudo)") from None
        if isinstance(error, OSError):
            raise ClientError(f"{named} has ended") from None
        raise
    return Target(process, descriptor, command)


def exit_status(target: Target) -> int | None:
    """Return the exit status of an ended process, negative for a signal; None if it is unknown."""
    process = target.process
    with contextlib.suppress(OSError, IndexError, ValueError):  # as long as nobody has reaped it
        with open(f"/proc/{process.pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        if fields[0] == b"Z" and int(fields[19]) == process.started:
            return os.waitstatus_to_exitcode(int(fields[STAT_EXIT]))
    info = bytearray(PIDFD_INFO.pack(PIDFD_INFO_EXIT, 0))
    with contextlib.suppress(OSError):  # an older kernel
        fcntl.ioctl(target.descriptor, PIDFD_GET_INFO, info)
        mask, code = PIDFD_INFO.unpack(info)
        if mask & PIDFD_INFO_EXIT:
            return os.waitstatus_to_exitcode(code)
    return None


class Attachment:
    """Report processes until they have ended. `say` prints a message for the user.

    `begun` is called with each target and the id of its job. `follow`: a job also covers descendants that outlive the
    process.
    """

    def __init__(
        self,
        client: Callable[[], RestClient],
        say: Callable[[str | ClientError], None],
        begun: Callable[[Target, str], None],
        *,
        name: str | None = None,
        labels: Mapping[str, str] = {},
        lease: float,
        follow: bool = False,
    ) -> None:
        self._client = client
        self._say = say
        self._begun = begun
        self._name = name
        self._labels = labels
        self._lease = lease
        self._follow = follow
        self._failed = False  # a process, or the report of one
        self._reporters = dict[JobReporter, ReportedProgress]()  # each with its newest progress
        self._detached = trio.Event()
        self._signal = 0

    async def run(self, targets: Sequence[Target], names: Sequence[str]) -> int:
        """Report targets, and processes with these names that start later. Return the exit status.

        It is 0 if no process is known to have failed, 1 if one has, and 128 + N after signal N.
        Raises ClientError if a job cannot be registered.
        """
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            registered = [(target, await self._register(target)) for target in targets]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive_signals, signals)
                async with trio.open_nursery() as working:
                    for target, reporter in registered:
                        working.start_soon(self._report, target, reporter)
                    if names:
                        await self._attach_later(names, [target.process for target in targets], working)
                nursery.cancel_scope.cancel()
        if self._signal:
            return 128 + self._signal
        return int(self._failed)

    async def _receive_signals(self, signals: AsyncIterator[int]) -> None:
        """End the jobs. Stop waiting for an unreachable daemon to receive ends from before the signal."""
        async for number in signals:
            self._signal = self._signal or number
            for reporter in self._reporters:
                reporter.give_up()
            self._detached.set()

    async def _attach_later(self, names: Sequence[str], attached: Sequence[Process], working: trio.Nursery) -> None:
        seen = {process.identity: process for process in attached}
        while not self._detached.is_set():
            seen = {identity: process for identity, process in seen.items() if is_running(process)}
            for process in await trio.to_thread.run_sync(lambda: [one for name in names for one in find(name)]):
                if process.identity not in seen:
                    try:
                        target = opened(process)
                        working.start_soon(self._report, target, await self._register(target))
                    except ClientError as error:
                        self._say(error)
                    seen[process.identity] = process
            with trio.move_on_after(INTERVAL):
                await self._detached.wait()

    async def _register(self, target: Target) -> JobReporter:
        job_id = registering.new_id()
        registration = target.registration(self._name, self._labels, self._lease)
        await trio.to_thread.run_sync(self._register_now, {**registration, "id": job_id})
        self._begun(target, job_id)
        return JobReporter(self._client, job_id, registration, self._say, True)

    def _register_now(self, job: Mapping[str, Any]) -> None:
        with self._client() as client:
            client.register(job)
            client.report(job["id"], event_of("status_change", new_status=JobStatus.PROCESSING))

    async def _report(self, target: Target, reporter: JobReporter) -> None:
        self._reporters[reporter] = ReportedProgress(0, 0)
        offsets = FileOffsets([target.process], MIN_SIZE, follow=self._follow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reporter.watch_for_cancellation)
            nursery.start_soon(self._stop_when_detached, nursery.cancel_scope)
            nursery.start_soon(self._report_positions, reporter, offsets, nursery.cancel_scope)
            await trio.lowlevel.wait_readable(target.descriptor)
            while self._follow and any(map(is_running, offsets.processes)):  # noqa: ASYNC110, there is no event
                await trio.sleep(INTERVAL)
            nursery.cancel_scope.cancel()
        await self._end(target, reporter)
        del self._reporters[reporter]
        os.close(target.descriptor)

    async def _stop_when_detached(self, scope: trio.CancelScope) -> None:
        await self._detached.wait()
        scope.cancel()

    async def _report_positions(self, reporter: JobReporter, offsets: FileOffsets, scope: trio.CancelScope) -> None:
        reported = trio.current_time()
        while not (reporter.over or reporter.cancelled.is_set()):
            with trio.move_on_after(INTERVAL):
                await reporter.cancelled.wait()
            found = await trio.to_thread.run_sync(offsets.look)
            if found is not None:
                self._reporters[reporter] = found.progress()
                await reporter.progress(found.progress())
            elif trio.current_time() - reported >= POLL_INTERVAL:
                await reporter.report(None)
            else:
                continue
            reported = trio.current_time()
        scope.cancel()

    async def _end(self, target: Target, reporter: JobReporter) -> None:
        if reporter.cancelled.is_set():
            self._say(f"job {reporter.job_id} was cancelled; {target} continues")
        if reporter.over or self._detached.is_set():
            self._failed = True
            await reporter.end(event_of("status_change", new_status=JobStatus.CANCELLED), WAITING)
            return
        status = exit_status(target)
        with trio.move_on_after(EXIT_WAIT):
            while status is None:  # until the parent reaps it
                await trio.sleep(EXIT_WAIT / 20)
                status = exit_status(target)
        self._failed = self._failed or bool(status)
        if status is None:
            await reporter.progress(replace(self._reporters[reporter], step_name=ENDED))
        await reporter.end(_end_of(target.process.name, status), f"{target} has ended; {WAITING}")


def _end_of(program: str, status: int | None) -> dict[str, Any]:
    if not status:
        return event_of("completed")
    if status == -signal.SIGINT:
        return event_of("status_change", new_status=JobStatus.CANCELLED)
    return failure_of(describe_exit(program, status))
