"""The cost of an event, counted in instructions: unrelated jobs and watchers do not increase it."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import progressd
import pytest
import trio
from msgspec.json import Encoder
from progressd.broadcast.subscription import PARTS_PER_PASS, REPLAY_BYTES
from progressd.core.messages import ALL_JOBS, job_topic
from progressd.store.sqlite import SQLiteStore
from support import spine
from support.outboxes import Connection
from support.samples import job_id
from support.spine import Spine
from support.waiting import settled
from trio.testing import MockClock

OURS = str(Path(progressd.__file__).parent)
ROOM = 10**9
WATCHERS = 3  # of the active job, and as many of all jobs
MANY = 300
NOW = datetime(2026, 1, 1, tzinfo=UTC)  # estimates of the remaining time depend on the time
OTHERS = range(100, 100 + MANY)  # numbers of jobs


class Work(NamedTuple):
    """`instructions` and `calls` of the daemon's code; `database`: instructions of SQLite's virtual machine."""

    instructions: int
    calls: int
    encodings: int
    sends: int
    database: int


class Counting:
    """Counts in this thread, and in the writing thread of the store."""

    def __init__(self) -> None:
        self.instructions = self.calls = self.encodings = self.sends = self.database = 0

    @contextmanager
    def on(self, store: SQLiteStore, connections: list[Connection]) -> Iterator[None]:
        for connection in connections:
            assert connection.socket.room > ROOM // 2
        before = sum(connection.socket.sends for connection in connections)
        store._writer.set_progress_handler(self._database, 1)
        tracing, profiling = sys.gettrace(), sys.getprofile()
        sys.settrace(self._enter)
        sys.setprofile(self._call)
        try:
            yield
        finally:
            sys.setprofile(profiling)
            sys.settrace(tracing)
            store._writer.set_progress_handler(None, 1)
        self.sends = sum(connection.socket.sends for connection in connections) - before

    @property
    def work(self) -> Work:
        return Work(self.instructions, self.calls, self.encodings, self.sends, self.database)

    def _enter(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._within

    def _within(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        self.instructions += event == "opcode"
        return self._within

    def _call(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call" and frame.f_code.co_filename.startswith(OURS):
            self.calls += 1
            self.encodings += arg.__name__ == "encode" and isinstance(arg.__self__, Encoder)

    def _database(self) -> int:
        self.database += 1
        return 0


class World:
    """A spine with one active job and its watchers, and what a test adds."""

    def __init__(self, running: Spine, nursery: trio.Nursery) -> None:
        self.spine = running
        self.connections: list[Connection] = []
        self._nursery = nursery

    async def watch(self, topic: str, after: int | None = None) -> None:
        connection = self._connect()
        subscription = self.spine.broadcaster.join(topic, connection.outbox, after)
        while (batch := await subscription.next_replay()) is not None:
            connection.outbox.put(batch)

    async def watch_in_a_session(self, *topics: str) -> None:
        connection = self._connect()
        session = self.spine.broadcaster.open_session(connection.outbox)
        await session.subscribe(topics, None, connection.drained, lambda upto: None)

    async def cost(self) -> Work:
        """Return the cost of a job from start to end, with 20 steps, on a warm daemon."""
        await self.spine.submit(spine.register(2))
        await self._run_job(1)
        counting = Counting()
        for _ in range(WATCHERS):
            await self.watch(job_topic(job_id(2)))
        await settled()
        with counting.on(self.spine.store, self.connections):
            await self._run_job(2)
        return counting.work

    async def _run_job(self, number: int) -> None:
        events = [spine.start(number), *(spine.progress(step, number) for step in range(20)), spine.complete(number)]
        for event in events:
            await self.spine.submit(event)
            await settled()

    def _connect(self) -> Connection:
        self.connections.append(Connection(self._nursery, room=ROOM))
        return self.connections[-1]


@asynccontextmanager
async def world(store: SQLiteStore) -> AsyncIterator[World]:
    async with spine.running(store, now=lambda: NOW) as running, trio.open_nursery() as nursery:
        await running.submit(spine.register(1))
        one = World(running, nursery)
        for _ in range(WATCHERS):
            await one.watch(ALL_JOBS)
            await one.watch(job_topic(job_id(1)))
        await one.watch_in_a_session(job_topic(job_id(1)))
        yield one
        nursery.cancel_scope.cancel()


async def other_jobs(world: World) -> None:
    await world.spine.submit(*(spine.register(number) for number in OTHERS))
    await world.spine.submit(*(spine.progress(50, number) for number in OTHERS))


async def watched_jobs(world: World) -> None:
    await other_jobs(world)
    for number in OTHERS:
        await world.watch(job_topic(job_id(number)))


async def idle_watchers(world: World) -> None:
    await world.spine.submit(spine.register(100))
    for _ in OTHERS:
        await world.watch(job_topic(job_id(100)))


async def idle_sessions(world: World) -> None:
    await other_jobs(world)
    for number in OTHERS:
        await world.watch_in_a_session(job_topic(job_id(number)), job_topic(job_id(100)))


async def finished_jobs(world: World) -> None:
    for start in range(0, 5 * MANY, MANY):
        for make in (spine.register, spine.start, spine.complete):
            await world.spine.submit(*(make(number + start) for number in OTHERS))


@pytest.mark.parametrize("others", [other_jobs, watched_jobs, idle_watchers, idle_sessions, finished_jobs])
async def test_the_cost_of_an_event_is_constant(
    mock_clock: MockClock, tmp_path: Path, store: SQLiteStore, others: Callable[[World], Awaitable[None]]
) -> None:
    """The clock stands still, so that no periodic task runs."""
    async with world(store) as one:
        alone = await one.cost()
    with closing(SQLiteStore.open(tmp_path / "another.sqlite")) as another:
        async with world(another) as one:
            await others(one)
            beside = await one.cost()
    assert alone.sends > 20 * 2 * WATCHERS
    assert alone.encodings < 30
    assert beside[:-1] == pytest.approx(alone[:-1], rel=0.01)  # the registry forgets the oldest finished job
    assert beside.database < 1.1 * alone.database  # the position in its trees makes a small difference


async def cost_of_coming_back(one: World) -> Work:
    """Return the cost of a watcher of all jobs that missed three messages, after other watchers have resumed."""
    assert one.spine.registry.recent  # adds the newest progress of at most MAX_MOVED jobs
    cursor = one.spine.broadcaster.offset
    await one.spine.submit(spine.register(3), spine.progress(1, 3))
    counting = Counting()
    await settled()
    with counting.on(one.spine.store, []):
        await one.watch(ALL_JOBS, cursor)
    assert one.connections[-1].socket.sends == 1
    return counting.work


@pytest.mark.parametrize("others", [other_jobs, finished_jobs])
async def test_the_cost_of_resuming_depends_on_missed_messages(
    mock_clock: MockClock, tmp_path: Path, store: SQLiteStore, others: Callable[[World], Awaitable[None]]
) -> None:
    async with world(store) as one:
        alone = await cost_of_coming_back(one)
    with closing(SQLiteStore.open(tmp_path / "another.sqlite")) as another:
        async with world(another) as one:
            await others(one)
            beside = await cost_of_coming_back(one)
    assert beside[:-1] == pytest.approx(alone[:-1], rel=0.1)  # the messages may lie in two blocks


class Passes(trio.abc.Instrument):
    """Counts bytes sent per pass of the event loop."""

    def __init__(self, world: World) -> None:
        self.most = 0  # bytes in one pass
        self._world = world
        self._before = self._sent

    @property
    def _sent(self) -> int:
        return sum(len(connection.socket.written) for connection in self._world.connections)

    def before_io_wait(self, timeout: float) -> None:
        self.most = max(self.most, self._sent - self._before)
        self._before = self._sent


@pytest.mark.parametrize("back", [True, False])
async def test_few_parts_of_replays_are_sent_per_pass_of_the_event_loop(store: SQLiteStore, back: bool) -> None:
    async with world(store) as one:
        cursor = one.spine.broadcaster.offset if back else None
        await other_jobs(one)
        before = len(one.connections)
        await settled()
        passes = Passes(one)
        trio.lowlevel.add_instrument(passes)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one.watch, ALL_JOBS, cursor)
        await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(passes)
        sent = {len(connection.socket.written) for connection in one.connections[before:]}
    assert sent == {max(sent)}
    assert max(sent) > 2 * REPLAY_BYTES
    assert 0 < passes.most <= 2 * PARTS_PER_PASS * REPLAY_BYTES  # some had already waited for their outbox
