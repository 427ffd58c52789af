"""Run a command as a job, and report its progress and its end.

The command runs whether or not a daemon answers, and keeps its input, output and exit status.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from progressd.client.errors import ClientError
from progressd.client.exception_groups import unwrapped
from progressd.client.run.launch import TYPED, Command, passed_on
from progressd.client.run.output import Outputs
from progressd.client.run.reporter import END_TIMEOUT, SLOW_INTERVAL, JobReporter, ReportPace, event_of, failure_of
from progressd.client.run.session import TerminalSession
from progressd.core.last_lines import last_lines
from progressd.core.messages import JobStatus
from progressd.system.file_offsets import FileOffsets
from progressd.system.notify_socket import NotifySocket
from progressd.system.process_tree import Process, describe_exit, look
from progressd.system.reaper import adopt, reaper

if TYPE_CHECKING:
    from progressd.client.log_sender import LogSender
    from progressd.client.rest import RestClient
    from progressd.core.events import ReportedProgress
    from progressd.system.private_socket import PrivateSocket

KILL_GRACE: Final = 5.0  # seconds between SIGTERM and SIGKILL
MOMENT: Final = 0.2  # seconds that a command has to exit by itself if it was interrupted together with us
ESTIMATE_DELAY: Final = 2.0  # seconds until the position in a file is searched
ESTIMATE_INTERVAL: Final = 1.0  # seconds
WAITING: Final = f"the command has ended; waiting up to {END_TIMEOUT:g} s for the daemon (Ctrl-C stops the wait)"
LOG_TIMEOUT: Final = 10.0  # seconds to send the rest of the log after the end
LOG_POLL: Final = 0.2  # seconds
ERROR_LINES: Final = 3  # of standard error, in the error of the job


class CommandJob:
    """Report one command. `received`: the signals since the start.

    `say` prints a message for the user; its second argument is whether the command still runs. `known`: see
    JobReporter. `notify`: receives the command's notifications.
    """

    def __init__(
        self,
        client: Callable[[], "RestClient"],
        job_id: str,
        registration: Mapping[str, Any],
        say: Callable[[str | ClientError, bool], None],
        received: list[int],
        known: bool | None,
        notify: "PrivateSocket | None",
    ) -> None:
        self.log: LogSender | None = None  # sends the output of the command
        self._reporter = JobReporter(client, job_id, registration, self.say, known)
        self._print = say
        self._unsaid: list[str | ClientError] | None = None  # messages for later; None: print them at once
        self._received = received
        self._outputs: Outputs | None = None  # of the started command
        self._heard = set[int]()  # received signals
        self._unread = b""  # keys that the command has not read
        self._gone = trio.Event()  # the command has exited
        self._session: TerminalSession | None = None  # if the command has a pseudo-terminal
        self._ending = trio.Lock()
        self._ended = False  # every process was stopped, as far as possible
        self._notify = None if notify is None else NotifySocket(notify)
        self._pace = ReportPace()
        self._unsent: ReportedProgress | None = None  # the daemon did not accept it, because it limits requests

    async def run(self, command: Command, outputs: Outputs, before: Sequence[int]) -> int:
        """Report the command until its end, and return a shell's exit status. `before`: our older children."""
        self._command = command
        if command.terminal is not None and command.master is not None:
            self._unsaid = []  # a message would disturb what the command shows there
            self._session = TerminalSession(command, command.terminal, command.master, self._gone)
        self._outputs = outputs
        reaper.own(command.pid)
        self._tree = adopt(before, command.cgroup)
        with unwrapped():
            async with trio.open_nursery() as listening:  # until the end: a signal would kill this process
                listening.start_soon(self._pass_on_signals)
                if self._session is not None:
                    listening.start_soon(self._session.run)
                status = await self._follow(outputs)
                await _signals_are_heard()
                await self._end_rest(status)
                if command.terminal is not None:
                    command.terminal.restore()
                    command.terminal.give_back(self._unread)
                self._say_all()
                if outputs.has_progress or self._unsent is not None:
                    await self._report_progress()
                if self._unsent is not None:
                    await trio.sleep(SLOW_INTERVAL)
                    await self._report_progress()
                received = await self._reporter.end(self._last(status), WAITING)
                await self._finish_log(received=received)
                listening.cancel_scope.cancel()
        if command.cgroup is not None:
            command.cgroup.remove()
        return status if status >= 0 else 128 - status

    def say(self, what: str | ClientError) -> None:
        """Print a message for the user, at the end of the command if it has the terminal."""
        if self._unsaid is None:
            self._print(what, not self._gone.is_set())
        else:
            self._unsaid.append(what)

    def _say_all(self) -> None:
        """Print the messages that had to wait for the end of the command."""
        unsaid, self._unsaid = self._unsaid, None
        for what in unsaid or ():
            self._print(what, False)

    async def _finish_log(self, *, received: bool) -> None:
        """Send the rest of the log, if a daemon received the end, and until the user interrupts it."""
        if self.log is None:
            return
        with trio.move_on_after(LOG_TIMEOUT if received else 0) as self._reporter.ending:
            self.log.hurry()
            while self.log.is_alive():
                await trio.to_thread.run_sync(self.log.join, LOG_POLL)
        if not self.log.finish(0) and received:
            self.say("the daemon did not receive the end of the log")

    async def run_nothing(self, event: Mapping[str, Any]) -> None:
        """Report the end of a command that was not started."""
        self._gone.set()
        with unwrapped():
            async with trio.open_nursery() as listening:
                listening.start_soon(self._pass_on_signals)
                await self._reporter.report(None)
                await self._reporter.end(event)
                listening.cancel_scope.cancel()

    async def _follow(self, outputs: Outputs) -> int:
        """Report the command until it exits, and return its exit status."""
        token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_reporting)
            nursery.start_soon(self._reporter.watch_for_cancellation)
            nursery.start_soon(self._stop_when_cancelled)
            if self._notify is not None:
                nursery.start_soon(self._read_notifications, self._notify, outputs)
            if outputs.estimates:
                nursery.start_soon(self._estimate, outputs)
            outputs.on_progress = lambda: _run_soon(token, self._note_progress)
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
                            await trio.to_thread.run_sync(outputs.drain)
                            assert self._session is not None
                            self._session.stop()
                        elif line.startswith(b"unread"):
                            self._unread = bytes.fromhex(line.removeprefix(b"unread").decode())
                        else:
                            status = int(line.split()[1])
        of_child = await reaper.status_of(self._command.pid)
        if self._command.report is None:
            return of_child
        return -signal.SIGKILL if status is None else status  # the session leader was killed

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
        if self._reporter.give_up():
            return
        self._heard.add(number)
        reached = set[int]()
        if self._session is not None and number in self._session.typed:
            self._session.typed.remove(number)
            reached = {os.getpgrp(), self._session.foreground_group()}
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
            self.say(f"cannot find the processes of the command: {error.strerror}")
            self._send(number)
        else:
            if forbidden:
                self.say(f"not permitted to send {signal.Signals(number).name} to {_named(forbidden)}")

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
            ": ".join([describe_exit(self._command.program, status), *(["; ".join(lines)] if lines else [])])
        )

    async def _estimate(self, outputs: Outputs) -> None:
        """Report the position in the file that the command reads, until its output shows progress."""
        await trio.sleep(ESTIMATE_DELAY)
        process = look(self._command.pid)
        offsets = FileOffsets([] if process is None else [process])
        while not outputs.has_found:
            if (found := await trio.to_thread.run_sync(offsets.look)) is not None:
                outputs.note_estimate(found.progress(" (estimate)"))
            await trio.sleep(ESTIMATE_INTERVAL)

    def _note_progress(self) -> None:
        if self._outputs is not None and self._outputs.has_progress:  # otherwise it is reported already
            self._pace.note(self._outputs.progress_age)

    async def _keep_reporting(self) -> None:
        while not self._reporter.over:
            await self._pace.wait()
            await self._report_progress()

    async def _stop_when_cancelled(self) -> None:
        await self._reporter.cancelled.wait()
        self.say(f"job {self._reporter.job_id} was cancelled: stopping the command")
        await self._end_tree()

    def _send(self, number: int) -> None:
        with contextlib.suppress(OSError):
            os.kill(self._command.pid, number)

    async def _end_rest(self, status: int) -> None:
        """Stop the remaining processes of a command that was cancelled or stopped by a signal."""
        if self._reporter.cancelled.is_set() or self._heard - TYPED or (self._heard and status):
            await self._end_tree()

    async def _end_tree(self) -> None:
        """Terminate the command and every process that it has started."""
        async with self._ending:
            while not self._ended:
                try:
                    left = await self._tree.end(KILL_GRACE)
                except OSError as error:
                    self.say(f"cannot find the processes of the command: {error.strerror}")
                    self._send(signal.SIGTERM)
                    await trio.sleep(1)
                else:
                    self._ended = True
                    if self._reporter.cancelled.is_set():
                        self.say(self._ended_processes(len(left)))
                    if left:
                        self.say(f"cannot end {_named(left)}")

    def _ended_processes(self, left: int) -> str:
        leaders = 1 if self._command.has_session else 0  # the leader of the session is our own process
        count = len(self._tree) - leaders - left
        return f"ended {count} process{'' if count == 1 else 'es'} of the command"

    async def _report_progress(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()  # otherwise progress might be taken and not sent
        progress = (self._outputs.take_progress() if self._outputs else None) or self._unsent
        sent = await (self._reporter.report(None) if progress is None else self._reporter.progress(progress))
        self._pace.slow = self._reporter.limited
        self._unsent = progress if self._pace.slow and not sent else None
        if self._unsent is not None:
            self._pace.note()


def _run_soon(token: trio.lowlevel.TrioToken, call: Callable[[], None]) -> None:
    with contextlib.suppress(trio.RunFinishedError):
        token.run_sync_soon(call, idempotent=True)


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
    """Let pending signals be handled: Ctrl-C reaches this process and the command at the same time."""
    heard = trio.Event()
    trio.lowlevel.current_trio_token().run_sync_soon(heard.set)  # signals arrive the same way
    await heard.wait()
    for _ in range(2):  # let the task that receives signals run
        await trio.lowlevel.checkpoint()
