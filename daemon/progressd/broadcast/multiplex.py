"""A session: one watcher on many topics, who gets every message once, and in the order of the offsets.

Were each topic to deliver by its own fan-out task, a message could overtake one of another topic, and then no cursor
would tell what the watcher has had. So what sessions watch goes through one more channel, in order, whatever its topic.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from typing import Final

import trio

from progressd.broadcast.channel import Channel
from progressd.broadcast.envelope import DeliveryCounters, Envelope, FrameBatch, ReplayedEnvelope
from progressd.broadcast.outbox import Backlog, Outbox
from progressd.broadcast.subscription import History, Replay
from progressd.core.close_codes import SLOW_CONSUMER
from progressd.core.messages import ALL_JOBS, BatchMessage, ended_topic, topics_of

MAX_ENDED: Final = 1000  # topics that are over and remembered, so that what came on them does not come again


class Session:
    """Made by `Broadcaster.open_session`. `subscribe` and `unsubscribe` come from one task, `leave` at last."""

    def __init__(
        self,
        outbox: Outbox,
        sessions: "SessionHub",
        history: History,
        newest_offset: Callable[[], int],
        limit: int,
        turns: trio.Lock,
    ) -> None:
        self.topics: dict[str, int] = {}  # by topic: what came after that offset has been delivered here, or will be
        self._ended: dict[str, tuple[int, int]] = {}  # topics that are over, the last ones: what came after and up to
        self._outbox = outbox
        self._newest_offset = newest_offset
        self._sessions = sessions
        self._history = history
        self._limit = limit  # bytes that may be held back
        self._turns = turns
        self._held: Backlog[Envelope] = Backlog()
        self._holding = False
        self._seen_unfinished = 0  # the jobs that were unfinished at this offset have been delivered whole

    async def subscribe(
        self,
        topics: Sequence[str],
        after: int | None,
        drained: Callable[[], Awaitable[None]],
        answer: Callable[[int], None],
    ) -> None:
        """Send what was on some topics (`after`: only what is newer), and be live on them.

        `drained` waits until the outbox has nothing waiting. `answer` is called, with the offset from which the watcher
        can resume all topics, once everything up to it has been sent and before anything newer is. Raises NotFound,
        StoreFailed.
        """
        top = self.newest_offset
        for topic in topics:
            self._sessions.join(self, topic, top)
        self._holding = True  # on all topics: nothing live may overtake what is replayed
        try:
            for topic in topics:
                await self._replay(topic, after, top, drained)
            await self._sessions.caught_up()  # what came before the top on other topics may have been on its way
            self._pass_on(self._take_held(top))
            answer(self._outbox.upto(top))
        except BaseException:
            for topic in topics:
                self.unsubscribe(topic)
            raise
        finally:
            self._holding = False
            self._pass_on(self._held.take())

    @property
    def newest_offset(self) -> int:
        """Of the newest message there is."""
        return self._newest_offset()

    def unsubscribe(self, topic: str) -> None:
        """Get nothing more through a topic."""
        self.topics.pop(topic, None)
        self._sessions.leave(self, topic)

    def end(self, topic: str, after: int, upto: int) -> None:
        """The topic is over: all that came on it between these offsets has been delivered, or is on its way.

        A deleted job may be registered again. Its topic then has newer messages, which have not been delivered.
        """
        self.unsubscribe(topic)
        self._ended[topic] = after, upto
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def leave(self) -> None:
        """Get nothing any more."""
        for topic in tuple(self.topics):
            self.unsubscribe(topic)

    def deliver(self, batch: FrameBatch[Envelope]) -> None:
        """Take live messages."""
        if not self._holding:
            self._outbox.put(batch)
            return
        for item in batch.items:
            self._held.put(item)
        if self._held.size > self._limit:
            self._held.clear()
            self._outbox.end(SLOW_CONSUMER)

    async def _replay(self, topic: str, after: int | None, top: int, drained: Callable[[], Awaitable[None]]) -> None:
        past = Replay(self._history, topic, after, top, self._turns)
        while (batch := await past.next()) is not None:
            await drained()
            self._outbox.put(FrameBatch(self._replayed(topic, batch.items, past.ends)))
        if past.over or not self._sessions.has(self, topic):  # or it has ended since
            _, upto = self._ended.get(topic, (0, 0))
            self.end(topic, after or 0, past.newest if past.over else upto)
            return
        self.topics[topic] = after or 0
        if topic == ALL_JOBS:
            self._seen_unfinished = past.begins

    def _take_held(self, top: int) -> list[Envelope]:
        """Of what was held back, that up to an offset."""
        held = self._held.take()
        for item in held:
            if item.offset > top:
                self._held.put(item)
        return [item for item in held if item.offset <= top]

    def _pass_on(self, items: Sequence[Envelope]) -> None:
        if items:
            self._outbox.put(FrameBatch(items))

    def _replayed(self, topic: str, items: Sequence[Envelope], ends: Mapping[str, int]) -> list[Envelope]:
        """What a replay of the topic brings that has not come through another one. `ends`: of jobs, their offsets."""
        # Without cursors: whoever resumed all topics from one of these would miss what they have had since.
        return [ReplayedEnvelope(item) for item in items if not self._has_come(item, topic, ends)]

    def _has_come(self, item: Envelope, topic: str, ends: Mapping[str, int]) -> bool:
        if isinstance(item.message, BatchMessage):  # which is on one topic only
            return False
        names = set(topics_of(item.message)) - {topic}
        if ends.get(item.message.job_id, math.inf) <= self._seen_unfinished:
            names.discard(ALL_JOBS)  # its snapshot has the jobs that were unfinished
        for name in names:
            after, upto = (self.topics[name], math.inf) if name in self.topics else self._ended.get(name, (0, 0))
            if after < item.offset <= upto:
                return True
        return False


class SessionHub:
    """Which session watches what, and the channel and fan-out task of them all."""

    def __init__(self, traffic: DeliveryCounters) -> None:
        self._traffic = traffic
        self.members: dict[str, dict[Session, int]] = {}  # by topic, each with the offset at which it joined
        self._channel: Channel[tuple[Envelope, Sequence[str]] | trio.Event] = Channel()

    def join(self, session: Session, topic: str, top: int) -> None:
        """From here on the session gets what comes on the topic after the offset `top`."""
        self.members.setdefault(topic, {})[session] = top

    def leave(self, session: Session, topic: str) -> None:
        """From here on it does not."""
        members = self.members.get(topic, {})
        members.pop(session, None)
        if not members:
            self.members.pop(topic, None)

    def has(self, session: Session, topic: str) -> bool:
        """Whether the session gets what comes on the topic."""
        return session in self.members.get(topic, ())

    async def caught_up(self) -> None:
        """Wait until what is queued has been handed over."""
        reached = trio.Event()
        await self._channel.put(reached)
        await reached.wait()

    async def put(self, published: Envelope, topics: Sequence[str]) -> None:
        """Queue a message for the sessions that watch one of its topics."""
        await self._channel.put((published, topics))

    async def fan_out(self) -> None:
        """Hand what is queued to every session, once however many of its topics it is on."""
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
                    after = session.topics.get(over, top)  # `top` while it has not been replayed yet
                    session.end(over, after, published.offset)
        for session, items in inboxes.items():
            batch = FrameBatch(items)
            self._traffic.messages += len(items)
            self._traffic.bytes += len(batch.frames)
            session.deliver(batch)
        for reached in waiting:
            reached.set()
