"""The sweep that reads all producers: whose events share a batch, who waits for whom, and who disturbs whom."""

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
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.errors import ProgressdError
from progressd.engine.ingest import Outcome
from progressd.producers.ndjson import TURN_LINES, LineBatch, LineSplitter
from progressd.producers.poller import POLL_INTERVAL, Poller
from progressd.store.sqlite import SQLiteStore
from support.daemon import PATIENCE, progress
from support.samples import job_id
from support.spine import register, running, start


class Source:
    """One end of a pair of sockets, which notes what came of its events and when."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        self.fileno = self._ours.fileno
        self._splitter = LineSplitter(65536)
        self.enough = False
        self.decided_at: list[float] = []
        self.steps: list[int] = []  # of its job, as its events were decided
        self._more = trio.Event()

    def read(self, most: int) -> LineBatch | None:
        lines = self._splitter.feed(self._ours.recv(65536))
        return LineBatch(lines) if lines else None

    def decided(self, intake: LineBatch, outcomes: Sequence[Outcome]) -> None:
        assert len(outcomes) == len(intake.events)
        for outcome in outcomes:
            assert not isinstance(outcome, ProgressdError)
            assert outcome.id == job_id(self.number)
            self.decided_at.append(trio.current_time())
            self.steps.append(outcome.progress.current_step)
        self._more.set()

    async def until(self, count: int) -> None:
        """So many of its events are decided."""
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
async def swept(store: SQLiteStore, *sources: Source) -> AsyncIterator[Poller]:
    """A sweep that reads these sources, whose jobs have started, so that their progress needs no commit."""
    with ExitStack() as stack:
        for source in sources:
            stack.callback(source.close)
        async with running(store) as spine, trio.open_nursery() as nursery:
            for event in (register, start):
                await spine.submit(*[event(source.number) for source in sources])
            sweep = Poller(spine.ingest)
            for source in sources:
                if not source.enough:
                    nursery.start_soon(sweep.read, source)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(sweep.run)
            yield sweep
            nursery.cancel_scope.cancel()


async def test_what_comes_soon_after_shares_a_batch(store: SQLiteStore, autojump_clock: trio.testing.MockClock) -> None:
    one, other = Source(1), Source(2)
    async with swept(store, one, other):
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


async def test_nobody_who_asks_waits_for_others(store: SQLiteStore, autojump_clock: trio.testing.MockClock) -> None:
    source = Source()
    async with swept(store, source):
        for step in range(1, 10):
            source.say(step, ref=step)
            await source.until(step)
    assert set(source.decided_at) == {source.decided_at[0]}


async def test_one_that_never_stops_leaves_turns_to_the_others(store: SQLiteStore) -> None:
    loud, quiet = [Source(number) for number in range(2, 22)], Source(1)
    for source in loud:
        source.say(*range(1, 1001))  # more than is read at once
    quiet.say(1)
    async with swept(store, *loud, quiet):
        await quiet.until(1)
        assert sum(len(source.steps) for source in loud) < 20_000
        for source in loud:
            await source.until(1000)
    assert all(source.steps == list(range(1, 1001)) for source in loud)


@pytest.mark.parametrize("lines", ["", "nonsense\n"])
async def test_one_that_says_nothing_of_use_without_end_leaves_turns_to_the_others(
    store: SQLiteStore, lines: str
) -> None:
    class Endless(Source):
        reads = 0

        def read(self, most: int) -> LineBatch | None:
            self.reads += 1
            assert self.reads < 1000
            return LineBatch([(1, line) for line in lines.encode().splitlines()]) if lines else None

        def decided(self, intake: LineBatch, outcomes: Sequence[Outcome]) -> None:
            assert not outcomes

    endless, other = Endless(1), Source(2)
    endless.say(1)
    async with swept(store, endless, other):
        other.say(1)
        await other.until(1)
    assert endless.reads < 1000


async def test_all_sources_together_are_asked_for_one_turn_of_lines(store: SQLiteStore) -> None:
    read = [0]  # lines, between two turns of this task, in which the sweep may come twice

    class Endless(Source):
        def read(self, most: int) -> LineBatch | None:
            read[-1] += most
            return LineBatch([(1, b"nonsense")] * most)

        def decided(self, intake: LineBatch, outcomes: Sequence[Outcome]) -> None:
            assert not outcomes

    endless = [Endless(number) for number in range(1, 20)]
    for source in endless:
        source.theirs.sendall(b"\n")
    async with swept(store, *endless):
        for _ in range(100):
            await trio.lowlevel.checkpoint()
            read.append(0)
    assert TURN_LINES <= max(read) <= 3 * TURN_LINES


async def test_what_befalls_one_is_its_own_affair(store: SQLiteStore) -> None:
    class Broken(Source):
        def read(self, most: int) -> LineBatch | None:
            super().read(most)
            raise OSError("the cable is cut")

    broken, other = Broken(1), Source(2)
    broken.enough = True
    async with swept(store, broken, other) as sweep:
        broken.say(1)
        with trio.fail_after(PATIENCE), pytest.raises(OSError, match="the cable is cut"):
            await sweep.read(broken)
        other.say(1)
        await other.until(1)


async def test_a_source_is_read_until_it_is_enough_and_may_come_again(store: SQLiteStore) -> None:
    source = Source()
    source.enough = True
    async with swept(store, source) as sweep:
        for step in (1, 2):
            source.say(step)
            with trio.fail_after(PATIENCE):
                await sweep.read(source)
            await source.until(step)
    assert source.steps == [1, 2]


# Whose turn it is, and how many bytes.
PIECES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 400)), max_size=30)


@given(PIECES)
async def test_however_it_is_cut_each_gets_what_is_its_own_in_order(pieces: list[tuple[int, int]]) -> None:
    sources = {number: Source(number) for number in (1, 2, 3)}
    unsaid = {
        number: b"".join(line(progress(job_id(number), step, 100)) for step in range(1, 11)) for number in sources
    }
    with (
        tempfile.TemporaryDirectory() as directory,
        closing(SQLiteStore.open(Path(directory) / "progressd.db")) as store,
    ):
        async with swept(store, *sources.values()):
            for number, size in [*pieces, (1, 10_000), (2, 10_000), (3, 10_000)]:
                piece, unsaid[number] = unsaid[number][:size], unsaid[number][size:]
                if piece:
                    sources[number].theirs.sendall(piece)
                    await trio.lowlevel.checkpoint()
            for source in sources.values():
                await source.until(10)
    assert all(source.steps == list(range(1, 11)) for source in sources.values())
