"""The poller: batching of producers, fairness among them, and isolation of their errors."""

import json
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from progressd.core.errors import ProgressdError
from progressd.engine.commands import Outcome
from progressd.producers.ndjson import TURN_LINES, LineBatch, LineSplitter
from progressd.producers.unix_socket import POLL_INTERVAL, Poller
from progressd.store.sqlite import SQLiteStore
from support.daemon import PATIENCE, progress
from support.samples import job_id
from support.spine import register, running, start


class Source:
    """One end of a socket pair. Records the outcomes of its events, and their times."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        self.fileno = self._ours.fileno
        self._splitter = LineSplitter(65536)
        self.paused = False
        self.decided_at: list[float] = []
        self.steps: list[int] = []  # of its job, as its events were decided
        self._more = trio.Event()

    def read(self, max_lines: int, now: float) -> LineBatch | None:
        lines = self._splitter.feed(self._ours.recv(65536))
        return LineBatch(lines) if lines else None

    def decided(self, batch: LineBatch, outcomes: Sequence[Outcome], now: float) -> None:
        assert len(outcomes) == len(batch.events)
        for outcome in outcomes:
            assert not isinstance(outcome, ProgressdError)
            assert outcome.id == job_id(self.number)
            self.decided_at.append(trio.current_time())
            self.steps.append(outcome.progress.current_step)
        self._more.set()

    async def until(self, count: int) -> None:
        """Wait until this many of its events are decided."""
        with trio.fail_after(PATIENCE):
            while len(self.steps) < count:
                self._more = trio.Event()
                await self._more.wait()

    def say(self, *steps: int, **more: Any) -> None:
        self.theirs.sendall(b"".join(line({**progress(job_id(self.number), step, 10**6), **more}) for step in steps))

    def close(self) -> None:
        self._ours.close()
        self.theirs.close()


def line(event: object) -> bytes:
    return json.dumps(event).encode() + b"\n"


@asynccontextmanager
async def polled(store: SQLiteStore, *sources: Source) -> AsyncIterator[Poller]:
    """Poll these sources. Their jobs have started, so progress needs no commit."""
    with ExitStack() as stack:
        for source in sources:
            stack.callback(source.close)
        async with running(store) as spine, trio.open_nursery() as nursery:
            for event in (register, start):
                await spine.submit(*[event(source.number) for source in sources])
            poller = Poller(spine.ingest)
            for source in sources:
                if not source.paused:
                    nursery.start_soon(poller.read, source)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(poller.run)
            yield poller
            nursery.cancel_scope.cancel()


async def test_events_within_the_interval_share_a_batch(
    store: SQLiteStore, autojump_clock: trio.testing.MockClock
) -> None:
    one, other = Source(1), Source(2)
    async with polled(store, one, other):
        one.say(1)
        await one.until(1)
        one.say(2)
        await trio.sleep(POLL_INTERVAL / 5)
        other.say(3)
        await one.until(2)
        await other.until(1)
    first, second = one.decided_at
    assert other.decided_at == [second]
    assert second - first == pytest.approx(POLL_INTERVAL)


async def test_an_event_with_a_ref_does_not_wait(store: SQLiteStore, autojump_clock: trio.testing.MockClock) -> None:
    source = Source()
    async with polled(store, source):
        for step in range(1, 10):
            source.say(step, ref=step)
            await source.until(step)
    assert set(source.decided_at) == {source.decided_at[0]}


async def test_flooding_producers_do_not_starve_a_quiet_one(store: SQLiteStore) -> None:
    loud, quiet = [Source(number) for number in range(2, 22)], Source(1)
    for source in loud:
        source.say(*range(1, 1001))  # more than is read at once
    quiet.say(1)
    async with polled(store, *loud, quiet):
        await quiet.until(1)
        assert sum(len(source.steps) for source in loud) < 20_000
        for source in loud:
            await source.until(1000)
    assert all(source.steps == list(range(1, 1001)) for source in loud)


@pytest.mark.parametrize("lines", ["", "nonsense\n"])
async def test_endless_useless_lines_do_not_starve_others(store: SQLiteStore, lines: str) -> None:
    class Endless(Source):
        reads = 0

        def read(self, max_lines: int, now: float) -> LineBatch | None:
            self.reads += 1
            assert self.reads < 1000
            return LineBatch([(1, line) for line in lines.encode().splitlines()]) if lines else None

        def decided(self, batch: LineBatch, outcomes: Sequence[Outcome], now: float) -> None:
            assert not outcomes

    endless, other = Endless(1), Source(2)
    endless.say(1)
    async with polled(store, endless, other):
        other.say(1)
        await other.until(1)
    assert endless.reads < 1000


async def test_all_sources_share_the_lines_of_a_turn(store: SQLiteStore) -> None:
    read = [0]  # lines between two turns of this task; the poller may run twice

    class Endless(Source):
        def read(self, max_lines: int, now: float) -> LineBatch | None:
            read[-1] += max_lines
            return LineBatch([(1, b"nonsense")] * max_lines)

        def decided(self, batch: LineBatch, outcomes: Sequence[Outcome], now: float) -> None:
            assert not outcomes

    endless = [Endless(number) for number in range(1, 20)]
    for source in endless:
        source.theirs.sendall(b"\n")
    async with polled(store, *endless):
        for _ in range(100):
            await trio.lowlevel.checkpoint()
            read.append(0)
    assert TURN_LINES <= max(read) <= 3 * TURN_LINES


async def test_an_error_ends_only_its_own_source(store: SQLiteStore) -> None:
    class Broken(Source):
        def read(self, max_lines: int, now: float) -> LineBatch | None:
            super().read(max_lines, now)
            raise OSError("the cable is cut")

    broken, other = Broken(1), Source(2)
    broken.paused = True
    async with polled(store, broken, other) as poller:
        broken.say(1)
        with trio.fail_after(PATIENCE), pytest.raises(OSError, match="the cable is cut"):
            await poller.read(broken)
        other.say(1)
        await other.until(1)


async def test_a_paused_source_can_be_read_again(store: SQLiteStore) -> None:
    source = Source()
    source.paused = True
    async with polled(store, source) as poller:
        for step in (1, 2):
            source.say(step)
            with trio.fail_after(PATIENCE):
                await poller.read(source)
            await source.until(step)
    assert source.steps == [1, 2]


# A source, and how many bytes it sends.
PIECES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 400)), max_size=30)


@settings(max_examples=25)
@given(PIECES)
async def test_events_stay_in_order_however_writes_are_cut(pieces: list[tuple[int, int]]) -> None:
    sources = {number: Source(number) for number in (1, 2, 3)}
    unsaid = {
        number: b"".join(line(progress(job_id(number), step, 100)) for step in range(1, 11)) for number in sources
    }
    with (
        tempfile.TemporaryDirectory() as directory,
        closing(SQLiteStore.open(Path(directory) / "progressd.db")) as store,
    ):
        async with polled(store, *sources.values()):
            for number, size in [*pieces, (1, 10_000), (2, 10_000), (3, 10_000)]:
                piece, unsaid[number] = unsaid[number][:size], unsaid[number][size:]
                if piece:
                    sources[number].theirs.sendall(piece)
                    await trio.lowlevel.checkpoint()
            for source in sources.values():
                await source.until(10)
    assert all(source.steps == list(range(1, 11)) for source in sources.values())
