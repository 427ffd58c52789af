"""Send the log of a job from a thread of its own, so that neither the work nor the reports of its progress wait.

The memory is bounded. If the daemon is slow or away, the oldest lines that wait stay, and the newest; of those between,
only the number of bytes is sent. Events are numbered, so that the daemon stores each once after a lost answer.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from progressd.client.endpoint import backoff
from progressd.client.errors import APIError, ClientError
from progressd.client.pending import Event
from progressd.client.transport import EventTransport
from progressd.core.output_lines import OutputLines, whole_characters

MAX_HEAD: Final = 1 << 20  # bytes that wait; beyond them, more may be lost
MAX_TAIL: Final = 3 << 20  # bytes of the newest output that wait after them
MAX_TEXT: Final = 32768  # bytes of text in one event
MAX_BATCH: Final = 1 << 18  # bytes of text in one request
INTERVAL: Final = 0.1  # seconds between two requests
REMOTE_INTERVAL: Final = 2.0  # seconds, for a daemon that may limit the requests
SLOW_INTERVAL: Final = 5.0  # seconds, if the daemon limits the requests
GAP_INTERVAL: Final = 1.0  # seconds between two gaps, so that long pieces of a fast output are kept
HURRIED_DELAY: Final = 0.2  # seconds between two attempts after the end of the program
MAX_DELAY: Final = 5.0  # seconds between two attempts while no daemon answers
NOT_FOUND: Final = 404  # HTTP status: the job is not registered yet
TOO_MANY: Final = 429  # HTTP status
STDOUT: Final = "stdout"
NOTE: Final = "note"


class LogQueue:
    """What a program has written and is not sent yet. One thread takes it; `put` may be called in any and never waits.

    A chunk is kept as it is, because making lines of it takes longer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._head = deque[tuple[float, str, bytes]]()  # empty chunk: the stream is silent
        self._tail = deque[tuple[float, str, bytes]]()
        self._head_size = 0
        self._tail_size = 0
        self._lost = 0  # bytes between head and tail
        self._gap_at = -GAP_INTERVAL  # time of the last gap
        self.closed = False
        self._lines = dict[str, OutputLines]()
        self._source = os.urandom(4).hex()
        self._seq = 0

    def put(self, stream: str, chunk: bytes) -> None:
        """Add output."""
        entry = (time.time(), stream, chunk)
        with self._lock:
            if not self._tail and self._head_size + len(chunk) <= MAX_HEAD:
                self._head.append(entry)
                self._head_size += len(chunk)
                self._changed.notify()
                return
            self._tail.append(entry)
            self._tail_size += len(chunk)
            while self._tail_size > MAX_TAIL:
                dropped = len(self._tail.popleft()[2])
                self._tail_size -= dropped
                self._lost += dropped

    def close(self) -> None:
        """Note that nothing more will be put."""
        with self._lock:
            self.closed = True
            self._changed.notify()

    @property
    def size(self) -> int:
        """Return the bytes that wait, or that are lost and not noted yet."""
        return self._head_size + self._tail_size + self._lost

    def wait(self, seconds: float | None) -> None:
        """Wait until something can be taken, or the queue is closed."""
        with self._lock:
            if not self._head and not self._tail and not self.closed:
                self._changed.wait(seconds)

    def take(self) -> list[Event]:
        """Return the next events, without their job."""
        with self._lock:
            lost = 0
            if not self._head and self._may_take_tail():
                self._head, self._tail = self._tail, self._head
                self._head_size, self._tail_size = self._tail_size, 0
                lost, self._lost = self._lost, 0
            chunks = list[tuple[float, str, bytes]]()
            size = 0
            while self._head and (size < MAX_BATCH):
                chunks.append(self._head.popleft())
                size += len(chunks[-1][2])
            self._head_size -= size
        events = self._after_gap(lost) if lost else []
        for at, stream, chunk in chunks:
            lines = self._lines.setdefault(stream, OutputLines())
            self._add(events, at, stream, lines.feed(chunk) if chunk else lines.quiet())
        if self.closed and not self.size:
            for stream, lines in self._lines.items():
                self._add(events, time.time(), stream, lines.end())
        return [self._numbered(event) for event in events]

    def _may_take_tail(self) -> bool:
        now = time.monotonic()
        if self._lost and not self.closed and now < self._gap_at + GAP_INTERVAL:
            return False
        if self._lost:
            self._gap_at = now
        return True

    def _after_gap(self, lost: int) -> list[dict[str, Any]]:
        events = list[dict[str, Any]]()
        for stream, lines in self._lines.items():
            self._add(events, time.time(), stream, lines.end())
        self._add(
            events,
            time.time(),
            NOTE,
            f"{lost} bytes of output are missing here: they were written faster than sent".encode(),
        )
        return events

    def _add(self, events: list[dict[str, Any]], at: float, stream: str, text: bytes) -> None:
        while text:
            cut = len(text) if len(text) <= MAX_TEXT else _cut(text)
            part, text = text[:cut], text[cut:]
            partial = stream != NOTE and not part.endswith(b"\n")
            shown = part.removesuffix(b"\n").decode("utf-8", "replace")
            when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
            events.append({"stream": stream, "text": shown, "time": when, **({"partial": True} if partial else {})})

    def _numbered(self, data: dict[str, Any]) -> Event:
        self._seq += 1
        return {"type": "log", "data": {**data, "source": self._source, "seq": self._seq}}


