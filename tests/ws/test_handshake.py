"""WebSocket handshakes: which are accepted, and with which status and JSON body others are refused."""

import base64
import hashlib
from collections.abc import Callable
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


@pytest.mark.parametrize(
    "how",
    [
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "upgrade"},
        {"Upgrade": "WebSocket"},
        {"User-Agent": "x" * 8000},
    ],
)
async def test_headers_of_proxies_and_browsers_are_understood(daemon: RunningDaemon, how: dict[str, str]) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.open(headers=how)


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


@pytest.mark.parametrize("size", [1, 3, 7, 8, 50])
async def test_an_upgrade_of_a_used_connection_may_come_in_segments(daemon: RunningDaemon, size: int) -> None:
    await daemon.report(registered(ID))
    async with Peer(await daemon.connect()) as peer:
        assert (await peer.ask("/api/health")).status == 200
        head = upgrade(JOB)
        await in_segments(peer, head[:-1], size)
        await peer.open_with(head[-1:])
        await peer.send(frame(Opcode.PING, b"?"))
        assert await peer.next_frame() == (Opcode.PONG, b"?")


@pytest.mark.parametrize("size", [2, 1000])
async def test_an_empty_line_before_an_upgrade_is_ignored(daemon: RunningDaemon, size: int) -> None:
    async with Peer(await daemon.connect()) as peer:
        assert (await peer.ask("/api/health")).status == 200
        await in_segments(peer, b"\r\n" + upgrade(), size)
        await peer.opened()


async def test_a_request_that_looks_like_an_upgrade_gets_a_response(
    daemon: RunningDaemon,
) -> None:
    async with Peer(await daemon.connect()) as peer:
        assert (await peer.ask("/api/health")).status == 200
        assert (await peer.ask("/ws/jobs")).status == 426
        assert (await peer.ask("/wsomething")).status == 404
        assert (await peer.ask("/ws/jobs", {"Upgrade": "h2c"})).status == 426
        await in_segments(peer, request("/ws/jobs"), 4)
        assert (await peer.response()).status == 426
        assert (await peer.ask("/api/health")).status == 200


async def test_a_refused_upgrade_of_a_used_connection_gets_json(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        assert (await peer.ask("/api/health")).status == 200
        await peer.send(upgrade(JOB))
        response = await peer.response()
        assert (response.status, list(response.json)) == (404, ["error"])
        assert await peer.receive() == b""


async def test_a_pipelined_upgrade_gets_json(daemon: RunningDaemon) -> None:
    await daemon.report(registered(ID))
    async with Peer(await daemon.connect()) as peer:
        await peer.send(request("/api/health") + upgrade(JOB))
        assert (await peer.response()).status == 200
        assert (await peer.response()).json["error"].startswith("invalid WebSocket handshake")


# refused


@pytest.mark.parametrize(
    "path", [JOB, f"{JOB}/", "/ws/", "/ws/nothing", "/ws/jobs/x/y", "/ws//jobs", f"/ws/batch/{ID}"]
)
async def test_an_unknown_path_or_job_is_404(daemon: RunningDaemon, path: str) -> None:
    response = await ask(daemon, upgrade(path))
    assert response.status == 404
    assert list(response.json) == ["error"]


@pytest.mark.parametrize(
    "query",
    ["interval=soon", "interval=-1", "interval=61", "types=nonsense", "types=", "interval=nan", "interval=1e999"],
)
async def test_a_malformed_query_is_400(daemon: RunningDaemon, query: str) -> None:
    response = await ask(daemon, upgrade(f"/ws/jobs?{query}"))
    assert (response.status, list(response.json)) == (400, ["error"])


async def test_too_many_connections_are_503_until_one_leaves(tmp_path: Path) -> None:
    limits = {"max_connections": 2}
    async with running_daemon(tmp_path, limits=limits) as daemon, daemon.watch(), daemon.watch() as second:
        response = await ask(daemon, upgrade())
        assert response.status == 503
        assert response.json == {"error": "all 2 connections are in use", "retry_after": 5}
        assert response.headers["retry-after"] == "5"
        await second.websocket.aclose()
        await eventually(lambda: len(daemon.daemon.watchers) == 1)
        async with daemon.watch():
            assert len(daemon.daemon.watchers) == 2


async def test_refused_handshakes_do_not_count_as_connections(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, limits={"max_connections": 1}) as daemon:
        for _ in range(3):
            assert (await ask(daemon, upgrade(JOB))).status == 404
            assert (await ask(daemon, upgrade(headers={"Origin": "https://evil.example"}))).status == 403
            assert (await ask(daemon, upgrade(headers={"Sec-WebSocket-Key": ""}))).status == 400
        async with daemon.watch():
            pass


# no handshake at all, or a wrong one


@pytest.mark.parametrize("target", ["/ws", "/ws/jobs", JOB, "/ws/jobs?since=1", "/ws/nonsense"])
async def test_a_request_without_upgrade_is_426_at_once(tmp_path: Path, target: str) -> None:
    async with running_daemon(tmp_path, limits={"handshake_timeout": 3600}) as daemon:
        response = await ask(daemon, request(target))
    assert (response.status, list(response.json)) == (426, ["error"])
    assert response.headers["upgrade"] == "websocket"


@pytest.mark.parametrize("head", [request, upgrade])
async def test_post_is_405(daemon: RunningDaemon, head: Callable[..., bytes]) -> None:
    response = await ask(daemon, head("/ws/jobs", {"Content-Length": "0"}, method="POST"))
    assert (response.status, list(response.json)) == (405, ["error"])


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "h2c, websocket"])
async def test_only_websocket_paths_switch_protocols(daemon: RunningDaemon, protocol: str) -> None:
    offer = {"Upgrade": protocol, "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    async with Peer(await daemon.connect()) as peer:
        for _ in range(2):
            await peer.send(upgrade("/api/health", offer))
            response = await peer.response()
            assert (response.status, response.json["status"]) == (200, "healthy")


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"Sec-WebSocket-Key": ""}, 400),
        ({"Sec-WebSocket-Version": ""}, 400),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Connection": ""}, 400),
        ({"Connection": "keep-alive"}, 400),
        ({"Connection": "\xff"}, 400),
        ({"Host": ""}, 400),
        ({"Host": "\xff"}, 403),
        ({"Sec-WebSocket-Extensions": "\xff"}, 400),
        ({"Sec-WebSocket-Protocol": "\xff"}, 400),
        ({"Bad header": "x"}, 400),
        ({"Transfer-Encoding": "chunked"}, 400),
        ({"Content-Length": "5"}, 400),
        ({"Content-Length": "nonsense"}, 400),
    ],
)
async def test_a_malformed_upgrade_gets_json(daemon: RunningDaemon, wrong: dict[str, str], status: int) -> None:
    response = await ask(daemon, upgrade(headers=wrong))
    assert (response.status, list(response.json)) == (status, ["error"])
    if status == 426:
        assert response.headers["sec-websocket-version"] == "13"


