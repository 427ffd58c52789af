import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from progressd.client import watcher
from progressd.client.endpoint import MAX_DELAY, MAX_LOCAL_DELAY, MIN_DELAY, backoff, on_this_machine
from progressd.client.errors import APIError, ConnectError, InvalidURL, StreamClosed
from progressd.client.watcher import Disconnected
from progressd.core.messages import Completed, Progress, StatusChange
from support.waiting import PATIENCE
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

JOB = "6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c"

Script = Callable[[WebSocketRequest], Awaitable[None]]

soon: Any = {"backoff": lambda failures: backoff(failures) / 100}
watch, watch_texts = partial(watcher.watch, **soon), partial(watcher.watch_texts, **soon)


def progress(step: int, cursor: str) -> str:
    data = {"current_step": step, "total_steps": 4, "step_name": "Deskew", "percent": 25 * step}
    return json.dumps({"type": "progress", "job_id": JOB, "data": data, "cursor": cursor})


def status(old: str, new: str, cursor: str) -> str:
    data = {"old_status": old, "new_status": new}
    return json.dumps({"type": "status_change", "job_id": JOB, "data": data, "cursor": cursor})


def completed(cursor: str) -> str:
    data = {"output_path": "/x", "elapsed_seconds": 1.5, "page_count": 4, "download_url": "/x"}
    return json.dumps({"type": "completed", "job_id": JOB, "data": data, "cursor": cursor})


END = [status("processing", "completed", "s-8"), completed("s-9")]


def says(*texts: str | bytes, close: int = 1000, reason: str = "job finished") -> Script:
    async def script(request: WebSocketRequest) -> None:
        websocket = await request.accept()
        for text in texts:
            await websocket.send_message(text)
        await websocket.aclose(close, reason)

    return script


def breaks(*texts: str) -> Script:
    async def script(request: WebSocketRequest) -> None:
        websocket = await request.accept()
        for text in texts:
            await websocket.send_message(text)
        await websocket._stream.aclose()

    return script


def refuses(status: int, body: dict[str, object] | bytes, **headers: str) -> Script:
    async def script(request: WebSocketRequest) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await request.reject(status, extra_headers=named, body=raw)

    return script


@dataclass
class Daemon:
    url: str
    paths: list[str] = field(default_factory=list)


@asynccontextmanager
async def daemon(*scripts: Script) -> AsyncIterator[Daemon]:
    """A real server that follows one script for each connection."""
    left = list(scripts)

    async def handle(request: WebSocketRequest) -> None:
        served.paths.append(request.path)
        await left.pop(0)(request)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_websocket, handle, "127.0.0.1", 0, None))
        served = Daemon(f"http://127.0.0.1:{server.port}")
        yield served
        nursery.cancel_scope.cancel()


async def test_the_messages_of_a_job_end_with_the_job() -> None:
    script = says(status("queued", "processing", "s-1"), progress(2, "s-2"), *END)
    async with daemon(script) as served, watch(served.url, JOB) as messages:
        got = [message async for message in messages]
    assert [type(message) for message in got] == [StatusChange, Progress, StatusChange, Completed]
    assert isinstance(got[1], Progress)
    assert got[1].data.percent == 50
    assert served.paths == [f"/ws/jobs/{JOB}"]


async def test_all_jobs_are_below_the_base_path() -> None:
    async with daemon(says(progress(1, "s-1"))) as served, watch(f"{served.url}/base/") as messages:
        assert [type(message) async for message in messages] == [Progress]
    assert served.paths == ["/base/ws/jobs"]


async def test_texts_include_unknown_types() -> None:
    unknown = '{"type":"from_the_future",  "x":1}'
    async with daemon(says(unknown, b"binary", *END), says(unknown, *END)) as served:
        async with watch_texts(served.url, JOB) as texts:
            assert [received.text async for received in texts] == [unknown, *END]
        async with watch(served.url, JOB) as messages:
            assert [type(message) async for message in messages] == [StatusChange, Completed]


