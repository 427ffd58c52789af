"""Heartbeat and timeouts of one connection, over memory and on a clock that jumps, so that an hour takes no time."""

import json
import math
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from peer import Peer, close_frame, frame, upgrade
from progressd.auth.admission import Admission
from progressd.auth.allowance import Allowance
from progressd.auth.places import Places
from progressd.broadcast.broadcaster import Broadcaster
from progressd.broadcast.published import Published
from progressd.broadcast.subscription import NoHistory, Page
from progressd.config.settings import Limits
from progressd.core.closing import CREDENTIALS_EXPIRED, DRAINING
from progressd.core.errors import NotFound, ProgressdError, StoreFailed
from progressd.core.events import Event
from progressd.core.messages import ServerShutdown, ServerShutdownData, job_topic
from progressd.ingest import Outcome, Submitting
from progressd.producers.intake import PATIENCE
from progressd.ws.connection import CLOSE_TIMEOUT, STALL
from progressd.ws.ledger import ABANDONED, Fate
from progressd.ws.listener import Upgrade, read_upgrade
from progressd.ws.watchers import Watchers
from samples import ID, job, moved, started, succeeded
from trio.testing import MemoryReceiveStream, MemorySendStream, MockClock, wait_all_tasks_blocked
from wsproto.frame_protocol import Opcode

from daemon import settings_in

HOUR = 3600.0
JOB = f"/ws/jobs/{ID}"


class MemoryConnection:
    """To the WebSocket side the same as the listener's Connection; `full` is a socket without room.

    `room`: after how many sends it is full.
    """

    def __init__(self) -> None:
        self.room = math.inf
        self.peer = "127.0.0.1"
        self.topics = ""
        self.fate = ABANDONED
        self.unread = b""
        self.upgrade: Upgrade | None = None
        self._to_client = MemoryReceiveStream()
        self._from_client = MemoryReceiveStream()
        self._room = trio.Event()
        self._room.set()
        self.at_once: int | None = None  # bytes, after which it is full again
        sending = MemorySendStream()

        async def pass_on() -> None:
            self._from_client.put_data(sending.get_data_nowait())

        sending.send_all_hook, sending.close_hook = pass_on, self._from_client.put_eof
        self.client = trio.StapledStream(sending, self._to_client)

    @property
    def full(self) -> bool:
        return not self._room.is_set()

    @full.setter
    def full(self, full: bool) -> None:
        if full:
            self._room = trio.Event()
        else:
            self._room.set()

    def send(self, data: bytes) -> int:
        if self.full:
            raise BlockingIOError
        self._to_client.put_data(data)
        self.room -= 1
        self.full = not self.room
        return len(data)

    async def wait_writable(self) -> None:
        await self._room.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self.unread:
            return bytes(await self._from_client.receive_some(max_bytes))
        await trio.lowlevel.checkpoint()
        size = max_bytes or len(self.unread)
        data, self.unread = self.unread[:size], self.unread[size:]
        return data

    async def read_head(self) -> None:
        while b"\r\n\r\n" not in self.unread:
            self.unread += await self._from_client.receive_some()

    def end(self) -> None:
        """What the client sees of a closed connection."""
        self._to_client.put_eof()


class OneJob(NoHistory):
    """A history that knows one job. `asked` and `may_answer` tell and hold the moment in which it is looked up."""

    def __init__(self) -> None:
        self.asked, self.may_answer = trio.Event(), trio.Event()
        self.may_answer.set()

    async def subject(self, topic: str) -> None:
        self.asked.set()
        await self.may_answer.wait()
        if topic != job_topic(ID):
            raise NotFound(f"no {topic}")


class LongPast(OneJob):
    """A history in ten parts; `broken`: one that cannot be read."""

    broken = False

    async def subjects(self, topics: Collection[str]) -> dict[str, None]:
        await trio.lowlevel.checkpoint()
        return dict.fromkeys(topics)

    def cursor(self, offset: int) -> str:
        return f"store-{offset}"

    async def page(self, topic: str, after: int | None, upto: int) -> Page:
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise StoreFailed("the disk is full")
        part = (after or 0) + 1
        return Page([Published(part, moved(part))], part if part < 10 else None)


