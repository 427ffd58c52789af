"""Connections that end in every way leave no tasks, descriptors, topics or memory behind."""

import gc
import sys
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import product
from pathlib import Path
from types import BuiltinFunctionType
from typing import NamedTuple

import pytest
import trio
from progressd.ws import websocket
from support.daemon import RunningDaemon, completed, progress, registered, running_daemon
from support.peer import Peer, close_frame, frame, upgrade
from support.samples import ID, job_id
from support.waiting import pass_time
from trio.testing import MockClock
from wsproto.frame_protocol import Opcode

SMALL = 4096  # bytes of a receive buffer
FEW = 17  # objects, fewer than three rounds with one leak in each way to leave
JOB = f"/ws/jobs/{ID}"
SUBSCRIBE = frame(Opcode.TEXT, f'{{"type":"subscribe","topics":["job:{ID}","job:{job_id(2)}"]}}'.encode())
CACHED = {weakref.ref, BuiltinFunctionType}  # sqlite3 keeps up to 200 cursors, abc what it has found of classes

Reach = Callable[[RunningDaemon, Peer], Awaitable[None]]
Leave = Callable[[Peer], Awaitable[None]]


# stages of a connection


async def silent(daemon: RunningDaemon, peer: Peer) -> None:
    pass


async def half_a_handshake(daemon: RunningDaemon, peer: Peer) -> None:
    await peer.send(upgrade(JOB)[:60])


async def no_answer_awaited(daemon: RunningDaemon, peer: Peer) -> None:
    await peer.send(upgrade(JOB))


async def rejected(daemon: RunningDaemon, peer: Peer) -> None:
    await peer.send(upgrade("/ws/jobs/nonsense"))
    assert (await peer.response()).status == 400


async def after_rest(daemon: RunningDaemon, peer: Peer) -> None:
    assert (await peer.ask("/api/health")).status == 200
    await peer.open(JOB)


async def watching(daemon: RunningDaemon, peer: Peer) -> None:
    await peer.open(JOB)
    assert (await peer.next_frame())[0] is Opcode.TEXT


async def watching_less(daemon: RunningDaemon, peer: Peer) -> None:
    await peer.open(f"{JOB}?interval=30&types=error")
    assert (await peer.next_frame())[0] is Opcode.TEXT


async def subscribed(daemon: RunningDaemon, peer: Peer) -> None:
    await peer.open("/ws", behind=SUBSCRIBE)
    while '"subscribed"' not in (await peer.next_frame())[1]:
        pass


async def in_the_middle_of_a_frame(daemon: RunningDaemon, peer: Peer) -> None:
    await peer.open(JOB, behind=frame(Opcode.TEXT, b"x" * 60_000)[:30_000])


async def in_the_middle_of_a_message(daemon: RunningDaemon, peer: Peer) -> None:
    await peer.open("/ws", behind=frame(Opcode.TEXT, b"x" * 1000, final=False) * 10)


async def messages_wait(daemon: RunningDaemon, peer: Peer) -> None:
    await peer.open("/ws/jobs")


async def the_job_ends(daemon: RunningDaemon, peer: Peer) -> None:
    await peer.open(f"/ws/jobs/{job_id(3)}")
    assert await peer.close_code() == 1000


# its ends


async def say_goodbye(peer: Peer) -> None:
    await peer.send(close_frame(1000))
    await peer.rest()


async def hang_up(peer: Peer) -> None:
    await peer.stream.aclose()


async def reset(peer: Peer) -> None:
    await peer.reset()


async def half_close(peer: Peer) -> None:
    await peer.stream.send_eof()
    await peer.rest()


async def fall_silent(peer: Peer) -> None:
    await peer.rest()


async def break_the_rules(peer: Peer) -> None:
    await peer.send(b"\xff" * 100)
    await peer.rest()


REACHES: list[Reach] = [
    silent,
    half_a_handshake,
    no_answer_awaited,
    rejected,
    after_rest,
    watching,
    watching_less,
    subscribed,
    in_the_middle_of_a_frame,
    in_the_middle_of_a_message,
    messages_wait,
    the_job_ends,
]
LEAVINGS: list[Leave] = [say_goodbye, hang_up, reset, half_close, fall_silent, break_the_rules]
KINDS = list(product(REACHES, LEAVINGS))


async def come_and_go(daemon: RunningDaemon, step: int, of_each: int) -> None:
    """Open and end connections of each kind at once while events arrive."""
    async with trio.open_nursery() as nursery:
        for reach, leave in KINDS * of_each:
            nursery.start_soon(one, daemon, reach, leave)
        await daemon.report(progress(ID, step, 10**6), progress(job_id(2), step, 10**6))


async def one(daemon: RunningDaemon, reach: Reach, leave: Leave) -> None:
    async with Peer(await daemon.connect(receive_buffer=SMALL)) as peer:
        try:
            await reach(daemon, peer)
            await leave(peer)
        except trio.BrokenResourceError:
            pass  # the daemon has closed it before


class Memory(NamedTuple):
    """Objects and memory blocks of the process."""

    objects: Counter[str]  # by type
    blocks: int

    @classmethod
    def now(cls) -> "Memory":
        trio._core._run.GLOBAL_RUN_CONTEXT.runner.deadlines._prune()  # Trio keeps up to 1,000 that are over
        gc.collect()
        types = (type(one) for one in gc.get_objects() if type(one) not in CACHED)
        return cls(Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in types), sys.getallocatedblocks())


async def rounds(directory: Path, number: int, of_each: int = 1, patience: float = 0.5) -> None:
    """Check that rounds of connections leave the daemon as it was. `patience`: the daemon's timeouts in seconds."""
    limits = {
        "connection_timeout": patience,
        "handshake_timeout": patience,
        "max_connections": 2 * of_each * len(KINDS),
        "max_connections_per_address": 2 * of_each * len(KINDS),
    }
    async with running_daemon(directory, limits=limits) as running:
        labels = {f"label-{number}": "x" * 200 for number in range(50)}
        large = (registered(job_id(10 + number), labels=labels) for number in range(50))
        await running.report(registered(ID), progress(ID, 1), registered(job_id(2)), registered(job_id(3)), *large)
        await running.report(progress(job_id(3), 1), completed(job_id(3)))
        await come_and_go(running, 2, of_each)  # creates what is created once and kept
        before = await running.settled()
        memory = Memory.now()
        for step in range(number):
            await come_and_go(running, 3 + step, of_each)
        await running.leaves_only(before)
        objects, blocks = Memory.now()
        assert {kind: more for kind, more in (objects - memory.objects).items() if more > FEW} == {}
        assert blocks - memory.blocks < 100 * FEW
        watchers, connection_log = running.daemon.watchers, running.daemon.connection_log
        assert watchers.budget.used == 0
        assert (connection_log.open, connection_log.accepted) == (0, connection_log.counts.total())
        assert connection_log.counts["failed", "error"] == 0


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT", 0.3)


async def test_connections_leave_nothing_behind(tmp_path: Path, mock_clock: MockClock, nursery: trio.Nursery) -> None:
    nursery.start_soon(pass_time, mock_clock)  # all connect at once, which takes a while, and must not time out
    await rounds(tmp_path, 3)


@pytest.mark.torture
async def test_20_000_connections_leave_nothing_behind(tmp_path: Path) -> None:
    await rounds(tmp_path, 20_000 // (8 * len(KINDS)) + 1, of_each=8, patience=3)
