"""Send the reports of one job from a thread of its own, so that the work never waits for the daemon.

Whatever happens to the daemon, the work goes on: a failure is logged once, and the report is sent again.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from progressd.client.backoff import backoff
from progressd.client.errors import TOO_OFTEN, APIError, ClientError, ConnectError, ResponseTimeout
from progressd.client.pending import Event, EventAnswer, PendingEvents
from progressd.client.transport import EventTransport

PACE: Final = 0.2  # seconds between two reports
SLOW_PACE: Final = 2.0  # the same, once the daemon finds that we ask too often
BEAT: Final = 2.0  # seconds until a silent job asks whether somebody has cancelled it
LONGEST_DELAY: Final = 5.0  # seconds between two attempts while no daemon answers
LONGEST_RETRY_AFTER: Final = 60.0  # seconds; the lease of a job goes on meanwhile
LAST_DELAY: Final = 1.0  # seconds between two attempts, when nothing but the end is left
QUIET: Final = 3.0  # seconds to wait for the end to be taken before saying so

# Seconds that the end of a job is waited for where no daemon has answered yet. One that connects may be busy or
# starting. One that does not has had the time of a lost packet: TCP sends its first one again after a second, RFC 6298.
UNANSWERED_TIMEOUT: Final = 10.0
UNCONNECTED_TIMEOUT: Final = 1.5

log = logging.getLogger("progressd.client")


class ReporterThread:
    """`start` it; `report` changes what there is to tell; `finish` is the last change; `wait` waits until it is told.

    `name` is for the log. `connect` finds the daemon, and raises ClientError where that is no use. `on_cancelled` and
    `on_finished` are called from the thread.
    """

    def __init__(
        self, name: str, backlog: PendingEvents, connect: Callable[[], EventTransport], lease: float | None
    ) -> None:
        self.on_cancelled: Callable[[], object] = lambda: None
        self.on_finished: Callable[[], object] = lambda: None
        self._name = name
        self._backlog = backlog
        self._connect = connect
        self._renew = lease / 3 if lease else float("inf")  # seconds
        self._changed = threading.Condition()  # nothing is logged while it is held: a handler may report progress
        self._thread = threading.Thread(target=self._run, name=f"progressd: {name}", daemon=True)
        self._complaint = ""  # the last one
        self._pace = PACE
        self._failures = 0  # in a row
        self._not_before = 0.0  # on the monotonic clock, as the two below
        self._asked = self._renewed = time.monotonic()
        self._answered = False  # there is a daemon, or was one
        self._connected = False  # to what may be one
        self._closed_at: float | None = None  # when the job has ended
        self._patience = 0.0  # seconds from then on
        self._warned = False  # that the end takes long
        self._last_call = False  # so the next attempt comes at once
        self._finished = threading.Event()

    def start(self) -> None:
        """Begin to tell; where no thread can be started there is nothing to wait for in the end."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._go_unseen(error)
            self._stop()

    def report(self, change: Callable[[PendingEvents], None]) -> None:
        """Change what there is to tell. Never waits."""
        with self._changed:
            waiting = self._backlog.waiting
            change(self._backlog)
            if not waiting:  # otherwise the thread knows when to come back
                self._changed.notify_all()

    def finish(self, change: Callable[[PendingEvents], None], patience: float) -> None:
        """Make the last change, which the daemon has `patience` seconds to take. Never waits.

        Where no daemon ever answered, one more attempt is all.
        """
        try:
            with self._changed:
                change(self._backlog)
                self._closed_at, self._patience = time.monotonic(), patience
                self._last_call = True
                self._changed.notify_all()
        except BaseException:
            self._stop()
            raise

    def hurry(self, patience: float) -> None:
        """Shorten the patience to so many seconds from now."""
        with self._changed:
            assert self._closed_at is not None
            self._patience = min(self._patience, time.monotonic() - self._closed_at + patience)

    def wait(self, seconds: float) -> None:
        """Wait until the end is told or the patience is over, for so many seconds at most."""
        give_up = time.monotonic() + seconds
        try:
            while (left := min(self.time_left(), give_up - time.monotonic())) > 0:
                self._finished.wait(left)
        except BaseException:  # such as Ctrl-C
            self._stop()
            raise

    def time_left(self) -> float:
        """Return the seconds to wait before asking again; 0 when the end is told or the patience is over."""
        assert self._closed_at is not None
        waited = time.monotonic() - self._closed_at
        left = min(self._patience, self._longest_wait()) - waited
        if self._finished.is_set():
            return 0.0
        if left <= 0:
            if self._stop():
                untold = "the daemon was not told how it ended" if self._answered else "no daemon answered in time"
                log.warning("%s: %s", self._name, untold)
            return 0.0
        if waited < QUIET:
            return min(left, QUIET - waited)
        with self._changed:
            warned, self._warned = self._warned, True
        if not warned:
            log.warning("%s: waiting for the daemon to take its end", self._name)
        return left

    def _longest_wait(self) -> float:
        if self._answered:
            return threading.TIMEOUT_MAX
        return UNANSWERED_TIMEOUT if self._connected else UNCONNECTED_TIMEOUT

    def _run(self) -> None:
        try:
            with contextlib.closing(self._connect()) as lines:
                while self._wait_until_due():
                    self._tell(lines)
        except Exception as error:
            self._go_unseen(error, defect=not isinstance(error, ClientError))
        finally:
            self._stop()

    def _go_unseen(self, error: Exception, *, defect: bool = False) -> None:
        log.warning("%s: %s; the work goes on all the same, unseen", self._name, error, exc_info=defect)

    def _wait_until_due(self) -> bool:
        """Until there is something to tell; False when there is nothing more."""
        while True:
            left = threading.TIMEOUT_MAX if self._closed_at is None else self.time_left()
            with self._changed:
                if self._finished.is_set() or self._backlog.over:
                    return False
                seconds = self._due() - time.monotonic()
                if seconds <= 0:
                    return True
                self._changed.wait(min(seconds, left))

    def _due(self) -> float:
        if self._last_call:
            return 0.0
        if self._backlog.waiting:
            return self._not_before
        return max(self._not_before, min(self._asked + BEAT, self._renewed + self._renew))

    def _tell(self, lines: EventTransport) -> None:
        with self._changed:
            last, self._last_call = self._last_call, False
            self._asked = time.monotonic()
            renew = self._asked >= self._renewed + self._renew
            batch = self._backlog.renewal() if renew else self._backlog.batch()
        try:
            lines.connect()
            self._connected = True
            answers = lines.exchange(batch)
            self._take(batch, answers)
            for answer in answers:
                if answer.later:
                    raise APIError(answer.status, answer.error)
        except Exception as error:
            self._failed(error, last)
            return
        if self._failures:
            log.info("%s: the daemon answers again", self._name)
        self._failures = 0

    def _take(self, batch: Sequence[Event], answers: Sequence[EventAnswer]) -> None:
        self._answered = True
        now = time.monotonic()
        self._not_before = now + self._pace
        if any(answer.ok for answer in answers):
            self._renewed = now
        with self._changed:
            complaint = self._backlog.answered(batch, answers)
            cancelled = self._backlog.cancelled and not self._finished.is_set()
        if complaint not in ("", self._complaint):
            self._complaint = complaint
            log.warning("%s: %s", self._name, complaint)
        if cancelled:
            _call(self.on_cancelled)

    def _failed(self, error: Exception, last: bool) -> None:
        """Try again later, unless no daemon ever answered and this was the last attempt. Raises what is final."""
        if self._finished.is_set():  # while it was tried
            return
        closing, defect = self._closed_at is not None, not isinstance(error, ClientError)
        delay = backoff(self._failures, LAST_DELAY if closing else LONGEST_DELAY)
        foreign = not isinstance(error, ConnectError | ResponseTimeout)  # what answers is no daemon
        if isinstance(error, APIError):
            if error.code and not error.later:
                raise error
            self._answered = self._answered or bool(error.code)
            foreign = not (error.code or error.later)
            delay = max(delay, min(error.retry_after or 0, LONGEST_RETRY_AFTER))
        if isinstance(error, APIError) and error.status == TOO_OFTEN:
            self._pace = SLOW_PACE
        elif not self._failures:
            log.warning("%s: %s; the work goes on all the same", self._name, error, exc_info=defect)
        self._failures += 1
        self._connected = self._connected and not foreign
        self._not_before = time.monotonic() + delay
        if (defect and closing) or (last and not (self._answered or self._connected)):
            self._stop()

    def _stop(self) -> bool:
        """Finish; whether that is new."""
        with self._changed:
            new = not self._finished.is_set()
            self._finished.set()
            self._changed.notify_all()
        if new:
            _call(self.on_finished)
        return new


def _call(callback: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop that it is for has ended
        callback()
