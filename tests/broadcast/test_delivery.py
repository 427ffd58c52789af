"""The delivery of a topic: in order and complete, wherever the messages wait until then."""

from functools import partial
from typing import NamedTuple, TypeAlias

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from progressd.broadcast.broadcaster import FANOUT_INTERVAL, FANOUT_THRESHOLD, Broadcaster
from progressd.broadcast.envelope import CAPACITY, MAX_TAKE, Envelope
from progressd.broadcast.subscription import Subscription
from progressd.core.close_codes import JOB_FINISHED
from progressd.core.messages import ALL_JOBS, JobMessage, job_topic, topics_of
from support.outboxes import Collected
from support.samples import job_id, started, succeeded
from support.waiting import settled


class Publish(NamedTuple):
    """Publish changes of a job, without a pause unless a channel is full."""

    job: int
    count: int


class End(NamedTuple):
    """Publish the end of a job. The next job takes its place."""

    job: int


class Join(NamedTuple):
    """Watch a job, or all jobs (0), with some watchers. `interleaved`: read the replay only at the next pause."""

    job: int
    watchers: int
    interleaved: bool


class Leave(NamedTuple):
    """Remove the watchers of a step Join."""

    which: int


class Pause(NamedTuple):
    """Let some passes of the event loop run, and then some time pass."""

    passes: int
    seconds: float


Step: TypeAlias = Publish | End | Join | Leave | Pause
jobs = st.integers(1, 2)
counts = st.sampled_from([1, 2, MAX_TAKE, MAX_TAKE + 1, 2 * MAX_TAKE + 1, CAPACITY + 2 * MAX_TAKE])
joins = st.builds(Join, st.integers(0, 2), st.sampled_from([1, 1, FANOUT_THRESHOLD]), st.booleans())
pauses = st.builds(Pause, st.integers(0, 3), st.sampled_from([0.0, FANOUT_INTERVAL / 3, FANOUT_INTERVAL]))
publishes = st.builds(Publish, jobs, counts)
steps = st.one_of(
    publishes, publishes, publishes, pauses, pauses, joins, st.builds(End, jobs), st.builds(Leave, st.integers(2, 9))
)


class Crowd:
    """Watchers that joined and left together."""

    def __init__(self, topic: str, since: int) -> None:
        self.topic = topic
        self.since = since  # offset
        self.left = False
        self.outboxes: list[Collected] = []
        self.subscriptions: list[Subscription] = []

    async def read_replays(self) -> None:
        for subscription in self.subscriptions:
            while await subscription.next_replay() is not None:
                pass

    def check(self, log: list[Envelope]) -> None:
        for outbox in self.outboxes[1:]:
            assert [batch.items for batch in outbox.batches] == [batch.items for batch in self.outboxes[0].batches]
            assert outbox.endings == self.outboxes[0].endings
        expected = [item.offset for item in log if item.offset > self.since and self.topic in topics_of(item.message)]
        for outbox in self.outboxes[:1]:
            if self.left:
                assert outbox.offsets == expected[: len(outbox.offsets)]
            else:
                assert outbox.offsets == expected
                over = self.topic != ALL_JOBS and any(item.message in self._ends() for item in log)
                assert outbox.endings == [JOB_FINISHED] * over

    def _ends(self) -> list[JobMessage]:
        return succeeded(self.topic.removeprefix(job_topic("")))


async def play(todo: list[Step]) -> None:
    log: list[Envelope] = []
    crowds: list[Crowd] = []
    current = {1: 1, 2: 2}  # the number of the job in each place

    async def publish(message: JobMessage) -> None:
        log.append(Envelope(len(log) + 1, message))
        await broadcaster.publish(log[-1])

    async with trio.open_nursery() as nursery:
        broadcaster = Broadcaster(nursery=nursery)
        for step in todo:
            match step:
                case Publish(job, count):
                    for _ in range(count):
                        await publish(started(job_id(current[job])))
                case End(job):
                    for message in succeeded(job_id(current[job])):
                        await publish(message)
                    current[job] += 2
                case Join(job, watchers, interleaved):
                    crowd = Crowd(job_topic(job_id(current[job])) if job else ALL_JOBS, len(log))
                    crowd.outboxes = [Collected() for _ in range(watchers)]
                    crowd.subscriptions = [broadcaster.join(crowd.topic, outbox) for outbox in crowd.outboxes]
                    crowds.append(crowd)
                    if interleaved:
                        nursery.start_soon(crowd.read_replays)
                    else:
                        await crowd.read_replays()
                case Leave(which) if which < len(crowds):
                    crowds[which].left = True
                    for subscription in crowds[which].subscriptions:
                        subscription.leave()
                case Pause(passes, seconds):
                    for _ in range(passes):
                        await trio.lowlevel.checkpoint()
                    await trio.sleep(seconds)
        await settled()
        await trio.sleep(len(log) * FANOUT_INTERVAL)
        for crowd in crowds:
            crowd.check(log)
        for crowd in crowds:
            for subscription in crowd.subscriptions:
                subscription.leave()
        assert broadcaster.watched == 0


@given(st.lists(steps, max_size=20))
def test_every_watcher_gets_all_messages_in_order(todo: list[Step]) -> None:
    trio.run(
        partial(play, [Join(0, 1, False), Join(1, 1, False), *todo]), clock=trio.testing.MockClock(autojump_threshold=0)
    )
