"""Server-sent events and long polls."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h11
import httpx
import pytest
import trio
from progressd.auth.authenticator import ANONYMOUS, Client
from progressd.auth.limits import ConnectionLimiter
from progressd.broadcast.broadcaster import ReaderOutbox
from progressd.core.messages import ServerStatus, ServerStatusData
from progressd.http.streams import HTTPStreams
from support.daemon import (
    PATIENCE,
    RunningDaemon,
    completed,
    failed,
    progress,
    registered,
    running_daemon,
    settings_in,
    status_change,
)
from support.http_client import client_of, error_of
from support.samples import ID, job_id
from support.waiting import eventually
from trio_websocket import ConnectionRejected

OTHER = job_id(2)


class Event(NamedTuple):
    id: str
    message: Any


class Stream:
    """A client of server-sent events on its own connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.headers: dict[str, str] = {}
        self.comments = 0
        self.hello: Event | None = None
        self.retry: int | None = None
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self._text = ""

    async def ask(self, path: str, headers: dict[str, str]) -> None:
        request = h11.Request(method="GET", target=path, headers=[("Host", "progressd"), *headers.items()])
        await self._stream.send_all((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        response = await self._next()
        assert isinstance(response, h11.Response)
        assert response.status_code == 200
        self.headers = {name.decode(): value.decode() for name, value in response.headers}

    async def event(self) -> Event | None:
        """Return the next event other than `hello`, None at the end of the stream."""
        while True:
            block, blank, rest = self._text.partition("\n\n")
            if blank:
                self._text = rest
                event = self._read(block)
                if event is not None and event.message["type"] == "hello":
                    self.hello = event
                elif event is not None:
                    return event
                continue
            data = await self._next()
            if isinstance(data, h11.EndOfMessage):
                return None
            assert isinstance(data, h11.Data)
            self._text += data.data.decode()

    async def receive(self) -> Any:
        event = await self.event()
        assert event is not None, "the stream has ended"
        return event.message

    async def rest(self) -> list[Any]:
        messages = []
        while (event := await self.event()) is not None:
            messages.append(event.message)
        return messages

    def _read(self, block: str) -> Event | None:
        fields = dict(line.split(":", 1) for line in block.split("\n"))
        self.comments += "" in fields
        if "retry" in fields:
            self.retry = int(fields["retry"])
        return Event(fields.get("id", "").strip(), json.loads(fields["data"])) if "data" in fields else None

    async def _next(self) -> Any:
        with trio.fail_after(PATIENCE):
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive_some())
        return event


@asynccontextmanager
async def streaming(daemon: RunningDaemon, path: str, headers: dict[str, str] | None = None) -> AsyncIterator[Stream]:
    async with await daemon.connect() as connection:
        stream = Stream(connection)
        await stream.ask(path, headers or {})
        yield stream


def types(messages: list[Any]) -> list[str]:
    return [message["type"] for message in messages]


async def test_progress_has_all_its_details(daemon: RunningDaemon) -> None:
    task = {"id": "a", "name": "Layer a", "current": 5, "total": 10, "state": "processing", "unit": "B"}
    details = {"unit": "B", "rate": 2.5, "phase": "Pull", "tasks": [task]}
    data = {"current_step": 5, "total_steps": 10, **details, "eta_seconds": 90}
    expected: dict[str, Any] = {
        **details,
        "percent": 50,
        "eta_seconds": 90,
        "eta": {"seconds": 90, "low": 72, "high": 112.5},
    }
    await daemon.report(registered(ID))
    async with streaming(daemon, "/api/events") as live:
        await daemon.report({"type": "progress", "job_id": ID, "data": data})
        message = await live.receive()
        while message["type"] != "progress":
            message = await live.receive()
    async with streaming(daemon, f"/api/jobs/{ID}/events") as late:
        snapshot = [await late.receive() for _ in range(2)][-1]
    for shown in (message["data"], snapshot["data"]):
        eta = {name: shown["eta"][name] for name in expected["eta"]}
        assert {**{name: shown[name] for name in expected}, "eta": eta} == expected
        assert shown["eta"]["from"] == "producer"


async def test_a_stream_has_a_job_from_start_to_end(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    async with streaming(daemon, f"/api/jobs/{ID}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store"
        assert "content-length" not in stream.headers
        await daemon.report(progress(ID, 1, 4, "Tape 1"))
        start, first = await stream.event(), await stream.event()
        await daemon.report(completed(ID))
        rest = await stream.rest()
    assert start is not None
    assert first is not None
    assert stream.retry is not None
    assert start.message["data"] == {"old_status": "queued", "new_status": "processing"}
    assert first.message["data"]["step_name"] == "Tape 1"
    assert [start.id, first.id] == [start.message["cursor"], first.message["cursor"]]
    assert types(rest) == ["status_change", "completed"]


async def test_a_stream_has_every_job(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    async with streaming(daemon, "/api/events") as stream:
        assert (await stream.receive())["job_id"] == ID
        await daemon.report(registered(OTHER), progress(OTHER, 1), completed(OTHER), progress(ID, 1))
        messages = [await stream.receive() for _ in range(7)]
    assert types(messages) == [
        *("job_created", "status_change", "progress", "status_change", "completed"),
        *("status_change", "progress"),
    ]


async def test_a_reconnecting_client_misses_nothing(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    async with streaming(daemon, f"/api/jobs/{ID}/events") as stream:
        await stream.event()
        last = await stream.event()
    assert last is not None
    await daemon.report(progress(ID, 2), progress(ID, 3), failed(ID, "no paper"))
    url = f"/api/jobs/{ID}/events"
    for path, headers in (
        (f"{url}?since={last.id}", {}),
        (url, {"Last-Event-ID": last.id}),
        (f"{url}?since=nonsense", {"Last-Event-ID": last.id}),
    ):
        async with streaming(daemon, path, headers) as stream:
            messages = await stream.rest()
        assert types(messages) == ["progress", "status_change", "error"]
        assert messages[0]["data"]["current_step"] == 3


async def test_a_client_can_resume_from_hello(daemon: RunningDaemon) -> None:
    async with streaming(daemon, "/api/events?types=completed") as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.event)
        await eventually(lambda: stream.hello is not None)
        nursery.cancel_scope.cancel()
    assert stream.hello is not None
    assert stream.hello == (stream.hello.id, {"type": "hello", "cursor": stream.hello.id})
    await daemon.report(registered(ID), failed(ID, "no paper"))
    async with streaming(daemon, "/api/events", {"Last-Event-ID": stream.hello.id}) as stream:
        assert types([await stream.receive() for _ in range(3)]) == ["job_created", "status_change", "error"]


async def test_resuming_after_the_end_returns_204(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID), progress(ID, 1), completed(ID))
    async with streaming(daemon, f"/api/jobs/{ID}/events") as stream:
        while (event := await stream.event()) is not None:
            last = event.id
    again = await client.get(f"/api/jobs/{ID}/events", headers={"Last-Event-ID": last})
    assert (again.status_code, again.content) == (204, b"")


async def test_an_unknown_cursor_returns_everything(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    async with streaming(daemon, f"/api/jobs/{ID}/events?since=elsewhere-7") as stream:
        resync = await stream.event()
        assert resync == ("", {"type": "resync"})
        assert types([await stream.receive(), await stream.receive()]) == ["status_change", "progress"]


async def test_types_and_interval_filter_a_stream(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    path = f"/api/jobs/{ID}/events?interval=60&types=progress"
    async with streaming(daemon, path) as stream:
        for step in range(1, 20):
            await daemon.report(progress(ID, step, 20))
        preview = {"page_number": 1, "preview_base64": "", "stage": "", "width": 1, "height": 1}
        await daemon.report({"type": "page_preview", "job_id": ID, "data": preview}, completed(ID))
        messages = await stream.rest()
    assert types(messages) == ["status_change", "progress", "progress", "status_change", "completed"]
    assert [message["data"]["current_step"] for message in messages[1:3]] == [1, 19]


async def test_a_reloaded_heartbeat_applies_to_open_streams(tmp_path: Path) -> None:
    new = settings_in(tmp_path / "state", limits={"heartbeat_interval": 0.05})
    async with running_daemon(tmp_path, lambda: new, limits={"heartbeat_interval": 59}) as daemon:
        await daemon.report(registered(ID), progress(ID, 1))
        async with streaming(daemon, f"/api/jobs/{ID}/events") as stream, trio.open_nursery() as nursery:
            while (await stream.receive())["type"] != "progress":
                pass
            daemon.kill(signal.SIGHUP)
            await eventually(lambda: daemon.daemon.settings.limits.heartbeat_interval < 1)
            await daemon.report(progress(ID, 2))  # the next wait uses the new interval
            assert (await stream.receive())["data"]["current_step"] == 2
            nursery.start_soon(stream.event)
            await eventually(lambda: stream.comments >= 3)
            await daemon.report(progress(ID, 3))


async def test_a_stopping_daemon_ends_its_streams(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as daemon:
        await daemon.report(registered(ID))
        async with streaming(daemon, f"/api/jobs/{ID}/events") as stream:
            await eventually(lambda: len(daemon.daemon.streams) == 1)
            daemon.kill()
            assert types(await stream.rest()) == ["server_shutdown"]


@pytest.mark.parametrize("path", ["/api/events", f"/api/jobs/{ID}?since=CURSOR&wait=50"])
async def test_a_disconnected_client_leaves_nothing(
    daemon: RunningDaemon, client: httpx.AsyncClient, path: str
) -> None:
    await daemon.report(registered(ID))
    cursor = (await client.get(f"/api/jobs/{ID}")).json()["cursor"]
    before = await daemon.settled()
    async with await daemon.connect() as stream:
        await stream.send_all(f"GET {path.replace('CURSOR', cursor)} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await eventually(lambda: len(daemon.daemon.streams) == 1)
    await eventually(lambda: len(daemon.daemon.streams) == 0)
    await daemon.leaves_only(before)


async def test_a_stream_needs_no_more_tasks(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    async with streaming(daemon, f"/api/jobs/{ID}/events"), await daemon.connect() as second:
        await second.send_all(b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n")
        await second.receive_some()
        idle = await daemon.settled()
        await second.send_all(f"GET /api/jobs/{ID}/events HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await eventually(lambda: len(daemon.daemon.streams) == 2)
        assert (await daemon.settled()).tasks - idle.tasks <= 3  # the application's, its reader and its handler


async def test_streams_are_limited(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, limits={"max_connections": 1}) as daemon, client_of(daemon) as client:
        await daemon.report(registered(ID))
        async with streaming(daemon, "/api/events"):
            await eventually(lambda: len(daemon.daemon.streams) == 1)
            rejected = await client.get(f"/api/jobs/{ID}/events")
            assert (rejected.status_code, error_of(rejected)) == (503, "all 1 connections are in use")
            assert rejected.headers["Retry-After"]
            more = settings_in(tmp_path / "state", limits={"max_connections": 2})
            daemon.daemon.connection_limiter.apply_settings(more)  # as after a reload
            async with streaming(daemon, "/api/events"):
                await eventually(lambda: len(daemon.daemon.streams) == 2)


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_address"])
async def test_two_clients_cannot_take_the_last_place(limit: str, tmp_path: Path) -> None:
    """Between the check and the stream, the head of the response is sent, and other requests run."""
    streams = HTTPStreams(ConnectionLimiter(settings_in(tmp_path, limits={limit: 1})))
    first, second = ReaderOutbox(1000), ReaderOutbox(1000)
    client = Client("198.51.100.7", ANONYMOUS)
    for _ in (first, second):
        streams.require_room(client)
    with trio.fail_after(PATIENCE), streams.opened(first, client):
        with streams.opened(second, client):
            assert not await second.wait()
        streams.announce(ServerStatus(ServerStatusData("healthy")))
        assert await first.wait()


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_address"])
async def test_websockets_and_streams_share_the_limit(tmp_path: Path, limit: str) -> None:
    limits = {limit: 2, "exempt_addresses": ()}
    async with running_daemon(tmp_path, limits=limits) as daemon, client_of(daemon) as client:
        await daemon.report(registered(ID))
        cursor = (await client.get(f"/api/jobs/{ID}")).json()["cursor"]
        async with streaming(daemon, "/api/events") as stream, daemon.watch():
            await stream.receive()
            for path in ("/api/events", f"/api/jobs/{ID}?since={cursor}&wait=60"):
                assert (await client.get(path)).status_code == 503
            with pytest.raises(ConnectionRejected):
                async with daemon.watch():
                    pass
        await eventually(lambda: len(daemon.daemon.streams) == len(daemon.daemon.websockets) == 0)
        async with streaming(daemon, "/api/events"), daemon.watch():  # the places are free again
            pass


async def test_a_slow_client_is_disconnected(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, limits={"send_buffer_bytes": 4096}) as daemon:
        await daemon.report(registered(ID), status_change(ID, "processing"))
        async with await daemon.connect(receive_buffer=4096) as stream:
            await stream.send_all(b"GET /api/events HTTP/1.1\r\nHost: a\r\n\r\n")
            await eventually(lambda: len(daemon.daemon.streams) == 1)
            preview = {"page_number": 1, "preview_base64": "x" * 500_000, "stage": "", "width": 1, "height": 1}
            for number in range(3, 100):
                await daemon.report(
                    registered(job_id(number), input_filename="x" * 1000),
                    {"type": "page_preview", "job_id": job_id(number), "data": preview},
                )
            outbox = next(iter(daemon.daemon.streams._open), None)
            assert outbox is None or not outbox._backlog


async def test_invalid_streams_are_rejected(client: httpx.AsyncClient) -> None:
    for path, status in (
        ("/api/jobs/me/events", 400),
        (f"/api/jobs/{job_id(9)}/events", 404),
        ("/api/batch/me/events", 400),
        (f"/api/batch/{job_id(9)}/events", 404),
        ("/api/events?interval=soon", 400),
        ("/api/events?types=dance", 400),
    ):
        rejected = await client.get(path)
        assert (rejected.status_code, error_of(rejected) != "") == (status, True)


async def test_head_of_a_stream_has_no_body(client: httpx.AsyncClient) -> None:
    head = await client.head("/api/events")
    assert (head.status_code, head.headers["Content-Type"], head.content) == (
        200,
        "text/event-stream",
        b"",
    )


async def test_a_long_poll_returns_the_changed_job(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID))
    seen = []
    job = (await client.get(f"/api/jobs/{ID}")).json()
    for event in (progress(ID, 1), progress(ID, 2), completed(ID)):
        async with trio.open_nursery() as nursery:

            async def poll(cursor: str) -> None:
                seen.append((await client.get(f"/api/jobs/{ID}?since={cursor}&wait=50")).json())

            nursery.start_soon(poll, job["cursor"])
            await eventually(lambda: len(daemon.daemon.streams) == 1)
            await daemon.report(event)
        job = seen[-1]
    assert [(job["status"], job["progress"]["current_step"]) for job in seen] == [
        ("processing", 1),
        ("processing", 2),
        ("completed", 2),
    ]


async def test_a_long_poll_behind_returns_at_once(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID))
    cursor = (await client.get(f"/api/jobs/{ID}")).json()["cursor"]
    await daemon.report(progress(ID, 7))
    for since in (cursor, "elsewhere-1", "nonsense"):
        with trio.fail_after(PATIENCE):
            job = (await client.get(f"/api/jobs/{ID}?since={since}&wait=50")).json()
        assert job["progress"]["current_step"] == 7
    await daemon.report(completed(ID))
    cursor = (await client.get(f"/api/jobs/{ID}")).json()["cursor"]
    with trio.fail_after(PATIENCE):
        assert (await client.get(f"/api/jobs/{ID}?since={cursor}&wait=50")).json()["status"] == "completed"


async def test_a_long_poll_times_out(daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
    await daemon.report(registered(ID))
    before = (await client.get(f"/api/jobs/{ID}")).json()
    after = await client.get(f"/api/jobs/{ID}?since={before['cursor']}&wait=0.05")
    assert (after.status_code, after.json()) == (200, before)
    assert (await client.get(f"/api/jobs/{ID}?since={before['cursor']}&wait=-1")).status_code == 400


async def test_a_stopping_daemon_answers_long_polls(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as daemon, client_of(daemon) as client:
        await daemon.report(registered(ID))
        before = (await client.get(f"/api/jobs/{ID}")).json()
        async with trio.open_nursery() as nursery:

            async def poll() -> None:
                after = await client.get(f"/api/jobs/{ID}?since={before['cursor']}&wait=50")
                assert after.json() == before

            nursery.start_soon(poll)
            await eventually(lambda: len(daemon.daemon.streams) == 1)
            daemon.kill()
