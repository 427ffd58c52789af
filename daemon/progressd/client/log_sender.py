"""Send the log of a job from a thread of its own, so that neither the work nor the reports of its progress wait.

The memory is bounded: see OutputBuffer. Events are numbered, so that the daemon stores an event only once, even if it
is sent again after a lost response.
"""

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from progressd.client.endpoint import backoff, on_this_machine
from progressd.client.errors import APIError, ClientError
from progressd.client.pending import Event
from progressd.client.transport import EventTransport
from progressd.system.output_buffer import OutputBuffer, OutputChunk

INTERVAL: Final = 0.1  # seconds between two requests
REMOTE_INTERVAL: Final = 2.0  # seconds, on average, for a daemon that may limit the requests
QUICK_INTERVAL: Final = 0.25  # seconds between two requests after a quiet time
BURST: Final = 4  # requests that follow each other quickly after a quiet time
SLOW_INTERVAL: Final = 5.0  # seconds, if the daemon limits the requests
HURRIED_DELAY: Final = 0.2  # seconds between two attempts after the end of the program
MAX_DELAY: Final = 5.0  # seconds between two attempts while no daemon answers


def interval_for(url: str) -> float:
    """Return the average seconds between requests: a daemon limits those from other hosts. `url`: "" for a socket."""
    return INTERVAL if on_this_machine(url) else REMOTE_INTERVAL


class RequestPace:
    """The pauses after requests, which are on average `interval` apart. After a quiet time, the next ones are short.

    Times are in seconds.
    """

    def __init__(self, interval: float, burst: int = BURST) -> None:
        self._interval = interval
        self._burst = burst
        self._left = float(burst)  # requests that may follow each other fast
        self._at = 0.0  # time of the last request

    def pause(self, now: float) -> float:
        """Count a request at this time, and return the pause after it."""
        self._left = min(self._burst, self._left + (now - self._at) / self._interval) - 1
        self._at = now
        return min(QUICK_INTERVAL, self._interval) if self._left >= 1 else (1 - self._left) * self._interval


class LogSender(threading.Thread):
    """Send what is put into `buffer` for one job, until the buffer is closed and empty.

    `connect` makes the transport. `say` gets a message if the daemon does not accept the log. The job may be registered
    later.
    """

    def __init__(
        self,
        job_id: str,
        connect: Callable[[], EventTransport],
        say: Callable[[str], None],
        interval: float = INTERVAL,
    ) -> None:
        super().__init__(name=f"progressd log: {job_id}", daemon=True)
        self._put = threading.Event()
        self.buffer = OutputBuffer(self._put.set)
        self._job_id = job_id
        self._connect = connect
        self._say = say
        self._pace = RequestPace(interval)
        self._source = os.urandom(4).hex()
        self._entries: list[OutputChunk] = []  # taken, and not acknowledged
        self._seq = 1  # the number of the first of them
        self._doubtful = True  # the last request failed, so the next one has only one event
        self._over = threading.Event()
        self._hurry = threading.Event()  # the program has ended
        self.unsent = False

    def run(self) -> None:
        """Send until the end."""
        failures = 0
        transport: EventTransport | None = None
        try:
            while not self._over.is_set():
                self._put.clear()
                if not self._entries:
                    self._entries = self.buffer.take()
                if not self._entries:
                    if self.buffer.ended:
                        break
                    if self.buffer.empty:
                        self._put.wait()
                    else:  # after a gap
                        self._pause(INTERVAL)
                    continue
                try:
                    transport = transport or self._connect()
                    rejected = self._send(transport)
                except ClientError as error:
                    if isinstance(error, APIError) and not error.temporary:
                        self._say(f"the log of the job is not kept: {error}")
                        break
                    limited = isinstance(error, APIError) and error.status == HTTPStatus.TOO_MANY_REQUESTS
                    self._pace = RequestPace(SLOW_INTERVAL, 1) if limited else self._pace
                    failures += 1
                    self._pause(SLOW_INTERVAL if limited else backoff(failures, MAX_DELAY))
                else:
                    if rejected:
                        self._say(f"the log of the job is not kept: {rejected}")
                        break
                    failures = failures + 1 if self._doubtful else 0
                    if self._doubtful or not (self._entries or self._hurry.is_set()):
                        pause = self._pace.pause(time.monotonic())
                        self._pause(backoff(failures, MAX_DELAY) if self._doubtful else pause)
        finally:
            self.unsent = bool(self._entries) or not self.buffer.ended
            self._over.set()
            if transport is not None:
                transport.close()

    def _event(self, seq: int, entry: OutputChunk) -> Event:
        data = {
            "stream": entry.stream,
            "text": entry.text.decode("utf-8", "replace"),
            "partial": not entry.text.endswith(b"\n"),
            "time": datetime.fromtimestamp(entry.time, UTC),
            "source": self._source,
            "seq": seq,
        }
        return {"type": "log", "job_id": self._job_id, "data": data}

    def _pause(self, seconds: float) -> None:
        if self._hurry.is_set():
            self._over.wait(min(seconds, HURRIED_DELAY))
        else:
            self._hurry.wait(seconds)

    def _send(self, transport: EventTransport) -> str:
        """Send the entries, and forget the accepted ones. Return an error that is final. Raises ClientError.

        After a lost answer, the same entries have the same numbers. Rejected entries get new ones, because the daemon
        ignores numbers below the last one that it has stored.
        """
        batch = self._entries[: 1 if self._doubtful else None]
        self._doubtful = True
        answers = transport.exchange([self._event(seq, entry) for seq, entry in enumerate(batch, self._seq)])
        rejected = [entry for entry, answer in zip(batch, answers, strict=True) if not answer.ok]
        self._entries = [*rejected, *self._entries[len(batch) :]]
        self._seq += len(batch)
        self._doubtful = bool(rejected)
        final = [one.error for one in answers if not (one.ok or one.temporary or one.status == HTTPStatus.NOT_FOUND)]
        return final[0] if final else ""

    def hurry(self) -> None:
        """Accept nothing more, and send the rest without pauses."""
        self.buffer.close()
        self._hurry.set()

    def finish(self, seconds: float) -> bool:
        """Send the rest, for at most `seconds`. Return whether everything was sent. Blocks."""
        self.hurry()
        self.join(seconds)
        self._over.set()
        return not (self.is_alive() or self.unsent)
