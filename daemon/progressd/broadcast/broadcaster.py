"""The broadcaster: topics, the fan-out of every message to the watchers of its topics, and readers in this process.

Messages wait in their topics until the next pass of the event loop. Then one task delivers those of all topics. A topic
delivers at most MAX_TAKE messages in a pass. Further ones wait in its memory channel. Publishing awaits the channel, so
a burst slows only the publisher. The delivery never awaits a watcher, so a slow watcher delays no other watcher.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Final, TypeAlias

import trio

from progressd.broadcast.envelope import MAX_TAKE, Channel, DeliveryCounters, Envelope, FrameBatch, NoticeEnvelope
from progressd.broadcast.filters import Delivery, ProgressThrottle, batch_of
from progressd.broadcast.multiplex import Session, SessionHub
from progressd.broadcast.outbox import FLUSH_BYTES, Backlog, FanOut, Outbox
from progressd.broadcast.subscription import PARTS_PER_PASS, EmptyHistory, History, Replay, Subscription
from progressd.core.close_codes import SLOW_CONSUMER, CloseCode
from progressd.core.errors import SlowConsumer
from progressd.core.messages import ALL_JOBS, Notice, Progress, TopicMessage, ended_topic, job_topic, topics_of
from progressd.system.condition import Condition
from progressd.system.event_loop_limiter import EventLoopLimiter

FANOUT_THRESHOLD: Final = 100  # from this number of watchers on, the passes of a topic are FANOUT_INTERVAL apart
FANOUT_INTERVAL: Final = 0.008  # seconds, half the duration of a frame on a screen
TICKS: Final = 0.1  # of an interval: with an interval, progress of all jobs is sent together this often
MIN_TICK: Final = 0.001  # seconds; in a shorter tick, there is nothing to share
MAX_TICK: Final = 0.1  # seconds

Spawn: TypeAlias = Callable[[Callable[[], Awaitable[None]]], object]


class Audience:
    """Watchers that receive the same messages of a topic, encoded and joined once."""

    __slots__ = ("_catching_up", "_fan_out", "name", "subscriptions")

    def __init__(self, name: str) -> None:
        self.name = name
        self.subscriptions: dict[Subscription, None] = {}  # oldest first
        self._catching_up: dict[Subscription, None] = {}  # subscriptions that have not joined the fan-out yet
        self._fan_out = FanOut()

    def join(self, subscription: Subscription) -> None:
        """Deliver all later messages to a subscription."""
        self.subscriptions[subscription] = self._catching_up[subscription] = None

    def leave(self, subscription: Subscription) -> None:
        """Deliver no more messages to a subscription."""
        self.subscriptions.pop(subscription, None)
        self._catching_up.pop(subscription, None)
        self._fan_out.remove(subscription.outbox)

    def _deliver(self, batch: FrameBatch[Envelope]) -> None:
        self._fan_out.put(batch)
        if self._catching_up:
            for subscription in tuple(self._catching_up):
                if subscription.deliver(batch) and self._all_newer(subscription.top):
                    del self._catching_up[subscription]
                    subscription.outbox.follow(self._fan_out)
        if self.name != ALL_JOBS:
            for item in batch.items:
                if type(item.message) is not Progress and ended_topic(item.message) == self.name:
                    for subscription in tuple(self.subscriptions):
                        subscription.finish()

    def _all_newer(self, offset: int) -> bool:
        """Return whether all further messages are newer than an offset, once one of them is."""
        return True


class IntervalAudience(Audience):
    """The watchers of a topic that want at most one progress per job in an interval.

    For all jobs, progress is held until the next tick, so that the progress of many jobs shares a send.
    """

    __slots__ = ("_alive", "_throttle", "_until_due")

    def __init__(self, name: str, interval: float) -> None:
        super().__init__(name)
        tick = min(interval * TICKS, MAX_TICK)
        self._throttle = ProgressThrottle(interval, tick if name == ALL_JOBS and tick >= MIN_TICK else 0.0)
        self._alive = trio.CancelScope()
        self._until_due = trio.CancelScope()

    def stop(self) -> None:
        """Stop after the last watcher has left."""
        self._alive.cancel()

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Deliver the messages that may be sent now, and hold back the rest."""
        self._pass_on(self._throttle.take(batch.items, trio.current_time()))
        self._until_due.deadline = min(self._until_due.deadline, self._throttle.next_due)

    async def release(self) -> None:
        """Deliver held messages when they are due."""
        with self._alive:
            while True:
                with trio.CancelScope(deadline=self._throttle.next_due) as self._until_due:
                    await trio.sleep_forever()
                self._pass_on(self._throttle.release(trio.current_time(), MAX_TAKE))

    def _pass_on(self, out: Sequence[Delivery]) -> None:
        if out:
            self._deliver(batch_of(out))

    def _all_newer(self, offset: int) -> bool:
        return self._throttle.resume_offset(offset) == offset


