"""Read the ready lines of all producers together, so that their events share a batch, its commit and its sends.

With 20 watchers of all jobs, a single event costs 65 µs; each of ten events together costs 25 µs. So one task waits for
an epoll set of all sockets. A task per producer would be woken for each event.
"""

import select
from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias

import trio

from progressd.core.errors import Unavailable
from progressd.engine.ingest import Ingest, Outcome
from progressd.producers.ndjson import TURN_LINES, LineBatch, Turn

POLL_INTERVAL: Final = 0.005  # seconds between two rounds, unless a producer waits for an answer or a turn was full
MAX_READY: Final = 8  # sources per epoll call; the kernel rotates among the ready sources
MAX_READS: Final = 32  # reads in one round, including reads without a line


class Pollable(Protocol):
    """A producer to read with the poller."""

    def fileno(self) -> int:
        """Return the descriptor of a non-blocking socket."""

    def read(self, max_lines: int) -> LineBatch | None:
        """Read the next lines, if any are ready. Blank lines count. An error stops the reading."""

    @property
    def paused(self) -> bool:
        """Return whether the poller must stop reading."""

    def decided(self, batch: LineBatch, outcomes: Sequence[Outcome]) -> None:
        """Handle the outcomes of the events in a batch."""


class Registration:
    """A source in the poller."""

    def __init__(self, source: Pollable) -> None:
        self.source = source
        self.over = trio.Event()
        self.error: Exception | None = None

    def read(self, max_lines: int) -> LineBatch | None:
        """Read what is ready. Pass an error to the task of the source, so that other sources continue."""
        try:
            batch = self.source.read(max_lines)
        except Exception as error:
            self.error = error
            self.over.set()
            return None
        if self.source.paused:
            self.over.set()
        return batch


Round: TypeAlias = list[tuple[Pollable, LineBatch]]


class Poller:
    """Read many sources in one task, `run`."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._epoll = select.epoll()
        self._registrations: dict[int, Registration] = {}

    async def read(self, source: Pollable) -> None:
        """Read a source until it is paused. Raises the error of its `read`."""
        registration = Registration(source)
        descriptor = source.fileno()
        self._epoll.register(descriptor, select.EPOLLIN)
        self._registrations[descriptor] = registration
        try:
            await registration.over.wait()
        finally:
            self._forget(descriptor)
        if registration.error is not None:
            raise registration.error

    async def run(self) -> None:
        """Read until cancelled."""
        with self._epoll:
            while True:
                began = trio.current_time()
                if round_ := self._read():
                    await self._submit(round_)
                    batches = [batch for _, batch in round_]
                    if sum(map(len, batches)) < TURN_LINES and not any(batch.asks for batch in batches):
                        await trio.sleep_until(began + POLL_INTERVAL)
                else:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())

    def _read(self) -> Round:
        round_, turn, reads = Round(), Turn(), 0
        while not turn.over and reads < MAX_READS and (ready := self._epoll.poll(0, MAX_READY)):
            reads += len(ready)
            share = max(1, turn.left // len(ready))
            for descriptor, _ in ready:
                registration = self._registrations[descriptor]
                if batch := registration.read(share):
                    round_.append((registration.source, batch))
                    turn.count(len(batch))
                if registration.over.is_set():
                    self._forget(descriptor)
        return round_

    def _forget(self, descriptor: int) -> None:
        if self._registrations.pop(descriptor, None) and not self._epoll.closed:
            self._epoll.unregister(descriptor)

    async def _submit(self, round_: Round) -> None:
        events = [event for _, batch in round_ for event in batch.events]
        outcomes: Sequence[Outcome]
        try:
            outcomes = await self._ingest.submit(*events)
        except Unavailable as error:
            outcomes = [error] * len(events)
        position = 0
        for source, batch in round_:
            end = position + len(batch.events)
            source.decided(batch, outcomes[position:end])
            position = end
