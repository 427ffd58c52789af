"""Run a command as a job, and report its progress and its end.

The command runs whether or not a daemon answers, and keeps its input, output and exit status.
"""

import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import trio

from progressd.client import values
from progressd.client.errors import APIError, ClientError, ResponseTimeout
from progressd.client.rest import RestClient
from progressd.client.watcher import watch
from progressd.client.websocket import unwrapped
from progressd.core.errors import InvalidInput
from progressd.core.events import ReportedProgress
from progressd.core.job import PRODUCER_LOST
from progressd.core.messages import Error, JobStatus, StatusChange
from progressd.core.progress_pattern import MAX_SEARCHED, ProgressPattern
from progressd.system.fs import write_all
from progressd.system.notify_socket import NotifySocket
from progressd.system.process_output import ProgramOutput
from progressd.system.process_tree import Process
from progressd.system.reaper import adopt, reaper

POLL_INTERVAL: Final = 5.0  # seconds between reports without progress, and between attempts to watch the job
REPORT_INTERVAL: Final = 0.2  # seconds between two reports of progress
END_TIMEOUT: Final = 60.0  # seconds to report the end to an unreachable daemon, such as during a restart
KILL_GRACE: Final = 5.0  # seconds between SIGTERM and SIGKILL
MOMENT: Final = 0.2  # seconds that a command has to exit by itself if it was interrupted together with us
TYPED: Final = frozenset({signal.SIGINT, signal.SIGQUIT})  # signals from a terminal to its foreground process group
SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP, *TYPED)  # signals that are passed on to the command
UNKNOWN: Final = 404  # HTTP status: the job does not exist
CONFLICT: Final = 409  # HTTP status: the job's status does not allow it