class Topic(Audience):
    """The watchers of one topic, and the messages that wait for them.

    Attributes:
        waiting: the messages of the next pass, at most MAX_TAKE.
        next_pass: the earliest time of the next pass.
    """

    # An idle topic is few objects.
    __slots__ = ("_by_interval", "_channel", "_traffic", "next_pass", "waiting")

    def __init__(self, name: str, traffic: DeliveryCounters) -> None:
        super().__init__(name)
        self.waiting: list[Envelope] = []
        self.next_pass = -math.inf
        self._traffic = traffic
        self._by_interval: dict[float, IntervalAudience] = {}
        self._channel: Channel[Envelope] | None = None  # further messages; exists while any wait

    @property
    def watchers(self) -> int:
        """Return the number of watchers, with and without an interval."""
        return len(self.subscriptions) + sum([len(one.subscriptions) for one in self._by_interval.values()])

    def audience(self, interval: float, spawn: Spawn) -> Audience:
        """Return the watchers with this interval; 0 for none."""
        if not interval:
            return self
        audience = self._by_interval.get(interval)
        if audience is None:
            audience = self._by_interval[interval] = IntervalAudience(self.name, interval)
            self._fan_out.add(audience)
            spawn(audience.release)
        return audience

    def drop_empty_audiences(self) -> None:
        """Release the audiences without watchers."""
        for interval, audience in tuple(self._by_interval.items()):
            if not audience.subscriptions:
                del self._by_interval[interval]
                self._fan_out.remove(audience)
                audience.stop()

    async def put(self, envelope: Envelope) -> None:
        """Queue a message for a later pass. Waits if the channel is full; otherwise this is no checkpoint."""
        if self._channel is None:
            self._channel = Channel()
        await self._channel.put(envelope)

    def deliver(self) -> None:
        """Deliver the waiting messages to every watcher, encoded and joined once."""
        batch, watchers = FrameBatch(self._take()), self.watchers
        if len(self.subscriptions) >= FANOUT_THRESHOLD:
            # A send of five messages costs as much as a send of one. So consecutive passes to many watchers
            # have a minimum interval: with 300 messages a second, two or three share a send.
            self.next_pass = trio.current_time() + FANOUT_INTERVAL
        self._traffic.messages += watchers * len(batch.items)
        self._traffic.bytes += watchers * len(batch.frames)
        self._deliver(batch)

    def _take(self) -> list[Envelope]:
        """Return the waiting messages. Those in the channel wait for the next pass."""
        taken, self.waiting = self.waiting, []
        if self._channel is not None:
            self.waiting = self._channel.take_nowait(MAX_TAKE)
            if len(self.waiting) < MAX_TAKE:  # the channel is empty, and no task waits in `put`
                self._channel = None
        return taken

    def stop(self) -> None:
        """Drop the waiting messages after the last watcher has left."""
        self.waiting.clear()
        if self._channel is not None:
            self._channel.close()


