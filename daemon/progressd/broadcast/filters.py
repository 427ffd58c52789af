"""Filters: by what a watcher may see, by message type, and by the interval between progress messages.

The last two never hold back a status change, nor the last progress before the end of a job.
"""

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from heapq import heappop, heappush
from typing import Final, NamedTuple

import trio
from msgspec import UNSET
from msgspec.structs import replace

from progressd.broadcast.envelope import Envelope, FrameBatch, ReplayedEnvelope
from progressd.broadcast.outbox import FanOut, Outbox
from progressd.core.close_codes import CloseCode
from progressd.core.messages import (
    BatchCompleted,
    Completed,
    Cursor,
    Error,
    Progress,
    StatusChange,
    ends_job,
    type_of,
)

ALWAYS: Final = (StatusChange, Completed, Error, BatchCompleted)
ROUNDING: Final = 1e-6  # of a tick: a time this much after a tick counts as that tick


class FilteredOutbox:
    """An outbox that receives only the messages for which `wanted` returns true."""

    def __init__(self, outbox: Outbox, wanted: Callable[[Envelope], bool]) -> None:
        self._outbox = outbox
        self._wanted = wanted

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Put the wanted messages."""
        wanted = list(filter(self._wanted, batch.items))
        if wanted:
            self._outbox.put(batch if len(wanted) == len(batch.items) else FrameBatch(wanted))

    def end(self, code: CloseCode) -> None:
        """See Outbox."""
        self._outbox.end(code)

    def resume_offset(self, offset: int) -> int:
        """See Outbox."""
        return self._outbox.resume_offset(offset)

    def follow(self, fan_out: FanOut) -> None:
        """See Outbox. The filter follows instead of the outbox."""
        fan_out.add(self)


def of_types(types: Collection[str], item: Envelope) -> bool:
    """Return whether a watcher of these types receives the message."""
    return isinstance(item.message, ALWAYS) or type_of(item.message) in types


def filtered_outbox(
    outbox: Outbox,
    types: Collection[str] | None,
    may_see: Callable[[Envelope], bool] | None,
) -> Outbox:
    """Return the outbox behind its filters.

    `may_see`: returns whether the watcher may see a message; None if it may see all.
    """
    if types is not None:
        outbox = FilteredOutbox(outbox, partial(of_types, types))
    if may_see is not None:
        outbox = FilteredOutbox(outbox, may_see)
    return outbox


class Delivery(NamedTuple):
    """A message to send, and the offset from which a client resumes after it."""

    item: Envelope
    resume_offset: int


class ProgressThrottle:
    """Decide when the progress of a job may be sent. `now` is in seconds of any clock. Does no I/O.

    A message that is replayed on a socket of many topics is sent at once, and replaces the held one.
    """

    def __init__(self, interval: float, tick: float = 0.0) -> None:
        """`tick`: progress is held for up to this time, so that it is sent together."""
        self._interval = interval
        self._tick = tick
        self._allowed: dict[str, float] = {}  # time by job from which its next progress may be sent
        self._kept: OrderedDict[str, Envelope] = OrderedDict()  # newest held progress by job, in the order of offsets
        self._due: list[tuple[float, str]] = []  # heap of times and jobs; some messages have already been sent
        self._newest = 0  # offset of the newest message that was taken and has a cursor

    def __bool__(self) -> bool:
        return bool(self._kept)

    @property
    def next_due(self) -> float:
        """Return the time at which `release` returns the next message; infinite if no message is held."""
        while self._due:
            due, job_id = self._due[0]
            if job_id in self._kept and self._allowed[job_id] == due:
                return due
            heappop(self._due)
        return math.inf

    def resume_offset(self, offset: int) -> int:
        """Return the offset from which a client resumes after messages up to `offset`; smaller if any are held back."""
        return min(offset, next(iter(self._kept.values())).offset - 1) if self._kept else offset

    def take(self, items: Sequence[Envelope], now: float) -> list[Delivery]:
        """Accept new messages, in order. Return the messages to send now."""
        out: list[Delivery] = []
        for item in items:
            message = item.message
            if isinstance(item, ReplayedEnvelope):
                if isinstance(message, Progress):
                    self._kept.pop(message.job_id, None)  # the held progress is no newer
                    self._allowed[message.job_id] = now + self._interval
                out.append(Delivery(item, item.offset))
                continue
            if isinstance(message, Progress):
                self._note(item)
                if self._tick and message.job_id not in self._kept:
                    self._allowed[message.job_id] = self._next_tick(message.job_id, now)
                self._keep(message.job_id, item)
                if now >= self._allowed.get(message.job_id, -math.inf):
                    out.append(self._deliver(message.job_id, now))
                continue
            if isinstance(message, StatusChange | Completed | Error):
                if message.job_id in self._kept:
                    out.append(self._deliver(message.job_id, now))
                if ends_job(message):
                    self._allowed.pop(message.job_id, None)
            self._note(item)
            out.append(Delivery(item, self.resume_offset(item.offset)))
        return out

    def release(self, now: float, limit: float = math.inf) -> list[Delivery]:
        """Return the held messages that are due, in order, but at most `limit`."""
        due = dict[tuple[int, str], float]()
        while len(due) < limit and self.next_due <= now and self._due:
            at, job_id = heappop(self._due)
            due[self._kept[job_id].offset, job_id] = at if self._tick else now
        return [self._deliver(job_id, due[offset, job_id]) for offset, job_id in sorted(due)]

    def _note(self, item: Envelope) -> None:
        """Record the newest offset, unless the message has no cursor: an undecided change may still precede it."""
        if item.message.cursor is not UNSET:
            self._newest = item.offset

    def _next_tick(self, job_id: str, now: float) -> float:
        """Return the first tick after `now` at which a progress of the job may be sent."""
        allowed = math.ceil(self._allowed.get(job_id, now) / self._tick - ROUNDING)
        return max(allowed, math.floor(now / self._tick) + 1) * self._tick

    def _keep(self, job_id: str, item: Envelope) -> None:
        if job_id not in self._kept and job_id in self._allowed:
            heappush(self._due, (self._allowed[job_id], job_id))
        self._kept[job_id] = item
        self._kept.move_to_end(job_id)

    def _deliver(self, job_id: str, now: float) -> Delivery:
        self._allowed[job_id] = now + self._interval
        item = self._kept.pop(job_id)
        return Delivery(item, self.resume_offset(self._newest))


class ThrottledOutbox:
    """An outbox that receives at most one progress per job in `interval` seconds, the newest; other messages at once.

    A cursor states that all messages before it were received. So a message that overtakes held progress is sent with
    the cursor just before the oldest held message. The held progress is sent later, with the cursor of the message that
    overtook it.
    """

    def __init__(self, outbox: Outbox, interval: float, start: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._outbox = outbox
        self._throttle = ProgressThrottle(interval)
        self._until_due = trio.CancelScope()
        start(self._release)

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Put the messages that may be sent now, and hold back the rest."""
        self._pass_on(self._throttle.take(batch.items, trio.current_time()))
        self._until_due.deadline = min(self._until_due.deadline, self._throttle.next_due)

    def end(self, code: CloseCode) -> None:
        """Put all messages held back, then end."""
        self._pass_on(self._throttle.release(math.inf))
        self._outbox.end(code)

    def resume_offset(self, offset: int) -> int:
        """See Outbox."""
        return self._throttle.resume_offset(offset)

    def follow(self, fan_out: FanOut) -> None:
        """See Outbox. The throttle follows instead of the outbox."""
        fan_out.add(self)

    async def _release(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._throttle.next_due) as self._until_due:
                await trio.sleep_forever()
            self._pass_on(self._throttle.release(trio.current_time()))

    def _pass_on(self, out: list[Delivery]) -> None:
        if out:
            self._outbox.put(batch_of(out))


def batch_of(out: Iterable[Delivery]) -> FrameBatch[Envelope]:
    """Return the messages, each with the cursor from which a client resumes after it."""
    return FrameBatch([_with_cursor(item, offset) for item, offset in out])


def _with_cursor(item: Envelope, offset: int) -> Envelope:
    """Return the message with the cursor of an offset."""
    cursor = item.message.cursor
    if offset == item.offset or cursor is UNSET:
        return item
    message = replace(item.message, cursor=str(Cursor.parse(cursor)._replace(offset=offset)))
    return Envelope(item.offset, message, item.labels)
