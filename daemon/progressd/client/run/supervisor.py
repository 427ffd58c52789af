"""Run a command as a job, and report its progress and its end.

The command runs whether or not a daemon answers, and keeps its input, output and exit status.
"""

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from progressd.client import values
from progressd.client.errors import APIError, ClientError, ResponseTimeout
from progressd.client.run.launch import TO_BACKGROUND, TO_FOREGROUND, TYPED, Command, passed_on
from progressd.client.run.offset import FileOffsets
from progressd.client.run.output import Outputs
from progressd.client.run.terminal import typed_signals
from progressd.core.events import ReportedProgress
from progressd.core.job import PRODUCER_LOST
from progressd.core.last_lines import last_lines
from progressd.core.messages import JobStatus
from progressd.system.notify_socket import NotifySocket
from progressd.system.process_tree import Process
from progressd.system.reaper import adopt, reaper

if TYPE_CHECKING:
    from progressd.client.rest import RestClient
    from progressd.system.private_socket import PrivateSocket

POLL_INTERVAL: Final = 5.0  # seconds between reports without progress, and between attempts to watch the job
REPORT_INTERVAL: Final = 0.2  # seconds between two reports of progress
WATCH_DELAY: Final = 1.0  # seconds until the job is watched; many commands take less, and the import takes long
END_TIMEOUT: Final = 60.0  # seconds to report the end to an unreachable daemon, such as during a restart
KILL_GRACE: Final = 5.0  # seconds between SIGTERM and SIGKILL
MOMENT: Final = 0.2  # seconds that a command has to exit by itself if it was interrupted together with us
FOREGROUND_INTERVAL: Final = 0.25  # seconds between checks whether a shell has put us into the foreground
ESTIMATE_DELAY: Final = 2.0  # seconds until the position in a file is searched
ESTIMATE_INTERVAL: Final = 1.0  # seconds
MAX_KEYS: Final = 4096  # bytes to read from a terminal at once
ERROR_LINES: Final = 3  # of standard error, in the error of the job
UNKNOWN: Final = 404  # HTTP status: the job does not exist
CONFLICT: Final = 409  # HTTP status: the job's status does not allow it


