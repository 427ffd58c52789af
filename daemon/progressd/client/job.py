"""`with Job("backup", total_steps=3) as job:` the block is a job, and whoever looks on sees how far it is.

The block is worked on whether or not a daemon answers. Leaving it ends the job: completed, or failed with the sentence
of the exception, which goes on as if nothing had been.
"""

import contextlib
import logging
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

import msgspec

from progressd.client import values
from progressd.client.errors import JobCancelled
from progressd.client.pending import PendingEvents
from progressd.client.reporter import ReporterThread
from progressd.client.transport import way_to_daemon

if TYPE_CHECKING:
    import anyio

LEASE: Final = 60.0  # seconds
FLUSH_TIMEOUT: Final = 60.0  # seconds
CUT_SHORT: Final = 5.0  # seconds of patience for the end of what is interrupted
LOOP_TIMEOUT: Final = 1.0  # seconds that an event loop may be held up by the end of a `with` block

T = TypeVar("T")
D = TypeVar("D")

log = logging.getLogger("progressd.client")


class Job:
    """One job, from the beginning of its `with` block, or in asyncio and Trio `async with`, to the end of it.

    `total_steps`: 0 where nobody knows. `input_filename`, `options` (JSON) and `labels`: for who looks at it.

    Where the daemon is: `url`, with `key` where it asks for one, or its Unix `socket`; or else PROGRESSD_URL with
    PROGRESSD_KEY or PROGRESSD_KEY_FILE, PROGRESSD_SOCKET, or http://127.0.0.1:8080. In a program that the daemon or
    `progressd run` has started, it is that job (PROGRESSD_JOB_ID), which ends with the program.

    `lease_seconds`: without a sign of life for so long the job is shown as stalled, after three times as long it has
    failed; a thread gives one as long as the program runs. None: never. `patience`: the seconds to wait at the end for
    a daemon that is away, such as for a restart.

    Somebody may cancel the job: `stop_when_cancelled` raises JobCancelled at the next report, and interrupts an
    `async with` block at once; otherwise it only shows in `cancelled`.
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
    ) -> None:
        self._complained: set[str] = set()
        self.name = "job"
        self.name = self._valid("name", _name, name, "") or "job"
        outer = os.environ.get("PROGRESSD_JOB_ID")
        self.id = values.known(outer) if outer else str(uuid.uuid4())
        self._own = not outer
        self._where = (url, socket, key)
        self._stop_when_cancelled = stop_when_cancelled
        self._patience = self._valid("patience", values.seconds, patience, FLUSH_TIMEOUT)
        self._lease = (
            None if lease_seconds is None else self._valid("lease_seconds", values.lease, lease_seconds, LEASE)
        )
        self._step = 0
        self._total = self._valid("total_steps", values.count, total_steps, 0)
        self._step_name = ""
        self._in_step = False
        self._result: dict[str, object] = {}
        self._begun = time.monotonic()
        self._ended = False
        self._process: int | None = os.getpid()
        self._reporter: ReporterThread | None = None  # until the block begins
        self._scope: anyio.CancelScope | None = None
        self._told: anyio.Event | None = None
        left_out: values.LeftOut = {}
        registration = {
            "kind": self.name,
            "total_steps": self._total,
            "input_filename": self._given("input_filename", _step_name, input_filename),
            "options": msgspec.Raw(self._given("options", partial(values.options, left_out), options) or b"{}"),
            "labels": self._given("labels", partial(values.labels, left_out), labels) or {},
            "lease_seconds": self._lease,
        }
        self._complain(left_out)
        self._backlog = PendingEvents(self.id, registration if self._own else None)
        if self._own or self._total:
            self._backlog.move(self._moved())

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled the job, as far as it is known here."""
        return self._backlog.cancelled

    def step(self, name: str = "") -> None:
        """The next step begins, and the one before it is done. Never waits. Raises JobCancelled."""
        named = self._valid("step_name", _step_name, name, "")

        def change(backlog: PendingEvents) -> None:
            self._step = min(self._step + self._in_step, values.MAX_COUNT)
            self._step_name, self._in_step = named, True
            backlog.move(self._moved())

        self._report(change)

    def progress(
        self,
        current_step: int | None = None,
        total_steps: int | None = None,
        step_name: str | None = None,
        percent: float | None = None,
    ) -> None:
        """How many steps are done, of how many, and which is under way; what is not given stays as it was.

        `percent`: where the steps do not tell. What is no number is left out. Never waits. Raises JobCancelled.
        """
        step = self._given("current_step", values.count, current_step)
        total = self._given("total_steps", values.count, total_steps)
        named = self._given("step_name", _step_name, step_name)
        share = self._given("percent", values.percentage, percent)

        def change(backlog: PendingEvents) -> None:
            if step is not None:
                self._step, self._in_step = step, False
            if total is not None:
                self._total = total
            if named is not None:
                self._step_name = named
            backlog.move(self._moved() if share is None else {**self._moved(), "percent": share})

        self._report(change)

    def _report(self, change: Callable[[PendingEvents], None]) -> None:
        if self._reporter is not None:
            if os.getpid() == self._process:  # a fork has no thread that would tell
                self._reporter.report(change)
        elif self._process is not None:
            change(self._backlog)
        if self._stop_when_cancelled and self.cancelled and not self._ended:
            raise JobCancelled(f"job {self.id} was cancelled")

    def _moved(self) -> dict[str, object]:
        return {"current_step": self._step, "total_steps": self._total, "step_name": self._step_name}

    def result(self, output_path: str | None = None, page_count: int | None = None) -> None:
        """What comes of the job, once it has ended well: the URL of its result, the number of its pages."""
        self._result = {
            "output_path": self._given("output_path", values.known, output_path),
            "page_count": self._given("page_count", values.count, page_count),
        }

    def _given(self, what: str, convert: Callable[[object], T], value: object) -> T | None:
        return None if value is None else self._valid(what, convert, value, None)

    def _valid(self, what: str, convert: Callable[[object], T], value: object, default: D) -> T | D:
        """Return the converted value, or the default where that is impossible: no value disturbs the work."""
        try:
            return convert(value)
        except Exception as error:
            self._complain({what: error})
            return default

    def _complain(self, left_out: values.LeftOut) -> None:
        """Log what is left out, once for each name."""
        new = [what for what in left_out if what not in self._complained]
        if new:
            self._complained.update(new)
            more = f" and {len(new) - 1} more" if len(new) > 1 else ""
            log.warning("%s: left out %s%s: %s", self.name, new[0], more, _sentence(left_out[new[0]]))

    def __getstate__(self) -> dict[str, object]:
        """A copy of a job that has begun, such as in another process, reports nothing."""
        begun = dict.fromkeys(("_reporter", "_process", "_where", "_scope", "_told")) if self._reporter else {}
        return {**self.__dict__, **begun}

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if (reporter := self._finish(error)) is not None:
            reporter.wait(LOOP_TIMEOUT if _loop_runs() else math.inf)

    async def __aenter__(self) -> Self:
        import anyio

        soon = _from_threads()
        self._told = anyio.Event()
        scope = anyio.CancelScope() if self._stop_when_cancelled else None
        self._start(partial(soon, scope.cancel) if scope is not None else None, partial(soon, self._told.set))
        if scope is not None:
            scope.__enter__()
        self._scope = scope
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._scope is not None:
                self._scope.__exit__(kind, error, traceback)
        except BaseException as remaining:
            error = remaining
            raise
        finally:
            reporter = self._finish(error)
            if reporter is not None and not isinstance(error, GeneratorExit):  # after which nothing can be awaited
                assert self._told is not None
                await _until_told(reporter, self._told)
        if self._scope is not None and self._scope.cancelled_caught:
            raise JobCancelled(f"job {self.id} was cancelled") from None

    def _start(
        self, on_cancelled: Callable[[], object] | None = None, on_finished: Callable[[], object] | None = None
    ) -> None:
        if self._reporter is not None or self._process is None:
            log.warning("%s: this Job was used before; nothing of this block is reported: make another Job", self.name)
            return
        self._process = os.getpid()
        self._begun = time.monotonic()  # the daemon may hear of it much later
        connect = way_to_daemon(*self._where, os.environ)
        self._reporter = ReporterThread(self.name, self._backlog, connect, self._lease)
        self._reporter.on_cancelled = on_cancelled or self._reporter.on_cancelled
        self._reporter.on_finished = on_finished or self._reporter.on_finished
        try:
            self._reporter.start()
        except BaseException as error:  # such as Ctrl-C; the block does not begin
            self._finish(error)
            raise

    def _finish(self, error: BaseException | None) -> ReporterThread | None:
        """Report the end; what is left to wait for. No thread runs any more where the interpreter ends."""
        self._ended = True
        if self._reporter is None or os.getpid() != self._process or sys.is_finalizing():
            return None
        interrupted = error is not None and not isinstance(error, Exception | SystemExit)
        patience = min(self._patience, CUT_SHORT) if interrupted else self._patience
        self._reporter.finish(lambda backlog: self._close(backlog, error), patience)
        return self._reporter

    def _close(self, backlog: PendingEvents, error: BaseException | None) -> None:
        if error is None and self._in_step:  # it has ended with the block
            self._step += 1
            backlog.move(self._moved())
        if not self._own:
            backlog.end(None, {})
        elif error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            result = {"elapsed_seconds": round(time.monotonic() - self._begun, 3), **self._result}
            backlog.end("completed", {name: value for name, value in result.items() if value is not None})
        elif isinstance(error, Exception | SystemExit):
            backlog.end("error", {"message": _sentence(error)})
        else:  # KeyboardInterrupt, or what cancels tasks
            backlog.end("status_change", {"new_status": "cancelled"})