class CommandJob:
    """Run a command once. `environment`: additional variables of the command. `say` prints a message for the user."""

    def __init__(
        self,
        client: RestClient,
        registration: Mapping[str, Any],
        environment: Mapping[str, str],
        pattern: ProgressPattern | None,
        say: Callable[[str | ClientError], None],
    ) -> None:
        self.job_id = str(uuid.uuid4())
        self._client = client
        self._registration = {**registration, "id": self.job_id}
        self._environment = {**environment, "PROGRESSD_JOB_ID": self.job_id}
        self._pattern = pattern
        self._say = say
        self._calling = trio.CapacityLimiter(1)
        self._known = False  # the daemon knows the job
        self._maybe_known = False  # the registration was sent, but not answered
        self._complaint = ""  # the last error, which is not printed again
        self._process: trio.Process | None = None
        self._early: signal.Signals | None = None  # a signal that arrived before the command was started
        self._heard = set[int]()  # received signals
        self._gone = trio.Event()  # the command has exited
        self._telling: trio.CancelScope | None = None  # set while the end is reported
        self._ending = trio.Lock()
        self._ended = False  # every process was stopped, as far as possible
        self._over = False  # the job has finished for the daemon; the command may still run
        self._lost = False  # the daemon lost the job, and the user received a message
        self._cancelled = trio.Event()  # another user cancelled the job
        self._notify: NotifySocket | None = None
        self._progress: ReportedProgress | None = None  # not reported yet
        self._newest: Mapping[str, Any] | None = None  # the last reported progress, which may have been lost
        self._moved = trio.Event()

    async def run(self, command: Sequence[str]) -> int:
        """Run the command and return a shell's exit status. Raises OSError if it cannot be started."""
        self._tree = adopt()
        with _receiving() as signals, unwrapped(), _notify_socket() as self._notify:
            async with trio.open_nursery() as listening:  # until the end: an unreceived signal would kill this process
                if signals is not None:
                    listening.start_soon(self._pass_on, signals)
                await self._report(None)
                await _signals_are_heard()
                status = await self._run(command) if self._early is None else await self._give_up(self._early)
                listening.cancel_scope.cancel()
        return status if status >= 0 else 128 - status

    async def _run(self, command: Sequence[str]) -> int:
        pipe = subprocess.PIPE if self._pattern else None
        environment = {**os.environ, **self._environment, **(self._notify.environment if self._notify else {})}
        try:
            self._process = process = await reaper.open_process(
                command,
                stdout=pipe,
                stderr=pipe,
                env=environment,
                close_fds=False,  # pass inherited descriptors on, as for <(…); our own descriptors are close-on-exec
            )
        except OSError as error:
            await self._end(_failure(f"{command[0]} cannot be started: {error.strerror}"))
            raise
        if self._early is not None:  # it arrived during the start
            _send(process, self._early)
        status = await self._follow(process)
        await _signals_are_heard()
        await self._end_rest(process, status)
        await self._end(self._last(command[0], status))
        return status

    async def _give_up(self, number: signal.Signals) -> int:
        """Report a cancellation by a signal that arrived before the command started."""
        await self._end(_event("status_change", new_status=JobStatus.CANCELLED))
        return -number

    async def _follow(self, process: trio.Process) -> int:
        """Report the command until it exits, and return its exit status."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_reporting)
            nursery.start_soon(self._watch_for_cancellation)
            nursery.start_soon(self._stop_when_cancelled, process)
            nursery.start_soon(self._read_notifications)
            streams = ((1, process.stdout), (2, process.stderr))
            outputs = {to: ProgramOutput(stream) for to, stream in streams if stream is not None}
            async with trio.open_nursery() as reading:
                for to, output in outputs.items():
                    reading.start_soon(self._read, output, to)
                status = await reaper.exit_status(process)
                self._gone.set()
                await self._end_rest(process, status)
                for output in outputs.values():
                    output.has_ended()
            nursery.cancel_scope.cancel()
        if self._notify is not None:
            self._progress = self._notify.receive_nowait() or self._progress
        return status

    async def _pass_on(self, signals: AsyncIterator[int]) -> None:
        """Send each signal to every process of the command that has not received it from the terminal.

        After the command has exited, a signal stops the wait for an unreachable daemon.
        """
        async for number in signals:
            if self._telling is not None:
                self._telling.cancel()
                continue
            self._heard.add(number)
            if self._process is None:
                self._early = signal.Signals(number)
                continue
            reached = None
            if number in TYPED and _in_foreground():
                reached = os.getpgrp()
            elif number in TYPED:
                with trio.move_on_after(MOMENT):
                    await self._gone.wait()
            if self._gone.is_set():
                continue
            try:
                forbidden = await self._tree.send(signal.Signals(number), but_group=reached)
            except OSError as error:
                self._say(f"cannot look for what the command has started: {error.strerror}")
                _send(self._process, number)
            else:
                if forbidden:
                    self._say(f"may not send {signal.Signals(number).name} to {_named(forbidden)}")

    def _last(self, program: str, status: int) -> dict[str, Any]:
        if not status:
            return _event("completed")
        if signal.SIGINT in self._heard or status == -signal.SIGINT:
            return _event("status_change", new_status=JobStatus.CANCELLED)
        if self._notify is not None and self._notify.error is not None:
            return _failure(f"{program}: {self._notify.error}")
        return _failure(_describe_exit(program, status))

    async def _read(self, output: ProgramOutput, to: int) -> None:
        """Pass on the output of the command, and search it for progress.

        If the reader of our output exits, the next write of the command fails, as without `progressd run`.
        """
        assert self._pattern is not None
        rest = b""
        while chunk := await output.receive():
            try:
                await trio.to_thread.run_sync(write_all, to, chunk)
            except OSError as error:
                if not isinstance(error, BrokenPipeError):
                    self._say(f"cannot pass on what the command writes: {error.strerror}")
                await output.aclose()
                return
            *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            rest = rest[: MAX_SEARCHED + 1]  # one byte more shows that the line is longer
            for line in lines:
                self._search(line)
        self._search(rest)

    def _search(self, line: bytes) -> None:
        assert self._pattern is not None
        try:
            found = self._pattern.find(line)
        except InvalidInput:
            return
        if found is not None:
            self._progress = found
            self._moved.set()

    async def _read_notifications(self) -> None:
        while self._notify is not None:
            self._progress = await self._notify.receive()
            self._moved.set()

    async def _keep_reporting(self) -> None:
        while not self._over:
            with trio.move_on_after(POLL_INTERVAL):
                await self._moved.wait()
            await self._report_progress()
            await trio.sleep(REPORT_INTERVAL)

    async def _watch_for_cancellation(self) -> None:
        """Watch for a cancellation. If watching is impossible, the answer to the next report shows the cancellation."""
        while not self._over:
            if self._known:
                with contextlib.suppress(ClientError):
                    await self._watch()
            await trio.sleep(POLL_INTERVAL)

    async def _watch(self) -> None:
        async with watch(self._client.url, self.job_id, key=self._client.key) as messages:
            async for message in messages:
                if isinstance(message, StatusChange):
                    self._note(message.data.new_status)
                elif isinstance(message, Error):
                    self._note_failure(message.data.message)

    async def _stop_when_cancelled(self, process: trio.Process) -> None:
        await self._cancelled.wait()
        self._say(f"job {self.job_id} was cancelled: stopping the command")
        await self._end_tree(process)

    async def _end_rest(self, process: trio.Process, status: int) -> None:
        """Stop the remaining processes of a command that was cancelled or stopped by a signal."""
        if self._cancelled.is_set() or self._heard - TYPED or (self._heard and status):
            await self._end_tree(process)

    async def _end_tree(self, process: trio.Process) -> None:
        """Terminate the command and every process that it has started."""
        async with self._ending:
            while not self._ended:
                try:
                    left = await self._tree.end(KILL_GRACE)
                except OSError as error:
                    self._say(f"cannot look for what the command has started: {error.strerror}")
                    _send(process, signal.SIGTERM)
                    await trio.sleep(1)
                else:
                    self._ended = True
                    if left:
                        self._say(f"cannot end {_named(left)}")

    def _note(self, status: JobStatus) -> None:
        """Record the status of the job. A finished job does not stop the command, which may have reported the end."""
        self._over = self._over or status.finished
        if status is JobStatus.CANCELLED:
            self._cancelled.set()

    def _note_failure(self, sentence: str | None) -> None:
        """Print a message if the daemon failed the job because its lease expired, such as after a long Ctrl-Z."""
        if sentence == PRODUCER_LOST and not self._lost:
            self._lost = True
            self._say(f"job {self.job_id} has failed: nothing was reported for too long; the command continues")

    async def _report_progress(self) -> None:
        self._moved = trio.Event()
        progress, self._progress = self._progress, None
        if progress is None:
            await self._report(None)
        else:
            self._newest = _event("progress", **_given(progress))
            await self._report(self._newest)

    async def _end(self, event: Mapping[str, Any]) -> None:
        """Report the end, with retries if a daemon has ever answered."""
        if self._progress is not None:
            await self._report_progress()
        with trio.move_on_after(END_TIMEOUT) as self._telling:
            while True:
                if await self._report(event) or not (self._known or self._maybe_known):
                    return
                await trio.sleep(1)
        self._say("the daemon was not told how the command ended")

    async def _report(self, event: Mapping[str, Any] | None) -> bool:
        """Report an event, or only renew the lease. Return whether no retry is needed."""
        if self._over:
            return True
        try:
            job = await trio.to_thread.run_sync(self._call, event, limiter=self._calling)
            self._note(JobStatus(job["status"]))
            self._note_failure(job.get("error"))
        except ClientError as error:
            self._maybe_known = self._maybe_known or isinstance(error, ResponseTimeout)
            final = isinstance(error, APIError) and not error.temporary
            self._over = isinstance(error, APIError) and error.status == CONFLICT
            if str(error) != self._complaint and not self._over:
                self._complaint = str(error)
                self._say(error)
            return final
        if self._complaint:
            self._say("the daemon answers again")
        self._complaint = ""
        return True

    def _call(self, event: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Report an event, or only renew the lease. Return the relevant fields of the job. Blocks."""
        if self._known and event is not None:
            try:
                self._client.report(self.job_id, event)
            except APIError as refused:
                if refused.status not in (UNKNOWN, CONFLICT):
                    raise
            else:
                return {"status": JobStatus.PROCESSING}
        # Registering a job again does not change it. The answer contains its current status, such as cancelled, even
        # for a write-only key. A daemon that was restored from a backup learns of the job.
        job = self._client.register(self._registration)
        status = JobStatus(job["status"])
        if status is JobStatus.QUEUED:
            self._client.report(self.job_id, _event("status_change", new_status=JobStatus.PROCESSING))
            if self._newest is not None and self._newest is not event:
                self._client.report(self.job_id, self._newest)
        self._known = True
        if event is not None and not status.finished:
            self._client.report(self.job_id, event)
        return job


