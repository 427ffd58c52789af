"""The WebSocket server over memory instead of sockets, for a clock that jumps: an hour takes no time."""

import math
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import trio
from progressd.auth.authenticator import Authenticator
from progressd.auth.limits import ConnectionLimiter, RateLimiter
from progressd.broadcast.broadcaster import Broadcaster
from progressd.broadcast.envelope import Envelope
from progressd.broadcast.subscription import EmptyHistory, Page, PastMessages
from progressd.core.errors import ProgressdError, StoreFailed
from progressd.core.events import Event
from progressd.core.job import MaySee, sees_all
from progressd.core.messages import job_topic
from progressd.engine.commands import Outcome
from progressd.engine.ingest import PASS_BYTES, EventSink
from progressd.net.connection import Connection
from progressd.net.connection_log import ConnectionOutcome, LogEntry
from progressd.net.request import AT_ROOT
from progressd.system.condition import Condition
from progressd.system.event_loop_limiter import EventLoopLimiter
from progressd.ws.server import WebSocketServer
from trio.testing import MemoryReceiveStream, MemorySendStream
from wsproto.frame_protocol import Opcode

from support.daemon import settings_in
from support.peer import Peer, frame
from support.samples import ID, job, moved

HOUR = 3600.0
JOB = f"/ws/jobs/{ID}"
CLOSED = socket.socket()
CLOSED.close()


class MemoryTransport:
    """A client's transport. `full`: a socket without room; `room`: how many sends until it is full.

    `chunk`: how many bytes a send takes before it is full again.
    """

    socket = CLOSED

    def __init__(self) -> None:
        self.room = math.inf
        self.chunk: int | None = None
        self._full = False
        self._changed = Condition()
        self._to_client = MemoryReceiveStream()
        self._from_client = MemoryReceiveStream()
        sending = MemorySendStream()

        async def pass_on() -> None:
            self._from_client.put_data(sending.get_data_nowait())

        sending.send_all_hook, sending.close_hook = pass_on, self._from_client.put_eof
        self.client = trio.StapledStream(sending, self._to_client)

    @property
    def full(self) -> bool:
        return self._full

    @full.setter
    def full(self, full: bool) -> None:
        self._full = full
        self._changed.notify()

    def send(self, data: bytes) -> int:
        if self.full:
            raise BlockingIOError
        data = data[: self.chunk]
        self._to_client.put_data(data)
        self.room -= 1
        self.full = not self.room or self.chunk is not None
        return len(data)

    async def wait_writable(self) -> None:
        await self._changed.wait_for(lambda: not self.full)

    def receive_nowait(self, max_bytes: int) -> bytes:
        return b""

    async def receive_some(self, max_bytes: int) -> bytes:
        return bytes(await self._from_client.receive_some(max_bytes))

    async def send_eof(self) -> None:
        self.close()

    def close(self) -> None:
        self._to_client.put_eof()


class OneJob(EmptyHistory):
    """A history with one job. `asked` is set by a look-up, which waits for `may_answer`."""

    def __init__(self) -> None:
        self.asked, self.may_answer = trio.Event(), trio.Event()
        self.may_answer.set()

    def cursor(self, offset: int) -> str:
        return f"store-{offset}"

    async def existing(self, topics: Collection[str], may_see: MaySee) -> set[str]:
        self.asked.set()
        await self.may_answer.wait()
        return {job_topic(ID)} & set(topics)


class LongPast(OneJob):
    """A history in ten pages; `broken`: it cannot be read."""

    broken = False

    async def existing(self, topics: Collection[str], may_see: MaySee) -> set[str]:
        await trio.lowlevel.checkpoint()
        return set(topics)

    async def page(self, topic: str, after: int | None, upto: int) -> Page:
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise StoreFailed("the disk is full")
        part = (after or 0) + 1
        return Page(PastMessages([Envelope(part, moved(part))]), part if part < 10 else None)


class Deciding(EventSink):
    """An ingest that waits for `may_decide` and accepts everything, unless it is `broken`."""

    store_id = "store"

    def __init__(self) -> None:
        self.limiter = EventLoopLimiter(PASS_BYTES)
        self.taken: list[Event] = []
        self.may_decide = trio.Event()
        self.may_decide.set()
        self.broken: ProgressdError | None = None

    async def submit(self, *events: Event, may_see: MaySee = sees_all) -> list[Outcome]:
        self.taken += events
        await self.may_decide.wait()
        if self.broken is not None:
            raise self.broken
        return [job() for _ in events]


class Server:
    """A broadcaster and a WebSocket server in a nursery."""

    def __init__(self, nursery: trio.Nursery, tmp_path: Any, history: OneJob | None = None, **limits: Any) -> None:
        self.nursery = nursery
        self.history = history or OneJob()
        self.broadcaster = Broadcaster(self.history, nursery=nursery)
        settings = settings_in(tmp_path, limits=limits)
        self.ingest = Deciding()
        engine = SimpleNamespace(history=self.history, broadcaster=self.broadcaster, ingest=self.ingest, logs=None)
        authenticator = Authenticator(settings.auth)
        self.websockets = WebSocketServer(
            settings,
            authenticator,
            RateLimiter(settings),
            ConnectionLimiter(settings),
            cast(Any, engine),
        )
        nursery.start_soon(self.websockets.heartbeat.run)
        self.ended_at: float | None = None
        self.outcomes: list[ConnectionOutcome] = []

    async def serve(self, transport: MemoryTransport) -> None:
        connection = Connection(transport, "127.0.0.1", LogEntry("127.0.0.1"))
        await connection.read_head(65536)
        assert connection.wants_websocket(AT_ROOT)
        await self.websockets.handle(connection)
        self.ended_at = trio.current_time()
        self.outcomes.append(connection.log_entry.outcome)
        transport.close()

    async def connect(self, path: str = JOB) -> tuple[MemoryTransport, Peer]:
        transport = MemoryTransport()
        self.nursery.start_soon(self.serve, transport)
        peer = Peer(transport.client, patience=2 * HOUR)
        await peer.open(path)
        return transport, peer


@asynccontextmanager
async def answering(peer: Peer) -> AsyncIterator[list[float]]:
    """Answer every ping during the block; yields the times of the pings."""
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
    """Return when the next frame arrives, which must have this opcode."""
    assert (await peer.next_frame())[0] is opcode
    return trio.current_time()


async def close_and_when(peer: Peer) -> tuple[int, str, float]:
    """Return the code and reason of the next close frame, and when it arrives."""
    while True:
        opcode, payload = await peer.next_frame()
        if opcode is Opcode.CLOSE:
            return int(payload[0]), payload[1], trio.current_time()
