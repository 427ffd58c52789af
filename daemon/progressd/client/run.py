"""A command as a job: the daemon is told how far it is and how it ended; what it does and says stays its own.

It runs whether or not a daemon answers: nobody's backup may depend on who watches it.
"""

import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

import trio

from progressd.client.errors import APIError, ClientError, ResponseTimeout
from progressd.client.rest import RestClient
from progressd.client.stream import unwrapped
from progressd.client.watcher import watch
from progressd.core.errors import InvalidInput
from progressd.core.events import ReportedProgress
from progressd.core.messages import StatusChange
from progressd.core.progress_pattern import MAX_SEARCHED, ProgressPattern
from progressd.core.status import JobStatus
from progressd.system.process_output import ProgramOutput
from progressd.system.process_tree import Process
from progressd.system.reaper import adopt, reaper

BEAT: Final = 5.0  # seconds between two signs of life at most, and between attempts to look on
PACE: Final = 0.2  # seconds between two reports of progress
END_TIMEOUT: Final = 60.0  # seconds to tell the end to a daemon that is away, such as for a restart
KILL_GRACE: Final = 5.0  # seconds from SIGTERM to SIGKILL for what is to end
MOMENT: Final = 0.2  # seconds in which a command may end that was interrupted together with us, before we interrupt it
SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)  # that are passed on to the command
UNKNOWN: Final = 404  # HTTP status: there is no such job
CONFLICT: Final = 409  # HTTP status: the job's status does not allow it


