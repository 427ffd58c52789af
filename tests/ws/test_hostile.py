"""Clients that do their worst. Each time the daemon goes on, a good watcher notices nothing, and nothing is left."""

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from progressd.broadcast.envelope import PING
from progressd.core.messages import Pong
from progressd.ws.protocol import EMPTY_MOST
from structlog.testing import capture_logs
from support.daemon import RunningDaemon, Watcher, completed, progress, registered, running_daemon
from support.peer import Peer, close_frame, frame, request, upgrade
from support.samples import ID, job_id
from support.waiting import PATIENCE, eventually
from trio.testing import wait_all_tasks_blocked
from wsproto.frame_protocol import Opcode

KIB, MIB = 1 << 10, 1 << 20
GOOD = job_id(100)  # the job of the good watcher
SMALL = 4096  # bytes of a receive buffer: Linux doubles it, and takes no less than about 2 KiB


@asynccontextmanager
async def unharmed(daemon: RunningDaemon) -> AsyncIterator[Watcher]:
    """Within this, somebody watches a job, and goes on getting what he should, at the end as well.

    Afterwards nothing is left of those who came in between, and nothing was logged as an error of ours.
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
    """The daemon answers, takes events and hands them on."""
    async with Peer(await daemon.connect()) as peer:
        assert (await peer.ask("/api/health")).json["status"] == "healthy"
    await daemon.report(progress(GOOD, 99))
    while (await watcher.receive())["data"]["current_step"] != 99:
        pass


# the two ways to kill a server made with trio-websocket alone


async def test_a_ping_after_the_daemon_began_to_close_does_not_kill_it(daemon: RunningDaemon) -> None:
    async with unharmed(daemon):
        await daemon.report(registered(ID), progress(ID, 1))
        async with Peer(await daemon.connect()) as peer:
            await peer.open(f"/ws/jobs/{ID}")
            await daemon.report(completed(ID))
            assert await peer.close_code() == 1000
            await peer.send(frame(Opcode.PING, b"are you there?"))
            await peer.send(frame(Opcode.PING, b"hello?") + close_frame(1000))
            await peer.rest()


@pytest.mark.parametrize("target", ["/", "/ws", "/ws/jobs"])
async def test_a_plain_request_that_is_reset_does_not_kill_it(daemon: RunningDaemon, target: str) -> None:
    async with unharmed(daemon):
        for _ in range(10):
            peer = Peer(await daemon.connect())
            await peer.send(request(target))
            await peer.reset()
            peer = Peer(await daemon.connect())
            await peer.ask(target)
            await peer.reset()


# leaving at the wrong moment


async def test_clients_that_vanish_anywhere_in_the_handshake_leave_nothing(daemon: RunningDaemon) -> None:
    head = upgrade(f"/ws/jobs/{GOOD}")
    async with unharmed(daemon):
        for length in [0, 1, 7, 40, len(head) - 1, len(head)]:
            for leave in (Peer.reset, lambda peer: peer.stream.aclose()):
                peer = Peer(await daemon.connect())
                if length:
                    await peer.send(head[:length])
                await leave(peer)


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 100])
async def test_clients_that_vanish_in_the_middle_of_a_frame_leave_nothing(daemon: RunningDaemon, length: int) -> None:
    async with unharmed(daemon):
        for leave in (Peer.reset, lambda peer: peer.stream.aclose()):
            peer = Peer(await daemon.connect())
            await peer.open()
            await peer.send(frame(Opcode.TEXT, b"x" * 1000)[:length])
            await leave(peer)


# what is no WebSocket frame, or not a good one


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"\xff" * 1000, 1002, id="garbage"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1002, id="http"),
        pytest.param(frame(Opcode.TEXT, b"hello", masked=False), 1002, id="unmasked"),
        pytest.param(frame(Opcode.TEXT, b"\xff\xfe"), 1007, id="no utf-8"),
        pytest.param(frame(Opcode.TEXT, b"\xed\xa0\x80"), 1007, id="a surrogate"),
        pytest.param(frame(Opcode.TEXT, b"hello", reserved=4), 1002, id="a reserved bit"),
        pytest.param(frame(3, b"hello"), 1002, id="a reserved opcode"),
        pytest.param(frame(0xB, b"hello"), 1002, id="a reserved control opcode"),
        pytest.param(frame(Opcode.CONTINUATION, b"hello"), 1002, id="a continuation of nothing"),
        pytest.param(frame(Opcode.TEXT, b"a", final=False) + frame(Opcode.TEXT, b"b"), 1002, id="a message in another"),
        pytest.param(frame(Opcode.PING, b"x" * 126), 1002, id="a long ping"),
        pytest.param(frame(Opcode.PING, b"x", final=False), 1002, id="a fragmented ping"),
        pytest.param(frame(Opcode.CLOSE, b"x"), 1002, id="a close of one byte"),
        pytest.param(close_frame(1005), 1002, id="a close with a code nobody may send"),
        pytest.param(close_frame(999), 1002, id="a close with no code"),
        pytest.param(frame(Opcode.CLOSE, b"\x03\xe8\xff"), 1007, id="a close whose reason is no utf-8"),
        pytest.param(b"\x82\xff" + b"\xff" * 8 + b"\0" * 4, 1002, id="a length beyond all bounds"),
        pytest.param(b"\x82\xfe\x00\x01\0\0\0\0x", 1002, id="a length written too long"),
    ],
)
async def test_what_is_no_good_frame_ends_that_connection(daemon: RunningDaemon, data: bytes, code: int) -> None:
    async with unharmed(daemon), Peer(await daemon.connect()) as peer:
        await peer.open(f"/ws/jobs/{GOOD}")
        await peer.send(data)
        assert await peer.close_code() == code
        await peer.rest()


@pytest.mark.parametrize("path", ["/ws/jobs", f"/ws/jobs/{GOOD}"])
async def test_what_a_watcher_says_is_read_and_forgotten(daemon: RunningDaemon, path: str) -> None:
    async with unharmed(daemon), Peer(await daemon.connect()) as peer:
        await peer.open(path)
        for number in range(300):
            await peer.send(frame(Opcode.BINARY if number % 2 else Opcode.TEXT, b"x" * number * 200))
        await peer.send(frame(Opcode.PING, b"still there?"))
        while await peer.next_frame() != (Opcode.PONG, b"still there?"):
            pass


class Chatter(trio.abc.Instrument):
    """Writes to every WebSocket after each step of any task."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self._open = daemon.daemon.watchers._open

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        for websocket in self._open:
            if websocket.accepted:
                websocket.send(Pong())
                websocket.outbox.write(PING)


