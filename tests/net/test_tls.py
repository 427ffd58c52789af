"""TLS on the one port: all clients can use it, and no plaintext reaches the wire."""

import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from progressd.config.settings import Server
from progressd.core.errors import SettingsError
from progressd.net.listener import TLS_HANDSHAKES
from progressd.net.tls import TLSTransport, tls_context
from progressd.system.event_loop_limiter import EventLoopLimiter
from structlog.testing import capture_logs
from support.certificates import certificate
from support.daemon import PATIENCE, RunningDaemon, completed, progress, registered, running_daemon, settings_in
from support.passes import counted
from support.peer import Peer, request, upgrade
from support.samples import ID
from support.waiting import eventually

SECRET = "a name that must not be seen on the wire"


@pytest.fixture(scope="module")
def cert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def encrypted_daemon(tmp_path: Path, cert: Path, **given: Any) -> AsyncGenerator[RunningDaemon]:
    server = {"port": 0, "allowed_hosts": ("daemon",), "tls_cert": str(cert)}
    async with running_daemon(tmp_path, server=server, **given) as daemon:
        daemon.address = daemon.url.removeprefix("https://")
        yield daemon


async def encrypted(daemon: RunningDaemon, cert: Path, stream: Any = None) -> Peer:
    """A client that trusts the certificate."""
    context = ssl.create_default_context(cafile=str(cert))
    stream = stream or await daemon.connect()
    tls = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)
    with trio.fail_after(PATIENCE):
        await tls.do_handshake()
    return Peer(tls)


async def test_http_events_and_websockets_work_over_tls(tmp_path: Path, cert: Path) -> None:
    async with encrypted_daemon(tmp_path, cert) as daemon:
        await daemon.report(registered(ID, input_filename=SECRET))
        async with await encrypted(daemon, cert) as peer:
            assert (await peer.ask(f"/api/jobs/{ID}")).json["input_filename"] == SECRET
            assert (await peer.ask("/")).status == 200
            await peer.open(f"/ws/jobs/{ID}")  # on the same connection, as proxies do
            await daemon.report(progress(ID, 1), completed(ID))
            types = []
            while "completed" not in types:
                types.append(json.loads((await peer.next_frame())[1])["type"])
            assert types == ["status_change", "progress", "status_change", "completed"]
            assert await peer.close_code() == 1000
        async with await encrypted(daemon, cert) as peer:
            await peer.send(request(f"/api/jobs/{ID}/events"))
            answer = b""
            while b'"completed"' not in answer:
                answer += await peer.receive()


