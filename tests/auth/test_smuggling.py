"""Requests that two parsers may understand differently: neither the listener nor the HTTP side lets one through."""

import contextlib
import re

import pytest
import trio
from peer import Peer, request, upgrade

from daemon import RunningDaemon

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
    "lines that end otherwise": b"POST /ws/jobs HTTP/1.1\nHost: daemon\nContent-Length: 0\n\n" + HIDDEN,
}


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "ends"])
@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_what_is_ambiguous_hides_no_other_request(daemon: RunningDaemon, name: str, stays: bool) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(AMBIGUOUS[name])
        answer = await peer.receive() if stays else b""
        with contextlib.suppress(trio.BrokenResourceError):  # the daemon has closed it
            await peer.stream.send_eof()
        answer += await peer.rest()
    [status] = re.findall(rb"HTTP/1.1 (\d{3})", answer)
    assert status[:1] == b"4" or status == b"501", answer
    assert not daemon.daemon.registry.unfinished


async def test_an_upgrade_in_one_piece_with_a_request_is_refused(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(request("/api/health/live") + upgrade())
        assert [(await peer.response()).status for _ in range(2)] == [200, 400]


async def test_requests_behind_each_other_are_answered_in_order(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(request("/api/health/live") + request("/api/no") + request("/api/jobs"))
        assert [(await peer.response()).status for _ in range(3)] == [200, 404, 200]
