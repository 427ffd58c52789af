"""The broadcaster: topics, and the fan-out of every message to the watchers of its topics.

Each topic is one memory channel and one fan-out task, which live while somebody watches. Publishing awaits the channel,
so a burst slows whoever publishes, never a watcher's socket; the fan-out never awaits a watcher, so a slow one slows
nobody.
"""

import math
from collections.abc import Callable
from contextlib import closing
from typing import Final

import trio

from progressd.broadcast.channel import Channel
from progressd.broadcast.envelope import DeliveryCounters, Envelope, FrameBatch
from progressd.broadcast.fanout import FanOut
from progressd.broadcast.multiplex import Session, SessionHub
from progressd.broadcast.outbox import Outbox
from progressd.broadcast.reader import Reader, ReaderOutbox
from progressd.broadcast.subscription import EmptyHistory, History, Subscription
from progressd.core.messages import ALL_JOBS, TopicMessage, ended_topic, job_topic, topics_of

FANOUT_THRESHOLD: Final = 100  # watchers of a topic from which on its passes are some time apart
FANOUT_INTERVAL: Final = 0.008  # seconds, half a frame of a screen


class Topic:
    """The watchers of one name, and the channel that feeds them."""

    def __init__(self, name: str, traffic: DeliveryCounters) -> None:
        self.name = name
        self._traffic = traffic
        self.subscriptions: dict[Subscription, None] = {}  # in the order they came
        self._catching_up: dict[Subscription, None] = {}  # those that are not in the crowd yet
        self._crowd = FanOut()
        self._channel: Channel[Envelope] = Channel()
        self.put = self._channel.put
        self._alive = trio.CancelScope()

    def join(self, subscription: Subscription) -> None:
        """Deliver to a subscription from here on."""
        self.subscriptions[subscription] = self._catching_up[subscription] = None

    def leave(self, subscription: Subscription) -> None:
        """Deliver nothing to it any more."""
        self.subscriptions.pop(subscription, None)
        self._catching_up.pop(subscription, None)
        self._crowd.remove(subscription.outbox)

    async def fan_out(self) -> None:
        """Hand what is queued to every watcher, each batch encoded and joined once."""
        with self._alive, closing(self._channel):
            next_pass = -math.inf
            while True:
                batch = FrameBatch(await self._channel.take(next_pass))
                if len(self.subscriptions) >= FANOUT_THRESHOLD:
                    # A send costs the same with one message in it or with five. So what comes to a crowd soon after
                    # something else waits for a moment: with 300 messages a second, two or three share a send.
                    next_pass = trio.current_time() + FANOUT_INTERVAL
                self._deliver(batch)

    def _deliver(self, batch: FrameBatch[Envelope]) -> None:
        self._crowd.put(batch)
        self._traffic.messages += len(self.subscriptions) * len(batch.items)
        self._traffic.bytes += len(self.subscriptions) * len(batch.frames)
        for subscription in tuple(self._catching_up):
            if subscription.deliver(batch):
                del self._catching_up[subscription]
                subscription.outbox.follow(self._crowd)
        if self.name != ALL_JOBS and any(ended_topic(item.message) == self.name for item in batch.items):
            for subscription in tuple(self.subscriptions):
                subscription.finish()

    def stop(self) -> None:
        """End the fan-out, since nobody watches any more."""
        self._alive.cancel()


class Broadcaster:
    """Works on its own, inside any Trio program; the daemon gives it a history to replay and a nursery to run in."""

    def __init__(
        self,
        history: History | None = None,
        *,
        nursery: trio.Nursery | None = None,
        offset: int = 0,
        limit: int = 1024 * 1024,
    ) -> None:
        """`offset`: of the newest message there is already. `limit`: bytes that may wait for one in-process reader."""
        self.offset = offset
        self._history = history or EmptyHistory()
        self.limit = limit
        self._spawn = nursery.start_soon if nursery else trio.lowlevel.spawn_system_task
        self._topics: dict[str, Topic] = {}
        self.traffic = DeliveryCounters()
        self._sessions = SessionHub(self.traffic)
        self._merging = False
        self._turns = trio.Lock()

    @property
    def watched(self) -> int:
        """Topics that somebody watches."""
        return len(self._topics.keys() | self._sessions.members.keys())

    async def broadcast(self, message: TopicMessage) -> None:
        """Send a message to everyone who watches its job, or every job."""
        await self.publish(Envelope(self.offset + 1, message))
        await trio.lowlevel.checkpoint()

    async def publish(self, published: Envelope) -> None:
        """Queue a message for its topics, waiting where a channel is full; its offset is larger than any before."""
        self.offset = published.offset
        names = topics_of(published.message)
        watched = [topic for name in names if (topic := self._topics.get(name)) is not None]
        if not self._sessions.members.keys().isdisjoint(names):
            await self._sessions.put(published, names)  # first: whoever knows the offset can wait behind the message
        for topic in watched:
            await topic.put(published)

    def subscribe(self, job_id: str | None = None, after: int | None = None) -> Reader:
        """Watch one job, or all of them, from now on (`after`: from that offset on): `async for message in …`."""
        return self.watch(ALL_JOBS if job_id is None else job_topic(job_id), after)

    def watch(self, topic: str, after: int | None = None) -> Reader:
        """Watch a topic in the same way."""
        outbox = ReaderOutbox(self.limit)
        return self.read(topic, outbox, outbox, after)

    def read(
        self,
        topic: str,
        outbox: ReaderOutbox,
        behind: Outbox,
        after: int | None = None,
        on_live: Callable[[int], None] | None = None,
    ) -> Reader:
        """Watch a topic through an outbox of one's own; `behind`: what stands before it to keep some messages back."""
        return Reader(outbox, self.join(topic, behind, after, on_live))

    def join(
        self, name: str, outbox: Outbox, after: int | None = None, on_live: Callable[[int], None] | None = None
    ) -> Subscription:
        """Register an outbox for a topic. From here on nothing is missed; see Subscription for what comes next.

        `on_live` is called once all that was has been put, before anything newer. It gets the offset from which the
        watcher can resume. A topic that is over has none.
        """
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(name, self.traffic)
            self._spawn(topic.fan_out)
        subscription = Subscription(
            name, outbox, self._history, after, self.offset, self.limit, self._turns, self._leave, on_live
        )
        topic.join(subscription)
        return subscription

    def open_session(self, outbox: Outbox) -> Session:
        """For a watcher of many topics, who says later which."""
        if not self._merging:
            self._merging = True
            self._spawn(self._sessions.fan_out)
        return Session(outbox, self._sessions, self._history, lambda: self.offset, self.limit, self._turns)

    def _leave(self, subscription: Subscription) -> None:
        topic = self._topics.get(subscription.topic)
        if topic is not None and subscription in topic.subscriptions:
            topic.leave(subscription)
            if not topic.subscriptions:
                del self._topics[topic.name]
                topic.stop()