async def test_an_upgrade_over_http_1_0_gets_json(daemon: RunningDaemon) -> None:
    response = await ask(daemon, upgrade(version="1.0"))
    assert (response.status, list(response.json)) == (400, ["error"])


async def test_a_target_with_other_bytes_than_ascii_is_refused(daemon: RunningDaemon) -> None:
    response = await ask(daemon, upgrade("/ws/jobs/\xff"))
    assert response.status == 400


async def test_an_oversized_head_is_refused(daemon: RunningDaemon) -> None:
    response = await ask(daemon, upgrade(headers={"Cookie": "x" * 20_000}))
    assert (response.status, list(response.json)) == (431, ["error"])


@pytest.mark.parametrize("limit", [1024, 100_000])
async def test_the_maximum_size_of_a_head_is_a_setting(limit: int, tmp_path: Path) -> None:
    async with running_daemon(tmp_path, limits={"max_request_header_bytes": limit}) as daemon:
        for head, path, status in ((upgrade, "/ws/jobs", b"101"), (request, "/api/health", b"200")):
            async with Peer(await daemon.connect()) as peer:
                await peer.send(head(path, headers={"Cookie": "x" * (limit - 700)}))
                assert (await peer.receive())[9:12] == status
            assert (await ask(daemon, head(path, headers={"Cookie": "x" * limit}))).status == 431


@pytest.mark.parametrize("begun", [b"", b"G", upgrade()[:40], upgrade()[:-2], request("/api/health")[:20]])
async def test_an_incomplete_head_times_out(slow_clock: MockClock, daemon: RunningDaemon, begun: bytes) -> None:
    seconds = daemon.settings.limits.handshake_timeout
    async with Peer(await daemon.connect()) as peer:
        await peer.send(begun)
        await eventually(lambda: daemon.daemon.connection_log.open == 1)
        for passed in (0.5, 0.5):
            await wait_all_tasks_blocked()
            assert daemon.daemon.connection_log.open == 1
            slow_clock.jump(passed * seconds)
        await peer.rest()


@pytest.mark.parametrize(
    "hello", [b"\x16", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(508)]
)
async def test_tls_to_a_plain_port_is_rejected_at_once(daemon: RunningDaemon, hello: bytes) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(hello)
        assert (await peer.response()).status == 400
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