@pytest.mark.parametrize(
    "end",
    [
        lambda texts: says(*texts, close=1001, reason="draining"),
        lambda texts: says(*texts, close=4000, reason="slow consumer"),
        lambda texts: says(*texts, close=4001, reason="timed out"),
        lambda texts: breaks(*texts),
    ],
    ids=["draining", "slow consumer", "timed out", "connection broken"],
)
async def test_it_reconnects_from_the_last_cursor(end: Callable[[list[str]], Script]) -> None:
    losses: list[Disconnected] = []
    first = [progress(1, "s-1"), progress(2, "s-2")]
    rest = [progress(3, "s-3"), *END]
    async with daemon(end(first), says(*rest)) as served, watch_texts(served.url, JOB, on_lost=losses.append) as texts:
        assert [received.text async for received in texts] == first + rest
    assert served.paths == [f"/ws/jobs/{JOB}", f"/ws/jobs/{JOB}?since=s-2"]
    assert [lost.failures for lost in losses] == [0]


async def test_every_connection_asks_for_the_same_messages() -> None:
    options: Any = {"interval": 2.5, "types": ["progress", "job_created"]}
    script = says(progress(1, "s-1"), close=1001)
    async with daemon(script, says(*END)) as served, watch_texts(served.url, **options) as texts:
        assert [received.text async for received in texts] == [progress(1, "s-1"), *END]
    query = "interval=2.5&types=job_created%2Cprogress"
    assert served.paths == [f"/ws/jobs?{query}", f"/ws/jobs?{query}&since=s-1"]


async def test_it_reconnects_from_the_cursor_of_hello() -> None:
    hello = '{"type":"hello","cursor":"s-5"}'
    async with daemon(says(hello, close=1001), says(*END)) as served, watch(served.url, JOB) as messages:
        assert [type(message) async for message in messages] == [StatusChange, Completed]
    assert served.paths[1] == f"/ws/jobs/{JOB}?since=s-5"
    async with daemon(says(hello, *END)) as served, watch_texts(served.url, JOB) as texts:
        assert [received.text async for received in texts] == [hello, *END]


async def test_a_message_without_a_cursor_keeps_the_last_one() -> None:
    shutdown = '{"type":"server_shutdown","data":{"reason":"restart","countdown_secs":3}}'
    script = says(progress(1, "s-1"), shutdown, close=1001)
    async with daemon(script, says(*END)) as served, watch(served.url, JOB) as messages:
        assert len([message async for message in messages]) == 4
    assert served.paths[1] == f"/ws/jobs/{JOB}?since=s-1"


async def test_close_codes_from_4500_are_final() -> None:
    async with daemon(says(progress(1, "s-1"), close=4501, reason="job deleted")) as served:
        with pytest.raises(StreamClosed, match=r"job deleted \(close code 4501\)") as caught:
            async with watch(served.url, JOB) as messages:
                assert [type(message) async for message in messages] == [Progress]
    assert caught.value.code == 4501


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (404, {"error": f"no job {JOB}"}, f"no job {JOB}"),
        (400, b"<h1>Bad Request</h1>", "URL answered with HTTP status 400"),
        (429, b"<h1>Bad Gateway</h1>", "URL answered with HTTP status 429"),
        (502, b"<h1>Bad Gateway</h1>", "URL answered with HTTP status 502"),
    ],
)
async def test_a_rejected_first_connection_raises_an_error(
    status: int, body: dict[str, object] | bytes, sentence: str
) -> None:
    async with daemon(refuses(status, body)) as served:
        with pytest.raises(APIError) as caught:
            async with watch(served.url, JOB) as messages:
                assert [message async for message in messages] == []
    assert (caught.value.status, str(caught.value)) == (status, sentence.replace("URL", served.url))


async def test_503_is_retried_after_retry_after() -> None:
    losses: list[Disconnected] = []
    full = refuses(503, {"error": "too many connections"}, Retry_After="1")
    async with daemon(full, says(*END)) as served, watch(served.url, JOB, on_lost=losses.append) as messages:
        assert len([message async for message in messages]) == 2
    assert [(lost.reason, lost.delay) for lost in losses] == [("too many connections", 1)]


async def test_a_proxy_without_its_daemon_is_retried() -> None:
    losses: list[Disconnected] = []
    first = says(progress(1, "s-1"), close=1001)
    proxy = daemon(first, refuses(502, b"Bad Gateway"), says(*END))
    async with proxy as served, watch(served.url, JOB, on_lost=losses.append) as messages:
        assert len([message async for message in messages]) == 3
    assert [lost.reason for lost in losses][1] == f"{served.url} answered with HTTP status 502"