class Deciding(Submitting):
    """An ingest that takes everything, once it may, unless it is `broken`."""

    store_id = "store"

    def __init__(self) -> None:
        self.taken: list[Event] = []
        self.may_decide = trio.Event()
        self.may_decide.set()
        self.broken: ProgressdError | None = None

    async def submit(self, *events: Event) -> list[Outcome]:
        self.taken += events
        await self.may_decide.wait()
        if self.broken is not None:
            raise self.broken
        return [job() for _ in events]


class Server:
    """A broadcaster and the watchers it reaches, on a nursery."""

    def __init__(self, nursery: trio.Nursery, tmp_path: Any, history: OneJob | None = None, **limits: Any) -> None:
        self.nursery = nursery
        self.history = history or OneJob()
        self.broadcaster = Broadcaster(self.history, nursery=nursery)
        settings = settings_in(tmp_path, limits=limits)
        self.ingest = Deciding()
        sight = SimpleNamespace(history=self.history, broadcaster=self.broadcaster, ingest=self.ingest)
        sights = SimpleNamespace(of=lambda who: sight)
        admission = Admission(settings.auth)
        self.watchers = Watchers(
            settings, admission, Allowance(settings, admission), Places(settings), cast(Any, sights)
        )
        nursery.start_soon(self.watchers.run)
        self.ended_at: float | None = None

    async def serve(self, connection: MemoryConnection) -> None:
        await connection.read_head()
        connection.upgrade = read_upgrade(connection.unread)
        await self.watchers.handle(cast(Any, connection))
        self.ended_at = trio.current_time()
        connection.end()

    async def connect(self, path: str = JOB) -> tuple[MemoryConnection, Peer]:
        connection = MemoryConnection()
        self.nursery.start_soon(self.serve, connection)
        peer = Peer(connection.client, patience=2 * HOUR)
        await peer.open(path)
        return connection, peer


@pytest.fixture
async def server(nursery: trio.Nursery, tmp_path: Any) -> Server:
    return Server(nursery, tmp_path)


@asynccontextmanager
async def answering(peer: Peer) -> AsyncIterator[list[float]]:
    """Within this every ping is answered; gives the times of the pings."""
    pings: list[float] = []

    async def answer() -> None:
        while True:
            opcode, payload = await peer.next_frame()
            if opcode is Opcode.PING:
                pings.append(trio.current_time())
                await peer.send(frame(Opcode.PONG, payload))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        yield pings
        nursery.cancel_scope.cancel()


async def when(peer: Peer, opcode: Opcode) -> float:
    """The time at which the next frame comes, which is of this kind."""
    assert (await peer.next_frame())[0] is opcode
    return trio.current_time()


async def close_and_when(peer: Peer) -> tuple[int, str, float]:
    """The close frame that comes, whatever comes before it, and the time."""
    while True:
        opcode, payload = await peer.next_frame()
        if opcode is Opcode.CLOSE:
            return int(payload[0]), payload[1], trio.current_time()


def test_the_defaults_are_those_of_the_protocol() -> None:
    limits = Limits()
    assert (limits.heartbeat_interval, limits.connection_timeout, limits.handshake_timeout) == (30, 300, 10)
    assert (limits.max_connections, limits.max_message_bytes) == (100, 65536)


async def test_a_client_that_answers_is_pinged_every_30_seconds_and_stays(
    server: Server, autojump_clock: MockClock
) -> None:
    _, peer = await server.connect()
    start = trio.current_time()
    async with answering(peer) as pings:
        await trio.sleep(HOUR + 1)
    assert [round(at - start) for at in pings] == list(range(30, 3601, 30))
    assert server.ended_at is None
    await server.broadcaster.broadcast(started())
    assert "processing" in (await peer.next_frame())[1]


