"""Pipelined requests, cut anywhere, and the timeouts of their heads."""

import json
from collections.abc import AsyncIterator

import pytest
import trio
from support.daemon import RunningDaemon, progress, registered
from support.peer import Peer, request
from support.samples import ID
from trio.testing import MockClock, wait_all_tasks_blocked

APPLICATION, FAST = "/api/health/live", f"/api/jobs/{ID}"  # a response of the application, and a fast read


@pytest.fixture
async def peer(slow_clock: MockClock, daemon: RunningDaemon) -> AsyncIterator[Peer]:
    """A used connection to a daemon with a job."""
    await daemon.report(registered(ID))
    async with Peer(await daemon.connect()) as peer:
        assert (await peer.ask(APPLICATION)).status == 200
        yield peer


async def jump(clock: MockClock, seconds: float) -> None:
    """Let time pass once the daemon has read everything."""
    await wait_all_tasks_blocked(0.01)
    clock.jump(seconds)


@pytest.mark.parametrize("target", [APPLICATION, FAST])
async def test_each_head_has_its_own_timeout(
    slow_clock: MockClock, daemon: RunningDaemon, peer: Peer, target: str
) -> None:
    head = request(target)
    await peer.send(head[:-1])
    for _ in range(10):
        await jump(slow_clock, 0.4 * daemon.settings.limits.handshake_timeout)
        await peer.send(head[-1:] + head[:-1])
        assert (await peer.response()).status == 200


async def test_a_heads_timeout_starts_after_the_last_response(
    slow_clock: MockClock, daemon: RunningDaemon, peer: Peer
) -> None:
    timeout = daemon.settings.limits.handshake_timeout
    cursor = (await peer.ask(FAST)).json["cursor"]
    poll, behind = request(f"{FAST}?since={cursor}&wait=60"), request(APPLICATION)
    await peer.send(poll[:20])
    await jump(slow_clock, 0.1 * timeout)
    await peer.send(poll[20:] + behind[:20])
    await jump(slow_clock, 1.5 * timeout)
    await daemon.report(progress(ID, 1))
    assert (await peer.response()).json["status"] == "processing"
    await jump(slow_clock, 0.8 * timeout)
    await peer.send(behind[20:])
    assert (await peer.response()).status == 200


@pytest.mark.parametrize("target", [APPLICATION, FAST])
async def test_a_pipelined_head_has_no_longer_timeout(
    slow_clock: MockClock, daemon: RunningDaemon, peer: Peer, target: str
) -> None:
    timeout = daemon.settings.limits.handshake_timeout
    head = request(target)
    await peer.send(head[:-1])
    await jump(slow_clock, 0.1 * timeout)
    await peer.send(head[-1:] + head[:20])
    assert (await peer.response()).status == 200
    for number in range(20, 24):
        await jump(slow_clock, 0.2 * timeout)
        await peer.send(head[number : number + 1])
    await jump(slow_clock, 0.3 * timeout)
    with trio.fail_after(0.5 * timeout):
        assert await peer.rest() == b""


@pytest.mark.parametrize("target", [APPLICATION, FAST])
@pytest.mark.parametrize("cut", [0, 1, 2])
async def test_an_empty_line_before_a_later_request_is_ignored(peer: Peer, target: str, cut: int) -> None:
    await peer.send(b"\r\n"[:cut])
    await wait_all_tasks_blocked(0.01)
    await peer.send(b"\r\n"[cut:] + request(target) + b"\r\n" + request(target))
    assert [(await peer.response()).status for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("body", [json.dumps(progress(ID, 1)).encode(), b""])
async def test_an_empty_line_behind_a_body_is_ignored(peer: Peer, body: bytes) -> None:
    headers = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
    post = request(f"{FAST}/events", headers, method="POST") + body + b"\r\n"
    for _ in range(3):
        await peer.send(post)
        assert (await peer.response()).status == (200 if body else 400)
        assert (await peer.ask(FAST)).status == 200


async def test_a_disconnect_within_an_empty_line_is_noticed(peer: Peer) -> None:
    await peer.send(b"\r")
    await wait_all_tasks_blocked(0.01)
    await peer.stream.send_eof()
    await peer.rest()  # ends
