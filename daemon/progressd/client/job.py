"""`with Job("backup", total_steps=3) as job:` reports the block as a job.

The block runs whether or not a daemon answers. Leaving it ends the job: completed, or failed with the message of the
exception, which is not suppressed.
"""

import logging
import math
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec

from progressd.client import event_loop, values
from progressd.client.errors import JobCancelled
from progressd.client.log_sender import LogSender, interval_for
from progressd.client.pending import PendingEvents
from progressd.client.reporter import DEFAULT_TIMING, ReporterThread, Timing
from progressd.client.task import Task, Tasks
from progressd.client.transport import transport_to
from progressd.core.event_limits import MAX_COUNT
from progressd.core.events import LogStream

if TYPE_CHECKING:
    import anyio

LEASE: Final = 60.0  # seconds
FLUSH_TIMEOUT: Final = 60.0  # seconds
LOG_TIMEOUT: Final = 10.0  # seconds to send the rest of the log
INTERRUPTED_FLUSH_TIMEOUT: Final = 5.0  # seconds, after an interrupt

log = logging.getLogger("progressd.client")

_LOG_LOCK = threading.Lock()  # for the first lines of a log, in any thread


class Job:
    """One job, from the start of its `with` block (in asyncio and Trio: `async with`) to its end.

    In a program that the daemon or `progressd run` has started, the block reports the existing job (PROGRESSD_JOB_ID).
    That job ends with the program.

    Args:
        total_steps: 0 if unknown.
        url, key, socket: The daemon's URL, with the key if it requires one, or its Unix socket. Otherwise
            PROGRESSD_URL with PROGRESSD_KEY or PROGRESSD_KEY_FILE, PROGRESSD_SOCKET, or http://127.0.0.1:8080.
        input_filename, options, labels: Shown to watchers; `options` are JSON.
        lease_seconds: The program renews the lease as long as it runs. When the lease expires, the job is shown as
            stalled. After three times as long the job fails. None: the lease never expires.
        patience: The seconds that the end of the block waits for an unreachable daemon, such as during a restart.
        stop_when_cancelled: If the job is cancelled, raise JobCancelled from the next report, and interrupt an
            `async with` block at once. Otherwise only `cancelled` changes.
        track_tqdm: Report the outermost bar of tqdm as the progress, while the job runs. Disabled bars are ignored.
        job_id: A UUID. By default a random one, or that of the existing job.
        timing: All other waits.
    """

    def __init__(
        self,
        name: str = "job",
        total_steps: int = 0,
        *,
        url: str | None = None,
        socket: str | os.PathLike[str] | None = None,
        key: str | None = None,
        input_filename: str | None = None,
        options: Mapping[str, object] | None = None,
        labels: Mapping[str, str] | None = None,
        lease_seconds: float | None = LEASE,
        patience: float = FLUSH_TIMEOUT,
        stop_when_cancelled: bool = True,
        track_tqdm: bool = False,
        job_id: str | None = None,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        self._values = check = values.Checker(log.warning)
        self._timing = timing
        self.name = check.name = check("name", values.kind, name) or "job"
        outer = None if job_id else os.environ.get("PROGRESSD_JOB_ID")
        self.id = values.encodable(outer or job_id or uuid.uuid4())
        self._own = not outer
        self._where = (url, socket, key)
        self._stop_when_cancelled = stop_when_cancelled
        self._track_tqdm = track_tqdm
        self._patience = check("patience", values.seconds, patience, FLUSH_TIMEOUT)
        self._lease = None if lease_seconds is None else check("lease_seconds", values.lease, lease_seconds, LEASE)
        self._step = 0
        self._total = check("total_steps", values.count, total_steps, 0)
        self._step_name = ""
        self._in_step = False
        self._details: dict[str, object] = {}  # the unit and the phase
        self._tasks = Tasks()
        self._result: dict[str, object] = {}
        self._begun = time.monotonic()
        self._ended = False
        self._process: int | None = os.getpid()
        self._reporter: ReporterThread | None = None  # None until the block begins
        self._log: LogSender | None = None  # None until the first line
        self._log_warned = False
        self._scope: anyio.CancelScope | None = None
        self._acknowledged: anyio.Event | None = None
        self._pending = PendingEvents(self.id, self._registration(input_filename, options, labels))
        if self._own or self._total:
            self._pending.set_progress(self._progress())

    def _registration(self, input_filename: object, options: object, labels: object) -> dict[str, object] | None:
        if not self._own:
            return None
        check = self._values
        return {
            "kind": self.name,
            "total_steps": self._total,
            "input_filename": check("input_filename", values.step_name, input_filename),
            "options": msgspec.Raw(check.members("options", values.options, options) or b"{}"),
            "labels": check.members("labels", values.labels, labels) or {},
            "lease_seconds": self._lease,
        }

    @property
    def cancelled(self) -> bool:
        """Return whether the job was cancelled, as far as the program knows."""
        return self._pending.cancelled

    def step(self, name: str = "") -> None:
        """Finish the current step and begin the next one. Never waits. Raises JobCancelled."""
        named = self._values("step_name", values.step_name, name, "")

        def change(pending: PendingEvents) -> None:
            self._step = min(self._step + self._in_step, MAX_COUNT)
            self._step_name, self._in_step = named, True
            pending.set_progress(self._progress())

        self._report(change)

    def progress(
        self,
        current_step: int | None = None,
        total_steps: int | None = None,
        step_name: str | None = None,
        percent: float | None = None,
        *,
        unit: str | None = None,
        phase: str | None = None,
        eta_seconds: float | None = None,
    ) -> None:
        """Set the progress: the number of completed steps, the total, and the name of the current step.

        Omitted arguments keep their values. `percent` replaces the ratio of the steps. `unit` is what the steps count,
        such as "B" or "pages"; with it, watchers see the rate. In a new `phase`, the steps may start again. An invalid
        value is logged and ignored. Never waits. Raises JobCancelled.

        `eta_seconds` is the remaining time, if the program knows it better than the daemon can estimate it. It counts
        down until the next value. After that time, or with 0, the daemon estimates again.
        """
        step = self._values("current_step", values.count, current_step)
        total = self._values("total_steps", values.count, total_steps)
        named = self._values("step_name", values.step_name, step_name)
        share = self._values("percent", values.percentage, percent)
        left = self._values("eta_seconds", values.remaining, eta_seconds)
        ends_at = None if left is None else time.monotonic() + left
        details = {
            "unit": self._values("unit", values.unit, unit),
            "phase": self._values("phase", values.phase, phase),
        }

        def change(pending: PendingEvents) -> None:
            if step is not None:
                self._step, self._in_step = step, False
            if total is not None:
                self._total = total
            if named is not None:
                self._step_name = named
            self._details.update({name: value for name, value in details.items() if value is not None})
            if ends_at is not None:
                pending.expect_end(ends_at)
            pending.set_progress(self._progress() if share is None else {**self._progress(), "percent": share})

        self._report(change)

    def task(self, name: str, total: int = 0, *, unit: str | None = None) -> Task:
        """Return a part of the job that has its own progress, to use in a `with` block. Several may run at a time.

        If the job itself has no total and no percentage, its percentage comes from its tasks. `total`: 0 if unknown.
        """

        def report(change: Callable[[Tasks], None]) -> None:
            def change_all(pending: PendingEvents) -> None:
                change(self._tasks)
                pending.set_progress(self._progress())

            self._report(change_all)

        return Task(report, self._values, name, total, unit)

    def _report(self, change: Callable[[PendingEvents], None]) -> None:
        if self._reporter is not None:
            if os.getpid() == self._process:  # a fork has no reporter thread
                self._reporter.report(change)
        elif self._process is not None:
            change(self._pending)
        if self._stop_when_cancelled and self.cancelled and not self._ended:
            raise JobCancelled(f"job {self.id} was cancelled")

    def _progress(self) -> dict[str, object]:
        counts = {"current_step": self._step, "total_steps": self._total, "step_name": self._step_name}
        tasks = self._tasks.data
        return {**counts, **self._details, **({"tasks": tasks} if tasks else {})}

    def log(self, text: str, stream: str = "stdout") -> None:
        """Add lines to the log of the job; `stream`: stdout or stderr. Never waits, and raises nothing.

        The lines are sent in order by a thread. If they come much faster than they can be sent, the log says how many
        bytes are missing.
        """
        if self._ended or os.getpid() != self._process:  # a fork has no thread
            if not self._log_warned:
                self._log_warned = True
                log.warning("%s: lines are logged only inside the block, in its own process", self.name)
            return
        lines = f"{text}\n".encode("utf-8", "replace")
        with _LOG_LOCK:
            if self._log is None:
                url, path, _ = self._where
                url = url or ("" if path else os.environ.get("PROGRESSD_URL", ""))
                connect = transport_to(*self._where, os.environ)
                self._log = LogSender(self.id, connect, self._log_failed, interval_for(url))
                if self._reporter is not None:
                    self._start_log()
        self._log.buffer.put(LogStream.STDERR if stream == "stderr" else LogStream.STDOUT, lines)

    def _log_failed(self, sentence: str) -> None:
        log.warning("%s: %s", self.name, sentence)

    def _start_log(self) -> None:
        assert self._log is not None
        try:
            self._log.start()
        except RuntimeError as error:
            self._log_failed(f"the log is not kept: {error}")

    def _finish_log(self, seconds: float) -> None:
        """Block until the log has been sent, at most for this number of seconds."""
        if self._log is not None and self._log.ident is not None and not self._log.finish(seconds):
            self._log_failed("the daemon did not receive the end of the log")

    @property
    def _log_timeout(self) -> float:
        """Return the seconds for the rest of the log: 0 if the daemon did not even receive the end of the job."""
        return LOG_TIMEOUT if self._pending.over else 0.0

    def result(self, output_path: str | None = None, page_count: int | None = None) -> None:
        """Set the result, which is sent when the job completes: the URL of the output and the number of pages."""
        self._result = {
            "output_path": self._values("output_path", values.encodable, output_path),
            "page_count": self._values("page_count", values.count, page_count),
        }

    def __getstate__(self) -> dict[str, object]:
        """Return the state for a copy, such as in another process. A copy of a started job reports nothing."""
        begun = dict.fromkeys(("_reporter", "_process", "_where", "_scope", "_acknowledged")) if self._reporter else {}
        return {**self.__dict__, **begun, "_log": None}

    def start(self, *, begun: bool = False) -> Self:
        """Begin the job, in a program that has no block for it. `begun`: another process has begun it."""
        if begun:
            self._pending.drop_progress()
        self._start()
        return self

    def end(self, error: BaseException | None = None, wait: float = math.inf) -> None:
        """End the job as its block would, and `wait`."""
        if self._finish(error) is not None:
            in_loop = event_loop.is_running()
            self.wait(min(wait, self._timing.loop_timeout) if in_loop else wait)
            if not in_loop:
                self._finish_log(min(wait, self._log_timeout))

    def wait(self, seconds: float = math.inf) -> bool:
        """Wait until the daemon has accepted the end, or cannot be reached. Return whether it has accepted the end."""
        if self._reporter is None or os.getpid() != self._process:
            return True
        self._reporter.wait(seconds)
        return self._reporter.time_left() <= 0

    def release(self, wait: float = math.inf) -> None:
        """Stop reporting without an end of the job, because another process continues it."""
        self._own = False
        self.end(wait=wait)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self.end(error)

    async def __aenter__(self) -> Self:
        import anyio

        call_soon = event_loop.call_soon_function()
        self._acknowledged = anyio.Event()
        scope = anyio.CancelScope() if self._stop_when_cancelled else None
        self._start(
            partial(call_soon, scope.cancel) if scope is not None else lambda: None,
            partial(call_soon, self._acknowledged.set),
        )
        if scope is not None:
            scope.__enter__()
        self._scope = scope
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import anyio

        try:
            if self._scope is not None:
                self._scope.__exit__(kind, error, traceback)
        except BaseException as remaining:
            error = remaining
            raise
        finally:
            reporter = self._finish(error)
            if reporter is not None and not isinstance(error, GeneratorExit):  # the generator cannot await
                assert self._acknowledged is not None
                await event_loop.wait_for_end(reporter, self._acknowledged, INTERRUPTED_FLUSH_TIMEOUT)
                if self._log is not None:
                    finish = partial(self._finish_log, self._log_timeout)
                    await anyio.to_thread.run_sync(finish, abandon_on_cancel=True)
        if self._scope is not None and self._scope.cancelled_caught:
            raise JobCancelled(f"job {self.id} was cancelled") from None

    def _start(
        self, on_cancelled: Callable[[], object] = lambda: None, on_finished: Callable[[], object] = lambda: None
    ) -> None:
        if self._reporter is not None or self._process is None:
            log.warning("%s: this block is not reported: a Job can be used only once (create a new Job)", self.name)
            return
        self._process = os.getpid()
        self._begun = time.monotonic()  # the daemon may receive the registration much later
        connect = transport_to(*self._where, os.environ)
        self._reporter = ReporterThread(
            self.name,
            self._pending,
            connect,
            self._lease,
            timing=self._timing,
            on_cancelled=on_cancelled,
            on_finished=on_finished,
        )
        self._track_bars(begin=True)
        if self._log is not None:
            self._start_log()
        try:
            self._reporter.start()
        except BaseException as error:  # such as KeyboardInterrupt; the block does not run
            self._finish(error)
            raise

    def _track_bars(self, *, begin: bool) -> None:
        if self._track_tqdm:
            try:
                from progressd.client import tqdm_bars
            except ModuleNotFoundError as error:
                log.warning("%s: track_tqdm has no effect: %s is not installed", self.name, error.name)
                self._track_tqdm = False
            else:
                (tqdm_bars.begin if begin else tqdm_bars.end)(self.progress)

    def _finish(self, error: BaseException | None) -> ReporterThread | None:
        """Report the end. Return the reporter to wait for; None if the interpreter exits or nothing is reported."""
        self._ended = True
        self._track_bars(begin=False)
        if self._reporter is None or os.getpid() != self._process or sys.is_finalizing():
            return None
        interrupted = error is not None and not isinstance(error, Exception | SystemExit)
        patience = min(self._patience, INTERRUPTED_FLUSH_TIMEOUT) if interrupted else self._patience
        self._reporter.finish(lambda pending: self._close(pending, error), patience)
        if self._log is not None:
            self._log.hurry()
        return self._reporter

    def _close(self, pending: PendingEvents, error: BaseException | None) -> None:
        if error is None and self._in_step:  # the step ends with the block
            self._step += 1
            pending.set_progress(self._progress())
        if not self._own:
            pending.end(None, {})
        elif error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            result = {"elapsed_seconds": round(time.monotonic() - self._begun, 3), **self._result}
            pending.end("completed", {name: value for name, value in result.items() if value is not None})
        elif isinstance(error, Exception | SystemExit):
            pending.end("error", {"message": values.sentence(error)})
        else:  # KeyboardInterrupt, or the cancellation of a task
            pending.end("status_change", {"new_status": "cancelled"})
