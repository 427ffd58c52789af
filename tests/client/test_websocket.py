from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from progressd.client.websocket import KeepAlive
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from trio_websocket import WebSocketConnection, wrap_client_stream, wrap_server_stream

INTERVAL = 30.0


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[WebSocketConnection, WebSocketConnection, trio.CancelScope]]:
    """Connect a client to a server. Without the scope, the server answers nothing."""
    near, far = memory_stream_pair()
    clients: list[WebSocketConnection] = []
    answering = trio.CancelScope()

    async def connect() -> None:
        clients.append(await wrap_client_stream(nursery, near, "daemon", "/ws/jobs"))

    async def serve(task_status: trio.TaskStatus[WebSocketConnection]) -> None:
        with answering:
            async with trio.open_nursery() as serving:
                request = await wrap_server_stream(serving, far)
                task_status.started(await request.accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        server = await nursery.start(serve)
        await wait_all_tasks_blocked()
        yield clients[0], server, answering
        nursery.cancel_scope.cancel()


async def test_an_idle_connection_stays_open(autojump_clock: MockClock) -> None:
    async with pair() as (client, server, _), trio.open_nursery() as nursery:
        keepalive = KeepAlive(client)
        nursery.start_soon(keepalive.check, INTERVAL, nursery.cancel_scope)
        with trio.move_on_after(3600) as hour:
            await keepalive.receive()
        assert hour.cancelled_caught
        await server.send_message("at last")
        assert await keepalive.receive() == "at last"
        nursery.cancel_scope.cancel()


async def test_a_daemon_that_vanished_is_detected(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    async with pair() as (client, _, answering), trio.open_nursery() as nursery:
        answering.cancel()
        keepalive = KeepAlive(client)
        nursery.start_soon(keepalive.check, INTERVAL, nursery.cancel_scope)
        await keepalive.receive()
        raise AssertionError("not cancelled")
    assert nursery.cancel_scope.cancelled_caught
    assert trio.current_time() - start < 60


async def test_a_slow_reader_keeps_its_connection(autojump_clock: MockClock) -> None:
    async with pair() as (client, server, _), trio.open_nursery() as nursery:
        keepalive = KeepAlive(client)
        nursery.start_soon(keepalive.check, INTERVAL, nursery.cancel_scope)
        for number in range(5):  # more than the client queues: pongs wait behind them
            nursery.start_soon(server.send_message, str(number))
        got = [await keepalive.receive()]
        await trio.sleep(3600)
        got += [await keepalive.receive() for _ in range(4)]
        assert sorted(str(text) for text in got) == ["0", "1", "2", "3", "4"]
        nursery.cancel_scope.cancel()


async def test_a_close_ends_the_keepalive(autojump_clock: MockClock) -> None:
    async with pair() as (client, server, _), trio.open_nursery() as nursery:
        keepalive = KeepAlive(client)
        nursery.start_soon(keepalive.check, INTERVAL, nursery.cancel_scope)
        nursery.start_soon(server.aclose)
        assert await keepalive.receive() is None