async def test_a_client_without_a_sign_of_life_is_closed_after_5_minutes(
    server: Server, autojump_clock: MockClock
) -> None:
    _, peer = await server.connect()
    start = trio.current_time()
    pings = 0
    while (got := await peer.next_frame())[0] is Opcode.PING:
        pings += 1
    assert (got[0], tuple(got[1])) == (Opcode.CLOSE, (4001, "timed out"))
    assert round(trio.current_time() - start) == 300
    assert pings in (9, 10)  # the tenth is due in the same moment


async def test_one_that_stops_answering_is_closed_5_minutes_after_its_last_answer(
    server: Server, autojump_clock: MockClock
) -> None:
    _, peer = await server.connect()
    async with answering(peer) as pings:
        await trio.sleep(605)
    code, _, at = await close_and_when(peer)
    assert code == 4001
    assert round(at - pings[-1]) == 300


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([frame(Opcode.TEXT, b"hello")] * 5, id="messages"),
        pytest.param([frame(Opcode.PING)] * 5, id="pings"),
        pytest.param([frame(Opcode.PONG)] * 5, id="pongs"),
        pytest.param([bytes([byte]) for byte in frame(Opcode.TEXT, b"hello")], id="a frame byte by byte"),
    ],
)
async def test_whatever_a_client_says_keeps_it_alive(
    server: Server, autojump_clock: MockClock, said: list[bytes]
) -> None:
    _, peer = await server.connect()
    for data in said:
        await trio.sleep(299)
        await peer.send(data)
    last = trio.current_time()
    code, _, at = await close_and_when(peer)
    assert (code, round(at - last)) == (4001, 300)


async def test_what_the_daemon_sends_is_no_sign_of_life(server: Server, autojump_clock: MockClock) -> None:
    _, peer = await server.connect()
    start = trio.current_time()
    await server.broadcaster.broadcast(started())
    for step in range(1, 30):
        await trio.sleep(10)
        await server.broadcaster.broadcast(moved(step))
    code, _, at = await close_and_when(peer)
    assert (code, round(at - start)) == (4001, 300)


SUBSCRIBE = frame(Opcode.TEXT, b'{"type":"subscribe","topics":["jobs"]}')
REQUESTS = SUBSCRIBE + 4 * frame(Opcode.TEXT, b'{"type":"ping"}')  # more than are read before the first is done with


async def test_a_client_that_takes_a_long_replay_slowly_is_alive_whatever_it_has_asked_meanwhile(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path, LongPast())
    connection, peer = await server.connect("/ws")
    connection.full = True
    await peer.send(REQUESTS)
    for _ in range(10):
        await trio.sleep(100)
        connection.room, connection.full = 2, False  # for a part, and the ping behind it
    connection.room, connection.full = math.inf, False
    async with answering(peer) as pings:
        await trio.sleep(HOUR)
    assert server.ended_at is None
    assert len(pings) >= 119


async def test_a_client_that_takes_nothing_of_a_long_replay_is_given_up(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path, LongPast())
    connection, peer = await server.connect("/ws")
    connection.full = True
    start = trio.current_time()
    await peer.send(REQUESTS)
    await trio.sleep(HOUR)
    assert server.ended_at is not None
    assert round(server.ended_at - start) == 300 + CLOSE_TIMEOUT


