"""WebSocket handshakes: which are accepted, and with which status and JSON body others are rejected."""

import base64
import hashlib
from contextlib import AsyncExitStack
from itertools import product
from pathlib import Path

import pytest
import trio
from support.daemon import RunningDaemon, progress, registered, running_daemon
from support.peer import Peer, Response, frame, request, upgrade
from support.samples import ID, job_id
from support.waiting import eventually
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.frame_protocol import Opcode

JOB = f"/ws/jobs/{ID}"
KEY = "x3JJHMbDL1EzLkh9GBhXDw=="


async def ask(daemon: RunningDaemon, data: bytes) -> Response:
    """Return the response to these bytes on a new connection."""
    async with Peer(await daemon.connect()) as peer:
        await peer.send(data)
        return await peer.response()


# accepted


async def test_the_handshake_follows_rfc_6455(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        head = (await peer.open(headers={"Sec-WebSocket-Key": KEY})).decode().lower()
    proof = base64.b64encode(hashlib.sha1(KEY.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
    assert f"\r\nsec-websocket-accept: {proof.lower()}\r\n" in head
    assert "\r\nupgrade: websocket\r\n" in head
    assert "\r\nconnection: upgrade\r\n" in head


async def test_offered_compression_and_subprotocols_are_declined(daemon: RunningDaemon) -> None:
    offer = {
        "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits, x-webkit-deflate-frame",
        "Sec-WebSocket-Protocol": "graphql-ws, mqtt",
    }
    async with Peer(await daemon.connect()) as peer:
        head = (await peer.open(headers=offer)).lower()
        assert b"sec-websocket-extensions" not in head
        assert b"sec-websocket-protocol" not in head
        await daemon.report(registered(ID, input_filename="a" * 500))
        opcode, text = await peer.next_frame()
        assert (opcode, text.count("a") > 500) == (Opcode.TEXT, True)


async def test_headers_of_proxies_and_browsers_are_understood(daemon: RunningDaemon) -> None:
    for headers in (
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "upgrade"},
        {"Upgrade": "WebSocket"},
        {"User-Agent": "x" * 8000},
    ):
        async with Peer(await daemon.connect()) as peer:
            await peer.open(headers=headers)


async def test_bytes_behind_the_handshake_are_not_lost(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.open(behind=frame(Opcode.PING, b"early") + frame(Opcode.PING, b"bird")[:3])
        assert await peer.next_frame() == (Opcode.PONG, b"early")
        await peer.send(frame(Opcode.PING, b"bird")[3:])
        assert await peer.next_frame() == (Opcode.PONG, b"bird")


async def in_segments(peer: Peer, data: bytes, size: int) -> None:
    """Send `size` bytes at a time. The daemon reads them before the next."""
    for start in range(0, len(data), size):
        await peer.send(data[start : start + size])
        await wait_all_tasks_blocked()


# an upgrade on a connection that has served requests, as proxies send it


async def test_a_used_connection_can_be_upgraded(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    async with Peer(await daemon.connect()) as peer:
        for target, status in (
            ("/api/health", 200),
            ("/api/jobs/nonsense", 400),
            ("/static/main.js", 200),
            ("/ws", 426),
        ):
            assert (await peer.ask(target)).status == status
        await peer.open(JOB, behind=frame(Opcode.PING, b"early"))
        assert await peer.next_frame() == (Opcode.PONG, b"early")
        await daemon.report(progress(ID, 1))
        assert "processing" in (await peer.next_frame())[1]


async def test_a_late_upgrade_may_come_in_segments(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    for start, size in product((b"", b"\r\n"), (1, 3, 7, 8, 50, 1000)):  # an empty line before it is ignored
        async with Peer(await daemon.connect()) as peer:
            assert (await peer.ask("/api/health")).status == 200
            head = start + upgrade(JOB)
            await in_segments(peer, head[:-1], size)
            await peer.open_with(head[-1:])
            await peer.send(frame(Opcode.PING, b"?"))
            assert await peer.next_frame() == (Opcode.PONG, b"?")


async def test_a_rejected_upgrade_of_a_used_connection_gets_json(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        assert (await peer.ask("/api/health")).status == 200
        await peer.send(upgrade(JOB))
        response = await peer.response()
        assert (response.status, list(response.json)) == (404, ["error", "code"])
        assert await peer.receive() == b""
    await daemon.report(registered(ID))
    async with Peer(await daemon.connect()) as peer:
        await peer.send(request("/api/health") + upgrade(JOB))  # pipelined
        assert (await peer.response()).status == 200
        assert (await peer.response()).json["error"].startswith("invalid WebSocket handshake")


async def test_a_request_like_an_upgrade_gets_a_response(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        assert (await peer.ask("/api/health")).status == 200
        assert (await peer.ask("/ws/jobs")).status == 426
        assert (await peer.ask("/wsomething")).status == 404
        assert (await peer.ask("/ws/jobs", {"Upgrade": "h2c"})).status == 426
        await in_segments(peer, request("/ws/jobs"), 4)
        assert (await peer.response()).status == 426
        assert (await peer.ask("/api/health")).status == 200


# rejected

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(508)
REJECTED = [
    *((upgrade(path), 404) for path in (JOB, f"{JOB}/", "/ws/", "/ws/nothing", "/ws/jobs/x/y", "/ws//jobs")),
    (upgrade(f"/ws/batch/{ID}"), 404),
    *(
        (upgrade(f"/ws/jobs?{query}"), 400)
        for query in ("interval=soon", "interval=-1", "interval=61", "interval=nan", "interval=1e999")
    ),
    *((upgrade(f"/ws/jobs?{query}"), 400) for query in ("types=nonsense", "types=")),
    (upgrade("/ws/jobs/\xff"), 400),
    (upgrade(version="1.0"), 400),
    (upgrade(headers={"Cookie": "x" * 20_000}), 431),
    *((request(target), 426) for target in ("/ws", "/ws/jobs", JOB, "/ws/jobs?since=1", "/ws/nonsense")),
    *((head("/ws/jobs", {"Content-Length": "0"}, method="POST"), 405) for head in (request, upgrade)),
    *(
        (upgrade(headers=wrong), 400)
        for wrong in (
            {"Sec-WebSocket-Key": ""},
            {"Sec-WebSocket-Version": ""},
            {"Connection": ""},
            {"Connection": "keep-alive"},
            {"Connection": "\xff"},
            {"Host": ""},
            {"Sec-WebSocket-Extensions": "\xff"},
            {"Sec-WebSocket-Protocol": "\xff"},
            {"Bad header": "x"},
            {"Transfer-Encoding": "chunked"},
            {"Content-Length": "5"},
            {"Content-Length": "nonsense"},
        )
    ),
    (upgrade(headers={"Host": "\xff"}), 403),
    (upgrade(headers={"Sec-WebSocket-Version": "8"}), 426),
    *((hello, 400) for hello in (HELLO[:1], HELLO[:3], HELLO)),  # TLS, which waits for no more bytes
]


async def test_a_rejected_handshake_gets_json_without_a_slot(tmp_path: Path) -> None:
    limits = {"max_connections": 1, "handshake_timeout": 3600}
    async with running_daemon(tmp_path, limits=limits) as daemon:
        for data, status in REJECTED:
            response = await ask(daemon, data)
            assert (response.status, list(response.json)) == (status, ["error", "code"]), data
            if status == 426:
                assert (response.headers["upgrade"], response.headers["sec-websocket-version"]) == ("websocket", "13")
        async with daemon.watch() as watcher:
            response = await ask(daemon, upgrade())
            assert response.status == 503
            assert response.json == {
                "error": "all 1 connections are in use",
                "code": "too_many_connections",
                "retry_after": 5,
            }
            assert response.headers["retry-after"] == "5"
            await watcher.websocket.aclose()
            await eventually(lambda: not daemon.daemon.websockets)
        async with daemon.watch():
            assert len(daemon.daemon.websockets) == 1


async def test_only_websocket_paths_switch_protocols(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        for protocol in ("h2c", "websocket", "h2c, websocket"):
            await peer.send(upgrade("/api/health", {"Upgrade": protocol, "HTTP2-Settings": "AAMAAABkAAQAAP__"}))
            response = await peer.response()
            assert (response.status, response.json["status"]) == (200, "healthy")


@pytest.mark.parametrize("limit", [1024, 100_000])
async def test_the_maximum_head_size_is_a_setting(limit: int, tmp_path: Path) -> None:
    async with running_daemon(tmp_path, limits={"max_request_header_bytes": limit}) as daemon:
        for head, path, status in ((upgrade, "/ws/jobs", b"101"), (request, "/api/health", b"200")):
            async with Peer(await daemon.connect()) as peer:
                await peer.send(head(path, headers={"Cookie": "x" * (limit - 700)}))
                assert (await peer.receive())[9:12] == status
            assert (await ask(daemon, head(path, headers={"Cookie": "x" * limit}))).status == 431


async def test_incomplete_heads_time_out(slow_clock: MockClock, daemon: RunningDaemon) -> None:
    begun = (b"", b"G", upgrade()[:40], upgrade()[:-2], request("/api/health")[:20])
    async with AsyncExitStack() as leaving:
        peers = [await leaving.enter_async_context(Peer(await daemon.connect())) for _ in begun]
        for peer, data in zip(peers, begun, strict=True):
            await peer.send(data)
        await eventually(lambda: daemon.daemon.connection_log.open == len(begun))
        for passed in (0.5, 0.5):
            await wait_all_tasks_blocked()
            assert daemon.daemon.connection_log.open == len(begun)
            slow_clock.jump(passed * daemon.settings.limits.handshake_timeout)
        for peer in peers:
            await peer.rest()


async def test_a_head_that_drips_times_out(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path, limits={"handshake_timeout": 0.2}) as daemon,
        Peer(await daemon.connect()) as peer,
        trio.open_nursery() as nursery,
    ):

        async def drip() -> None:
            for byte in upgrade(headers={"Cookie": "x" * 10_000}):
                await peer.send(bytes([byte]))
                await trio.sleep(0.01)

        nursery.start_soon(drip)
        await peer.rest()
        nursery.cancel_scope.cancel()


async def test_the_handshake_timeout_ends_with_the_handshake(slow_clock: MockClock, daemon: RunningDaemon) -> None:
    async with daemon.watch() as watcher:
        await wait_all_tasks_blocked()
        slow_clock.jump(2 * daemon.settings.limits.handshake_timeout)
        await wait_all_tasks_blocked()
        await daemon.report(registered(job_id(5)))
        assert (await watcher.receive())["type"] == "job_created"