async def test_an_unreachable_daemon_raises_an_error(free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    with pytest.raises(ConnectError, match=f"^no daemon answers at {url}; start one with: progressd serve$"):
        async with watch(url, JOB) as messages:
            assert [message async for message in messages] == []


async def test_it_retries_until_the_daemon_returns(free_port: int) -> None:
    losses: list[Disconnected] = []
    listening, gone = trio.CancelScope(), trio.Event()

    async def leaves(request: WebSocketRequest) -> None:
        listening.cancel()
        await gone.wait()
        await says(progress(1, "s-1"), close=1001)(request)

    async def serve(nursery: trio.Nursery, task_status: trio.TaskStatus[object]) -> None:
        with listening:
            await serve_websocket(
                leaves, "127.0.0.1", free_port, None, handler_nursery=nursery, task_status=task_status
            )
        gone.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve, nursery)

        def lost(one: Disconnected) -> None:
            losses.append(one)
            if len(losses) == 2:
                nursery.start_soon(serve_websocket, says(*END), "127.0.0.1", free_port, None)

        async with watch(f"http://127.0.0.1:{free_port}", JOB, on_lost=lost) as messages:
            assert len([message async for message in messages]) == 3
        nursery.cancel_scope.cancel()
    assert len(losses) >= 2
    assert [lost.failures for lost in losses] == list(range(len(losses)))


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://host", "http://", "http://host:port", "http://h/?a=b"])
async def test_an_invalid_url_raises_an_error(url: str) -> None:
    with pytest.raises(InvalidURL, match="is not the address of a daemon: use a URL such as http://"):
        async with watch(url, JOB) as messages:
            assert [message async for message in messages] == []


async def test_leaving_early_closes_the_connection() -> None:
    codes: list[int] = []
    closed = trio.Event()

    async def endless(request: WebSocketRequest) -> None:
        websocket = await request.accept()
        await websocket.send_message(progress(1, "s-1"))
        with pytest.raises(ConnectionClosed) as caught:
            await websocket.get_message()
        assert caught.value.reason is not None
        codes.append(caught.value.reason.code)
        closed.set()

    async with daemon(endless) as served:
        async with watch(served.url) as messages:
            async for message in messages:
                assert isinstance(message, Progress)
                break
        with trio.fail_after(PATIENCE):
            await closed.wait()
    assert codes == [1000]


async def test_an_error_in_the_block_is_not_wrapped() -> None:
    async with daemon(says(progress(1, "s-1"), *END)) as served:
        with pytest.raises(OSError, match=r"^disk full$"):  # noqa: PT012
            async with watch(served.url, JOB) as messages:
                async for _ in messages:
                    raise OSError("disk full")


async def test_the_wait_for_a_daemon_on_the_same_machine_is_short() -> None:
    with trio.CancelScope() as waiting:
        delays: list[float] = []

        def lost(one: Disconnected) -> None:
            delays.append(one.delay)
            waiting.cancel()

        async with daemon(breaks()) as served:
            watching = watcher._Watcher(served.url, JOB, None, lost, None)
            watching._failures = 10
            await watching.run(trio.lowlevel.checkpoint)  # type: ignore[arg-type]
    assert len(delays) == 1
    assert MAX_LOCAL_DELAY / 2 <= delays[0] <= MAX_LOCAL_DELAY


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("", True),
        ("http://127.0.0.2:8080", True),
        ("http://[::1]:8080", True),
        ("https://localhost/jobs", True),
        ("http://192.0.2.1:8080", False),
        ("http://127.example.org", False),
    ],
)
def test_a_loopback_address_is_on_this_machine(url: str, same: bool) -> None:
    assert on_this_machine(url) == same


@given(st.integers(0, 10_000))
def test_backoff_doubles_up_to_a_limit(failures: int) -> None:
    delay = backoff(failures)
    longest = MAX_DELAY if failures > 10 else min(MAX_DELAY, MIN_DELAY * 2**failures)
    assert longest / 2 <= delay <= longest


async def in_asyncio(url: str, **options: Any) -> list[str]:
    async with watch_texts(url, JOB, **options) as texts:
        return [received.text async for received in texts]