class ReaderOutbox:
    """An outbox that keeps messages until they are read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._backlog: Backlog[Envelope | NoticeEnvelope] = Backlog()
        self._changed = Condition()
        self._code: CloseCode | None = None

    def put(self, batch: FrameBatch[Envelope]) -> None:
        """Keep the messages. If too many bytes already wait, drop all messages and end as a slow consumer."""
        if self._code is not None:
            return
        if self._backlog.size > self._limit:
            self._backlog.clear()
            self.end(SLOW_CONSUMER)
        else:
            for item in batch.items:
                self._backlog.put(item)
        self._changed.notify()

    def say(self, notice: Notice) -> None:
        """Keep a notice for this reader."""
        if self._code is None:
            self._backlog.put(NoticeEnvelope(notice))
            self._changed.notify()

    def end(self, code: CloseCode) -> None:
        """See Outbox."""
        self._code = self._code or code
        self._changed.notify()

    def follow(self, fan_out: FanOut) -> None:
        """See Outbox."""
        fan_out.add(self)

    def resume_offset(self, offset: int) -> int:
        """See Outbox."""
        return offset

    def take(self, max_bytes: int) -> list[Envelope | NoticeEnvelope]:
        """Remove the oldest messages that fit into `max_bytes`, at least one if any wait, and return them."""
        return self._backlog.take(max_bytes) if self._backlog else []

    async def wait(self) -> bool:
        """Wait for a message; return False after the end. Raises SlowConsumer if messages were dropped."""
        await self._changed.wait_for(lambda: self._backlog or self._code is not None)
        if not self._backlog and self._code is SLOW_CONSUMER:
            raise SlowConsumer("the reader was too slow and missed messages")
        return bool(self._backlog)


class Reader:
    """An iterator (`async for message in reader`) made by `Broadcaster.subscribe`. The iteration ends with the job.

    The reader is subscribed from its creation until it ends, is closed (`with` closes it), or is garbage-collected.
    """

    def __init__(self, outbox: ReaderOutbox, subscription: Subscription) -> None:
        self._outbox = outbox
        self._subscription = subscription
        self._replaying = True

    def __aiter__(self) -> "Reader":
        return self

    async def __anext__(self) -> TopicMessage:
        """Return the next message. Raises SlowConsumer if the reader was too slow and messages were dropped."""
        while items := await self.read(1):
            [item] = items
            if isinstance(item, Envelope):
                return item.message
        raise StopAsyncIteration

    async def read(self, max_bytes: int = FLUSH_BYTES) -> list[Envelope | NoticeEnvelope]:
        """Wait for messages, and return as many as fit into `max_bytes`; return an empty list after the end.

        Raises SlowConsumer, and StoreFailed during the replay.
        """
        while not (items := self._outbox.take(max_bytes)):
            if self._replaying:
                batch = await self._subscription.next_replay()
                if batch is None:
                    self._replaying = False
                else:
                    self._subscription.outbox.put(batch)
            elif not await self._outbox.wait():
                self.close()
                break
        return items

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Receive no more messages."""
        self._subscription.leave()


