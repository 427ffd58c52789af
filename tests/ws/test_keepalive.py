"""Keep-alive without connections."""

from typing import Any, cast

import trio
import trio.testing
from progressd.config.settings import Limits
from progressd.ws.keepalive import KeepAlive


async def test_a_client_that_leaves_at_once_stops_nothing(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    keepalive, outbox = KeepAlive(Limits()), cast(Any, object())
    nursery.start_soon(keepalive.run)
    await trio.testing.wait_all_tasks_blocked()
    keepalive.add(outbox)
    keepalive.remove(outbox)
    await trio.sleep(3600)
