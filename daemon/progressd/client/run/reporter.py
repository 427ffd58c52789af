"""Report the job of a command to the daemon: its registration, its progress and its end, with retries."""

import contextlib
import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from progressd.client import values
from progressd.client.errors import APIError, ClientError, ResponseTimeout
from progressd.core.event_limits import MAX_ERROR
from progressd.core.events import ReportedProgress
from progressd.core.job import PRODUCER_LOST
from progressd.core.messages import JobStatus

if TYPE_CHECKING:
    from progressd.client.rest import RestClient

REPORT_INTERVAL: Final = 0.2  # seconds between two reports of progress
MAX_AGE: Final = 0.22  # seconds from the output of progress to its report, which then takes a moment
SLOW_INTERVAL: Final = 2.0  # seconds, for a daemon that limits requests
POLL_INTERVAL: Final = 5.0  # seconds between reports without progress, and between attempts to watch the job
WATCH_DELAY: Final = 1.0  # seconds until the job is watched; many commands end earlier, and the import is slow
END_TIMEOUT: Final = 60.0  # seconds to report the end to an unreachable daemon, such as during a restart


class ReportPace:
    """The times of the reports of progress: every REPORT_INTERVAL, or earlier if the progress would become too old."""

    def __init__(self) -> None:
        self.slow = False  # the daemon limits requests
        self._begun = False
        self._moved = trio.Event()
        self._due = math.inf  # time of the next report
        self._pause = trio.CancelScope()

    def note(self, age: float = 0.0) -> None:
        """Record new progress, which the command wrote `age` seconds ago."""
        self._moved.set()
        if not self.slow:
            self._due = min(self._due, trio.current_time() + MAX_AGE - age)
            self._pause.deadline = min(self._pause.deadline, self._due)

    async def wait(self) -> None:
        """Wait until the next report is due. Call it after each report."""
        interval = SLOW_INTERVAL if self.slow else REPORT_INTERVAL if self._begun else 0.0
        with trio.move_on_at(min(trio.current_time() + interval, self._due)) as self._pause:
            await trio.sleep_forever()
        self._begun = True
        with trio.move_on_after(POLL_INTERVAL):
            await self._moved.wait()
        self._moved, self._due = trio.Event(), math.inf


class JobReporter:
    """Report one job. `say` prints a message for the user.

    `known`: the daemon has registered the job; None: perhaps. `cancelled` is set if another user cancels the job.
    `over`: for the daemon, the job has finished; the command may still run. `limited`: the daemon limits requests.
    """

    def __init__(
        self,
        client: Callable[[], "RestClient"],
        job_id: str,
        registration: Mapping[str, Any],
        say: Callable[[str | ClientError], None],
        known: bool | None,
    ) -> None:
        self.job_id = job_id
        self.cancelled = trio.Event()
        self.over = False
        self.limited = False
        self._make_client = client
        self._made: RestClient | None = None
        self._registration = {**registration, "id": job_id}
        self._say = say
        self._calling = trio.CapacityLimiter(1)
        self._known = bool(known)  # the daemon knows the job
        self._maybe_known = known is None  # the registration was sent, but not answered
        self._complaint = ""  # the last error, which is not printed again
        self._lost = False  # the daemon lost the job, and the user received a message
        self._newest: Mapping[str, Any] | None = None  # the last reported progress, which may have been lost
        self.ending: trio.CancelScope | None = None  # set while the end is reported

    def give_up(self) -> bool:
        """Stop the wait for an unreachable daemon at the end. Return whether the end is being reported."""
        if self.ending is not None:
            self.ending.cancel()
        return self.ending is not None

    async def progress(self, progress: ReportedProgress) -> bool:
        """Report progress. Return whether no retry is needed."""
        self._newest = event_of("progress", **msgspec.to_builtins(progress))
        return await self.report(self._newest)

    async def end(self, event: Mapping[str, Any], waiting: str = "") -> bool:
        """Report the end, with retries if a daemon has ever answered. Return whether the daemon received it.

        `waiting`: a message for the user, before the first retry for an unreachable daemon.
        """
        with trio.move_on_after(END_TIMEOUT) as self.ending:
            while True:
                if await self.report(event) or not (self._known or self._maybe_known or self.limited):
                    return self._known
                if waiting and self._complaint:  # a daemon that limits requests has answered
                    self._say(waiting)
                    waiting = ""
                await trio.sleep(POLL_INTERVAL if self.limited else 1)  # a registration takes several requests
        self._say("the daemon did not receive the end of the job")
        return False

    async def report(self, event: Mapping[str, Any] | None) -> bool:
        """Report an event, or only renew the lease. Return whether no retry is needed."""
        if self.over:
            return True
        try:
            job = await trio.to_thread.run_sync(self._call, event, limiter=self._calling)
            self._note(JobStatus(job["status"]))
            self._note_failure(job.get("error"))
        except ClientError as error:
            self._maybe_known = self._maybe_known or isinstance(error, ResponseTimeout)
            final = isinstance(error, APIError) and not error.temporary
            self.over = isinstance(error, APIError) and error.status == HTTPStatus.CONFLICT
            if isinstance(error, APIError) and error.status == HTTPStatus.TOO_MANY_REQUESTS:
                self.limited = True
            elif str(error) != self._complaint and not self.over:
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
            except APIError as error:
                if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
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

    async def watch_for_cancellation(self) -> None:
        """Watch for a cancellation. If watching is impossible, the answer to the next report shows the cancellation."""
        await trio.sleep(WATCH_DELAY)
        while not self.over:
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
                    self._note_failure(message.data.message)

    def _note(self, status: JobStatus) -> None:
        """Record the status of the job. The command may report the end itself, so a finished job does not stop it."""
        self.over = self.over or status.finished
        if status is JobStatus.CANCELLED:
            self.cancelled.set()

    def _note_failure(self, sentence: str | None) -> None:
        """Print a message if the lease of the job expired, for example during a long Ctrl-Z."""
        if sentence == PRODUCER_LOST and not self._lost:
            self._lost = True
            self._say(ClientError(f"job {self.job_id} has failed: nothing was reported for too long"))

    @property
    def _client(self) -> "RestClient":
        """The client, which is made in a thread. Raises InvalidURL, InvalidKey."""
        if self._made is None:
            self._made = self._make_client()
        return self._made


def event_of(type_: str, **data: Any) -> dict[str, Any]:
    return {"type": type_, "data": data}


def failure_of(sentence: str) -> dict[str, Any]:
    return event_of("error", message=values.text(sentence, MAX_ERROR))