class Tap(trio.abc.ReceiveStream):
    """Record what is received."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.seen = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self.stream.receive_some(max_bytes))
        self.seen += data
        return data

    async def aclose(self) -> None:
        await self.stream.aclose()


async def test_no_plaintext_reaches_the_wire(tmp_path: Path, cert: Path) -> None:
    async with encrypted_daemon(tmp_path, cert) as daemon:
        stream = await daemon.connect()
        tapped = Tap(stream)
        async with await encrypted(daemon, cert, trio.StapledStream(stream, tapped)) as peer:
            await peer.open("/ws/jobs")
            await daemon.report(registered(ID, input_filename=SECRET))
            await daemon.report(*(progress(ID, step, name=SECRET) for step in range(1, 50)))
            steps = []
            while not steps or steps[-1] != 49:
                message = json.loads((await peer.next_frame())[1])
                steps.append(message["data"].get("current_step", 0))
        assert len(tapped.seen) > 1000
        for plain in (b"must not be seen", b"current_step", b"progress", ID.encode(), b"HTTP/1.1"):
            assert plain not in tapped.seen
        # only whole TLS records: handshake, change of cipher, alert, data
        at = 0
        while at < len(tapped.seen):
            assert tapped.seen[at] in (20, 21, 22, 23)
            at += 5 + int.from_bytes(tapped.seen[at + 3 : at + 5], "big")


async def test_garbage_in_place_of_tls_ends_only_its_connection(
    slow_clock: trio.testing.MockClock, tmp_path: Path, cert: Path
) -> None:
    async with encrypted_daemon(tmp_path, cert) as daemon:
        wrong = (b"\x16\x03\x01\x40\x00" + b"\xff" * 100, b"\x16", b"")
        for number, sent in enumerate(wrong, start=1):
            async with Peer(await daemon.connect()) as peer:
                await peer.send(sent)
                await eventually(lambda number=number: daemon.daemon.connection_log.accepted == number)  # type: ignore[misc]
                await trio.testing.wait_all_tasks_blocked()
                slow_clock.jump(daemon.settings.limits.handshake_timeout)
                assert b"HTTP" not in await peer.rest()
        async with await encrypted(daemon, cert) as peer:
            assert (await peer.ask("/api/health")).status == 200


@pytest.mark.parametrize("head", [upgrade(), request("/api/jobs", method="POST")[:20]])
async def test_a_request_without_tls_gets_an_error(tmp_path: Path, cert: Path, head: bytes) -> None:
    async with encrypted_daemon(tmp_path, cert) as daemon, Peer(await daemon.connect()) as peer:
        await peer.send(head)
        response = await peer.response()
        assert (response.status, response.headers["connection"]) == (400, "close")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.json == {"error": "this port uses TLS: use https:// or wss://", "code": "bad_request"}
        assert await peer.rest() == b""


@pytest.mark.parametrize(("version", "good"), [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
async def test_only_tls_1_2_and_newer(tmp_path: Path, cert: Path, version: ssl.TLSVersion, good: bool) -> None:
    async with encrypted_daemon(tmp_path, cert) as daemon:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        tls = trio.SSLStream(await daemon.connect(), context, https_compatible=True)
        with trio.fail_after(PATIENCE):
            if good:
                await tls.do_handshake()
            else:
                with pytest.raises(trio.BrokenResourceError):
                    await tls.do_handshake()
            await trio.aclose_forcefully(tls)


async def test_a_reloaded_certificate_disconnects_no_client(tmp_path: Path, cert: Path) -> None:
    mine, other = certificate(tmp_path, "mine"), certificate(tmp_path, "renewed")
    async with encrypted_daemon(tmp_path, mine) as daemon, await encrypted(daemon, mine) as stays:
        await stays.open("/ws/jobs")
        other.replace(mine)
        with capture_logs() as logs:
            daemon.kill(signal.SIGHUP)
            await eventually(lambda: any(entry["event"] == "settings reloaded" for entry in logs))
        assert {"event": "certificate reloaded", "tls_cert": str(mine), "log_level": "info"} in logs

        async def renewed() -> bool:
            async with await encrypted(daemon, mine) as peer:
                return "renewed" in str(peer.stream.getpeercert())

        with trio.fail_after(PATIENCE):
            while True:
                try:
                    assert await renewed()
                    break
                except trio.BrokenResourceError:  # it shows the old one still
                    await trio.sleep(0.01)
        await daemon.report(registered(ID))
        assert json.loads((await stays.next_frame())[1])["job_id"] == ID


@pytest.mark.parametrize("before", [True, False])
async def test_a_reload_cannot_switch_tls_on_or_off(tmp_path: Path, cert: Path, before: bool) -> None:
    with_cert, without = {"port": 0, "tls_cert": str(cert)}, {"port": 0}
    first, second = (with_cert, without) if before else (without, with_cert)
    new = settings_in(tmp_path / "state", server=second, limits={"max_connections": 1})
    async with running_daemon(tmp_path, lambda: new, server=first) as daemon:
        daemon.kill(signal.SIGHUP)
        await eventually(lambda: daemon.daemon.reload.rejected)
        assert re.fullmatch(r"server\.tls_cert was (removed|added): restart .*", daemon.daemon.reload.rejected)
        assert daemon.daemon.settings.limits.max_connections == 100
        daemon.address = daemon.url.rpartition("/")[2]
        async with await encrypted(daemon, cert) if before else Peer(await daemon.connect()) as peer:
            assert (await peer.ask("/api/health")).status == 200


def test_an_error_names_the_file_that_is_wrong(tmp_path: Path, cert: Path) -> None:
    other, locked = certificate(tmp_path, "other"), tmp_path / "locked.pem"
    call = ["openssl", "pkey", "-in", str(cert), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(call, check=True, capture_output=True)
    os.mkfifo(tmp_path / "pipe")
    for key, message in (
        ("\0", "server.tls_key = '\\x00': invalid path"),
        (tmp_path, f"server.tls_key = '{tmp_path}': Is a directory"),
        (tmp_path / "pipe", f"server.tls_key = '{tmp_path}/pipe': it is not a regular file"),
        (tmp_path / "none", f"server.tls_key = '{tmp_path}/none': No such file or directory"),
        (
            locked,
            "server.tls_key: the private key is encrypted (decrypt it: openssl pkey -in KEY -out NEW)",
        ),
        (other, f"server.tls_cert = '{cert}': the private key does not match the certificate (expected both as PEM: "),
        (Path(__file__), f"server.tls_cert = '{cert}': no certificate with a private key (expected both as PEM: "),
    ):
        with pytest.raises(SettingsError, match=f"^{re.escape(message)}"):
            tls_context(Server(tls_cert=str(cert), tls_key=str(key)))
    for server in ({"tls_cert": "/nowhere"}, {"tls_cert": "\0"}, {"tls_key": "/x"}, {"tls_cert": __file__}):
        with pytest.raises(SettingsError, match=r"^server\.tls_"):
            tls_context(Server(**server))


@asynccontextmanager
async def connected(cert: Path) -> AsyncGenerator[tuple[TLSTransport, trio.SSLStream[trio.SocketStream]]]:
    """Yield a transport and its client, before the handshake, on a pair of sockets."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert)
    client_context = ssl.create_default_context(cafile=str(cert))
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(PATIENCE):
                yield (
                    TLSTransport(ours, context, nursery.start_soon, EventLoopLimiter(1)),
                    trio.SSLStream(stream, client_context, server_hostname="localhost"),
                )
            nursery.cancel_scope.cancel()


