"""Hostile clients: the daemon goes on, a good watcher misses nothing, and nothing is left behind."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from progressd.broadcast.envelope import PING
from progressd.core.messages import Pong
from progressd.ws.protocol import EMPTY_FRAMES_WINDOW, MAX_EMPTY_FRAMES
from structlog.testing import capture_logs
from support.daemon import RunningDaemon, Watcher, completed, progress, registered, running_daemon
from support.peer import Peer, close_frame, frame
from support.samples import ID, job_id
from support.waiting import PATIENCE, eventually
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.frame_protocol import Opcode

KIB, MIB = 1 << 10, 1 << 20
GOOD = job_id(100)  # the job of the good watcher
SMALL = 4096  # bytes of a receive buffer: Linux doubles it, and takes no less than about 2 KiB


@asynccontextmanager
async def unharmed(daemon: RunningDaemon) -> AsyncIterator[Watcher]:
    """Watch a job during the block, and check that its messages go on arriving.

    Check that the block leaves no connections behind, and that the daemon logs no warning.
    """
    await daemon.report(registered(GOOD), progress(GOOD, 1))
    before = await daemon.settled()
    with capture_logs() as logs:
        async with daemon.watch(f"/ws/jobs/{GOOD}") as watcher:
            await watcher.receive_until("progress")
            yield watcher
            await still_served(daemon, watcher)
        await daemon.leaves_only(before)
    assert [entry for entry in logs if entry["log_level"] in ("warning", "error")] == []


async def still_served(daemon: RunningDaemon, watcher: Watcher) -> None:
    """Check that the daemon answers, takes events and delivers them."""
    async with Peer(await daemon.connect()) as peer:
        assert (await peer.ask("/api/health")).json["status"] == "healthy"
    await daemon.report(progress(GOOD, 99))
    while (await watcher.receive())["data"]["current_step"] != 99:
        pass


async def test_a_ping_after_the_daemons_close_is_ignored(daemon: RunningDaemon) -> None:
    async with unharmed(daemon):
        await daemon.report(registered(ID), progress(ID, 1))
        async with Peer(await daemon.connect()) as peer:
            await peer.open(f"/ws/jobs/{ID}")
            await daemon.report(completed(ID))
            assert await peer.close_code() == 1000
            await peer.send(frame(Opcode.PING, b"are you there?"))
            await peer.send(frame(Opcode.PING, b"hello?") + close_frame(1000))
            await peer.rest()


# invalid frames


async def test_an_invalid_frame_ends_only_its_connection(daemon: RunningDaemon) -> None:
    """`test_autobahn` has the rest of RFC 6455."""
    async with unharmed(daemon):
        for data, code in (
            (b"\xff" * 1000, 1002),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1002),
            (frame(Opcode.TEXT, b"hello", masked=False), 1002),
            (frame(Opcode.TEXT, b"\xff\xfe"), 1007),
            (b"\x82\xff" + b"\xff" * 8 + b"\0" * 4, 1002),  # a length beyond all bounds
            (b"\x82\xfe\x00\x01\0\0\0\0x", 1002),  # a length written too long
        ):
            async with Peer(await daemon.connect()) as peer:
                await peer.open(f"/ws/jobs/{GOOD}")
                await peer.send(data)
                assert await peer.close_code() == code
                await peer.rest()


async def test_messages_of_a_watcher_are_dropped(daemon: RunningDaemon) -> None:
    async with unharmed(daemon), Peer(await daemon.connect()) as peer:
        await peer.open(f"/ws/jobs/{GOOD}")
        for number in range(300):
            await peer.send(frame(Opcode.BINARY if number % 2 else Opcode.TEXT, b"x" * number * 200))
        await peer.send(frame(Opcode.PING, b"still there?"))
        while await peer.next_frame() != (Opcode.PONG, b"still there?"):
            pass


class Chatter(trio.abc.Instrument):
    """Writes to every WebSocket after each step of any task."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self._open = daemon.daemon.websockets._open

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        for websocket in self._open:
            if websocket.accepted:
                websocket.send(Pong())
                websocket.outbox.write(PING)


