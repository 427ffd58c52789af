"""An outbox whose connection is over, while its sender, the budget and the server still know it."""

from collections.abc import Awaitable, Callable

import trio
import trio.testing
from progressd.broadcast.backlog import MemoryBudget
from progressd.broadcast.envelope import Envelope, FrameBatch
from progressd.broadcast.outbox import SocketOutbox
from progressd.core.close_codes import DRAINING, CloseCode
from support.samples import started


class Sink:
    """A transport that is full until it is opened."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.sent = b""

    def send(self, data: bytes) -> int:
        if not self.open.is_set():
            raise BlockingIOError
        self.sent += data
        return len(data)

    async def wait_writable(self) -> None:
        await self.open.wait()


class Connection:
    """An outbox in a nursery that may be closed and then rejects tasks."""

    def __init__(self, budget: MemoryBudget, nursery: trio.Nursery | None) -> None:
        self.sink = Sink()
        self.endings: list[CloseCode] = []
        self._nursery = nursery
        self.outbox = SocketOutbox(self.sink, 10_000, self.start, self.end, budget)

    def start(self, sender: Callable[[], Awaitable[None]]) -> None:
        assert self._nursery is not None, "the nursery is closed"
        self._nursery.start_soon(sender)

    def end(self, code: CloseCode) -> None:
        assert self._nursery is not None, "the nursery is closed"
        self.endings.append(code)

    def leave(self) -> None:
        self.outbox.discard()
        self._nursery = None


def message() -> FrameBatch[Envelope]:
    return FrameBatch([Envelope(1, started())])


async def test_a_discarded_outbox_leaves_the_budget(nursery: trio.Nursery) -> None:
    budget = MemoryBudget(100_000)
    connection = Connection(budget, nursery)
    connection.outbox.put(message())
    await trio.testing.wait_all_tasks_blocked()
    assert budget.used > 0
    connection.sink.open.set()  # the sender is scheduled when the connection ends
    connection.leave()
    await trio.testing.wait_all_tasks_blocked()
    assert budget.used == 0
    assert connection.sink.sent == b""


async def test_a_discarded_outbox_is_not_given_up(nursery: trio.Nursery) -> None:
    budget = MemoryBudget(1000)
    gone, slow = Connection(budget, nursery), Connection(budget, nursery)
    gone.outbox.put(message())
    gone.leave()
    for _ in range(20):
        slow.outbox.put(message())
    assert gone.endings == []
    assert [closing.code for closing in slow.endings] == [4000]


async def test_a_discarded_outbox_starts_no_task(nursery: trio.Nursery) -> None:
    connection = Connection(MemoryBudget(), nursery)
    connection.leave()
    connection.outbox.put(message())
    connection.outbox.write(b"\x89\x00")
    connection.outbox.end(DRAINING)
    connection.outbox.give_up()
    assert connection.endings == []