class CommandJob:
    """`run` it once. `environment`: what the command gets beside ours; `say` tells whoever started it."""

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
        self._known = False  # to the daemon
        self._maybe_known = False  # it was told, but gave no answer
        self._complaint = ""  # the last one; it is not repeated while nothing has changed
        self._process: trio.Process | None = None
        self._early: signal.Signals | None = None  # a signal that came before the command was started
        self._interrupted = False
        self._stopped = False  # by a signal that asks to end
        self._gone = trio.Event()  # the command has ended
        self._telling: trio.CancelScope | None = None  # the daemon of the end
        self._ending = trio.Lock()
        self._ended = False  # as far as that is possible
        self._over = False  # for the daemon, whatever the command does
        self._cancelled = trio.Event()  # by somebody else
        self._progress: ReportedProgress | None = None  # that has not been reported
        self._newest: Mapping[str, Any] | None = None  # that has been reported, or was lost on the way
        self._moved = trio.Event()

    async def run(self, command: Sequence[str]) -> int:
        """Run the command to its end; its exit status as a shell has it. Raises OSError when it cannot be started."""
        self._tree = adopt()
        with _heard() as signals, unwrapped():
            async with trio.open_nursery() as listening:  # to the end: what nobody has taken by then would end us
                if signals is not None:
                    listening.start_soon(self._pass_on, signals)
                await self._report(None)
                await _signals_are_heard()
                status = await self._run(command) if self._early is None else await self._give_up(self._early)
                listening.cancel_scope.cancel()
        return status if status >= 0 else 128 - status

    async def _run(self, command: Sequence[str]) -> int:
        pipe = subprocess.PIPE if self._pattern else None
        environment = {**os.environ, **self._environment}
        try:
            self._process = process = await reaper.open_process(command, stdout=pipe, stderr=pipe, env=environment)
        except OSError as error:
            await self._end(_event("error", message=f"{command[0]} cannot be started: {error.strerror}"))
            raise
        if self._early is not None:  # it came in the last moment
            _send(process, self._early)
        status = await self._follow(process)
        await _signals_are_heard()
        await self._end_rest(process, status)
        await self._end(self._last(command[0], status))
        return status

    async def _give_up(self, number: signal.Signals) -> int:
        """Start nothing, for a signal came first, such as while the daemon gave no answer."""
        await self._end(_event("status_change", new_status=JobStatus.CANCELLED))
        return -number

    async def _follow(self, process: trio.Process) -> int:
        """Report on the command until it has ended, and return its exit status."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_reporting)
            nursery.start_soon(self._look_on)
            nursery.start_soon(self._stop_when_cancelled, process)
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
        return status

    async def _pass_on(self, signals: AsyncIterator[int]) -> None:
        """Send each signal to all that the command has started, as far as a terminal has not sent it already.

        Once the command has ended, a signal cuts short the wait for a daemon that is away.
        """
        async for number in signals:
            if self._telling is not None:
                self._telling.cancel()
                continue
            self._interrupted = self._interrupted or number == signal.SIGINT
            self._stopped = self._stopped or number != signal.SIGINT
            if self._process is None:
                self._early = signal.Signals(number)
                continue
            reached = None
            if number == signal.SIGINT and _in_foreground():
                reached = os.getpgrp()
            elif number == signal.SIGINT:
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
        if self._interrupted or status == -signal.SIGINT:
            return _event("status_change", new_status=JobStatus.CANCELLED)
        return _event("error", message=_told(program, status))

    async def _read(self, output: ProgramOutput, to: int) -> None:
        """Pass on what the command writes, however slowly that is taken, and look for its progress.

        Where nobody takes it any more, the command finds that out with its next write, as it would without us.
        """
        assert self._pattern is not None
        rest = b""
        while chunk := await output.receive():
            try:
                await trio.to_thread.run_sync(_write_all, to, chunk)
            except OSError as error:
                if not isinstance(error, BrokenPipeError):
                    self._say(f"cannot pass on what the command writes: {error.strerror}")
                await output.aclose()
                return
            *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            rest = rest[: MAX_SEARCHED + 1]  # one more, to show that there was more
            for line in lines:
                self._look(line)
        self._look(rest)

    def _look(self, line: bytes) -> None:
        assert self._pattern is not None
        try:
            found = self._pattern.find(line)
        except InvalidInput:
            return
        if found is not None:
            self._progress = found
            self._moved.set()

    async def _keep_reporting(self) -> None:
        while not self._over:
            with trio.move_on_after(BEAT):
                await self._moved.wait()
            await self._report_progress()
            await trio.sleep(PACE)

    async def _look_on(self) -> None:
        """Hear of a cancellation at once; where we cannot look on, the next sign of life is answered with it."""
        while not self._over:
            if self._known:
                with contextlib.suppress(ClientError):
                    await self._watch()
            await trio.sleep(BEAT)

    async def _watch(self) -> None:
        async with watch(self._client.url, self.job_id, key=self._client.key) as messages:
            async for message in messages:
                if isinstance(message, StatusChange):
                    self._note(message.data.new_status)

    async def _stop_when_cancelled(self, process: trio.Process) -> None:
        await self._cancelled.wait()
        self._say(f"job {self.job_id} was cancelled: stopping the command")
        await self._end_tree(process)

    async def _end_rest(self, process: trio.Process, status: int) -> None:
        """End what a command has left running that was told to end: nobody waits for it any more."""
        if self._cancelled.is_set() or self._stopped or (self._interrupted and status):
            await self._end_tree(process)

    async def _end_tree(self, process: trio.Process) -> None:
        """End the command, if it still runs, and all that it has started."""
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
        """What the job is, for the daemon. Having ended otherwise it lets the command go on, which may have said so."""
        self._over = self._over or status.finished
        if status is JobStatus.CANCELLED:
            self._cancelled.set()

    async def _report_progress(self) -> None:
        self._moved = trio.Event()
        progress, self._progress = self._progress, None
        if progress is None:
            await self._report(None)
        else:
            self._newest = _event("progress", **_given(progress))
            await self._report(self._newest)

    async def _end(self, event: Mapping[str, Any]) -> None:
        """Tell the end, as often as it takes for a while; where no daemon ever was, once."""
        if self._progress is not None:
            await self._report_progress()
        with trio.move_on_after(END_TIMEOUT) as self._telling:
            while True:
                if await self._report(event) or not (self._known or self._maybe_known):
                    return
                await trio.sleep(1)
        self._say("the daemon was not told how the command ended")

    async def _report(self, event: Mapping[str, Any] | None) -> bool:
        """Tell the daemon, or only show that we are there; whether there is nothing to try again."""
        if self._over:
            return True
        try:
            self._note(await trio.to_thread.run_sync(self._call, event, limiter=self._calling))
        except ClientError as error:
            self._maybe_known = self._maybe_known or isinstance(error, ResponseTimeout)
            final = isinstance(error, APIError) and not error.later
            self._over = isinstance(error, APIError) and error.status == CONFLICT
            if str(error) != self._complaint and not self._over:
                self._complaint = str(error)
                self._say(error)
            return final
        if self._complaint:
            self._say("the daemon answers again")
        self._complaint = ""
        return True

    def _call(self, event: Mapping[str, Any] | None) -> JobStatus:
        """Blocks. Report an event, or only show that we are there; the job's status, as far as we need to know it."""
        if self._known and event is not None:
            try:
                self._client.report(self.job_id, event)
            except APIError as refused:
                if refused.status not in (UNKNOWN, CONFLICT):
                    raise
            else:
                return JobStatus.PROCESSING
        # Registering a job again changes nothing. It tells what the job is now, such as cancelled, also with a key that
        # may only write, and makes it known to a daemon that was restored from a backup.
        status = JobStatus(self._client.register(self._registration)["status"])
        if status is JobStatus.QUEUED:
            self._client.report(self.job_id, _event("status_change", new_status=JobStatus.PROCESSING))
            if self._newest is not None and self._newest is not event:
                self._client.report(self.job_id, self._newest)
        self._known = True
        if event is not None and not status.finished:
            self._client.report(self.job_id, event)
        return status


def _heard() -> contextlib.AbstractContextManager[AsyncIterator[int] | None]:
    """Hear signals, except those that were ignored from the start, as under nohup(1): the command ignores them, too."""
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return trio.open_signal_receiver(*numbers) if numbers else contextlib.nullcontext()


def _in_foreground() -> bool:
    """Whether there is a terminal, and what is typed there is for our process group."""
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
    """Wait until a signal that has come to this process has been taken: one that ended the command came to both."""
    heard = trio.Event()
    trio.lowlevel.current_trio_token().run_sync_soon(heard.set)  # which is how signals come, too
    await heard.wait()
    for _ in range(2):  # for who takes them
        await trio.lowlevel.checkpoint()


def _event(type_: str, **data: Any) -> dict[str, Any]:
    return {"type": type_, "data": data}


def _given(progress: ReportedProgress) -> dict[str, Any]:
    given = {name: getattr(progress, name) for name in progress.__struct_fields__}
    return {name: value for name, value in given.items() if value is not None}


def _told(program: str, status: int) -> str:
    if status > 0:
        return f"{program} failed with exit status {status}"
    try:
        return f"{program} was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"{program} was ended by signal {-status}"


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
