"""A session: one watcher of many topics, which receives every message once, in the order of the offsets.

If the topics delivered to a session, a message could overtake a message of a different topic. Then a cursor would not
say which messages the watcher has received. So the messages for all sessions pass through one separate channel, in
order.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from typing import Final

import trio

from progressd.broadcast.envelope import Channel, DeliveryCounters, Envelope, FrameBatch, ReplayedEnvelope
from progressd.broadcast.outbox import Backlog, Outbox
from progressd.broadcast.subscription import History, Replay
from progressd.core.close_codes import SLOW_CONSUMER
from progressd.core.messages import ALL_JOBS, BatchMessage, ended_topic, topics_of
from progressd.system.event_loop_limiter import EventLoopLimiter

MAX_ENDED: Final = 1000  # ended topics that a session remembers, so that their messages are not sent twice


class Session:
    """The subscriptions of one watcher, made by `Broadcaster.open_session`.

    One task calls `subscribe` and `unsubscribe`, and `leave` at the end.
    """

    def __init__(
        self,
        outbox: Outbox,
        sessions: "SessionHub",
        history: History,
        newest_offset: Callable[[], int],
        limit: int,
        replays: EventLoopLimiter,
    ) -> None:
        self.topics: dict[str, int] = {}  # offset by topic: all later messages have been or will be delivered
        # Two offsets by ended topic: all messages between them were delivered.
        self._ended: dict[str, tuple[int, int]] = {}
        self._outbox = outbox
        self._newest_offset = newest_offset
        self._sessions = sessions
        self._history = history
        self._limit = limit  # bytes that may be held back
        self._replays = replays
        self._held: Backlog[Envelope] = Backlog()
        self._holding = False
        self._seen_unfinished = 0  # all messages of the jobs that were unfinished at this offset have been delivered

    async def subscribe(
        self,
        topics: Sequence[str],
        after: int | None,
        drained: Callable[[], Awaitable[None]],
        answer: Callable[[int], None],
    ) -> None:
        """Replay some topics, and then deliver live messages. `after`: replay only messages newer than this offset.

        `drained` waits until the outbox is empty. `answer` is called with the offset from which the watcher can resume
        all topics: after all messages up to this offset, and before newer ones. Raises NotFound, StoreFailed.
        """
        top = self.newest_offset
        for topic in topics:
            self._sessions.join(self, topic, top)
        self._holding = True  # for all topics: no live message may overtake a replayed one
        try:
            for topic in topics:
                await self._replay(topic, after, top, drained)
            await self._sessions.caught_up()  # messages of other topics up to `top` may still be queued
            self._pass_on(self._take_held(top))
            answer(self._outbox.resume_offset(top))
        except BaseException:
            for topic in topics:
                self.unsubscribe(topic)
            raise
        finally:
            self._holding = False
            self._pass_on(self._held.take())

    @property
    def newest_offset(self) -> int:
        """Return the offset of the newest message."""
        return self._newest_offset()

    def unsubscribe(self, topic: str) -> None:
        """Receive no further messages of a topic."""
        self.topics.pop(topic, None)
        self._sessions.leave(self, topic)

    def end(self, topic: str, after: int, upto: int) -> None:
        """End a topic: all its messages between these offsets have been delivered, or are about to be.

        A deleted job may be registered again. Its topic then has newer messages, which have not been delivered.
        """
        self.unsubscribe(topic)
        self._ended[topic] = after, upto
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def leave(self) -> None:
        """Receive no further messages of any topic."""
        for topic in tuple(self.topics):
            self.unsubscribe(topic)

    def deliver(self, batch: FrameBatch[Envelope]) -> None:
        """Put live messages into the outbox, or hold them back during a replay."""
        if not self._holding:
            self._outbox.put(batch)
            return
        for item in batch.items:
            self._held.put(item)
        if self._held.size > self._limit:
            self._held.clear()
            self._outbox.end(SLOW_CONSUMER)

    async def _replay(self, topic: str, after: int | None, top: int, drained: Callable[[], Awaitable[None]]) -> None:
        replay = Replay(self._history, topic, after, top, self._replays)
        while (batch := await replay.next()) is not None:
            await drained()
            self._outbox.put(FrameBatch(self._replayed(topic, batch.items, replay.ends)))
        if replay.over or not self._sessions.has(self, topic):  # or the topic ended during the replay
            _, upto = self._ended.get(topic, (0, 0))
            self.end(topic, after or 0, replay.newest if replay.over else upto)
            return
        self.topics[topic] = after or 0
        if topic == ALL_JOBS:
            self._seen_unfinished = replay.snapshot_offset

    def _take_held(self, top: int) -> list[Envelope]:
        """Remove the held messages up to an offset and return them."""
        held = self._held.take()
        for item in held:
            if item.offset > top:
                self._held.put(item)
        return [item for item in held if item.offset <= top]

    def _pass_on(self, items: Sequence[Envelope]) -> None:
        if items:
            self._outbox.put(FrameBatch(items))

    def _replayed(self, topic: str, items: Sequence[Envelope], ends: Mapping[str, int]) -> list[Envelope]:
        """Return the messages that were not delivered through another topic. `ends`: the offset of each job's end."""
        # Without cursors: a client that resumed all topics from such a cursor would miss messages of the other topics.
        return [ReplayedEnvelope(item) for item in items if not self._has_come(item, topic, ends)]

    def _has_come(self, item: Envelope, topic: str, ends: Mapping[str, int]) -> bool:
        if isinstance(item.message, BatchMessage):  # a batch message has only one topic
            return False
        names = set(topics_of(item.message)) - {topic}
        if ends.get(item.message.job_id, math.inf) <= self._seen_unfinished:
            names.discard(ALL_JOBS)  # its snapshot contained only unfinished jobs
        for name in names:
            after, upto = (self.topics[name], math.inf) if name in self.topics else self._ended.get(name, (0, 0))
            if after < item.offset <= upto:
                return True
        return False


