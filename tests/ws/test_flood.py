"""Clients that send many tiny frames: each pass of reading is short, and a flood is closed."""

import itertools
import json

import pytest
import trio
from progressd.core.json import decode
from progressd.ws.protocol import EMPTY_FRAMES_WINDOW, FRAME_BATCH, MAX_EMPTY_FRAMES
from support.daemon import RunningDaemon, progress, registered
from support.passes import counted
from support.peer import Peer, frame
from support.samples import ID
from support.waiting import PATIENCE, eventually
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.frame_protocol import Opcode

PONG = frame(Opcode.PONG)
PUBLISH = "/ws/publish"


def asks(message: object) -> bytes:
    return frame(Opcode.TEXT, json.dumps(message).encode())


@pytest.mark.parametrize(
    ("path", "empty"),
    [
        pytest.param("/ws/jobs", PONG, id="pongs"),
        pytest.param("/ws/jobs", frame(Opcode.PING, b"hello"), id="pings"),
        pytest.param("/ws/jobs", frame(Opcode.TEXT), id="empty messages"),
        pytest.param("/ws/jobs", frame(Opcode.TEXT, b"x"), id="messages that nobody reads"),
        pytest.param("/ws/jobs", frame(Opcode.BINARY, final=False), id="empty fragments"),
        pytest.param("/ws", frame(Opcode.TEXT), id="empty requests"),
        pytest.param(PUBLISH, frame(Opcode.TEXT), id="empty messages of a producer"),
        pytest.param(PUBLISH, PONG, id="pongs of a producer"),
    ],
)
async def test_a_flood_of_empty_frames_is_closed(daemon: RunningDaemon, path: str, empty: bytes) -> None:
    if empty == frame(Opcode.BINARY, final=False):
        flood = empty + frame(Opcode.CONTINUATION, final=False) * 10 * MAX_EMPTY_FRAMES
    else:
        flood = empty * 10 * MAX_EMPTY_FRAMES
    async with Peer(await daemon.connect()) as peer:
        await peer.open(path)
        await peer.send(flood)
        assert await peer.close_code() == 1008
        assert await peer.rest() == b""
    await eventually(lambda: daemon.daemon.connection_log.counts["closed", "1008 too many empty frames"] == 1)


async def test_frames_with_content_are_no_flood(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.open(PUBLISH)
        steps = 3 * MAX_EMPTY_FRAMES
        await peer.send(asks(registered(ID)) + b"".join([asks(progress(ID, step, steps)) for step in range(steps)]))
        for _ in range(steps + 1):
            assert json.loads((await peer.next_frame())[1])["ok"]
    async with Peer(await daemon.connect()) as peer:
        await peer.open("/ws")
        await peer.send(asks({"type": "ping"}) * 3 * MAX_EMPTY_FRAMES)
        for _ in range(3 * MAX_EMPTY_FRAMES):
            assert json.loads((await peer.next_frame())[1]) == {"type": "pong"}


async def test_as_many_pings_as_are_allowed_are_answered(slow_clock: MockClock, daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.open()
        for _ in range(3):
            await peer.send(PONG * (MAX_EMPTY_FRAMES - 1) + frame(Opcode.PING, b"ok"))
            while await peer.next_frame() != (Opcode.PONG, b"ok"):
                pass
            await wait_all_tasks_blocked()
            slow_clock.jump(EMPTY_FRAMES_WINDOW)


async def test_one_pass_reads_few_frames(daemon: RunningDaemon) -> None:
    sent = MAX_EMPTY_FRAMES - 1
    async with Peer(await daemon.connect()) as peer:
        await peer.open(PUBLISH)
        [websocket] = daemon.daemon.websockets._open
        seen = [0]
        await peer.send(PONG * sent)
        with trio.fail_after(PATIENCE):
            while seen[-1] < sent:
                await trio.lowlevel.checkpoint()  # between two of these the reader runs at most twice
                seen.append(websocket._ws._empty_frames)
    assert max(after - before for before, after in itertools.pairwise(seen)) <= 2 * FRAME_BATCH


async def test_each_pass_subscribes_one_client(daemon: RunningDaemon) -> None:
    peers, requests = 10, 5

    async def subscribe() -> None:
        async with Peer(await daemon.connect()) as peer:
            await peer.open("/ws")
            await peer.send(asks({"type": "subscribe", "topics": ["a", f"job:{ID}"]}) * requests)
            for number in range(2 * requests):
                rejected = json.loads((await peer.next_frame())[1])
                assert rejected["topic"] == ("a", f"job:{ID}")[number % 2]

    with counted(decode) as messages:
        async with trio.open_nursery() as nursery:
            for _ in range(peers):
                nursery.start_soon(subscribe)
    assert messages.total == peers * requests
    assert messages.most == 1
