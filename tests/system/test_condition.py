"""Conditions: a task waits until its predicate is true."""

import trio
from progressd.system.condition import Condition
from support.waiting import PATIENCE
from trio.testing import wait_all_tasks_blocked


class Queue:
    """A queue whose consumers wait for items."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self.taken: list[int] = []
        self.checks = 0
        self.changed = Condition()

    def put(self, *items: int) -> None:
        self.items += items
        self.changed.notify()

    def has_items(self) -> bool:
        self.checks += 1
        return bool(self.items)

    async def consume(self) -> None:
        while True:
            await self.changed.wait_for(self.has_items)
            self.taken.append(self.items.pop(0))


async def test_one_task_takes_each_item(nursery: trio.Nursery) -> None:
    queue = Queue()
    for _ in range(3):
        nursery.start_soon(queue.consume)
    for item in range(5):
        await wait_all_tasks_blocked()
        queue.put(item)
    await wait_all_tasks_blocked()
    queue.put(5, 6)
    await wait_all_tasks_blocked()
    assert queue.taken == list(range(7))
    nursery.cancel_scope.cancel()


async def test_a_true_predicate_returns_at_once() -> None:
    queue = Queue()
    queue.put(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await queue.changed.wait_for(queue.has_items)
    assert not scope.cancelled_caught


async def test_a_waiting_task_checks_only_after_a_notification(nursery: trio.Nursery) -> None:
    queue = Queue()
    nursery.start_soon(queue.consume)
    await wait_all_tasks_blocked()
    assert queue.checks == 1
    for _ in range(10):  # in one turn of the event loop
        queue.changed.notify()
    await wait_all_tasks_blocked()
    assert (queue.checks, queue.taken) == (2, [])
    nursery.cancel_scope.cancel()


async def test_a_cancelled_waiter_does_not_block_others(nursery: trio.Nursery) -> None:
    queue = Queue()
    with trio.move_on_after(0):
        await queue.consume()
    nursery.start_soon(queue.consume)
    await wait_all_tasks_blocked()
    queue.put(1)
    with trio.fail_after(PATIENCE):
        await wait_all_tasks_blocked()
    assert queue.taken == [1]
    nursery.cancel_scope.cancel()