async def test_a_client_that_is_told_to_try_again_is_gone_once_it_answers_the_close(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    history = LongPast()
    history.broken = True
    server = Server(nursery, tmp_path, history)
    _, peer = await server.connect("/ws")
    await peer.send(REQUESTS)
    code, _, at = await close_and_when(peer)
    assert code == 1013
    await peer.send(close_frame(1013))
    assert await peer.receive() == b""
    assert trio.current_time() - at < 0.1


async def test_interval_and_timeout_are_settings(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path, heartbeat_interval=2, connection_timeout=7)
    _, peer = await server.connect()
    start = trio.current_time()
    for due in (2, 4, 6):
        assert round(await when(peer, Opcode.PING) - start) == due
    code, _, at = await close_and_when(peer)
    assert (code, round(at - start)) == (4001, 7)


async def test_interval_and_timeout_can_change_for_those_who_are_there(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path)
    (_, one), (_, another) = await server.connect(), await server.connect()
    await trio.sleep(20)
    server.watchers.use(settings_in(tmp_path, limits={"heartbeat_interval": 2, "connection_timeout": 7}))
    start = trio.current_time()
    for due in (0, 2, 4, 6):  # the ping that is overdue now comes at once
        for peer in (one, another):
            assert round(await when(peer, Opcode.PING) - start) == due
    await one.send(frame(Opcode.PONG))
    assert [round((await close_and_when(peer))[2] - start) for peer in (another, one)] == [7, 13]


async def test_a_longer_interval_and_timeout_count_for_those_who_are_there(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path, heartbeat_interval=2, connection_timeout=7)
    _, peer = await server.connect()
    server.watchers.use(settings_in(tmp_path, limits={"heartbeat_interval": 100, "connection_timeout": 250}))
    start = trio.current_time()
    assert [round(await when(peer, Opcode.PING) - start) for _ in range(2)] == [100, 200]
    assert round((await close_and_when(peer))[2] - start) == 250


async def test_a_client_that_answers_the_close_is_gone_at_once(server: Server, autojump_clock: MockClock) -> None:
    _, peer = await server.connect()
    start = trio.current_time()
    for message in (started(), *succeeded()):
        await server.broadcaster.broadcast(message)
    code, reason, _ = await close_and_when(peer)
    assert (code, reason) == (1000, "job finished")
    await peer.send(close_frame(1000))
    assert await peer.receive() == b""
    assert trio.current_time() - start < 0.1


async def test_a_client_that_does_not_answer_the_close_is_gone_after_5_seconds(
    server: Server, autojump_clock: MockClock
) -> None:
    _, peer = await server.connect()
    for message in (started(), *succeeded()):
        await server.broadcaster.broadcast(message)
    _, _, at = await close_and_when(peer)
    assert await peer.receive() == b""
    assert round(trio.current_time() - at) == CLOSE_TIMEOUT == 5


async def test_the_end_of_a_job_waits_for_a_slow_client(server: Server, autojump_clock: MockClock) -> None:
    connection, peer = await server.connect()
    connection.full = True
    for message in (started(), moved(50), *succeeded()):
        await server.broadcaster.broadcast(message)
    await trio.sleep(100)
    assert server.ended_at is None
    connection.full = False
    received = [await peer.next_frame() for _ in range(4)]
    assert '"completed"' in received[-1][1]
    code, reason, _ = await close_and_when(peer)
    assert (code, reason) == (1000, "job finished")


async def test_the_end_of_a_job_does_not_wait_for_ever(server: Server, autojump_clock: MockClock) -> None:
    connection, _ = await server.connect()
    start = trio.current_time()
    connection.full = True
    for message in (started(), *succeeded()):
        await server.broadcaster.broadcast(message)
    await trio.sleep(HOUR)
    assert server.ended_at is not None
    assert 300 <= server.ended_at - start <= 300 + 2 * CLOSE_TIMEOUT
    assert len(server.watchers) == 0


async def fall_behind(server: Server) -> tuple[MemoryConnection, Peer]:
    """A watcher whose socket is full, with a message begun, until its outbox is past its limit."""
    connection, peer = await server.connect()
    connection.full = True
    await server.broadcaster.broadcast(started())
    await wait_all_tasks_blocked()
    for _ in range(20):
        await server.broadcaster.broadcast(started())
    await wait_all_tasks_blocked()
    return connection, peer


async def test_a_slow_consumer_is_told_so_however_slow_it_is(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    connection, peer = await fall_behind(Server(nursery, tmp_path, outbox_bytes=1000))
    connection.at_once = 10
    for _ in range(10):
        await trio.sleep(STALL - 1)
        connection.full = False
    connection.at_once = None
    await trio.sleep(STALL - 1)
    connection.full = False
    assert "processing" in (await peer.next_frame())[1]
    code, reason, _ = await close_and_when(peer)
    assert (code, reason) == (4000, "slow consumer")
    await peer.send(close_frame(4000))
    assert await peer.receive() == b""
    assert connection.fate == Fate("closed", "4000 slow consumer")


async def test_a_slow_consumer_that_reads_nothing_is_cut_off_and_the_log_says_so(
    nursery: trio.Nursery, tmp_path: Any, autojump_clock: MockClock
) -> None:
    server = Server(nursery, tmp_path, outbox_bytes=1000)
    connection, _ = await fall_behind(server)
    start = trio.current_time()
    await trio.sleep(HOUR)
    assert server.ended_at is not None
    assert STALL <= server.ended_at - start <= STALL + CLOSE_TIMEOUT
    assert connection.fate == Fate("closed", "4000 slow consumer", "cut off before the close was sent")


async def test_one_that_is_given_up_before_it_has_had_its_jobs_end_is_not_told_that_it_has(
    server: Server, autojump_clock: MockClock
) -> None:
    (slow, peer), (other, _) = await server.connect(), await server.connect()
    slow.full = other.full = True
    await server.broadcaster.broadcast(started())
    await wait_all_tasks_blocked()
    for message in succeeded():
        await server.broadcaster.broadcast(message)
    await wait_all_tasks_blocked()
    server.watchers.budget.limit = 10
    other.full = False
    await trio.sleep(1)
    slow.full = False
    assert "processing" in (await peer.next_frame())[1]
    assert (await close_and_when(peer))[:2] == (4000, "slow consumer")


async def test_a_full_socket_does_not_hide_that_the_client_is_gone(server: Server, autojump_clock: MockClock) -> None:
    connection, peer = await server.connect()
    connection.full = True
    await server.broadcaster.broadcast(started())
    await peer.stream.aclose()
    await trio.sleep(1)
    assert server.ended_at is not None
    assert len(server.watchers) == 0


async def test_a_handshake_that_is_not_decided_yet_hears_nothing_of_the_drain(
    server: Server, autojump_clock: MockClock
) -> None:
    server.history.may_answer = trio.Event()
    connection = MemoryConnection()
    server.nursery.start_soon(server.serve, connection)
    peer = Peer(connection.client)
    await peer.send(upgrade(JOB))
    await server.history.asked.wait()
    server.watchers.announce(ServerShutdown(ServerShutdownData("stopping", 5)))
    await server.watchers.close(DRAINING, 1)
    server.history.may_answer.set()
    await peer.opened()
    assert (await close_and_when(peer))[:2] == (1001, "draining")


async def test_watchers_are_sent_away_one_after_the_other(server: Server, autojump_clock: MockClock) -> None:
    peers = [(await server.connect())[1] for _ in range(5)]
    start = trio.current_time()
    await server.watchers.close(DRAINING, 4)
    assert round(trio.current_time() - start) == 4
    times = [await close_and_when(peer) for peer in peers]
    assert [code for code, _, _ in times] == [1001] * 5


async def test_a_single_watcher_is_sent_away_without_a_pause(server: Server, autojump_clock: MockClock) -> None:
    await server.connect()
    start = trio.current_time()
    await server.watchers.close(DRAINING, 4)
    assert trio.current_time() - start < 0.1


PUBLISH = "/ws/publish"
REPORT = frame(Opcode.TEXT, b'{"type":"job_created"}')


async def answers(peer: Peer, count: int) -> list[dict[str, Any]]:
    return [json.loads((await peer.next_frame())[1]) for _ in range(count)]


async def test_a_producer_is_pinged_and_timed_out_like_a_watcher(server: Server, autojump_clock: MockClock) -> None:
    _, peer = await server.connect(PUBLISH)
    async with answering(peer) as pings:
        await trio.sleep(HOUR + 1)
    assert len(pings) == 120
    start = trio.current_time()
    code, _, at = await close_and_when(peer)
    assert (code, round(at - start)) == (4001, 299)


async def test_a_producer_that_takes_none_of_its_answers_is_given_up(server: Server, autojump_clock: MockClock) -> None:
    connection, peer = await server.connect(PUBLISH)
    connection.full = True
    start = trio.current_time()
    for _ in range(100):
        await peer.send(frame(Opcode.TEXT, b"\n".join([b'{"type":"job_created"}'] * 100)))
    await wait_all_tasks_blocked()
    assert len(server.ingest.taken) < 2000
    await trio.sleep(HOUR)
    assert server.ended_at is not None
    assert round(server.ended_at - start) == 300 + CLOSE_TIMEOUT


@pytest.mark.parametrize("reads", [True, False])
async def test_a_producer_that_has_closed_has_a_minute_for_its_answers(
    server: Server, autojump_clock: MockClock, reads: bool
) -> None:
    connection, peer = await server.connect(PUBLISH)
    connection.full = True
    start = trio.current_time()
    await peer.send(REPORT * 3 + close_frame(1000))
    await trio.sleep(PATIENCE - 1)
    assert server.ended_at is None
    connection.full = not reads
    if reads:
        assert [answer["ok"] for answer in await answers(peer, 3)] == [True] * 3
        assert (await close_and_when(peer))[0] == 1000
    await trio.sleep(PATIENCE)
    assert server.ended_at is not None
    assert round(server.ended_at - start) == PATIENCE - reads


async def test_a_drain_waits_for_what_is_being_decided_and_takes_what_waits(
    server: Server, autojump_clock: MockClock
) -> None:
    _, peer = await server.connect(PUBLISH)
    server.ingest.may_decide = trio.Event()
    for _ in range(3):  # the first is being decided, the others wait
        await peer.send(REPORT)
        await wait_all_tasks_blocked()
    await server.watchers.close(DRAINING, 0)
    await wait_all_tasks_blocked()
    await peer.send(REPORT)  # too late
    await trio.sleep(1)
    server.ingest.may_decide.set()
    assert [answer["ok"] for answer in await answers(peer, 3)] == [True] * 3
    assert (await close_and_when(peer))[:2] == (1001, "draining")
    await peer.send(REPORT + close_frame(1001))
    assert await peer.receive() == b""
    assert len(server.ingest.taken) == 3


async def test_nothing_is_taken_of_who_has_lost_the_right_to_it_but_what_was_is_answered(
    server: Server, autojump_clock: MockClock
) -> None:
    _, peer = await server.connect(PUBLISH)
    server.ingest.may_decide = trio.Event()
    for _ in range(3):
        await peer.send(REPORT)
        await wait_all_tasks_blocked()
    [websocket] = server.watchers._open
    websocket.outbox.end(CREDENTIALS_EXPIRED)
    await wait_all_tasks_blocked()
    server.ingest.may_decide.set()
    assert [answer["ok"] for answer in await answers(peer, 1)] == [True]
    assert (await close_and_when(peer))[0] == 4500
    assert len(server.ingest.taken) == 1


async def test_a_producer_is_told_which_line_was_not_taken_and_to_try_again(
    server: Server, autojump_clock: MockClock
) -> None:
    _, peer = await server.connect(PUBLISH)
    await peer.send(REPORT)
    assert [answer["ok"] for answer in await answers(peer, 1)] == [True]
    server.ingest.broken = StoreFailed("the disk is full")
    await peer.send(REPORT * 2)
    assert await answers(peer, 1) == [{"ok": False, "error": "the disk is full", "status": 503, "line": 2}]
    assert (await close_and_when(peer))[:2] == (1013, "try again later")
