"""Tells the daemon of one job, in a thread of its own: whoever works on the job never waits for it, but for the end.

Whatever happens to the daemon, the work goes on: what went wrong is logged, once, and tried again.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from progressd.client.backlog import Answer, Backlog, Event
from progressd.client.backoff import backoff
from progressd.client.errors import TOO_OFTEN, ClientError, NoAnswer, Refused
from progressd.client.lines import Lines

PACE: Final = 0.2  # seconds between two reports
SLOW_PACE: Final = 2.0  # the same, once the daemon finds that we ask too often
BEAT: Final = 2.0  # seconds until a silent job asks whether somebody has cancelled it
LONGEST_DELAY: Final = 5.0  # seconds between two attempts while no daemon answers
LAST_DELAY: Final = 1.0  # the same, when nothing but the end is left
QUIET: Final = 3.0  # seconds to wait for the end to be taken before saying so

log = logging.getLogger("progressd.client")


class Reporter:
    """`start` it; `report` changes what there is to tell; `finish` waits until all is told.

    `name` is for the log. `connect` finds the daemon, and raises ClientError where that is no use. `on_cancelled` is
    called from the thread.
    """

    def __init__(self, name: str, backlog: Backlog, connect: Callable[[], Lines], lease: float | None) -> None:
        self.on_cancelled: Callable[[], None] = lambda: None
        self._name = name
        self._backlog = backlog
        self._connect = connect
        self._renew = lease / 3 if lease else float("inf")  # seconds
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"progressd: {name}", daemon=True)
        self._pace = PACE
        self._failures = 0  # in a row
        self._not_before = 0.0  # on the monotonic clock, as the two below
        self._asked = self._renewed = time.monotonic()
        self._reached = False  # there is a daemon, or was one
        self._closing = False  # the job has ended
        self._last_call = False  # so the next attempt comes at once
        self._finished = False

    def start(self) -> None:
        """Begin to tell; where no thread can be started there is nothing to wait for in the end."""
        try:
            self._thread.start()
        except RuntimeError as error:
            if self._thread.ident is not None:  # begun before
                raise
            self._go_unseen(error)
            self._stop()

    def report(self, change: Callable[[Backlog], None]) -> None:
        """Change what there is to tell. Never waits."""
        with self._changed:
            waiting = self._backlog.waiting
            change(self._backlog)
            if not waiting:  # otherwise the thread knows when to come back
                self._changed.notify_all()

    def finish(self, change: Callable[[Backlog], None], patience: float) -> None:
        """The last change: wait until the daemon has taken all, for `patience` seconds at most.

        Where no daemon ever answered, one more attempt is all.
        """
        with self._changed:
            try:
                change(self._backlog)
                self._closing = self._last_call = True
                self._changed.notify_all()
                if not self._wait(min(QUIET, patience)):
                    log.warning("%s: waiting for the daemon to take its end", self._name)
                    if not self._wait(patience - QUIET):
                        log.warning("%s: the daemon was not told how it ended", self._name)
            finally:
                self._stop()

    def _wait(self, seconds: float) -> bool:
        return self._changed.wait_for(lambda: self._finished, max(0.0, seconds))

    def _run(self) -> None:
        try:
            lines = self._connect()
            try:
                while self._wait_until_due():
                    self._tell(lines)
            finally:
                lines.close()
        except ClientError as error:
            self._go_unseen(error)
        finally:
            self._stop()

    def _go_unseen(self, error: Exception) -> None:
        log.warning("%s: %s; the work goes on all the same, unseen", self._name, error)

    def _wait_until_due(self) -> bool:
        """Until there is something to tell; False when there is nothing more."""
        with self._changed:
            while not self._finished and not self._backlog.over:
                seconds = self._due() - time.monotonic()
                if seconds <= 0:
                    return True
                self._changed.wait(seconds)
        return False

    def _due(self) -> float:
        if self._last_call:
            return 0.0
        if self._backlog.waiting:
            return self._not_before
        return max(self._not_before, min(self._asked + BEAT, self._renewed + self._renew))

    def _tell(self, lines: Lines) -> None:
        with self._changed:
            last, self._last_call = self._last_call, False
            self._asked = time.monotonic()
            renew = self._asked >= self._renewed + self._renew
            batch = self._backlog.renewal() if renew else self._backlog.batch()
        try:
            answers = lines.exchange(batch)
            self._take(batch, answers)
            for answer in answers:
                if answer.later:
                    raise Refused(answer.status, answer.error)
        except ClientError as error:
            self._failed(error, last)
            return
        if self._failures:
            log.info("%s: the daemon answers again", self._name)
        self._failures = 0

    def _take(self, batch: Sequence[Event], answers: Sequence[Answer]) -> None:
        self._reached = True
        now = time.monotonic()
        self._not_before = now + self._pace
        if any(answer.ok for answer in answers):
            self._renewed = now
        with self._changed:
            complaint = self._backlog.answered(batch, answers)
            cancelled = self._backlog.cancelled and not self._finished
        if complaint:
            log.warning("%s: %s", self._name, complaint)
        if cancelled:
            self.on_cancelled()

    def _failed(self, error: ClientError, last: bool) -> None:
        """Try again later, unless nobody ever answered and this was the last attempt. Raises what is final."""
        delay = backoff(self._failures, LAST_DELAY if self._closing else LONGEST_DELAY)
        if isinstance(error, Refused):
            if not error.later:
                raise error
            delay = max(delay, error.retry_after or 0)
        if isinstance(error, Refused) and error.status == TOO_OFTEN:
            self._pace = SLOW_PACE
        elif not self._failures:
            log.warning("%s: %s; the work goes on all the same", self._name, error)
        self._failures += 1
        self._reached = self._reached or isinstance(error, Refused | NoAnswer)
        self._not_before = time.monotonic() + delay
        if last and not self._reached:
            self._stop()

    def _stop(self) -> None:
        with self._changed:
            self._finished = True
            self._changed.notify_all()