class Broadcaster:
    """Publish messages to watchers in any Trio program. The daemon supplies a history to replay and a nursery."""

    def __init__(
        self,
        history: History | None = None,
        *,
        nursery: trio.Nursery | None = None,
        offset: int = 0,
        limit: int = 1024 * 1024,
    ) -> None:
        """`offset`: offset of the newest message so far. `limit`: bytes that may wait for one in-process reader."""
        self.offset = offset
        self._history = history or EmptyHistory()
        self._has_history = history is not None
        self._limit = limit
        self._spawn = nursery.start_soon if nursery else trio.lowlevel.spawn_system_task
        self._topics: dict[str, Topic] = {}
        self._due: list[Topic] = []  # topics with messages for this pass of the event loop
        self.traffic = DeliveryCounters()
        self._sessions = SessionHub(self.traffic)
        self._merging = False
        self._replays = EventLoopLimiter(PARTS_PER_PASS)

    def use_limit(self, limit: int) -> None:
        """Set the limit of new watchers."""
        self._limit = limit

    @property
    def watched(self) -> int:
        """Return the number of topics with watchers."""
        return len(self._topics.keys() | self._sessions.members.keys())

    async def broadcast(self, message: TopicMessage) -> None:
        """Send a message to the watchers of its job and of all jobs."""
        await self.publish(Envelope(self.offset + 1, message))
        await trio.lowlevel.checkpoint()

    async def publish(self, envelope: Envelope) -> None:
        """Queue a message for its topics. Waits while a channel is full. Offsets must be ascending."""
        self.offset = envelope.offset
        names = topics_of(envelope.message)
        if not self._sessions.members.keys().isdisjoint(names):
            await self._sessions.put(envelope, names)  # first, so a session that reads `offset` can wait for it
        for name in names:
            topic = self._topics.get(name)
            if topic is None:
                continue
            if not topic.waiting:
                self._schedule(topic)
            if len(topic.waiting) < MAX_TAKE:
                topic.waiting.append(envelope)
            else:
                await topic.put(envelope)

    def subscribe(self, job_id: str | None = None, after: int | None = None, *, topic: str | None = None) -> Reader:
        """Watch one job, a topic, or all jobs, from now or after an offset: `async for message in …`."""
        outbox = ReaderOutbox(self._limit)
        return self.read(topic or (ALL_JOBS if job_id is None else job_topic(job_id)), outbox, outbox, after)

    def read(
        self,
        topic: str,
        outbox: ReaderOutbox,
        filtered: Outbox,
        after: int | None = None,
        on_live: Callable[[int], None] | None = None,
        interval: float = 0.0,
    ) -> Reader:
        """Watch a topic through an existing outbox; `filtered`: the same outbox behind its filters."""
        return Reader(outbox, self.join(topic, filtered, after, on_live, interval))

    def join(
        self,
        name: str,
        outbox: Outbox,
        after: int | None = None,
        on_live: Callable[[int], None] | None = None,
        interval: float = 0.0,
    ) -> Subscription:
        """Register an outbox for a topic. From now on no message is missed. See Subscription for the next steps.

        `interval`: seconds in which at most one live progress of a job is delivered, the newest.

        `on_live` is called after the replay and before newer messages, with the offset from which the watcher can
        resume. It is not called for a topic that has ended.
        """
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(name, self.traffic)
        audience = topic.audience(interval, self._spawn)
        subscription = Subscription(
            name,
            outbox,
            lambda top: Replay(self._history, name, after, top, self._replays),
            lambda: self.offset,
            self._limit,
            partial(self._leave, topic, audience),
            on_live,
            replays_all=self._has_history and name == ALL_JOBS,
        )
        audience.join(subscription)
        return subscription

    def open_session(self, outbox: Outbox) -> Session:
        """Return a session for a watcher that later subscribes to many topics."""
        if not self._merging:
            self._merging = True
            self._spawn(self._sessions.fan_out)
        return Session(outbox, self._sessions, self._history, lambda: self.offset, self._limit, self._replays)

    def _schedule(self, topic: Topic) -> None:
        """Deliver the waiting messages of a topic in the next pass of the event loop, or at the time of its next."""
        if topic.next_pass > trio.current_time():
            self._spawn(partial(self._pause, topic))
            return
        if not self._due:
            self._spawn(self._deliver)
        self._due.append(topic)

    async def _pause(self, topic: Topic) -> None:
        try:
            await trio.sleep_until(topic.next_pass)
        finally:  # cancelled at the end of the nursery: deliver at once
            topic.next_pass = -math.inf
            self._schedule(topic)

    async def _deliver(self) -> None:
        """Deliver the messages of all topics that are due: a task of one pass, which is no checkpoint."""
        due, self._due = self._due, []
        for topic in due:
            if topic.waiting:  # not if the last watcher has just left
                topic.deliver()
                if topic.waiting:
                    self._schedule(topic)

    def _leave(self, topic: Topic, audience: Audience, subscription: Subscription) -> None:
        if subscription in audience.subscriptions:
            audience.leave(subscription)
            topic.drop_empty_audiences()
            if not topic.watchers:
                del self._topics[topic.name]
                topic.stop()
