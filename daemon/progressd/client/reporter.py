"""Send the reports of one job from a separate thread, so that the work never waits for the daemon.

A failure is logged once, and the report is sent again.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final

from msgspec import Struct

from progressd.client.endpoint import backoff
from progressd.client.errors import APIError, ClientError, ConnectError, ResponseTimeout
from progressd.client.pending import Event, EventAnswer, PendingEvents
from progressd.client.transport import EventTransport

MAX_RETRY_AFTER: Final = 60.0  # seconds; the lease of the job may expire in this time


class Timing(Struct, frozen=True, kw_only=True):
    """The waits of a `Job` and its reporter, in seconds."""

    report_interval: float = 0.2
    slow_interval: float = 2.0  # replaces `report_interval` once the daemon has rejected a request with status 429
    poll_interval: float = 2.0  # at which a silent job checks for a cancellation
    max_delay: float = 5.0  # between two attempts while no daemon answers
    max_closing_delay: float = 1.0  # the same after the end of the job
    unanswered_timeout: float = 10.0  # at the end, for a daemon that accepted a connection but never answered
    unconnected_timeout: float = 1.5  # at the end, without a connection; TCP repeats a packet after 1 s (RFC 6298)
    loop_timeout: float = 1.0  # for the end of a plain `with` block in an event loop


DEFAULT_TIMING: Final = Timing()

log = logging.getLogger("progressd.client")


class ReporterThread:
    """Report one job: `start`, `report` changes of `pending`, `finish` with the last change, `wait` for its answer.

    `name` is for the log. `connect` returns the transport, or raises ClientError if its arguments are invalid. The
    thread calls `on_cancelled` and `on_finished`.
    """

    def __init__(
        self,
        name: str,
        pending: PendingEvents,
        connect: Callable[[], EventTransport],
        lease: float | None,
        *,
        timing: Timing = DEFAULT_TIMING,
        on_cancelled: Callable[[], object] = lambda: None,
        on_finished: Callable[[], object] = lambda: None,
    ) -> None:
        self._on_cancelled = on_cancelled
        self._on_finished = on_finished
        self._name = name
        self._pending = pending
        self._connect = connect
        self._timing = timing
        self._renew_interval = lease / 3 if lease else float("inf")  # seconds
        self._changed = threading.Condition()  # nothing is logged while it is held: a log handler may report progress
        self._thread = threading.Thread(target=self._run, name=f"progressd: {name}", daemon=True)
        self._last_error = ""
        self._interval = timing.report_interval
        self._failures = 0  # in a row
        self._not_before = 0.0  # monotonic time of the earliest next attempt; the next line is monotonic, too
        self._polled_at = self._renewed_at = time.monotonic()
        self._answered = False  # a daemon has answered
        self._connected = False  # connected to a server that may be a daemon
        self._closed_at: float | None = None  # monotonic time of the end of the job
        self._patience = 0.0  # seconds after `_closed_at`
        self._closing_attempt = False  # the attempt after the end is due at once
        self._finished = threading.Event()

    def start(self) -> None:
        """Start the thread. If the thread cannot start, the job is not reported and its end does not wait."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._give_up(error)
            self._stop()

    def report(self, change: Callable[[PendingEvents], None]) -> None:
        """Change the pending events. Never waits."""
        with self._changed:
            waiting = self._pending.waiting
            change(self._pending)
            if not waiting:  # otherwise the thread already waits for the next report interval
                self._changed.notify_all()

    def finish(self, change: Callable[[PendingEvents], None], patience: float) -> None:
        """Make the last change. The daemon has `patience` seconds to accept it. Never waits.

        If no daemon ever answered, the thread makes one last attempt.
        """
        with self._changed:
            change(self._pending)
            self._closed_at, self._patience = time.monotonic(), patience
            self._closing_attempt = True
            self._changed.notify_all()

    def hurry(self, patience: float) -> None:
        """Reduce the remaining time for the end to at most `patience` seconds from now."""
        with self._changed:
            assert self._closed_at is not None
            self._patience = min(self._patience, time.monotonic() - self._closed_at + patience)

    def wait(self, seconds: float) -> None:
        """Wait until the end is acknowledged or the time is over, for at most `seconds`."""
        give_up = time.monotonic() + seconds
        try:
            while (left := min(self.time_left(), give_up - time.monotonic())) > 0:
                self._finished.wait(left)
        except BaseException:  # such as Ctrl-C
            self._stop()
            raise

    def time_left(self) -> float:
        """Return the seconds to wait before the next call; 0 if the end is acknowledged or the time is over."""
        assert self._closed_at is not None
        if self._finished.is_set():
            return 0.0
        left = min(self._patience, self._max_wait()) - (time.monotonic() - self._closed_at)
        if left <= 0 and self._stop():
            reason = "the daemon did not acknowledge the end" if self._answered else "no daemon answered in time"
            log.warning("%s: %s", self._name, reason)
        return max(left, 0.0)

    def _max_wait(self) -> float:
        if self._answered:
            return threading.TIMEOUT_MAX
        return self._timing.unanswered_timeout if self._connected else self._timing.unconnected_timeout

    def _run(self) -> None:
        try:
            with contextlib.closing(self._connect()) as transport:
                while self._wait_until_due():
                    self._send(transport)
        except Exception as error:
            self._give_up(error, defect=not isinstance(error, ClientError))
        finally:
            self._stop()

    def _give_up(self, error: Exception, *, defect: bool = False) -> None:
        log.warning("%s: %s; the work continues, but is not reported", self._name, error, exc_info=defect)

    def _wait_until_due(self) -> bool:
        """Wait until a report is due. Return False if no further report will follow."""
        while True:
            left = threading.TIMEOUT_MAX if self._closed_at is None else self.time_left()
            with self._changed:
                if self._finished.is_set() or self._pending.over:
                    return False
                seconds = self._due() - time.monotonic()
                if seconds <= 0:
                    return True
                self._changed.wait(min(seconds, left))

    def _due(self) -> float:
        if self._closing_attempt:
            return 0.0
        if self._pending.waiting:
            return self._not_before
        return max(
            self._not_before, min(self._polled_at + self._timing.poll_interval, self._renewed_at + self._renew_interval)
        )

    def _send(self, transport: EventTransport) -> None:
        with self._changed:
            last, self._closing_attempt = self._closing_attempt, False
            self._polled_at = time.monotonic()
            renew = self._polled_at >= self._renewed_at + self._renew_interval
            batch = self._pending.renewal() if renew else self._pending.batch()
        try:
            transport.connect()
            self._connected = True
            answers = transport.exchange(batch)
            self._acknowledge(batch, answers)
            for answer in answers:
                if answer.temporary:
                    raise APIError(answer.status, answer.error)
        except Exception as error:
            self._failed(error, last)
            return
        if self._failures:
            log.info("%s: the daemon answers again", self._name)
        self._failures = 0

    def _acknowledge(self, batch: Sequence[Event], answers: Sequence[EventAnswer]) -> None:
        self._answered = True
        now = time.monotonic()
        self._not_before = now + self._interval
        if any(answer.ok for answer in answers):
            self._renewed_at = now
        with self._changed:
            error = self._pending.acknowledge(batch, answers)
            cancelled = self._pending.cancelled and not self._finished.is_set()
        if error not in ("", self._last_error):
            self._last_error = error
            log.warning("%s: %s", self._name, error)
        if cancelled:
            _call(self._on_cancelled)

    def _failed(self, error: Exception, last: bool) -> None:
        """Retry later, unless this was the last attempt and no daemon ever answered. Raises permanent errors."""
        if self._finished.is_set():  # during the attempt
            return
        closing, defect = self._closed_at is not None, not isinstance(error, ClientError)
        delay = backoff(self._failures, self._timing.max_closing_delay if closing else self._timing.max_delay)
        foreign = not isinstance(error, ConnectError | ResponseTimeout)  # the answer is not from a daemon
        if isinstance(error, APIError):
            if error.code and not error.temporary:
                raise error
            self._answered = self._answered or bool(error.code)
            foreign = not (error.code or error.temporary)
            delay = max(delay, min(error.retry_after or 0, MAX_RETRY_AFTER))
        if isinstance(error, APIError) and error.status == HTTPStatus.TOO_MANY_REQUESTS:
            self._interval = self._timing.slow_interval
        elif not self._failures:
            log.warning("%s: %s; the work continues", self._name, error, exc_info=defect)
        self._failures += 1
        self._connected = self._connected and not foreign
        self._not_before = time.monotonic() + delay
        if (defect and closing) or (last and not (self._answered or self._connected)):
            self._stop()

    def _stop(self) -> bool:
        """Finish. Return False if the reporter had already finished."""
        with self._changed:
            new = not self._finished.is_set()
            self._finished.set()
            self._changed.notify_all()
        if new:
            _call(self._on_finished)
        return new


def _call(callback: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop is closed
        callback()