def in_a_block(url: str, **options: Any) -> list[str]:
    with watch_texts(url, JOB, **options) as texts:
        return [received.text for received in texts] + [received.text for received in texts]


WITHOUT_TRIO: list[Callable[..., list[str]]] = [
    lambda url, **options: [received.text for received in watch_texts(url, JOB, **options)],
    in_a_block,
    lambda url, **options: asyncio.run(in_asyncio(url, **options)),
]
without_trio = pytest.mark.parametrize("collect", WITHOUT_TRIO, ids=["loop", "block", "asyncio"])


@without_trio
async def test_programs_without_trio_reconnect_too(collect: Callable[..., list[str]]) -> None:
    losses: list[Disconnected] = []
    first, rest = [progress(1, "s-1"), progress(2, "s-2")], [progress(3, "s-3"), *END]
    async with daemon(says(*first, close=1001), says(*rest)) as served:
        got = await trio.to_thread.run_sync(partial(collect, served.url, on_lost=losses.append))
    assert got == first + rest
    assert served.paths == [f"/ws/jobs/{JOB}", f"/ws/jobs/{JOB}?since=s-2"]
    assert [lost.failures for lost in losses] == [0]


@without_trio
async def test_programs_without_trio_receive_the_error(collect: Callable[..., list[str]]) -> None:
    async with daemon(refuses(404, {"error": "no job"})) as served:
        with pytest.raises(APIError, match="no job"):
            await trio.to_thread.run_sync(collect, served.url)
    with pytest.raises(ConnectError, match="no daemon answers"):
        await trio.to_thread.run_sync(collect, served.url)
    with pytest.raises(InvalidURL):
        await trio.to_thread.run_sync(collect, "ftp://progress")


async def test_a_cancelled_wait_in_asyncio_loses_nothing() -> None:
    go = trio.Event()

    async def script(request: WebSocketRequest) -> None:
        websocket = await request.accept()
        await go.wait()
        for text in [progress(1, "s-1"), *END]:
            await websocket.send_message(text)
        await websocket.aclose(1000, "job finished")

    async def main(token: trio.lowlevel.TrioToken, url: str) -> list[str]:
        async with watch_texts(url, JOB) as texts:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(texts), 0.01)
            token.run_sync_soon(go.set)
            return [received.text async for received in texts]

    async with daemon(script) as served:
        got = await trio.to_thread.run_sync(asyncio.run, main(trio.lowlevel.current_trio_token(), served.url))
    assert got == [progress(1, "s-1"), *END]


@pytest.mark.parametrize("loop", [False, True])
async def test_leaving_the_block_early_closes_the_connection(loop: bool) -> None:
    closed = trio.Event()

    async def script(request: WebSocketRequest) -> None:
        websocket = await request.accept()
        await websocket.send_message(progress(1, "s-1"))
        with pytest.raises(ConnectionClosed):
            await websocket.get_message()
        closed.set()

    async def in_loop() -> None:
        async with watch(served.url, JOB) as messages:
            waiting = asyncio.ensure_future(anext(messages))
            assert isinstance(await waiting, Progress)
            waiting = asyncio.ensure_future(anext(messages))  # never finishes
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await waiting

    def in_block() -> None:
        with watch(served.url, JOB) as messages:
            assert isinstance(next(messages), Progress)
        assert list(messages) == []

    async with daemon(script) as served:
        await trio.to_thread.run_sync(*([asyncio.run, in_loop()] if loop else [in_block]))
        with trio.fail_after(PATIENCE):
            await closed.wait()


async def test_a_program_may_end_while_it_watches() -> None:
    program = (
        "import sys\nfrom progressd.client import watch\nmessages = iter(watch(sys.argv[1]))\nprint(next(messages))"
    )

    async def script(request: WebSocketRequest) -> None:
        websocket = await request.accept()
        await websocket.send_message(progress(1, "s-1"))
        with pytest.raises(ConnectionClosed):
            await websocket.get_message()

    async with daemon(script) as served:
        with trio.fail_after(PATIENCE):
            done = await trio.run_process([sys.executable, "-c", program, served.url], capture_stdout=True)
    assert done.stdout.startswith(b"Progress(")


async def test_a_plain_block_does_not_block_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        watch("http://127.0.0.1:1").__enter__()
