"""The heartbeat of all watchers, as far as no connection is needed to see it."""

from typing import Any, cast

import trio
import trio.testing
from progressd.config.settings import Limits
from progressd.ws.keepalive import KeepAlive


async def test_a_watcher_that_leaves_as_soon_as_it_came_ends_nothing(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    heartbeat, watcher = KeepAlive(Limits()), cast(Any, object())
    nursery.start_soon(heartbeat.run)
    await trio.testing.wait_all_tasks_blocked()
    heartbeat.add(watcher)
    heartbeat.remove(watcher)
    await trio.sleep(3600)
