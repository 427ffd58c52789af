"""Pages of other sites are rejected over WebSocket and HTTP, also with DNS rebinding."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.config.settings import Server
from progressd.core.errors import Forbidden, SettingsError
from progressd.net.bind import open_sockets
from progressd.net.request import check_host, check_origin
from support.daemon import RunningDaemon, running_daemon, settings_in
from support.peer import Peer, upgrade
from werkzeug.routing import Map

NAMES = {"server": {"allowed_hosts": ("Progress.example.org",), "allowed_origins": ("https://other.example",)}}
OWN = [
    "127.0.0.1",
    "127.0.0.1:8080",
    "[::1]:8080",
    "[::1]",
    "localhost",
    "LOCALHOST:80",
    "localhost.:80",
    "a.localhost",
]
FOREIGN = [
    "evil.example",
    "evil.example:8080",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
]
NO_NAMES = [
    "[",
    "::1x",
    "x:[::1]",
    "[::1].evil.example",
    "[::1]:80.evil.example",
    "[::1]evil",
    "[[::1]]",
    "localhost:80.evil.example",
    "localhost:x",
    "127.0.0.1:80:80",
    ".localhost",
    "a..localhost",
    f"{'a' * 64}.localhost:80",
    "a..b",
    ".",
    "..:80",
    "a." * 150 + "b",
]


@pytest.mark.parametrize("host", [*OWN, "", "progress.example.org", "PROGRESS.example.org:443"])
def test_addresses_and_known_hosts_are_allowed(host: str) -> None:
    check_host(host, Server(allowed_hosts=("Progress.example.org",)))


@pytest.mark.parametrize("host", FOREIGN)
def test_unknown_hosts_are_rejected(host: str) -> None:
    with pytest.raises(Forbidden, match="allowed_hosts"):
        check_host(host, Server())
    check_host(host, Server(allowed_hosts=("*",)))


@pytest.mark.parametrize("host", NO_NAMES)
def test_invalid_hosts_are_rejected_even_if_all_are_allowed(host: str) -> None:
    for server in (Server(), Server(allowed_hosts=("*",))):
        with pytest.raises(Forbidden, match="is not a valid host name"):
            check_host(host, server)


@given(st.text() | st.text("a.:-").map(lambda text: text.replace("-", "-" * 40)))
def test_quart_can_route_every_allowed_host(host: str) -> None:
    with contextlib.suppress(Forbidden):
        check_host(host, Server(allowed_hosts=("*",)))
        Map().bind(host)


def test_the_configured_host_is_allowed() -> None:
    check_host("box.lan:8080", Server(host="box.lan"))


@given(st.text())
def test_any_text_is_allowed_or_forbidden(text: str) -> None:
    for check in (lambda: check_host(text, Server()), lambda: check_origin(text, text, Server())):
        with contextlib.suppress(Forbidden):
            check()


@pytest.mark.parametrize("origin", ["null", "file://", "http://", "//"])
def test_invalid_origins_are_rejected(origin: str) -> None:
    with pytest.raises(Forbidden):
        check_origin(origin, "", Server())


def test_a_null_origin_gets_its_own_advice() -> None:
    with pytest.raises(Forbidden, match=r"from a file, .*: serve the page from a web server"):
        check_origin("null", "box:8080", Server())


def test_under_tls_http_origins_are_rejected() -> None:
    plain, encrypted = Server(), Server(tls_cert="cert.pem")
    check_origin("https://box:8080", "box:8080", encrypted)
    for origin in ("https://box:8080", "http://box:8080"):  # a proxy in front of it may use TLS or not
        check_origin(origin, "box:8080", plain)
    for origin, server in (("http://box:8080", encrypted), ("ftp://box:8080", plain), ("//box:8080", plain)):
        with pytest.raises(Forbidden, match="allowed_origins"):
            check_origin(origin, "box:8080", server)
    check_origin("http://box:8080", "box:8080", Server(tls_cert="x", allowed_origins=("http://box:8080",)))


@pytest.mark.parametrize("target", ["/", "/static/main.js", "/api/health", "/api/jobs", "/api/nothing"])
async def test_a_foreign_host_returns_403(daemon: RunningDaemon, target: str) -> None:
    async with Peer(await daemon.connect()) as peer:
        response = await peer.ask(target, {"Host": "evil.example"})
        assert (response.status, list(response.json)) == (403, ["error"])
        assert response.headers["x-content-type-options"] == "nosniff"
        assert (await peer.ask(target, {"Host": daemon.address})).status != 403  # the connection stays open


async def test_an_invalid_host_returns_403(tmp_path: Path) -> None:
    async with (
        running_daemon(tmp_path, server={"port": 0, "allowed_hosts": ("*",)}) as daemon,
        Peer(await daemon.connect()) as peer,
    ):
        for host in NO_NAMES:
            response = await peer.ask("/api/health", {"Host": host})
            assert (response.status, list(response.json)) == (403, ["error"])


async def test_a_foreign_host_gets_no_websocket(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(upgrade(headers={"Host": "evil.example", "Origin": "http://evil.example"}))
        assert (await peer.response()).status == 403


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


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_public_address_requires_permission(tmp_path: Path, host: str) -> None:
    with (
        pytest.raises(
            SettingsError,
            match=rf"^other machines can reach {host}, and no key is required: .*--allow-unauthenticated$",
        ),
        open_sockets(settings_in(tmp_path, server={"host": host}), {}),
    ):
        pass
    with open_sockets(settings_in(tmp_path, server={"host": host, "allow_unauthenticated": True}), {}):
        pass