class CommandJob:
    """Report one command. `say` prints a message for the user. `received`: the signals since the start.

    `known`: whether the daemon has registered the job; None if that is not known. `notify`: receives the command's
    notifications.
    """

    def __init__(
        self,
        client: Callable[[], "RestClient"],
        job_id: str,
        registration: Mapping[str, Any],
        say: Callable[[str | ClientError], None],
        received: list[int],
        known: bool | None,
        notify: "PrivateSocket | None",
    ) -> None:
        self.job_id = job_id
        self._make_client = client
        self._made: RestClient | None = None
        self._registration = {**registration, "id": job_id}
        self._print = say
        self._unsaid: list[str | ClientError] | None = None  # messages for later; None: print them at once
        self._received = received
        self._calling = trio.CapacityLimiter(1)
        self._known = bool(known)  # the daemon knows the job
        self._maybe_known = known is None  # the registration was sent, but not answered
        self._complaint = ""  # the last error, which is not printed again
        self._outputs: Outputs | None = None  # of the started command
        self._heard = set[int]()  # received signals
        self._unread = b""  # keys that the command has not read
        self._typed = list[int]()  # signals that a key has sent to the command, and that we have sent to ourselves
        self._gone = trio.Event()  # the command has exited
        self._telling: trio.CancelScope | None = None  # set while the end is reported
        self._ending = trio.Lock()
        self._ended = False  # every process was stopped, as far as possible
        self._over = False  # the job has finished for the daemon; the command may still run
        self._lost = False  # the daemon lost the job, and the user received a message
        self._cancelled = trio.Event()  # another user cancelled the job
        self._notify = None if notify is None else NotifySocket(notify)
        self._newest: Mapping[str, Any] | None = None  # the last reported progress, which may have been lost
        self._moved = trio.Event()

    @property
    def _client(self) -> "RestClient":
        """The client, which is made in a thread. Raises InvalidURL, InvalidKey."""
        if self._made is None:
            self._made = self._make_client()
        return self._made

    async def run(self, command: Command, outputs: Outputs, before: Sequence[int]) -> int:
        """Report the command until its end, and return a shell's exit status. `before`: our older children."""
        self._command = command
        if command.terminal is not None:  # a message would disturb what the command shows there
            self._unsaid = []
        self._outputs = outputs
        reaper.own(command.pid)
        self._tree = adopt(before)
        async with _unwrapped(trio.open_nursery()) as listening:  # until the end: a signal would kill this process
            listening.start_soon(self._pass_on_signals)
            if command.terminal is not None:
                listening.start_soon(self._watch_terminal)
            status = await self._follow(outputs)
            await _signals_are_heard()
            await self._end_rest(status)
            if command.terminal is not None:
                command.terminal.restore()
                command.terminal.give_back(self._unread)
            self._say_all()
            await self._end(self._last(status))
            listening.cancel_scope.cancel()
        return status if status >= 0 else 128 - status

    def _say(self, what: str | ClientError) -> None:
        if self._unsaid is None:
            self._print(what)
        else:
            self._unsaid.append(what)

    def _say_all(self) -> None:
        """Print the messages that had to wait for the end of the command."""
        unsaid, self._unsaid = self._unsaid, None
        for what in unsaid or ():
            self._print(what)

    async def run_nothing(self, event: Mapping[str, Any]) -> None:
        """Report the end of a command that was not started."""
        self._gone.set()
        async with _unwrapped(trio.open_nursery()) as listening:
            listening.start_soon(self._pass_on_signals)
            await self._report(None)
            await self._end(event)
            listening.cancel_scope.cancel()

    async def _follow(self, outputs: Outputs) -> int:
        """Report the command until it exits, and return its exit status."""
        token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_reporting)
            nursery.start_soon(self._watch_for_cancellation)
            nursery.start_soon(self._stop_when_cancelled)
            if self._notify is not None:
                nursery.start_soon(self._read_notifications, self._notify, outputs)
            if outputs.estimates:
                nursery.start_soon(self._estimate, outputs)
            outputs.on_progress = lambda: _run_soon(token, self._progress_moved)
            status = await self._exit_status(outputs)
            self._gone.set()
            await self._end_rest(status)
            await trio.to_thread.run_sync(outputs.finish)
            if self._notify is not None and (last := self._notify.receive_nowait()) is not None:
                outputs.note_report(last)
            nursery.cancel_scope.cancel()
        return status

    async def _read_notifications(self, notify: NotifySocket, outputs: Outputs) -> None:
        while True:
            outputs.note_report(await notify.receive())

    async def _exit_status(self, outputs: Outputs) -> int:
        """Wait for the exit of the command, and for stops before it. Return its exit status."""
        status = None
        if self._command.report is not None:
            async with trio.lowlevel.FdStream(self._command.report) as report:
                text = b""
                while chunk := await report.receive_some():
                    *lines, text = (text + chunk).split(b"\n")
                    for line in lines:
                        if line == b"stopped":
                            await self._stop_with_command(outputs)
                        elif line.startswith(b"unread"):
                            self._unread = bytes.fromhex(line.removeprefix(b"unread").decode())
                        else:
                            status = int(line.split()[1])
        of_child = await reaper.status_of(self._command.pid)
        if self._command.report is None:
            return of_child
        return -signal.SIGKILL if status is None else status  # the session leader was killed

    async def _stop_with_command(self, outputs: Outputs) -> None:
        """Stop like the command, after Ctrl-Z, and continue it when a shell continues us."""
        terminal = self._command.terminal
        assert terminal is not None
        await trio.to_thread.run_sync(outputs.drain)
        terminal.restore()
        os.killpg(os.getpgrp(), signal.SIGTSTP)  # returns when a shell continues us
        self._continue()

    def _continue(self) -> None:
        """Give the command the terminal if we have it, and continue the command if it was stopped."""
        terminal = self._command.terminal
        assert terminal is not None
        assert self._command.master is not None
        self._has_terminal = terminal.in_foreground()
        if self._has_terminal:
            terminal.enter_foreground(self._command.master)
        else:
            terminal.enter_background(self._command.master)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._command.pid, TO_FOREGROUND if self._has_terminal else TO_BACKGROUND)

    async def _watch_terminal(self) -> None:
        """Pass on the size of the terminal, and what the user types if the command has a session."""
        with trio.open_signal_receiver(signal.SIGWINCH, signal.SIGCONT) as changes:
            async with trio.open_nursery() as nursery:
                if self._command.has_session:
                    nursery.start_soon(self._pass_on_keys)
                self._follow_terminal(signal.SIGWINCH)
                async for number in changes:
                    self._follow_terminal(number)

    def _follow_terminal(self, number: int) -> None:
        terminal, master = self._command.terminal, self._command.master
        assert terminal is not None
        assert master is not None
        if self._gone.is_set():
            return
        if number == signal.SIGCONT and self._command.has_session:
            self._continue()
        elif terminal.copy_size(master) and not self._command.has_session:
            os.killpg(os.getpgrp(), signal.SIGWINCH)  # the command may have read the old size after the first signal

    async def _pass_on_keys(self) -> None:
        terminal, master = self._command.terminal, self._command.master
        assert terminal is not None
        assert master is not None
        self._has_terminal = terminal.in_foreground()
        while not self._gone.is_set():
            if terminal.in_foreground() is not self._has_terminal:
                self._continue()
            if not self._has_terminal:
                await trio.sleep(FOREGROUND_INTERVAL)
                continue
            try:
                await trio.lowlevel.wait_readable(terminal.descriptor)
                if self._gone.is_set() or not terminal.in_foreground():
                    continue
                keys = os.read(terminal.descriptor, MAX_KEYS)
            except BlockingIOError:
                continue
            except OSError:  # the terminal was closed
                return
            if not keys:
                return
            typed = typed_signals(master, keys)
            while keys:
                try:
                    keys = keys[os.write(master, keys) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(master)
                except OSError:
                    return
            for number in typed:
                self._typed.append(number)
                os.killpg(os.getpgrp(), number)  # the others in a pipeline, and us

    async def _pass_on_signals(self) -> None:
        """Send each signal to every process of the command that has not received it from the terminal.

        After the command has exited, a signal stops the wait for an unreachable daemon.
        """
        numbers = passed_on()
        with trio.open_signal_receiver(*numbers) if numbers else contextlib.nullcontext() as signals:
            for number in self._received:
                await self._pass_on(number)
            if signals is not None:
                async for number in signals:
                    await self._pass_on(number)

    async def _pass_on(self, number: int) -> None:
        if self._telling is not None:
            self._telling.cancel()
            return
        self._heard.add(number)
        reached = set[int]()
        if number in self._typed:
            self._typed.remove(number)
            reached = {os.getpgrp(), _foreground_group(self._command.master)}
        elif number in TYPED and _in_foreground():
            reached = {os.getpgrp()}
        elif number in TYPED:
            with trio.move_on_after(MOMENT):
                await self._gone.wait()
        if self._gone.is_set():
            return
        try:
            forbidden = await self._tree.send(signal.Signals(number), but_groups=reached)
        except OSError as error:
            self._say(f"cannot look for what the command has started: {error.strerror}")
            self._send(number)
        else:
            if forbidden:
                self._say(f"may not send {signal.Signals(number).name} to {_named(forbidden)}")

    def _last(self, status: int) -> dict[str, Any]:
        if not status:
            return event_of("completed")
        if signal.SIGINT in self._heard or status == -signal.SIGINT:
            return event_of("status_change", new_status=JobStatus.CANCELLED)
        if self._notify is not None and self._notify.error is not None:
            return failure_of(f"{self._command.program}: {self._notify.error}")
        assert self._outputs is not None
        lines = last_lines(self._outputs.last_errors(), ERROR_LINES)
        return failure_of(
            ": ".join([_describe_exit(self._command.program, status), *(["; ".join(lines)] if lines else [])])
        )

    async def _estimate(self, outputs: Outputs) -> None:
        """Report the position in the file that the command reads, until its output shows progress."""
        await trio.sleep(ESTIMATE_DELAY)
        offsets = FileOffsets(self._command.pid)
        while not outputs.has_found:
            if (found := await trio.to_thread.run_sync(offsets.look)) is not None:
                outputs.note_estimate(found)
            await trio.sleep(ESTIMATE_INTERVAL)

    def _progress_moved(self) -> None:
        self._moved.set()

    async def _keep_reporting(self) -> None:
        while not self._over:
            with trio.move_on_after(POLL_INTERVAL):
                await self._moved.wait()
            await self._report_progress()
            await trio.sleep(REPORT_INTERVAL)

    async def _watch_for_cancellation(self) -> None:
        """Watch for a cancellation. If watching is impossible, the answer to the next report shows the cancellation."""
        await trio.sleep(WATCH_DELAY)
        while not self._over:
            if self._known:
                with contextlib.suppress(ClientError):
                    await self._watch()
            await trio.sleep(POLL_INTERVAL)

    async def _watch(self) -> None:
        from progressd.client.watcher import watch
        from progressd.core.messages import Error, StatusChange

        client = self._client
        async with watch(client.url, self.job_id, key=client.key) as messages:
            async for message in messages:
                if isinstance(message, StatusChange):
                    self._note(message.data.new_status)
                elif isinstance(message, Error):
                    self._notefailure(message.data.message)

    async def _stop_when_cancelled(self) -> None:
        await self._cancelled.wait()
        self._say(f"job {self.job_id} was cancelled: stopping the command")
        await self._end_tree()

    def _send(self, number: int) -> None:
        with contextlib.suppress(OSError):
            os.kill(self._command.pid, number)

    async def _end_rest(self, status: int) -> None:
        """Stop the remaining processes of a command that was cancelled or stopped by a signal."""
        if self._cancelled.is_set() or self._heard - TYPED or (self._heard and status):
            await self._end_tree()

    async def _end_tree(self) -> None:
        """Terminate the command and every process that it has started."""
        async with self._ending:
            while not self._ended:
                try:
                    left = await self._tree.end(KILL_GRACE)
                except OSError as error:
                    self._say(f"cannot look for what the command has started: {error.strerror}")
                    self._send(signal.SIGTERM)
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

    def _notefailure(self, sentence: str | None) -> None:
        """Print a message if the daemon failed the job because its lease expired, such as after a long Ctrl-Z."""
        if sentence == PRODUCER_LOST and not self._lost:
            self._lost = True
            self._say(f"job {self.job_id} has failed: nothing was reported for too long; the command continues")

    async def _report_progress(self) -> None:
        self._moved = trio.Event()
        progress = None if self._outputs is None else self._outputs.take_progress()
        if progress is None:
            await self._report(None)
        else:
            self._newest = event_of("progress", **_given(progress))
            await self._report(self._newest)

    async def _end(self, event: Mapping[str, Any]) -> None:
        """Report the end, with retries if a daemon has ever answered."""
        if self._outputs is not None and self._outputs.has_progress:
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
            self._notefailure(job.get("error"))
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
            self._client.report(self.job_id, event_of("status_change", new_status=JobStatus.PROCESSING))
            if self._newest is not None and self._newest is not event:
                self._client.report(self.job_id, self._newest)
        self._known = True
        if event is not None and not status.finished:
            self._client.report(self.job_id, event)
        return job


@contextlib.asynccontextmanager
async def _unwrapped(manager: Any) -> AsyncIterator[trio.Nursery]:
    """Open a nursery. If only one error leaves it, raise that error alone."""
    try:
        async with manager as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None


def _run_soon(token: trio.lowlevel.TrioToken, call: Callable[[], None]) -> None:
    with contextlib.suppress(trio.RunFinishedError):
        token.run_sync_soon(call, idempotent=True)


def _foreground_group(master: int | None) -> int:
    """Return the process group in the foreground of a pseudo-terminal; 0 if there is none."""
    if master is None:
        return 0
    try:
        return os.tcgetpgrp(master)
    except OSError:
        return 0


def _in_foreground() -> bool:
    """Return whether this process group is in the foreground of a terminal."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _named(processes: Sequence[Process]) -> str:
    return ", ".join(map(str, processes))


async def _signals_are_heard() -> None:
    """Wait until any signal that this process and the command received together is processed."""
    heard = trio.Event()
    trio.lowlevel.current_trio_token().run_sync_soon(heard.set)  # signals arrive the same way
    await heard.wait()
    for _ in range(2):  # let the task that receives signals run
        await trio.lowlevel.checkpoint()


def event_of(type_: str, **data: Any) -> dict[str, Any]:
    return {"type": type_, "data": data}


def failure_of(sentence: str) -> dict[str, Any]:
    return event_of("error", message=values.text(sentence, values.MAX_SENTENCE))


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
