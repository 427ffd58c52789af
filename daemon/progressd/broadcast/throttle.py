"""Filters for one watcher: by labels, by message type, and by how often progress may come.

The last two never hold back a status change, nor the last progress before the end of a job.
"""

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from heapq import heappop, heappush
from typing import Final, NamedTuple

import trio
from msgspec import UNSET
from msgspec.structs import replace

from progressd.broadcast.envelope import Envelope, FrameBatch, ReplayedEnvelope
from progressd.broadcast.fanout import FanOut
from progressd.broadcast.outbox import Outbox
from progressd.core.close_codes import CloseCode
from progressd.core.cursor import Cursor
from progressd.core.job import has_labels
from progressd.core.messages import (
    BatchCompleted,
    BatchMessage,
    Completed,
    Error,
    Progress,
    StatusChange,
    ends_job,
    type_of,
)

ALWAYS: Final = (StatusChange, Completed, Error, BatchCompleted)


class TypeFilteredOutbox:
    """An outbox that receives only some messages."""

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


def of_jobs_with(labels: Mapping[str, str], item: Envelope) -> bool:
    """Return whether the message is about a job with all of these labels, or about a batch.

    A watcher may only watch a batch if it may see all of its jobs.
    """
    return has_labels(item.labels, labels) or isinstance(item.message, BatchMessage)


def filtered_outbox(
    outbox: Outbox,
    types: Collection[str] | None,
    interval: float,
    labels: Mapping[str, str],
    start: Callable[[Callable[[], Awaitable[None]]], None],
) -> Outbox:
    """Return the outbox behind its filters.

    `labels`: those that a job must have. `start` runs a task for as long as the watcher is connected.
    """
    if interval:
        outbox = ThrottledOutbox(outbox, interval, start)
    if types is not None:
        outbox = TypeFilteredOutbox(outbox, partial(of_types, types))
    if labels:
        outbox = TypeFilteredOutbox(outbox, partial(of_jobs_with, labels))
    return outbox


class Released(NamedTuple):
    """A message that goes out, and the offset from which a client resumes after it."""

    item: Envelope
    upto: int


class ProgressThrottle:
    """Decides when the progress of a job may go out; `now` is in seconds of any clock. Does no I/O.

    A message that is replayed on a socket of many topics goes out at once, and replaces the one that is kept.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._allowed: dict[str, float] = {}  # by job, when its next progress may go out
        self._kept: OrderedDict[str, Envelope] = OrderedDict()  # the newest progress by job, in the order of offsets
        self._due: list[tuple[float, str]] = []  # a heap: when each may go out; some have gone out already
        self._newest = 0  # the offset of the newest message taken that has a cursor

    def __bool__(self) -> bool:
        return bool(self._kept)

    @property
    def next_due(self) -> float:
        """Return when `release` has a message again."""
        while self._due:
            due, job_id = self._due[0]
            if job_id in self._kept and self._allowed[job_id] == due:
                return due
            heappop(self._due)
        return math.inf

    def upto(self, offset: int) -> int:
        """Return where a client resumes that has received all messages up to `offset`, except those held back."""
        return min(offset, next(iter(self._kept.values())).offset - 1) if self._kept else offset

    def take(self, items: Sequence[Envelope], now: float) -> list[Released]:
        """Of new messages, in order: what goes out now."""
        out: list[Released] = []
        for item in items:
            message = item.message
            if isinstance(item, ReplayedEnvelope):
                if isinstance(message, Progress):
                    self._kept.pop(message.job_id, None)  # it is no newer
                    self._allowed[message.job_id] = now + self._interval
                out.append(Released(item, item.offset))
                continue
            if isinstance(message, Progress):
                self._note(item)
                self._keep(message.job_id, item)
                if now >= self._allowed.get(message.job_id, -math.inf):
                    out.append(self._let_out(message.job_id, now))
                continue
            if isinstance(message, StatusChange | Completed | Error):
                if message.job_id in self._kept:
                    out.append(self._let_out(message.job_id, now))
                if ends_job(message):
                    self._allowed.pop(message.job_id, None)
            self._note(item)
            out.append(Released(item, self.upto(item.offset)))
        return out

    def release(self, now: float) -> list[Released]:
        """Return the messages held back until now, in order."""
        due = set[tuple[int, str]]()
        while self.next_due <= now and self._due:
            job_id = heappop(self._due)[1]
            due.add((self._kept[job_id].offset, job_id))
        return [self._let_out(job_id, now) for _, job_id in sorted(due)]

    def _note(self, item: Envelope) -> None:
        """Note the newest offset, but not without a cursor: an undecided change may still show before it."""
        if item.message.cursor is not UNSET:
            self._newest = item.offset

    def _keep(self, job_id: str, item: Envelope) -> None:
        if job_id not in self._kept and job_id in self._allowed:
            heappush(self._due, (self._allowed[job_id], job_id))
        self._kept[job_id] = item
        self._kept.move_to_end(job_id)

    def _let_out(self, job_id: str, now: float) -> Released:
        self._allowed[job_id] = now + self._interval
        item = self._kept.pop(job_id)
        return Released(item, self.upto(self._newest))


class ThrottledOutbox:
    """An outbox that gets at most one progress per job in `interval` seconds, the newest; other messages at once.

    A cursor says that everything before it was received. So a message that overtakes held progress goes out with the
    cursor just before the oldest held one. The held progress goes out later with the cursor of what overtook it.
    """

    def __init__(self, outbox: Outbox, interval: float, start: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._outbox = outbox
        self._throttle = ProgressThrottle(interval)
        self._until = math.inf  # when `_release` wakes next
        self._earlier = trio.Event()
        start(self._release)

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Put the messages that may go out now."""
        self._pass_on(self._throttle.take(batch.items, trio.current_time()))
        if self._throttle.next_due < self._until:
            self._earlier.set()

    def end(self, code: CloseCode) -> None:
        """Put everything held back, then end."""
        self._pass_on(self._throttle.release(math.inf))
        self._outbox.end(code)

    def resume_offset(self, offset: int) -> int:
        """See Outbox."""
        return self._throttle.upto(offset)

    def follow(self, fan_out: FanOut) -> None:
        """See Outbox. The throttle follows instead of the outbox."""
        fan_out.add(self)

    async def _release(self) -> None:
        while True:
            self._earlier, self._until = trio.Event(), self._throttle.next_due
            with trio.move_on_at(self._until):
                await self._earlier.wait()
            self._pass_on(self._throttle.release(trio.current_time()))

    def _pass_on(self, out: list[Released]) -> None:
        if out:
            self._outbox.put(FrameBatch([_placed(item, upto) for item, upto in out]))


def _placed(item: Envelope, upto: int) -> Envelope:
    """Return the message with the cursor of an offset."""
    cursor = item.message.cursor
    if upto == item.offset or cursor is UNSET:
        return item
    return Envelope(upto, replace(item.message, cursor=str(Cursor.parse(cursor)._replace(offset=upto))), item.labels)