@pytest.mark.parametrize(
    ("last", "code"),
    [
        pytest.param(frame(Opcode.PONG) * (MAX_EMPTY_FRAMES + 1), 1008, id="flood"),
        pytest.param(frame(Opcode.TEXT, b"x" * 64 * KIB) + frame(Opcode.TEXT, b"x" * 65 * KIB), 1009, id="too big"),
        pytest.param(frame(Opcode.TEXT, b"\xff"), 1007, id="not UTF-8"),
        pytest.param(frame(3), 1002, id="protocol error"),
        pytest.param(close_frame(1000), 1000, id="the client's close"),
    ],
)
async def test_nothing_follows_a_close_frame(daemon: RunningDaemon, last: bytes, code: int) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.open("/ws")
        chatter = Chatter(daemon)
        trio.lowlevel.add_instrument(chatter)
        try:
            await peer.send(last)
            assert await peer.close_code() == code
            assert await peer.rest() == b""
        finally:
            trio.lowlevel.remove_instrument(chatter)


# large and many messages


async def test_a_large_message_is_rejected_before_its_end(daemon: RunningDaemon) -> None:
    async with unharmed(daemon), Peer(await daemon.connect()) as peer, trio.open_nursery() as nursery:
        await peer.open()
        taken = 0

        async def send() -> None:
            nonlocal taken
            data = frame(Opcode.BINARY, b"x" * (10 * MIB))
            try:
                for start in range(0, len(data), 64 * KIB):
                    await peer.stream.send_all(data[start : start + 64 * KIB])
                    taken += 64 * KIB
            except trio.BrokenResourceError:
                pass

        nursery.start_soon(send)
        assert await peer.close_code() == 1009
        nursery.cancel_scope.cancel()


async def test_empty_fragments_use_no_memory(daemon: RunningDaemon) -> None:
    async with unharmed(daemon), Peer(await daemon.connect()) as peer:
        await peer.open()
        await peer.send(frame(Opcode.TEXT, b"", final=False))
        await peer.send(
            frame(Opcode.CONTINUATION, b"", final=False) * (MAX_EMPTY_FRAMES - 2) + frame(Opcode.PING, b"ok")
        )
        while await peer.next_frame() != (Opcode.PONG, b"ok"):
            pass
        held = [len(websocket._ws._message_parts) for websocket in daemon.daemon.websockets._open]
        assert held == [0, 0]


@pytest.mark.parametrize("size", [1, 100])
async def test_a_message_in_endless_fragments_is_rejected(tmp_path: Path, size: int) -> None:
    async with (
        running_daemon(tmp_path, limits={"max_message_bytes": 4 * KIB}) as daemon,
        daemon.watch("/ws"),  # starts a task that stays
        unharmed(daemon),
        Peer(await daemon.connect()) as peer,
        trio.open_nursery() as nursery,
    ):
        await peer.open("/ws")  # where messages are read, so that their frames are no flood
        some = frame(Opcode.CONTINUATION, b"x" * size, final=False) * 1000

        async def send() -> None:
            try:
                await peer.stream.send_all(frame(Opcode.TEXT, b"x" * size, final=False))
                while True:
                    await peer.stream.send_all(some)
            except trio.BrokenResourceError:
                pass

        nursery.start_soon(send)
        assert await peer.close_code() == 1009
        nursery.cancel_scope.cancel()


async def test_the_largest_message_is_accepted(daemon: RunningDaemon) -> None:
    limit = daemon.settings.limits.max_message_bytes
    async with unharmed(daemon), Peer(await daemon.connect()) as peer:
        await peer.open()
        await peer.send(frame(Opcode.TEXT, b"x" * limit) + frame(Opcode.PING, b"ok"))
        while (got := await peer.next_frame()) != (Opcode.PONG, b"ok"):
            assert got[0] is Opcode.TEXT
        await peer.send(frame(Opcode.TEXT, b"x" * (limit + 1)))
        assert await peer.close_code() == 1009


