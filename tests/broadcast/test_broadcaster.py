"""The broadcaster as any Trio program uses it, with nothing else of the daemon."""

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
import trio.testing
from progressd.broadcast.broadcaster import FANOUT_INTERVAL, FANOUT_THRESHOLD, Broadcaster, Reader
from progressd.broadcast.envelope import CAPACITY, MAX_TAKE, Envelope
from progressd.core.errors import SlowConsumer
from progressd.core.messages import ALL_JOBS, Error, ErrorData, JobMessage, Message, job_topic
from support.outboxes import Collected
from support.samples import ID, cancelled, created, job_id, moved, started, succeeded
from support.waiting import PATIENCE, settled

OTHER = job_id(2)
MANY: list[JobMessage] = [started(job_id(number)) for number in range(MAX_TAKE + CAPACITY + 10)]


async def all_of(reader: Reader) -> list[Message]:
    with trio.fail_after(PATIENCE):
        return [message async for message in reader]


async def some_of(reader: Reader, count: int) -> list[Message]:
    with trio.fail_after(PATIENCE):
        return [await anext(reader) for _ in range(count)]


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


class Later:
    """A nursery that starts no task until `start`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._waiting: list[Callable[[], Awaitable[None]]] | None = []

    def start_soon(self, function: Callable[[], Awaitable[None]]) -> None:
        if self._waiting is None:
            self._nursery.start_soon(function)
        else:
            self._waiting.append(function)

    def start(self) -> None:
        waiting, self._waiting = self._waiting, None
        for function in waiting or ():
            self._nursery.start_soon(function)


async def publish_all(broadcaster: Broadcaster, messages: Sequence[JobMessage], sent: list[Message]) -> None:
    """Publish without a checkpoint, unless a channel is full."""
    for message in messages:
        await broadcaster.publish(Envelope(broadcaster.offset + 1, message))
        sent.append(message)


# Messages of a reader


async def test_a_reader_ends_with_its_job() -> None:
    broadcaster = Broadcaster()
    reader = broadcaster.subscribe(ID)
    for message in (started(), moved(1), moved(1, OTHER), *succeeded()):
        await broadcaster.broadcast(message)
    assert await all_of(reader) == [started(), moved(1), *succeeded()]


@pytest.mark.parametrize(
    "end",
    [succeeded()[1], cancelled(), Error(ID, ErrorData("no paper"))],
    ids=["completed", "cancelled", "error"],
)
async def test_every_end_of_a_job_ends_its_readers(end: JobMessage) -> None:
    broadcaster = Broadcaster()
    readers = [broadcaster.subscribe(ID) for _ in range(3)]
    await broadcaster.broadcast(end)
    assert [await all_of(reader) for reader in readers] == [[end]] * 3


async def test_a_reader_of_all_jobs_does_not_end() -> None:
    broadcaster = Broadcaster()
    told = [created(), started(), *succeeded(), created(OTHER), started(OTHER)]
    with broadcaster.subscribe() as reader:
        for message in told:
            await broadcaster.broadcast(message)
        assert await some_of(reader, len(told)) == told


async def test_a_reader_is_subscribed_when_created() -> None:
    broadcaster = Broadcaster()
    await broadcaster.broadcast(started())
    reader = broadcaster.subscribe(ID)
    await broadcaster.broadcast(cancelled())
    assert await all_of(reader) == [cancelled()]


async def test_a_message_after_the_end_does_not_block_readers() -> None:
    broadcaster = Broadcaster()
    reader = broadcaster.subscribe(ID)
    await broadcaster.publish(Envelope(1, cancelled()))
    await broadcaster.publish(Envelope(2, moved(1)))  # in the same pass
    assert (await all_of(reader))[0] == cancelled()


async def test_a_late_reader_gets_changes_and_progress() -> None:
    broadcaster = Broadcaster()
    reader = broadcaster.subscribe(ID)
    await broadcaster.broadcast(started())
    for step in range(100):
        await broadcaster.broadcast(moved(step))
    for message in succeeded():
        await broadcaster.broadcast(message)
    assert await all_of(reader) == [started(), moved(99), *succeeded()]


# Slow readers


async def test_a_slow_reader_blocks_no_other() -> None:
    broadcaster = Broadcaster(limit=10_000)
    idle = broadcaster.subscribe()
    with broadcaster.subscribe() as reader:
        for number in range(200):
            await broadcaster.broadcast(started(job_id(number)))
            assert await some_of(reader, 1) == [started(job_id(number))]
    with pytest.raises(SlowConsumer):
        await all_of(idle)
    with pytest.raises(SlowConsumer):
        await all_of(idle)


async def test_a_full_channel_blocks_the_publisher(nursery: trio.Nursery) -> None:
    later = Later(nursery)
    broadcaster = Broadcaster(nursery=later)  # type: ignore[arg-type]
    reader = broadcaster.subscribe()
    sent: list[Message] = []
    nursery.start_soon(publish_all, broadcaster, MANY, sent)
    await settled()
    assert len(sent) == MAX_TAKE + CAPACITY
    later.start()
    await settled()
    assert len(sent) == len(MANY)
    assert await some_of(reader, len(MANY)) == MANY


async def test_the_last_watcher_leaving_unblocks_the_publisher(nursery: trio.Nursery) -> None:
    later = Later(nursery)
    broadcaster = Broadcaster(nursery=later)  # type: ignore[arg-type]
    reader = broadcaster.subscribe()
    sent: list[Message] = []
    nursery.start_soon(publish_all, broadcaster, MANY, sent)
    await settled()
    reader.close()
    await settled()
    assert len(sent) == len(MANY)


# Cleanup


async def by_close(reader: Reader) -> None:
    reader.close()


async def by_with(reader: Reader) -> None:
    with reader:
        pass


@pytest.mark.parametrize("leave", [by_close, by_with])
@pytest.mark.parametrize("job", [ID, None], ids=["one job", "all jobs"])
async def test_the_last_closed_reader_leaves_nothing(
    leave: Callable[[Reader], Awaitable[None]], job: str | None
) -> None:
    broadcaster, before = Broadcaster(), tasks()
    first, second = broadcaster.subscribe(job), broadcaster.subscribe(job)
    await broadcaster.broadcast(moved(1))
    await settled()
    assert (tasks(), broadcaster.watched) == (before, 1)
    await leave(first)
    assert broadcaster.watched == 1
    await broadcaster.publish(Envelope(2, moved(2)))
    await leave(second)
    await settled()
    assert (tasks(), broadcaster.watched) == (before, 0)


async def test_a_garbage_collected_reader_leaves_nothing() -> None:
    broadcaster = Broadcaster()
    reader = broadcaster.subscribe(ID)
    assert broadcaster.watched == 1
    del reader
    assert broadcaster.watched == 0


async def test_readers_of_an_ended_job_leave_nothing() -> None:
    broadcaster, before = Broadcaster(), tasks()
    readers = [broadcaster.subscribe(ID) for _ in range(3)]
    await broadcaster.broadcast(cancelled())
    for reader in readers:
        await all_of(reader)
    await settled()
    assert (tasks(), broadcaster.watched) == (before, 0)


async def test_a_reader_may_outlive_the_run() -> None:
    async def run() -> Reader:
        return Broadcaster().subscribe()

    reader = await trio.to_thread.run_sync(trio.run, run)
    reader.close()


async def test_a_topic_restarts_with_the_next_reader() -> None:
    broadcaster = Broadcaster()
    broadcaster.subscribe(ID).close()
    reader = broadcaster.subscribe(ID)
    await broadcaster.broadcast(cancelled())
    assert await all_of(reader) == [cancelled()]


# The cost of a message


async def test_an_unwatched_message_is_not_encoded() -> None:
    broadcaster = Broadcaster()
    impossible = Envelope(1, Error(ID, ErrorData(object())))  # type: ignore[arg-type]
    with broadcaster.subscribe(OTHER):
        await broadcaster.publish(impossible)
        await settled()
    assert broadcaster.offset == 1
    with pytest.raises(TypeError):
        assert impossible.frame


async def test_publishing_is_no_checkpoint_while_there_is_room() -> None:
    broadcaster = Broadcaster()
    with broadcaster.subscribe(), trio.testing.assert_no_checkpoints():
        await broadcaster.publish(Envelope(1, started()))


async def test_a_message_is_encoded_once() -> None:
    broadcaster = Broadcaster()
    watchers = [Collected() for _ in range(4)]
    subscriptions = [
        broadcaster.join(topic, outbox) for topic, outbox in zip((job_topic(ID), ALL_JOBS) * 2, watchers, strict=True)
    ]
    for subscription in subscriptions:
        while await subscription.next_replay() is not None:
            pass
    await publish_all(broadcaster, [moved(1), started()], [])
    await settled()
    first, *others = [[item.frame for item in watcher.items] for watcher in watchers]
    assert len(first) == 2
    assert all(one is same for frames in others for one, same in zip(first, frames, strict=True))
    of_job, of_all, of_job_too, of_all_too = [watcher.batches[-1].frames for watcher in watchers]
    assert of_job is of_job_too
    assert of_all is of_all_too
    for subscription in subscriptions:
        subscription.leave()


@pytest.mark.parametrize(("watchers", "batches"), [(FANOUT_THRESHOLD - 1, [1, 1, 1, 1]), (FANOUT_THRESHOLD, [1, 2, 1])])
async def test_messages_for_many_watchers_share_a_send(
    mock_clock: trio.testing.MockClock, watchers: int, batches: list[int]
) -> None:
    async with trio.open_nursery() as nursery:
        broadcaster = Broadcaster(nursery=nursery)
        crowd = [Collected() for _ in range(watchers)]
        for outbox in crowd:
            subscription = broadcaster.join(ALL_JOBS, outbox)
            while await subscription.next_replay() is not None:
                pass
        for later in (0, FANOUT_INTERVAL / 4, FANOUT_INTERVAL, FANOUT_INTERVAL):
            mock_clock.jump(later)
            await broadcaster.broadcast(moved(1))
            await settled()
        nursery.cancel_scope.cancel()
    assert all([len(batch.items) for batch in outbox.batches] == batches for outbox in crowd)


# Watchers with an interval


async def test_watchers_with_the_same_interval_share_each_send(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    broadcaster = Broadcaster(nursery=nursery)
    outboxes = [Collected() for _ in range(3)]
    for outbox in outboxes:
        subscription = broadcaster.join(ALL_JOBS, outbox, interval=1.0)
        assert [await subscription.next_replay() for _ in range(2)][-1] is None
    for step in range(100):
        for number in range(1, 11):
            await broadcaster.broadcast(moved(step, job_id(number)))
        await trio.sleep(0.05)
    await trio.sleep(2)
    first = outboxes[0]
    assert len(first.items) == 60  # 10 jobs, in 5 s and at the end
    assert len(first.batches) == 6
    for outbox in outboxes[1:]:
        assert all(one is other for one, other in zip(first.batches, outbox.batches, strict=True))


async def test_changes_do_not_wait_for_the_interval(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    broadcaster, outbox = Broadcaster(nursery=nursery), Collected()
    subscription = broadcaster.join(ALL_JOBS, outbox, interval=60.0)
    assert [await subscription.next_replay() for _ in range(2)][-1] is None
    for message in (started(), moved(1), moved(2), *succeeded()):
        await broadcaster.broadcast(message)
    await settled()
    assert outbox.messages == [started(), moved(2), *succeeded()]


async def test_an_interval_costs_nothing_once_its_watchers_have_left(nursery: trio.Nursery) -> None:
    broadcaster = Broadcaster(nursery=nursery)
    before = tasks()
    joined = [broadcaster.join(ALL_JOBS, Collected(), interval=interval) for interval in (0.0, 1.0, 1.0, 2.0)]
    await settled()
    assert tasks() == before + 2  # one per interval
    for subscription in joined:
        subscription.leave()
    await settled()
    assert tasks() == before
    assert broadcaster.watched == 0
