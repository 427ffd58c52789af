"""The WebSocket server over memory streams, for a mock clock."""

import math
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import trio
from progressd.auth.authenticator import Authenticator
from progressd.auth.connection_limit import ConnectionLimiter
from progressd.auth.rate_limit import RateLimiter
from progressd.broadcast.broadcaster import Broadcaster
from progressd.broadcast.envelope import Envelope
from progressd.broadcast.subscription import EmptyHistory, Page
from progressd.core.errors import NotFound, ProgressdError, StoreFailed
from progressd.core.events import Event
from progressd.core.messages import job_topic
from progressd.engine.ingest import TURN_BYTES, EventSink, Outcome
from progressd.net.connection_log import ABANDONED
from progressd.net.listener import HandshakeRequest, read_handshake_request
from progressd.system.pass_limiter import PassLimiter
from progressd.ws.server import WebSocketServer
from trio.testing import MemoryReceiveStream, MemorySendStream
from wsproto.frame_protocol import Opcode

from support.daemon import settings_in
from support.peer import Peer, frame
from support.samples import ID, job, moved

HOUR = 3600.0
JOB = f"/ws/jobs/{ID}"


class MemoryConnection:
    """A replacement of the listener's Connection. It is `full` after `room` sends."""

    def __init__(self) -> None:
        self.room = math.inf
        self.peer = "127.0.0.1"
        self.topics = ""
        self.fate = ABANDONED
        self.unread = b""
        self.upgrade: HandshakeRequest | None = None
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
        """Close the connection to the client."""
        self._to_client.put_eof()


class OneJob(EmptyHistory):
    """A history with one job. `asked` reports the lookup, and `may_answer` delays it."""

    def __init__(self) -> None:
        self.asked, self.may_answer = trio.Event(), trio.Event()
        self.may_answer.set()

    def cursor(self, offset: int) -> str:
        return f"store-{offset}"

    async def require(self, topic: str) -> None:
        self.asked.set()
        await self.may_answer.wait()
        if topic != job_topic(ID):
            raise NotFound(f"no {topic}")


class LongPast(OneJob):
    """A history of ten pages; reads fail while it is `broken`."""

    broken = False

    async def existing(self, topics: Collection[str]) -> set[str]:
        await trio.lowlevel.checkpoint()
        return set(topics)

    async def page(self, topic: str, after: int | None, upto: int) -> Page:
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise StoreFailed("the disk is full")
        part = (after or 0) + 1
        return Page([Envelope(part, moved(part))], part if part < 10 else None)


class Deciding(EventSink):
    """An ingest that accepts all events after `may_decide`, unless it is `broken`."""

    store_id = "store"

    def __init__(self) -> None:
        self.turns = PassLimiter(TURN_BYTES)
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
    """A broadcaster and a WebSocket server."""

    def __init__(self, nursery: trio.Nursery, tmp_path: Any, history: OneJob | None = None, **limits: Any) -> None:
        self.nursery = nursery
        self.history = history or OneJob()
        self.broadcaster = Broadcaster(self.history, nursery=nursery)
        settings = settings_in(tmp_path, limits=limits)
        self.ingest = Deciding()
        scope = SimpleNamespace(labels={}, history=self.history, ingest=self.ingest)
        scopes = SimpleNamespace(broadcaster=self.broadcaster, of=lambda who: scope)
        authenticator = Authenticator(settings.auth)
        self.watchers = WebSocketServer(
            settings,
            authenticator,
            RateLimiter(settings),
            ConnectionLimiter(settings),
            cast(Any, scopes),
        )
        nursery.start_soon(self.watchers.run)
        self.ended_at: float | None = None

    async def serve(self, connection: MemoryConnection) -> None:
        await connection.read_head()
        connection.upgrade = read_handshake_request(connection.unread)
        await self.watchers.handle(cast(Any, connection))
        self.ended_at = trio.current_time()
        connection.end()

    async def connect(self, path: str = JOB) -> tuple[MemoryConnection, Peer]:
        connection = MemoryConnection()
        self.nursery.start_soon(self.serve, connection)
        peer = Peer(connection.client, patience=2 * HOUR)
        await peer.open(path)
        return connection, peer


@asynccontextmanager
async def answering(peer: Peer) -> AsyncIterator[list[float]]:
    """Answer all pings within this block; give their times."""
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
    """Wait for a frame of this kind, and return the time."""
    assert (await peer.next_frame())[0] is opcode
    return trio.current_time()


async def close_and_when(peer: Peer) -> tuple[int, str, float]:
    """Wait for the close frame; return its code, reason and time."""
    while True:
        opcode, payload = await peer.next_frame()
        if opcode is Opcode.CLOSE:
            return int(payload[0]), payload[1], trio.current_time()