async def test_unread_pongs_use_little_memory(slow_clock: MockClock, daemon: RunningDaemon) -> None:
    pings, at_once = 3_000, MAX_EMPTY_FRAMES // 3
    async with unharmed(daemon), Peer(await daemon.connect(receive_buffer=SMALL)) as peer:
        await peer.open()
        for first in range(0, pings, at_once):
            numbers = range(first, min(first + at_once, pings))
            await peer.send(b"".join([frame(Opcode.PING, b"%0125d" % number) for number in numbers]))
            with trio.fail_after(PATIENCE):
                await wait_all_tasks_blocked()
            slow_clock.jump(EMPTY_FRAMES_WINDOW)
        assert waiting(daemon) < 64 * KIB
        pongs, newest = 0, b""
        while newest != b"%0125d" % (pings - 1):
            opcode, newest = await peer.next_frame()
            pongs += opcode is Opcode.PONG
        assert pongs < pings


# clients that do not read


def waiting(daemon: RunningDaemon) -> int:
    """Return how many bytes wait in the daemon for all watchers."""
    return daemon.daemon.websockets.budget.used


async def test_a_client_that_never_reads_delays_no_other(tmp_path: Path) -> None:
    limit = 64 * KIB
    name = "x" * 1000
    async with (
        running_daemon(tmp_path, limits={"send_buffer_bytes": limit}) as daemon,
        daemon.watch("/ws/jobs") as good,
        Peer(await daemon.connect(receive_buffer=SMALL)) as bad,
    ):
        await bad.open("/ws/jobs")
        most = sent = 0
        while waiting(daemon) >= most // 2:  # until the daemon drops what waits
            most = max(most, waiting(daemon))
            await daemon.report(*(registered(job_id(sent + number), input_filename=name) for number in range(10)))
            for number in range(10):
                assert (await good.receive())["job_id"] == job_id(sent + number)
            sent += 10
            assert sent < 50_000, "the client is never closed"
        assert limit // 2 < most <= limit
        received = 0
        while (got := await bad.next_frame())[0] is Opcode.TEXT:
            received += 1
        assert (got[0], got[1][0]) == (Opcode.CLOSE, 4000)
        assert 0 < received < sent
        await bad.send(close_frame(4000))
        await bad.rest()
        await eventually(lambda: len(daemon.daemon.websockets) == 1)
        await daemon.report(registered(job_id(10**6)))
        assert (await good.receive())["job_id"] == job_id(10**6)


async def test_a_slow_client_gets_every_change(tmp_path: Path) -> None:
    async with running_daemon(tmp_path) as daemon, Peer(await daemon.connect(receive_buffer=SMALL)) as slow:
        await daemon.report(registered(ID), registered(GOOD))
        await slow.open("/ws/jobs")
        step = 0
        while not waiting(daemon):  # fill the socket
            step += 1
            await daemon.report(*(progress(ID, step, 10**6, "x" * 900) for _ in range(100)))
        await daemon.report(*(progress(ID, step + more, 10**6, "x" * 900) for more in range(1, 2001)))
        assert waiting(daemon) < 200 * KIB
        await daemon.report(progress(GOOD, 1), completed(GOOD), progress(ID, 10**6, 10**6), completed(ID))
        seen = []
        while not seen or (seen[-1]["job_id"], seen[-1]["type"]) != (ID, "completed"):
            seen.append(json.loads((await slow.next_frame())[1]))
        changes = [(one["job_id"], one["type"]) for one in seen if one["type"] != "progress"]
        assert changes == [
            (ID, "job_created"),
            (GOOD, "job_created"),
            (ID, "status_change"),
            (GOOD, "status_change"),
            (GOOD, "status_change"),
            (GOOD, "completed"),
            (ID, "status_change"),
            (ID, "completed"),
        ]
        steps = [one["data"]["current_step"] for one in seen if one["type"] == "progress" and one["job_id"] == ID]
        assert steps == sorted(steps)
        assert steps[-1] == 10**6
        assert len(set(steps)) < step + 1000