def _sentence(error: BaseException) -> str:
    """What an exception says to the person who waits; with its type, where what it says is no sentence."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        [error] = error.exceptions
    kind = type(error).__name__
    try:
        said = str(error).strip()
    except Exception:  # which must not take the place of this one
        said = ""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        said = f"it ended with exit status {error.code}"
    elif " " not in said:
        said = f"{kind}: {said}" if said else kind
    return values.text(said, values.MAX_SENTENCE)


def _name(value: object) -> str:
    return values.text(value, values.MAX_NAME)


def _step_name(value: object) -> str:
    return values.text(value, values.MAX_STEP)


def _trio_runs() -> bool:
    """Whether this thread runs Trio."""
    with contextlib.suppress(KeyError, AttributeError):  # it is not imported, or only half of it by another thread
        return bool(sys.modules["trio"].lowlevel.in_trio_run())
    return False


def _loop_runs() -> bool:
    """Whether this thread runs an event loop, of asyncio or Trio."""
    with contextlib.suppress(KeyError, AttributeError, RuntimeError):
        return _trio_runs() or sys.modules["asyncio"].get_running_loop() is not None
    return False


def _from_threads() -> Callable[..., object]:
    """Return the function that threads call to have another one called in this event loop."""
    if _trio_runs():
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon
    import asyncio

    return asyncio.get_running_loop().call_soon_threadsafe


async def _until_told(reporter: ReporterThread, told: "anyio.Event") -> None:
    import anyio

    async def wait() -> None:
        while (left := reporter.time_left()) > 0:
            with anyio.move_on_after(left):
                await told.wait()

    try:
        await wait()
    except GeneratorExit:  # nothing can be awaited any more
        raise
    except BaseException:  # cancelled, now or before
        reporter.hurry(CUT_SHORT)
        with anyio.CancelScope(shield=True):
            await wait()
        raise