class SessionHub:
    """The topics of all sessions, with their shared channel and fan-out task."""

    def __init__(self, traffic: DeliveryCounters) -> None:
        self._traffic = traffic
        self.members: dict[str, dict[Session, int]] = {}  # sessions by topic, each with the offset at which it joined
        self._channel: Channel[tuple[Envelope, Sequence[str]] | trio.Event] = Channel()

    def join(self, session: Session, topic: str, top: int) -> None:
        """Deliver further messages of a topic to a session, if their offset is above `top`."""
        self.members.setdefault(topic, {})[session] = top

    def leave(self, session: Session, topic: str) -> None:
        """Deliver no further message of a topic to a session."""
        members = self.members.get(topic, {})
        members.pop(session, None)
        if not members:
            self.members.pop(topic, None)

    def has(self, session: Session, topic: str) -> bool:
        """Return whether a session receives the messages of a topic."""
        return session in self.members.get(topic, ())

    async def caught_up(self) -> None:
        """Wait until the queued messages have been delivered."""
        reached = trio.Event()
        await self._channel.put(reached)
        await reached.wait()

    async def put(self, published: Envelope, topics: Sequence[str]) -> None:
        """Queue a message for the sessions that watch one of its topics."""
        await self._channel.put((published, topics))

    async def fan_out(self) -> None:
        """Deliver each queued message once to every session that watches at least one of its topics."""
        with closing(self._channel):
            while True:
                self._deliver(await self._channel.take())

    def _deliver(self, queued: Sequence[tuple[Envelope, Sequence[str]] | trio.Event]) -> None:
        inboxes: dict[Session, list[Envelope]] = {}
        waiting: list[trio.Event] = []
        for item in queued:
            if isinstance(item, trio.Event):
                waiting.append(item)
                continue
            published, topics = item
            watching = [self.members[name] for name in topics if name in self.members]
            for session in {
                session for members in watching for session, top in members.items() if top < published.offset
            }:
                inboxes.setdefault(session, []).append(published)
            if (over := ended_topic(published.message)) is not None:
                for session, top in tuple(self.members.get(over, {}).items()):
                    after = session.topics.get(over, top)  # `top` if the topic has not been replayed yet
                    session.end(over, after, published.offset)
        for session, items in inboxes.items():
            batch = FrameBatch(items)
            self._traffic.messages += len(items)
            self._traffic.bytes += len(batch.frames)
            session.deliver(batch)
        for reached in waiting:
            reached.set()
