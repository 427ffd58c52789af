"""Pages of other sites are rejected over WebSocket and HTTP, also with DNS rebinding."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.config.settings import Server
from progressd.core.errors import Forbidden
from progressd.net.request import check_host, check_origin
from support.daemon import RunningDaemon, running_daemon
from support.peer import Peer, upgrade
from werkzeug.routing import Map

NAMES = {"server": {"allowed_hosts": ("Progress.example.org",), "allowed_origins": ("https://other.example",)}}
OWN = (
    "127.0.0.1",
    "127.0.0.1:8080",
    "[::1]:8080",
    "[::1]",
    "localhost",
    "LOCALHOST:80",
    "localhost.:80",
    "a.localhost",
)
FOREIGN = ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example")
NO_NAMES = (
    *("[", "::1x", "x:[::1]", "[::1].evil.example", "[::1]:80.evil.example", "[::1]evil", "[[::1]]"),
    *("localhost:80.evil.example", "localhost:x", "127.0.0.1:80:80", ".localhost", "a..localhost"),
    *(f"{'a' * 64}.localhost:80", "a..b", ".", "..:80", "a." * 150 + "b"),
)


def test_addresses_and_known_hosts_are_allowed() -> None:
    server = Server(host="box.lan", allowed_hosts=("Progress.example.org",))
    for host in (*OWN, "", "progress.example.org", "PROGRESS.example.org:443", "box.lan:8080"):
        check_host(host, server)


def test_unknown_and_invalid_hosts_are_rejected() -> None:
    everything = Server(allowed_hosts=("*",))
    for host in FOREIGN:
        with pytest.raises(Forbidden, match="allowed_hosts"):
            check_host(host, Server())
        check_host(host, everything)
    for host in NO_NAMES:
        for server in (Server(), everything):
            with pytest.raises(Forbidden, match="is not a valid host name"):
                check_host(host, server)


@given(st.text() | st.text("a.:-").map(lambda text: text.replace("-", "-" * 40)))
def test_quart_can_route_every_allowed_host(host: str) -> None:
    with contextlib.suppress(Forbidden):
        check_host(host, Server(allowed_hosts=("*",)))
        Map().bind(host)


PLAIN, ENCRYPTED = Server(), Server(tls_cert="cert.pem")


@pytest.mark.parametrize(
    ("origin", "host", "server", "error"),
    [
        ("", "daemon", PLAIN, ""),
        ("http://daemon", "daemon", PLAIN, ""),
        ("https://daemon:8080", "Daemon:8080", PLAIN, ""),  # a proxy in front of it may use TLS or not
        ("http://[::1]:80", "[::1]:80", PLAIN, ""),
        ("https://box:8080", "box:8080", ENCRYPTED, ""),
        ("http://box:8080", "box:8080", Server(tls_cert="x", allowed_origins=("http://box:8080",)), ""),
        ("http://box:8080", "box:8080", ENCRYPTED, "allowed_origins"),
        ("ftp://box:8080", "box:8080", PLAIN, "allowed_origins"),
        ("//box:8080", "box:8080", PLAIN, "allowed_origins"),
        ("null", "box:8080", PLAIN, "from a file, .*: serve the page from a web server"),
        ("null", "", PLAIN, "from a file"),
        *((origin, "", PLAIN, "allowed_origins") for origin in ("file://", "http://", "//")),
        *(
            (origin, "daemon", PLAIN, "allowed_origins")
            for origin in (
                *("https://evil.example", "http://daemon.evil.example", "http://daemon:8081", "daemon", "https://["),
                *("http://user@daemon.evil.example", "http://evil.example/daemon"),
            )
        ),
    ],
)
def test_only_own_pages_and_allowed_origins_are_accepted(origin: str, host: str, server: Server, error: str) -> None:
    if not error:
        check_origin(origin, host, server)
        return
    with pytest.raises(Forbidden, match=error):
        check_origin(origin, host, server)


async def test_a_foreign_host_or_origin_returns_403(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        for target in ("/", "/static/main.js", "/api/health", "/api/jobs", "/api/nothing"):
            response = await peer.ask(target, {"Host": "evil.example"})
            assert (response.status, list(response.json)) == (403, ["error", "code"])
            assert response.headers["x-content-type-options"] == "nosniff"
            assert (await peer.ask(target, {"Host": daemon.address})).status != 403  # the connection stays open
    for headers in ({"Host": "evil.example", "Origin": "http://evil.example"}, {"Origin": "http://evil.example"}):
        async with Peer(await daemon.connect()) as peer:
            await peer.send(upgrade(headers=headers))
            response = await peer.response()
            assert (response.status, list(response.json)) == (403, ["error", "code"])


async def test_an_invalid_host_returns_403(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path, server={"port": 0, "allowed_hosts": ("*",)}) as daemon,
        Peer(await daemon.connect()) as peer,
    ):
        for host in NO_NAMES:
            response = await peer.ask("/api/health", {"Host": host})
            assert (response.status, list(response.json)) == (403, ["error", "code"])


@pytest.mark.parametrize(("origin", "allowed"), [("https://other.example", True), ("https://evil.example", False)])
async def test_foreign_origins_may_neither_write_nor_stream(tmp_path: Path, origin: str, allowed: bool) -> None:
    async with running_daemon(tmp_path, **NAMES) as daemon:
        headers = {"Host": "progress.example.org", "Origin": origin}
        for method, target in (("POST", "/api/jobs"), ("DELETE", "/api/jobs/x"), ("GET", "/api/jobs/x/events")):
            async with Peer(await daemon.connect()) as peer:
                response = await peer.ask(target, headers | {"Content-Length": "0"}, method=method)
                assert (response.status != 403) is allowed, (method, target)


async def test_the_body_of_a_rejected_request_is_discarded(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        size = 4_000_000
        head = f"POST /api/convert HTTP/1.1\r\nHost: evil.example\r\nContent-Length: {size}\r\n\r\n".encode()
        await peer.send(head + bytes(size))
        assert (await peer.response()).status == 403
