from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from progressd.client.websocket import KeepAlive
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from trio_websocket import WebSocketConnection, wrap_client_stream, wrap_server_stream

INTERVAL = 30.0


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[WebSocketConnection, WebSocketConnection, trio.CancelScope]]:
    """A client, the daemon's side of it, and the scope without which that side answers nothing."""
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


async def test_a_daemon_with_nothing_to_say_is_kept_as_long_as_it_answers(autojump_clock: MockClock) -> None:
    async with pair() as (client, server, _), trio.open_nursery() as nursery:
        pulse = KeepAlive(client)
        nursery.start_soon(pulse.check, INTERVAL, nursery.cancel_scope)
        with trio.move_on_after(3600) as hour:
            await pulse.receive()
        assert hour.cancelled_caught
        await server.send_message("at last")
        assert await pulse.receive() == "at last"
        nursery.cancel_scope.cancel()


async def test_a_daemon_that_is_gone_without_a_word_is_given_up_within_a_minute(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    async with pair() as (client, _, answering), trio.open_nursery() as nursery:
        answering.cancel()
        pulse = KeepAlive(client)
        nursery.start_soon(pulse.check, INTERVAL, nursery.cancel_scope)
        await pulse.receive()
        raise AssertionError("not cancelled")
    assert nursery.cancel_scope.cancelled_caught
    assert trio.current_time() - start < 60


async def test_a_reader_who_takes_his_time_is_no_reason_to_give_up(autojump_clock: MockClock) -> None:
    async with pair() as (client, server, _), trio.open_nursery() as nursery:
        pulse = KeepAlive(client)
        nursery.start_soon(pulse.check, INTERVAL, nursery.cancel_scope)
        for number in range(5):  # more than the client queues, so that pongs wait behind them
            nursery.start_soon(server.send_message, str(number))
        got = [await pulse.receive()]
        await trio.sleep(3600)
        got += [await pulse.receive() for _ in range(4)]
        assert sorted(str(text) for text in got) == ["0", "1", "2", "3", "4"]
        nursery.cancel_scope.cancel()


async def test_a_closed_connection_ends_both(autojump_clock: MockClock) -> None:
    async with pair() as (client, server, _), trio.open_nursery() as nursery:
        pulse = KeepAlive(client)
        nursery.start_soon(pulse.check, INTERVAL, nursery.cancel_scope)
        nursery.start_soon(server.aclose)
        assert await pulse.receive() is None
