"""Requests that two parsers may read differently are rejected by the listener and by the HTTP side."""

import contextlib
import re
from itertools import product
from pathlib import Path
from urllib.parse import unquote

import h11
import trio
from hypothesis import given
from hypothesis import strategies as st
from progressd.http.server.protocol import with_path
from progressd.net.request import BasePath
from support import keys
from support.daemon import RunningDaemon, registered, running_daemon
from support.peer import Peer, request, upgrade
from support.samples import ID
from trio.testing import wait_all_tasks_blocked

HIDDEN = b"POST /api/jobs HTTP/1.1\r\nHost: daemon\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"0\r\n\r\n" + HIDDEN


def head(*lines: str, method: str = "POST", target: str = "/api/events") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: daemon", *lines, "", ""]).encode("latin-1")


AMBIGUOUS = {
    "length and chunked": head(f"Content-Length: {len(CHUNKED)}", "Transfer-Encoding: chunked") + CHUNKED,
    "chunked and length": head("Transfer-Encoding: chunked", f"Content-Length: {len(CHUNKED)}") + CHUNKED,
    "two lengths": head("Content-Length: 0", f"Content-Length: {len(HIDDEN)}") + HIDDEN,
    "a list of lengths": head(f"Content-Length: 0, {len(HIDDEN)}") + HIDDEN,
    "a signed length": head(f"Content-Length: +{len(HIDDEN)}") + HIDDEN,
    "a length in hexadecimal": head("Content-Length: 0x10") + HIDDEN,
    "an obsolete fold": head("Content-Length: 0", "X: a", f" Content-Length: {len(HIDDEN)}", "Y") + HIDDEN,
    "a folded coding": head("Transfer-Encoding:", " chunked") + CHUNKED,
    "a space before the colon": head("Content-Length : 0", f"Content-Length: {len(HIDDEN)}") + HIDDEN,
    "another coding": head("Transfer-Encoding: gzip, chunked") + CHUNKED,
    "a coding twice": head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + CHUNKED,
    "a coding of another spelling": head("Transfer-Encoding: xchunked") + CHUNKED,
    "a coding with a tab": head("Transfer-Encoding: \x0bchunked") + CHUNKED,
    "a chunk with a sign": head("Transfer-Encoding: chunked") + b"-1\r\n\r\n" + HIDDEN,
    "a chunk of bad size": head("Transfer-Encoding: chunked") + b"0x0\r\n\r\n" + HIDDEN,
    "a null in the head": head("X: a\x00b", f"Content-Length: {len(HIDDEN)}") + HIDDEN,
    "an upgrade with a length": upgrade(headers={"Content-Length": str(len(HIDDEN))}) + HIDDEN,
    "an upgrade with chunks": upgrade(headers={"Transfer-Encoding": "chunked"}) + CHUNKED,
    "a coding behind a bare LF": upgrade(headers={"X": "y\nTransfer-Encoding: chunked"}) + CHUNKED,
    "a length behind a bare LF": upgrade(headers={"X": f"y\nContent-Length: {len(HIDDEN)}"}) + HIDDEN,
    "another length behind a bare LF": head("Content-Length: 0", f"X: y\nContent-Length: {len(HIDDEN)}") + HIDDEN,
    "a host behind a bare LF": upgrade(headers={"Host": "", "X": "y\nHost: evil.example"}),
    "a second host behind a bare LF": upgrade(headers={"X": "y\nHost: daemon"}),
    "a fold behind a bare LF": head("Content-Length: 0", f"X: y\n Content-Length: {len(HIDDEN)}", " Y") + HIDDEN,
    "lines that end otherwise": b"POST /ws/jobs HTTP/1.1\nHost: daemon\nContent-Length: 0\n\n" + HIDDEN,
}


async def test_an_ambiguous_request_hides_no_other_one(daemon: RunningDaemon) -> None:
    for name, stays in product(AMBIGUOUS, (True, False)):
        async with Peer(await daemon.connect()) as peer:
            await peer.send(AMBIGUOUS[name])
            answer = await peer.receive() if stays else b""
            with contextlib.suppress(trio.BrokenResourceError):  # closed by the daemon
                await peer.stream.send_eof()
            answer += await peer.rest()
        [status] = re.findall(rb"HTTP/1.1 (\d{3})", answer)
        assert status[:1] == b"4" or status == b"501", (name, answer)
    assert not daemon.daemon.registry.unfinished


async def test_a_body_like_an_upgrade_is_a_body(daemon: RunningDaemon) -> None:
    cuts = (b"GET /api/health/live HTTP/1.1\r\nHost: daemon\r\nX-Note: ", b"G", b"GET /api/", b"\r")
    for cut, pieces in product(cuts, ([upgrade()], [upgrade()[:4], upgrade()[4:]])):
        async with Peer(await daemon.connect()) as peer:
            assert (await peer.ask("/api/health/live")).status == 200
            assert (await peer.ask("/api/health")).status == 200
            for piece in (cut, *pieces):
                await peer.send(piece)
                await wait_all_tasks_blocked(0.01)
            assert (await peer.response()).status in (200, 400, 404, 405, 426)
    assert not daemon.daemon.websockets