def _receiving() -> contextlib.AbstractContextManager[AsyncIterator[int] | None]:
    """Receive signals, except those ignored at the start, as under nohup(1): the command ignores them, too."""
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return trio.open_signal_receiver(*numbers) if numbers else contextlib.nullcontext()


@contextlib.contextmanager
def _notify_socket() -> Iterator[NotifySocket | None]:
    """Give a notification socket to the command, unless it has one of a systemd service, or none is possible."""
    with contextlib.ExitStack() as opened:
        notify = None
        if "NOTIFY_SOCKET" not in os.environ:
            with contextlib.suppress(OSError):
                notify = opened.enter_context(NotifySocket())
        yield notify


def _in_foreground() -> bool:
    """Return whether this process group is in the foreground of a terminal."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _send(process: trio.Process, number: int) -> None:
    with contextlib.suppress(PermissionError):
        process.send_signal(number)


def _named(processes: Sequence[Process]) -> str:
    return ", ".join(map(str, processes))


async def _signals_are_heard() -> None:
    """Wait until any signal that this process and the command received together is processed."""
    heard = trio.Event()
    trio.lowlevel.current_trio_token().run_sync_soon(heard.set)  # signals arrive the same way
    await heard.wait()
    for _ in range(2):  # let the task that receives signals run
        await trio.lowlevel.checkpoint()


def _event(type_: str, **data: Any) -> dict[str, Any]:
    return {"type": type_, "data": data}


def _failure(sentence: str) -> dict[str, Any]:
    return _event("error", message=values.text(sentence, values.MAX_SENTENCE))


def _given(progress: ReportedProgress) -> dict[str, Any]:
    given = {name: getattr(progress, name) for name in progress.__struct_fields__}
    return {name: value for name, value in given.items() if value is not None}


def _describe_exit(program: str, status: int) -> str:
    if status > 0:
        return f"{program} failed with exit status {status}"
    try:
        return f"{program} was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"{program} was killed by signal {-status}"
