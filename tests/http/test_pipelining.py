"""Pipelined requests, cut anywhere, and the timeouts of their heads."""

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


async def test_the_timeout_of_a_head_starts_after_the_response_before_it(
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