async def test_all_parsers_end_a_head_at_two_line_feeds(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(upgrade(headers={"X": "y\n\nGET /api/health/live HTTP/1.1", "Y": "z"}) + request("/api/health"))
        await peer.stream.send_eof()
        answer = await peer.rest()
    assert b"HTTP/1.1 101" not in answer
    assert not daemon.daemon.connection_log.counts["left", "1006"]


async def test_pipelined_requests_are_answered_in_order(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(request("/api/health/live") + request("/api/no") + request("/api/jobs"))
        assert [(await peer.response()).status for _ in range(3)] == [200, 404, 200]


LAST = {
    "a request": head("Content-Length: 2", target="/api/health/live") + b"{}" + HIDDEN,
    "a request behind chunks": head("Transfer-Encoding: chunked", target="/api/health/live") + CHUNKED,
    "an empty line where it shall end": request("/api/health/live", {"Connection": "close"}) + b"\r\n",
    "a request where it shall end": request("/api/health/live", {"Connection": "close"}) + HIDDEN,
    "a body where it shall end": head("Connection: close", "Content-Length: 2", target="/api/jobs/x/retry") + b"{}\r\n",
    "an empty line in HTTP/1.0": b"GET /api/health/live HTTP/1.0\r\n\r\n\r\n",
}
ANSWERED = {
    "an empty line where it shall end": 200,
    "a request where it shall end": 200,
    "an empty line in HTTP/1.0": 200,
    "a body where it shall end": 400,
}


async def test_data_behind_the_last_request_loses_no_response(daemon: RunningDaemon) -> None:
    for name in [*LAST] * 20:
        async with Peer(await daemon.connect()) as peer:
            await peer.send(LAST[name])
            answer = await peer.response()
            assert (answer.status, answer.headers["connection"]) == (ANSWERED.get(name, 405), "close"), name
            assert await peer.rest() == b""
    assert not daemon.daemon.registry.unfinished


NO_PATHS = (
    *("http://daemon/api/jobs#/token", "http://daemon/api/jobs?#/token", "/api/jobs#/token", "/#/../api/jobs"),
    *("//api/jobs", "///api/jobs", "/%2fapi/jobs", "http://daemon//api/jobs", "http://daemon/%2Fapi/jobs"),
    *("api/jobs", "http:/api/jobs", "http:api/jobs", "http:///api/jobs", "http://user@daemon/api/jobs"),
    *("ftp://daemon/api/jobs", "daemon:80", "*", "%68ttp://daemon/api/jobs#/token"),
)
OTHER_PATHS = (
    *("/api/jobs%23/token", "/api/jobs%3f/token", "/api/jobs/%23/token", "/api//jobs"),
    *("http://daemon/api/jobs%23/token", "http://daemon/api/jobs%3F/token"),
)


async def test_no_spelling_of_a_path_lets_a_reader_write(tmp_path: Path) -> None:
    key = keys.bearer(keys.add(tmp_path / "state/keys.json", "viewer", "read"))
    async with running_daemon(tmp_path, auth={"required": True}) as daemon:
        fields = {**key, "Content-Length": "12", "Content-Type": "application/json"}
        await daemon.report(registered(ID))
        for target in (*NO_PATHS, *OTHER_PATHS, "http://daemon/api/jobs", "HTTP://daemon:80/api/jobs"):
            for method, at in (("POST", target), ("DELETE", target.replace("/jobs", f"/jobs/{ID}"))):
                async with Peer(await daemon.connect()) as peer:
                    await peer.send(request(at, fields, method=method) + b'{"kind":"a"}')
                    status = (await peer.response()).status
                assert status in ([400] if target in NO_PATHS else [400, 403]), at
        assert [*daemon.daemon.registry.unfinished] == [ID]


async def test_an_absolute_target_is_its_path_and_host(tmp_path: Path) -> None:
    limits = {"rate_limit_burst": 100, "exempt_addresses": ()}
    async with running_daemon(tmp_path, limits=limits) as daemon, Peer(await daemon.connect()) as peer:
        await daemon.report(registered(ID))
        left = []
        for target in (f"/api/jobs/{ID}", f"http://daemon/api/jobs/{ID}", f"HTTPS://daemon:1/api/jobs/{ID}?_=b"):
            answer = await peer.ask(target)
            assert answer.json["id"] == ID
            left.append(int(answer.headers["x-ratelimit-remaining"]))
        assert left == [99, 98, 97]
        assert (await peer.ask("http://daemon")).status == 200
        assert (await peer.ask("http://daemon?a")).status == 200
        assert (await peer.ask("*", method="OPTIONS")).status == 200
        assert (await peer.ask("http://evil.example/api/jobs")).status == 403
        assert (await peer.ask("http://daemon/api/jobs", {"Host": "evil.example"})).status == 200
        assert (await peer.ask("http://daemon/api/events", {"Origin": "http://evil.example"})).status == 403
        assert (await peer.ask("http://daemon/api/jobs", {"Origin": "http://daemon"}, method="POST")).status == 201
    async with (
        running_daemon(tmp_path, server={"base_path": "/progress/", "allowed_hosts": ("daemon",), "port": 0}) as daemon,
        Peer(await daemon.connect()) as peer,
    ):
        assert (await peer.ask("http://daemon/progress/api/jobs")).status == 200
        assert (await peer.ask("/progress//api/jobs")).status == 400


PIECES = st.sampled_from(
    ["/", "//", "#", "?", "%", "%2f", "%23", "%3f", "http:", "HTTPS://", "a@", "b", ":", "..", "*", "["]
)


@given(st.lists(PIECES | st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E)), min_size=1).map("".join))
def test_all_layers_see_the_same_path(target: str) -> None:
    asked = h11.Request(method="GET", target=target or "/", headers=[("Host", "daemon")])
    told = with_path(asked, BasePath())
    if told is not None:
        path = unquote(told.target.decode().partition("?")[0])
        assert path.startswith("/")
        assert path == "/" + path.lstrip("/")
