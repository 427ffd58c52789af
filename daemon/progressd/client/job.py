"""`with Job("backup", total_steps=3) as job:` the block is a job, and whoever looks on sees how far it is.

The block is worked on whether or not a daemon answers. Leaving it ends the job: completed, or failed with the sentence
of the exception, which goes on as if nothing had been.
"""

import json
import math
import operator
import os
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Final, Self

import msgspec

from progressd.client.backlog import Backlog
from progressd.client.errors import JobCancelled
from progressd.client.lines import open_lines
from progressd.client.reporter import Reporter

LEASE: Final = 60.0  # seconds
PATIENCE: Final = 60.0  # seconds
CUT_SHORT: Final = 5.0  # seconds of patience for the end of what is interrupted
COUNT_MOST: Final = 2**53  # what a JavaScript number holds exactly
NAME_MOST: Final = 200  # characters
STEP_MOST: Final = 1000  # characters
SENTENCE_MOST: Final = 10_000  # characters


class Job:
    """One job, from the beginning of its `with` block, or in Trio `async with`, to the end of it.

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
        patience: float = PATIENCE,
        stop_when_cancelled: bool = True,
    ) -> None:
        self.name = _text(name, NAME_MOST) or "job"
        outer = os.environ.get("PROGRESSD_JOB_ID")
        self.id = outer or str(uuid.uuid4())
        self._own = outer is None
        self._stop_when_cancelled = stop_when_cancelled
        self._patience = patience
        self._step = self._total = 0
        self._step_name = ""
        self._in_step = False
        self._result: dict[str, object] = {}
        self._begun = time.monotonic()
        self._process = os.getpid()
        encoded = json.dumps(options or {}, default=str, allow_nan=False, ensure_ascii=False)
        registration = {
            "kind": self.name,
            "total_steps": _count(total_steps),
            "input_filename": None if input_filename is None else _text(input_filename, STEP_MOST),
            "options": msgspec.Raw(_known(encoded).encode()),
            "labels": {_text(label, NAME_MOST): _text(value, NAME_MOST) for label, value in (labels or {}).items()},
            "lease_seconds": lease_seconds,
        }
        self._backlog = Backlog(self.id, registration if self._own else None)
        way = partial(open_lines, url, socket, key, os.environ)
        self._reporter = Reporter(self.name, self._backlog, way, lease_seconds)
        if self._own or total_steps:
            self.progress(0, total_steps)

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled the job, as far as it is known here."""
        return self._backlog.cancelled

    def step(self, name: str = "") -> None:
        """The next step begins, and the one before it is done. Never waits. Raises JobCancelled."""
        self.progress(self._step + self._in_step, step_name=name)
        self._in_step = True

    def progress(
        self,
        current_step: int | None = None,
        total_steps: int | None = None,
        step_name: str | None = None,
        percent: float | None = None,
    ) -> None:
        """How many steps are done, of how many, and which is under way; what is not given stays as it was.

        `percent`: where the steps do not tell. Never waits. Raises JobCancelled.
        """
        if current_step is not None:
            self._step, self._in_step = _count(current_step), False
        if total_steps is not None:
            self._total = _count(total_steps)
        if step_name is not None:
            self._step_name = _text(step_name, STEP_MOST)
        data = self._moved()
        if percent is not None and math.isfinite(percent):
            data["percent"] = min(max(0.0, float(percent)), 100.0)
        if os.getpid() == self._process:  # a fork has no thread that would tell
            self._reporter.report(lambda backlog: backlog.move(data))
        if self._stop_when_cancelled and self.cancelled:
            raise JobCancelled(f"job {self.id} was cancelled")

    def _moved(self) -> dict[str, object]:
        return {"current_step": self._step, "total_steps": self._total, "step_name": self._step_name}

    def result(self, output_path: str | None = None, page_count: int | None = None) -> None:
        """What comes of the job, once it has ended well: the URL of its result, the number of its pages."""
        path = None if output_path is None else _known(output_path)
        self._result = {"output_path": path, "page_count": page_count}

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._end(error)

    async def __aenter__(self) -> Self:
        self._block = self._in_trio()
        await self._block.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._block.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def _in_trio(self) -> AsyncGenerator[None]:
        import trio

        run = trio.lowlevel.current_trio_token()
        ended: BaseException | None = None
        try:
            with trio.CancelScope() as block:
                if self._stop_when_cancelled:
                    self._reporter.on_cancelled = partial(run.run_sync_soon, block.cancel)
                self._start()
                yield
            if block.cancelled_caught:
                raise JobCancelled(f"job {self.id} was cancelled")
        except BaseException as error:
            ended = error
            raise
        finally:
            with trio.CancelScope(shield=True):
                try:
                    await trio.to_thread.run_sync(self._end, ended)
                except RuntimeError:  # no thread can be started
                    self._end(ended)

    def _start(self) -> None:
        self._begun = time.monotonic()  # the daemon may hear of it much later
        self._reporter.start()

    def _end(self, error: BaseException | None) -> None:
        if os.getpid() != self._process:
            return
        interrupted = error is not None and not isinstance(error, Exception | SystemExit)
        patience = min(self._patience, CUT_SHORT) if interrupted else self._patience
        self._reporter.finish(lambda backlog: self._close(backlog, error), patience)
        self._reporter.wait(math.inf)

    def _close(self, backlog: Backlog, error: BaseException | None) -> None:
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
    return _text(said, SENTENCE_MOST)


def _known(text: str) -> str:
    """As it can be sent: file names may have bytes in them that are no characters."""
    return str(text).encode("utf-8", "replace").decode()


def _text(text: str, most: int) -> str:
    """The same, and no longer than `most` characters."""
    known = _known(text)
    return known if len(known) <= most else f"{known[: most - 1]}…"


def _count(number: int) -> int:
    return min(max(0, int(operator.index(number))), COUNT_MOST)
