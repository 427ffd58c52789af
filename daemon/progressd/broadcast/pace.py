"""Less for a watcher who asks for less: only some types of messages, or progress only so often.

Neither ever keeps back a change of a job's status, nor the last progress before its end.
"""

import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

import trio
from msgspec.structs import replace

from progressd.broadcast.crowd import Crowd
from progressd.broadcast.outbox import Outbox
from progressd.broadcast.published import Batch, Published
from progressd.core.closing import Closing
from progressd.core.messages import (
    BatchCompleted,
    Completed,
    Error,
    Progress,
    StatusChange,
    TopicMessage,
    ends_job,
    type_of,
)

ALWAYS: Final = (StatusChange, Completed, Error, BatchCompleted)


class Selected:
    """An outbox that gets only some types of messages."""

    def __init__(self, outbox: Outbox, types: Collection[str]) -> None:
        self._outbox = outbox
        self._types = types
        self.end = outbox.end

    def put(self, batch: Batch[Published]) -> None:
        """Pass on what was selected."""
        wanted = [item for item in batch.items if self._wants(item.message)]
        if wanted:
            self._outbox.put(Batch(wanted))

    def follow(self, crowd: Crowd) -> None:
        """Get what is put into the crowd, in order to choose."""
        crowd.add(self)

    def _wants(self, message: TopicMessage) -> bool:
        return isinstance(message, ALWAYS) or type_of(message) in self._types


def asked_for(
    outbox: Outbox,
    types: Collection[str] | None,
    interval: float,
    start: Callable[[Callable[[], Awaitable[None]]], None],
) -> Outbox:
    """The outbox, behind what its watcher wants less of. `start` runs a task that lives as long as the watcher."""
    if interval:
        outbox = Paced(outbox, interval, start)
    if types is not None:
        outbox = Selected(outbox, types)
    return outbox


class Pace:
    """Decides when the progress of which job may go out; `now` is in seconds of any clock. Does no I/O."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._allowed: dict[str, float] = {}  # by job, when its next progress may go out
        self._kept: dict[str, Published] = {}  # by job, the newest progress that waits for it

    def __bool__(self) -> bool:
        return bool(self._kept)

    @property
    def next_due(self) -> float:
        """When `release` has something again."""
        return min((self._allowed[job_id] for job_id in self._kept), default=math.inf)

    def take(self, items: Sequence[Published], now: float) -> list[Published]:
        """Of new messages, in order: what goes out now."""
        out: list[Published] = []
        for item in items:
            message = item.message
            if isinstance(message, Progress):
                self._kept[message.job_id] = item
                if now >= self._allowed.get(message.job_id, -math.inf):
                    out.append(self._let_out(message.job_id, now))
                continue
            if isinstance(message, StatusChange | Completed | Error):
                if message.job_id in self._kept:
                    out.append(self._let_out(message.job_id, now))
                if ends_job(message):
                    self._allowed.pop(message.job_id, None)
            out.append(item)
        return out

    def release(self, now: float) -> list[Published]:
        """What was kept back until now, in order."""
        due = [job_id for job_id in self._kept if self._allowed[job_id] <= now]
        return sorted((self._let_out(job_id, now) for job_id in due), key=lambda item: item.offset)

    def _let_out(self, job_id: str, now: float) -> Published:
        self._allowed[job_id] = now + self._interval
        return self._kept.pop(job_id)


class Paced:
    """An outbox that gets at most one progress per job in `interval` seconds, the newest; the rest at once.

    A progress that was overtaken while it was kept back goes out with the cursor of what overtook it: who resumes from
    there has had both.
    """

    def __init__(self, outbox: Outbox, interval: float, start: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._outbox = outbox
        self._pace = Pace(interval)
        self._newest: Published | None = None
        self._kept = trio.Event()
        start(self._release)

    def put(self, batch: Batch[Published]) -> None:
        """Pass on what may go out now."""
        self._pass_on(self._pace.take(batch.items, trio.current_time()))
        if self._pace:
            self._kept.set()

    def end(self, closing: Closing) -> None:
        """Nothing comes after what has been put."""
        self._pass_on(self._pace.release(math.inf))
        self._outbox.end(closing)

    def follow(self, crowd: Crowd) -> None:
        """Get what is put into the crowd, in order to hold some of it back."""
        crowd.add(self)

    async def _release(self) -> None:
        while True:
            await self._kept.wait()
            self._kept = trio.Event()
            while self._pace:
                await trio.sleep_until(self._pace.next_due)
                self._pass_on(self._pace.release(trio.current_time()))

    def _pass_on(self, items: list[Published]) -> None:
        out = []
        for item in items:
            newest = self._newest
            if newest is not None and item.offset < newest.offset:
                item = Published(newest.offset, replace(item.message, cursor=newest.message.cursor))
            self._newest = item
            out.append(item)
        if out:
            self._outbox.put(Batch(out))