def _cut(text: bytes) -> int:
    """Return the length of the lines, or of the beginning of a long line, for one event."""
    return text.rfind(b"\n", 0, MAX_TEXT) + 1 or whole_characters(text[:MAX_TEXT])


def interval_for(url: str) -> float:
    """Return the seconds between two requests: a daemon limits those from other hosts."""
    host = urlsplit(url).hostname or ""
    return INTERVAL if host in ("localhost", "::1") or host.startswith("127.") else REMOTE_INTERVAL


class LogSender(threading.Thread):
    """Send what a queue has for one job, until the queue is closed and empty.

    `connect` makes the transport. `say` gets a message if the daemon does not accept the log. The job may be registered
    later.
    """

    def __init__(
        self,
        queue: LogQueue,
        job_id: str,
        connect: Callable[[], EventTransport],
        say: Callable[[str], None] = lambda _: None,
        interval: float = INTERVAL,
    ) -> None:
        super().__init__(name=f"progressd log: {job_id}", daemon=True)
        self._queue = queue
        self._job_id = job_id
        self._connect = connect
        self._say = say
        self._interval = interval
        self._events: Sequence[Event] = ()  # taken, and not acknowledged
        self._over = threading.Event()
        self._hurry = threading.Event()  # retry at once, because the program has ended
        self.unsent = False

    def run(self) -> None:
        """Send until the end."""
        failures, interval = 0, self._interval
        transport: EventTransport | None = None
        try:
            while not self._over.is_set():
                if not self._events:
                    self._events = [{**event, "job_id": self._job_id} for event in self._queue.take()]
                if not self._events:
                    if self._queue.closed and not self._queue.size:
                        break
                    self._queue.wait(GAP_INTERVAL)
                    if self._queue.size:  # after a gap
                        self._pause(INTERVAL)
                    continue
                try:
                    transport = transport or self._connect()
                    rejected = self._send(transport)
                except ClientError as error:
                    if isinstance(error, APIError) and not error.temporary:
                        self._say(f"the log of the job is not kept: {error}")
                        break
                    limited = isinstance(error, APIError) and error.status == TOO_MANY
                    interval = SLOW_INTERVAL if limited else interval
                    failures += 1
                    self._pause(SLOW_INTERVAL if limited else backoff(failures, MAX_DELAY))
                else:
                    if rejected:
                        self._say(f"the log of the job is not kept: {rejected}")
                        break
                    failures = failures + 1 if self._events else 0
                    if self._events or not self._hurry.is_set():
                        self._pause(backoff(failures, MAX_DELAY) if self._events else interval)
        finally:
            self.unsent = bool(self._events or self._queue.size)
            self._over.set()
            if transport is not None:
                transport.close()

    def _pause(self, seconds: float) -> None:
        if self._hurry.is_set():
            self._over.wait(min(seconds, HURRIED_DELAY))
        else:
            self._hurry.wait(seconds)

    def _send(self, transport: EventTransport) -> str:
        """Send the events, and forget the accepted ones. Return an error that is final. Raises ClientError."""
        answers = transport.exchange(self._events)
        for number, answer in enumerate(answers):
            if not answer.ok:
                self._events = self._events[number:]
                return "" if answer.temporary or answer.status == NOT_FOUND else answer.error
        self._events = ()
        return ""

    def finish(self, seconds: float) -> bool:
        """Send the rest, for at most `seconds`. Return whether everything was sent. Blocks."""
        self._queue.close()
        self._hurry.set()
        self.join(seconds)
        self._over.set()
        return not (self.is_alive() or self.unsent)