async def read(client: trio.SSLStream[trio.SocketStream], size: int) -> bytes:
    received = b""
    while len(received) < size:
        received += bytes(await client.receive_some())
    return received


@settings(max_examples=30)
@given(pieces=st.lists(st.binary(max_size=100_000), max_size=8))
async def test_all_bytes_arrive_whatever_room_the_socket_has(cert: Path, pieces: list[bytes]) -> None:
    async with connected(cert) as (transport, client), trio.open_nursery() as nursery:

        async def send() -> None:
            await transport.receive_some(1)  # the handshake, and a byte
            for piece in pieces:
                rest = piece
                while rest:
                    await transport.wait_writable()
                    try:
                        rest = rest[transport.send(rest) :]
                    except BlockingIOError:
                        continue

        nursery.start_soon(send)
        await client.send_all(b".")
        whole = b"".join(pieces)
        assert await read(client, len(whole)) == whole


async def test_records_and_a_sender_share_one_wait(cert: Path) -> None:
    """Trio lets only one task wait for a socket."""
    async with connected(cert) as (transport, client), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b".")
        await transport.receive_some(1)
        sent = 0
        while select.select([], [transport.socket], [], 0)[1]:  # there is no room before a send is refused
            sent += transport.send(b"x")
        nursery.start_soon(transport.wait_writable)
        await trio.testing.wait_all_tasks_blocked()
        sent += transport.send(b"x" * 1_000_000)
        await trio.testing.wait_all_tasks_blocked()
        assert await read(client, sent) == b"x" * sent


async def test_a_full_socket_takes_at_most_one_more_record(cert: Path) -> None:
    """The outbox can still replace what waits there."""
    async with connected(cert) as (transport, client), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b".")
        await transport.receive_some(1)
        sent = transport.send(b"x" * 3_000_000)
        assert 0 < sent < 1_500_000
        with pytest.raises(BlockingIOError):
            transport.send(b"x")
        assert await read(client, sent) == b"x" * sent


async def test_no_task_waits_for_room_in_a_closed_socket(cert: Path) -> None:
    async with connected(cert) as (transport, _):
        transport.socket.close()
        with pytest.raises(trio.ClosedResourceError):
            await transport.wait_writable()


async def test_one_pass_makes_few_tls_handshakes(tmp_path: Path, cert: Path) -> None:
    count = 20
    async with encrypted_daemon(tmp_path, cert) as daemon:
        streams = [await daemon.connect() for _ in range(count)]
        await eventually(lambda: daemon.daemon.connection_log.open == count)
        with counted(ssl.SSLObject.read) as reads:  # which makes the daemon's side of a handshake
            async with trio.open_nursery() as nursery:
                for stream in streams:
                    nursery.start_soon(encrypted, daemon, cert, stream)
        for stream in streams:
            await stream.aclose()
    assert reads.total >= count
    assert reads.most <= 2 * TLS_HANDSHAKES
