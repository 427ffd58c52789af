"""The Unix socket: producers of this host write lines, and are answered where they ask (`ref`) or err."""

import socket
import struct
from collections.abc import Sequence

import structlog
import trio
from msgspec import UNSET

from progressd.accepting import accept_forever
from progressd.broadcast.outbox import SocketOutbox
from progressd.core.closing import Closing
from progressd.core.errors import ProgressdError
from progressd.core.messages import encode
from progressd.ingest import Ingest
from progressd.producers.intake import ANSWERS_MOST, CHUNK, PATIENCE, Intake
from progressd.producers.lines import LineSplitter
from progressd.producers.sweep import Sweep
from progressd.submitting import Outcome

log = structlog.get_logger(__name__)


class UnixSocket:
    """Serves producers until cancelled."""

    def __init__(self, ingest: Ingest, max_line_bytes: int) -> None:
        self._ingest = ingest
        self.max_line_bytes = max_line_bytes
        self._sweep = Sweep(ingest)

    async def run(self, *listening: socket.socket) -> None:
        """Accept producers on bound sockets, of which systemd may pass on several; run it once for all of them."""
        async with trio.open_nursery() as producers:
            producers.start_soon(self._sweep.run)
            for one in listening:
                producers.start_soon(accept_forever, one, lambda sock, _: producers.start_soon(self._serve, sock))

    async def _serve(self, sock: socket.socket) -> None:
        """The boundary of one producer."""
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        log.debug("producer connected", pid=pid, uid=uid)
        try:
            with sock:
                async with trio.open_nursery() as nursery:
                    producer = Producer(sock, nursery, LineSplitter(self.max_line_bytes), self._ingest.store_id)
                    await producer.run(self._sweep)
                    nursery.cancel_scope.cancel()
        except* OSError:
            log.debug("producer left without reading its answers", pid=pid)
        except* Exception as group:
            log.error("producer failed", pid=pid, error=repr(group.exceptions[0]), exc_info=group)


class Producer:
    """One connection. The sweep reads it; it is answered once ingest has decided what was read of all."""

    def __init__(self, sock: socket.socket, nursery: trio.Nursery, splitter: LineSplitter, store_id: str) -> None:
        self.fileno = sock.fileno
        self.send = sock.send
        self._socket = sock
        self._nursery = nursery
        self._splitter = splitter
        self._store_id = store_id
        self._answers = SocketOutbox(self, ANSWERS_MOST, nursery.start_soon, self._give_up)
        self._undecided = 0  # intakes
        self._decided = trio.Event()
        self._said_all = False

    async def run(self, sweep: Sweep) -> None:
        """Until the producer closes its side, and has all its answers. Raises what its reading raised."""
        try:
            while not self._said_all:
                await sweep.read(self)
                await self._answers.drained()
            while self._undecided:
                self._decided = trio.Event()
                await self._decided.wait()
            with trio.move_on_after(PATIENCE):
                await self._answers.drained()
        finally:
            self._answers.discard()  # whatever ingest still decides

    @property
    def enough(self) -> bool:
        """For the sweep: whether its answers come first."""
        return self._said_all or self._answers.congested

    async def wait_writable(self) -> None:
        """For the outbox."""
        await trio.lowlevel.wait_writable(self._socket)

    def read(self, most: int) -> Intake | None:
        """For the sweep: the next lines. The others stay in the socket, which therefore stays readable."""
        try:
            chunk = _first_lines(self._socket.recv(CHUNK, socket.MSG_PEEK), most)
        except BlockingIOError:
            return None
        if chunk:
            self._socket.recv(len(chunk))
            lines = self._splitter.feed(chunk)
        else:
            lines = self._splitter.end()
            self._said_all = True
        if not lines:
            return None
        self._undecided += 1
        return Intake(lines)

    def decided(self, intake: Intake, outcomes: Sequence[Outcome]) -> None:
        """For the sweep: tell who asked, or was wrong."""
        self._undecided -= 1
        self._decided.set()
        if intake.asks or any(isinstance(outcome, ProgressdError) for outcome in outcomes):
            answers = intake.answers(outcomes, self._store_id)
            told = [encode(answer) + b"\n" for answer in answers if not answer.ok or answer.ref is not UNSET]
            self._answers.write(b"".join(told))

    def _give_up(self, closing: Closing) -> None:
        self._nursery.cancel_scope.cancel()


def _first_lines(chunk: bytes, most: int) -> bytes:
    """Return the first lines of a chunk, or all of it where it has fewer than `most`."""
    *lines, rest = chunk.split(b"\n", most)
    return chunk if len(lines) < most else chunk[: len(chunk) - len(rest)]
