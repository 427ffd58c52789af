"""`progressd watch` on a whole terminal: receive messages, read keys, and draw what changed."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio

from progressd.cli import text
from progressd.cli.interruption import until_interrupted
from progressd.cli.language import t
from progressd.cli.remote import Remote, error_sentence
from progressd.cli.screen import job_view, list_view
from progressd.cli.screen.cells import Painter
from progressd.cli.screen.finished import Finished
from progressd.cli.screen.job_view import JobView
from progressd.cli.screen.keys import Keys
from progressd.cli.screen.list_view import ListView
from progressd.cli.screen.rows import Filter, Row, Rows
from progressd.cli.screen.terminal import FullScreen
from progressd.client.errors import ClientError, ConnectError
from progressd.client.rest import RestClient
from progressd.client.watcher import Disconnected, watch_log, watch_texts
from progressd.core.messages import (
    Hello,
    JobDeleted,
    JobStatus,
    Message,
    Progress,
    Resync,
    ServerShutdown,
    ServerStatus,
)

FRAME: Final = 0.1  # seconds between two drawings, unless the user types
LOADING_FRAME: Final = 0.5  # until all unfinished jobs have arrived
PAUSES: Final = 5.0  # a pause is at least this many times as long as the drawing before it
LOG_TAIL: Final = 1000  # lines of the log that an opened job begins with
DETAILS_DELAY: Final = 1.0  # seconds between two requests for the details of an opened job
RETRY_DELAY: Final = 5.0  # seconds until finished jobs are requested again after an error
SLOW_INTERVAL: Final = 15.0  # seconds between two requests for the jobs that take longer than usual
MAX_INTERVAL: Final = 60.0  # seconds
JOBS_A_SECOND: Final = 2000  # whose progress may arrive without using much of a processor
TYPES: Final = ("job_created", "job_deleted", "progress")  # with those that are always sent; no previews of pages


def watch_screen(remote: Remote, given: Filter, interval: float | None) -> int:
    """Show all jobs until the user quits. Return the exit status. Raises ClientError.

    `interval`: seconds between two progress messages of a job; None: as fits the number of jobs.
    """
    app = App(remote, given, interval)
    app.load()  # an error is printed before the screen is taken
    with FullScreen(sys.stdin.fileno(), sys.stdout.fileno(), os.environ) as screen:
        return trio.run(until_interrupted, partial(app.run, screen))


class App:
    """The list of jobs, and the page of one job while it is open."""

    def __init__(self, remote: Remote, given: Filter, interval: float | None) -> None:
        self._remote = remote
        self._finished = Finished(given)
        self._interval = interval
        self._live = False  # all unfinished jobs have arrived
        self._fetching = False  # a page of finished jobs
        self._rows = Rows(given)
        self._painter = Painter(colors=not os.environ.get("NO_COLOR"))
        self._list = ListView(
            self._rows,
            self._painter,
            text.printable(remote.url),
            list_view.Actions(self._quit, self._open, self._cancel, self._retry, self._search, self._more),
        )
        self._job: JobView | None = None
        self._job_scope = trio.CancelScope()
        self._news = trio.Event()  # something on the screen may have changed
        self._typed = trio.Event()
        self._done = trio.Event()
        self._regained = trio.Event()  # set with the first message after a lost connection
        self._details = trio.Event()  # the details of the opened job may have changed

    def load(self) -> None:
        """Fetch the first jobs. Raises ClientError."""
        with self._remote.client() as client:
            self._take_finished(self._finished.begin(client))
            self._rows.mark_slow(self._finished.slow(client))
            if self._interval is None:
                running = client.page("/api/jobs?status=processing&limit=1").get("total", 0)
                self._interval = min(MAX_INTERVAL, max(1.0, running / JOBS_A_SECOND))

    async def run(self, screen: FullScreen) -> int:
        """Show the jobs until the user quits."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._receive)
            nursery.start_soon(self._read_keys, screen)
            nursery.start_soon(self._obey_signals, screen)
            nursery.start_soon(self._tick, screen)
            nursery.start_soon(self._look_for_slow_jobs)
            nursery.start_soon(self._draw, screen)
            await self._done.wait()
            nursery.cancel_scope.cancel()
        return 0

    @property
    def _view(self) -> ListView | JobView:
        return self._job or self._list

    async def _receive(self) -> None:
        async with watch_texts(
            self._remote.url, key=self._remote.key, on_lost=self._lost, interval=self._interval or 0.0, types=TYPES
        ) as received:
            async for one in received:
                if self._rows.lost_since is not None:
                    self._rows.regained()
                    self._regained.set()
                    self._regained = trio.Event()
                    self._view.notice = ""
                    self._show()
                    self._details.set()
                if one.message is not None:
                    await self._take(one.message)

    async def _take(self, message: Message) -> None:
        match message:
            case ServerShutdown(data):
                self._say(text.said(data.reason))
            case ServerStatus(data):
                self._say(text.said(data.error) if data.error else t("the daemon has recovered"))
            case Resync():
                self._rows.clear()
                self._finished.restart()
                self._nursery.start_soon(self._call, self._finished.begin, self._take_finished)
            case Hello():
                self._live = True
                self._show(typed=True)
        before = self._job.row.data if self._job else None
        row = self._rows.take(message)
        if self._job is not None and row is not None and row.id == self._job.row.id:
            self._job.row = row  # another object after a resync
            if isinstance(message, JobDeleted):
                self._say(t("the job was deleted"))
            elif not isinstance(message, Progress) or before is None or job_view.moved(before, message.data):
                self._details.set()
        if self._rows.stale or (row is not None and any(row is one for one in self._view.visible())):
            self._news.set()

    def _lost(self, lost: Disconnected) -> None:
        self._rows.lost()
        self._show()

    async def _read_keys(self, screen: FullScreen) -> None:
        keys = Keys()
        while pressed := await screen.keys(keys):
            for key in pressed:
                if key == "redraw":
                    screen.clear()
                else:
                    self._view.key(key)
            self._show(typed=True)
        self._quit()  # the terminal is closed

    async def _obey_signals(self, screen: FullScreen) -> None:
        with trio.open_signal_receiver(signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT) as signals:
            async for number in signals:
                if number == signal.SIGTSTP:
                    screen.suspend()
                elif number == signal.SIGCONT:
                    screen.enter()
                screen.clear()
                self._show(typed=True)

    async def _tick(self, screen: FullScreen) -> None:
        """Let the clocks on the screen run, and show the progress of all jobs in the terminal's tab."""
        while True:
            if screen.has_tab:
                screen.progress(*self._rows.overall([self._job.row] if self._job else None))
            await trio.sleep(1)
            if any(row.status is JobStatus.PROCESSING for row in self._view.visible()):
                self._news.set()

    async def _look_for_slow_jobs(self) -> None:
        while True:
            await trio.sleep(SLOW_INTERVAL)
            if self._rows.lost_since is None:
                await self._call(self._finished.slow, self._rows.mark_slow)

    async def _draw(self, screen: FullScreen) -> None:
        while True:
            self._news, self._typed = trio.Event(), trio.Event()
            began = time.process_time()
            screen.draw(self._view.lines(*screen.size()))
            frame = FRAME if self._live else LOADING_FRAME
            with trio.move_on_after(max(frame, PAUSES * (time.process_time() - began))):
                await self._typed.wait()
            await self._news.wait()

    def _show(self, *, typed: bool = False) -> None:
        self._news.set()
        if typed:
            self._typed.set()

    def _say(self, sentence: str) -> None:
        self._view.notice = sentence
        self._show()

    def _quit(self) -> None:
        self._done.set()

    def _open(self, row: Row) -> None:
        actions = job_view.Actions(self._quit, self._close, self._cancel, self._retry)
        self._job = JobView(row, self._rows, self._painter, self._remote.url, actions)
        self._job_scope = trio.CancelScope()
        self._nursery.start_soon(self._run_job, self._job, self._job_scope)

    def _close(self) -> None:
        self._job = None
        self._job_scope.cancel()

    async def _run_job(self, view: JobView, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_details, view)
                nursery.start_soon(self._follow_log, view)
                if self._interval and self._interval > 1 and not view.row.status.finished:
                    nursery.start_soon(self._follow_progress, view.row.id)

    async def _keep_details(self, view: JobView) -> None:
        def take(job: dict[str, Any]) -> None:
            view.details = job
            self._show()

        while True:
            self._details = trio.Event()
            await self._call(lambda client: client.job(view.row.id), take)
            await trio.sleep(DETAILS_DELAY)
            await self._details.wait()

    async def _follow_progress(self, job_id: str) -> None:
        """Receive the progress of the opened job more often than that of the other jobs."""
        with suppress(ClientError):
            async with watch_texts(self._remote.url, job_id, key=self._remote.key) as received:
                async for one in received:
                    if isinstance(one.message, Progress):
                        await self._take(one.message)

    async def _follow_log(self, view: JobView) -> None:
        start = {"tail": str(LOG_TAIL)}
        while True:
            regained = self._regained
            view.no_log(job_view.NO_OUTPUT)
            try:
                async with watch_log(self._remote.url, view.row.id, start, key=self._remote.key) as messages:
                    async for message in messages:
                        view.add_log(message.data)
                        self._show()
                return
            except ClientError as error:
                view.no_log(text.printable(error_sentence(error, self._remote)))
                self._show()
                if not isinstance(error, ConnectError):
                    return
            await regained.wait()

    def _cancel(self, row: Row) -> None:
        self._nursery.start_soon(self._call, lambda client: client.cancel(row.id), lambda _: None)

    def _retry(self, row: Row) -> None:
        self._nursery.start_soon(
            self._call,
            lambda client: client.retry(row.id),
            lambda new: self._say(t("retried as job {id}", id=text.short(new))),
        )

    def _search(self, words: str) -> None:
        self._nursery.start_soon(self._call, lambda client: self._finished.search(client, words), self._rows.take_jobs)

    def _more(self) -> None:
        if not (self._fetching or self._finished.complete or self._rows.lost_since is not None):
            self._fetching = True
            self._nursery.start_soon(self._fetch_more)

    async def _fetch_more(self) -> None:
        if not await self._call(self._finished.more, self._take_finished):
            await trio.sleep(RETRY_DELAY)
        self._fetching = False

    def _take_finished(self, jobs: list[dict[str, Any]]) -> None:
        self._rows.take_jobs(jobs)
        self._rows.set_totals(self._finished.totals)

    async def _call(self, call: Callable[[RestClient], Any], take: Callable[[Any], None]) -> bool:
        """Call the daemon in a thread, and take the answer or show the error. Return whether it answered."""

        def in_thread() -> Any:
            with self._remote.client() as client:
                return call(client)

        try:
            answer = await trio.to_thread.run_sync(in_thread, abandon_on_cancel=True)
        except ClientError as error:
            self._say(text.printable(error_sentence(error, self._remote)))
            return False
        take(answer)
        self._show()
        return True
