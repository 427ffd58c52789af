"""An outbox that collects messages, and real ones on sockets with limited room."""

from collections.abc import Awaitable, Callable

import trio
import trio.testing
from progressd.broadcast.envelope import Envelope, FrameBatch
from progressd.broadcast.outbox import FanOut, MemoryBudget, SocketOutbox
from progressd.core.close_codes import CloseCode
from progressd.core.messages import JobMessage, Message
from wsproto.frame_protocol import Opcode

from support.peer import frames_in
from support.waiting import PATIENCE


class Collected:
    """Collect everything until the end."""

    def __init__(self) -> None:
        self.batches: list[FrameBatch[Envelope]] = []
        self.endings: list[CloseCode] = []
        self.ended = trio.Event()

    @property
    def items(self) -> list[Envelope]:
        return [item for batch in self.batches for item in batch.items]

    @property
    def offsets(self) -> list[int]:
        return [item.offset for item in self.items]

    @property
    def messages(self) -> list[JobMessage]:
        return [item.message for item in self.items]

    def put(self, batch: FrameBatch[Envelope]) -> None:
        if not self.endings:
            self.batches.append(batch)

    def end(self, code: CloseCode) -> None:
        if not self.endings:
            self.endings.append(code)
            self.ended.set()

    def follow(self, fan_out: FanOut) -> None:
        fan_out.add(self)

    def resume_offset(self, offset: int) -> int:
        return offset


class Socket:
    """A non-blocking socket with limited room."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.dead = False
        self.closed = False
        self.written = bytearray()
        self.sends = 0
        self._wake = trio.Event()

    def send(self, data: bytes) -> int:
        self.sends += 1
        if self.dead:
            raise ConnectionResetError
        taken = min(self.room, len(data))
        if not taken:
            raise BlockingIOError
        self.room -= taken
        self.written += data[:taken]
        return taken

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.closed:
            raise trio.ClosedResourceError
        if not self.room and not self.dead:
            self._wake = trio.Event()
            await self._wake.wait()
        if self.closed:
            raise trio.ClosedResourceError

    def give(self, room: int) -> None:
        """Make room, and wake the sender; 0 is a spurious wake-up."""
        self.room += room
        self._wake.set()


class Connection:
    """An outbox, its socket, and its close codes."""

    def __init__(
        self, nursery: trio.Nursery, limit: int = 10**6, room: int = 0, budget: MemoryBudget | None = None
    ) -> None:
        self.socket = Socket(room)
        self.endings: list[CloseCode] = []
        self.senders = 0
        self._nursery = nursery
        self.outbox = SocketOutbox(self.socket, limit, self._start, self.endings.append, budget)

    def _start(self, flush: Callable[[], Awaitable[None]]) -> None:
        async def sender() -> None:
            self.senders += 1
            assert self.senders == 1
            try:
                await flush()
            finally:
                self.senders -= 1

        self._nursery.start_soon(sender)

    def put(self, *messages: Message) -> None:
        self.outbox.put(FrameBatch([Envelope(1, message) for message in messages]))

    async def drained(self) -> None:
        with trio.fail_after(PATIENCE):
            await self.outbox.drained()

    def read(self) -> list[tuple[Opcode, bytes]]:
        return frames_in(bytes(self.socket.written))