@pytest.mark.parametrize(
    ("last", "code"),
    [
        pytest.param(frame(Opcode.PONG) * (EMPTY_MOST + 1), 1008, id="flood"),
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


# too much


async def test_a_message_of_10_mb_is_refused_before_it_is_there(daemon: RunningDaemon) -> None:
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


async def test_empty_fragments_without_end_do_not_pile_up(daemon: RunningDaemon) -> None:
    async with unharmed(daemon), Peer(await daemon.connect()) as peer:
        await peer.open()
        await peer.send(frame(Opcode.TEXT, b"", final=False))
        await peer.send(frame(Opcode.CONTINUATION, b"", final=False) * (EMPTY_MOST - 2) + frame(Opcode.PING, b"ok"))
        while await peer.next_frame() != (Opcode.PONG, b"ok"):
            pass
        held = [len(websocket._ws._message_parts) for websocket in daemon.daemon.watchers._open]
        assert held == [0, 0]


@pytest.mark.parametrize("size", [1, 100])
async def test_a_message_in_fragments_without_end_is_refused(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progressd.ws.protocol.EMPTY_MOST", 1_000_000)
    async with (
        running_daemon(tmp_path, limits={"max_message_bytes": 4 * KIB}) as daemon,
        unharmed(daemon),
        Peer(await daemon.connect()) as peer,
        trio.open_nursery() as nursery,
    ):
        await peer.open()
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


async def test_a_message_of_just_the_limit_is_taken(daemon: RunningDaemon) -> None:
    limit = daemon.settings.limits.max_message_bytes
    async with unharmed(daemon), Peer(await daemon.connect()) as peer:
        await peer.open()
        await peer.send(frame(Opcode.TEXT, b"x" * limit) + frame(Opcode.PING, b"ok"))
        while (got := await peer.next_frame()) != (Opcode.PONG, b"ok"):
            assert got[0] is Opcode.TEXT
        await peer.send(frame(Opcode.TEXT, b"x" * (limit + 1)))
        assert await peer.close_code() == 1009


async def test_pings_whose_pongs_nobody_reads_do_not_pile_up(
    daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    pings = 30_000
    monkeypatch.setattr("progressd.ws.protocol.EMPTY_MOST", pings)
    async with unharmed(daemon), Peer(await daemon.connect(receive_buffer=SMALL)) as peer:
        await peer.open()
        for number in range(pings):
            await peer.send(frame(Opcode.PING, b"%0125d" % number))
        with trio.fail_after(PATIENCE):
            await wait_all_tasks_blocked()
        assert waiting(daemon) < 64 * KIB
        pongs, newest = 0, b""
        while newest != b"%0125d" % (pings - 1):
            opcode, newest = await peer.next_frame()
            pongs += opcode is Opcode.PONG
        assert pongs < pings


# not reading


def waiting(daemon: RunningDaemon) -> int:
    """Bytes that wait in the daemon for all watchers together."""
    return daemon.daemon.watchers.budget.used


async def test_a_client_that_never_reads_is_closed_and_nobody_else_notices(tmp_path: Path) -> None:
    limit = 64 * KIB
    name = "x" * 1000
    async with (
        running_daemon(tmp_path, limits={"send_buffer_bytes": limit}) as daemon,
        daemon.watch("/ws/jobs") as good,
        Peer(await daemon.connect(receive_buffer=SMALL)) as bad,
    ):
        await bad.open("/ws/jobs")
        most = sent = 0
        while not any(websocket.closing for websocket in daemon.daemon.watchers._open):
            most = max(most, waiting(daemon))
            await daemon.report(*(registered(job_id(sent + number), input_filename=name) for number in range(10)))
            for number in range(10):
                assert (await good.receive())["job_id"] == job_id(sent + number)
            sent += 10
            assert sent < 50_000, "it is never closed"
        assert limit // 2 < most <= limit
        assert waiting(daemon) < limit // 2, "what was given up still counts"
        received = 0
        while (got := await bad.next_frame())[0] is Opcode.TEXT:
            received += 1
        assert (got[0], got[1][0]) == (Opcode.CLOSE, 4000)
        assert 0 < received < sent
        await bad.send(close_frame(4000))
        await bad.rest()
        await eventually(lambda: len(daemon.daemon.watchers) == 1)
        await daemon.report(registered(job_id(10**6)))
        assert (await good.receive())["job_id"] == job_id(10**6)


async def test_a_slow_client_gets_every_change_but_only_the_newest_progress(tmp_path: Path) -> None:
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


# many of every kind


async def one_that_closes(daemon: RunningDaemon) -> None:
    async with daemon.watch("/ws/jobs") as watcher:
        await watcher.websocket.ping()


async def one_that_resets(daemon: RunningDaemon) -> None:
    peer = Peer(await daemon.connect())
    await peer.open()
    await peer.reset()


async def one_that_is_refused(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(upgrade("/ws/jobs/nonsense"))
        assert (await peer.response()).status == 400


async def one_that_sends_garbage(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.open()
        await peer.send(b"\xff" * 100)
        await peer.rest()


async def one_that_is_in_two_minds(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.ask("/api/health")
        await peer.open("/ws")
        await peer.send(frame(Opcode.TEXT, b'{"type":"subscribe","topics":["jobs"]}') + close_frame(1000))
        await peer.rest()


async def one_that_only_connects(daemon: RunningDaemon) -> None:
    await (await daemon.connect()).aclose()


async def one_that_stops_in_the_middle(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(upgrade()[:50])


async def one_that_asks_for_pages(daemon: RunningDaemon) -> None:
    async with Peer(await daemon.connect()) as peer:
        for target in ("/", "/static/main.js", "/api/jobs"):
            assert (await peer.ask(target)).status == 200


KINDS: list[Callable[[RunningDaemon], Coroutine[Any, Any, None]]] = [
    one_that_closes,
    one_that_resets,
    one_that_is_refused,
    one_that_sends_garbage,
    one_that_is_in_two_minds,
    one_that_only_connects,
    one_that_stops_in_the_middle,
    one_that_asks_for_pages,
]


async def test_200_clients_of_every_kind_leave_nothing_behind(daemon: RunningDaemon) -> None:
    for once in KINDS:  # what is opened when it is first needed, and then kept
        await once(daemon)
    async with unharmed(daemon):
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(KINDS[number % len(KINDS)], daemon)
                await daemon.report(*(progress(GOOD, 2 + number) for number in range(10)))
