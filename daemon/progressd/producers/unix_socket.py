"""The Unix socket: producers of this host write lines, and are answered where they ask (`ref`) or err."""

import socket
import struct
from collections.abc import Sequence
from typing import Final

import structlog
import trio
from msgspec import UNSET

from progressd.accepting import accept_forever
from progressd.broadcast.outbox import SocketOutbox
from progressd.core.closing import Closing
from progressd.core.messages import encode
from progressd.ingest import Ingest, Outcome
from progressd.producers.intake import Intake
from progressd.producers.lines import LineSplitter, NumberedLine

CHUNK: Final = 65536  # bytes read at once; some 400 lines, which then are one batch
PATIENCE: Final = 60.0  # seconds that a producer which has said all may take to read its answers
ANSWERS_MOST: Final = 16 * 1024 * 1024  # bytes of answers that may wait for a producer; it is read no further meanwhile

log = structlog.get_logger(__name__)


class UnixSocket:
    """Serves producers until cancelled."""

    def __init__(self, ingest: Ingest, max_line_bytes: int) -> None:
        self._ingest = ingest
        self._max_line_bytes = max_line_bytes

    async def run(self, listening: socket.socket) -> None:
        """Accept producers on a bound socket."""
        async with trio.open_nursery() as producers:
            await accept_forever(listening, lambda sock, _: producers.start_soon(self._serve, sock))

    async def _serve(self, sock: socket.socket) -> None:
        """The boundary of one producer."""
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        log.debug("producer connected", pid=pid, uid=uid)
        try:
            with sock:
                async with trio.open_nursery() as nursery:
                    producer = Producer(sock, nursery, self._ingest)
                    try:
                        await producer.run(LineSplitter(self._max_line_bytes))
                    finally:
                        producer.leave()
                    nursery.cancel_scope.cancel()
        except* OSError:
            log.debug("producer left without reading its answers", pid=pid)
        except* Exception as group:
            log.error("producer failed", pid=pid, error=repr(group.exceptions[0]), exc_info=group)


class Producer:
    """One connection. It reads on while ingest decides, as long as there is room, and answers when that is done."""

    def __init__(self, sock: socket.socket, nursery: trio.Nursery, ingest: Ingest) -> None:
        self.send = sock.send
        self._socket = sock
        self._nursery = nursery
        self._ingest = ingest
        self._answers = SocketOutbox(self, ANSWERS_MOST, nursery.start_soon, self._give_up)
        self._undecided = 0  # batches
        self._decided = trio.Event()

    async def run(self, splitter: LineSplitter) -> None:
        """Until the producer closes its side, and has all its answers. Raises OSError, Unavailable."""
        while chunk := await self._receive():
            await self._take(splitter.feed(chunk))
            if self._answers.congested:
                await self._answers.drained()
        await self._take(splitter.end())
        while self._undecided:
            self._decided = trio.Event()
            await self._decided.wait()
        with trio.move_on_after(PATIENCE):
            await self._answers.drained()

    def leave(self) -> None:
        """It is gone, whatever ingest still decides."""
        self._answers.discard()

    async def wait_writable(self) -> None:
        """For the outbox."""
        await trio.lowlevel.wait_writable(self._socket)

    async def _receive(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(CHUNK)
            except BlockingIOError:
                continue

    async def _take(self, lines: Sequence[NumberedLine]) -> None:
        intake = Intake(lines)

        def decided(outcomes: list[Outcome]) -> None:
            self._undecided -= 1
            self._decided.set()
            answers = intake.answers(outcomes, self._ingest.store_id)
            told = [encode(answer) + b"\n" for answer in answers if not answer.ok or answer.ref is not UNSET]
            if told:
                self._answers.write(b"".join(told))

        self._undecided += 1
        if intake.events:
            await self._ingest.hand_in(intake.events, decided, urgent=intake.asks)
        else:
            decided([])

    def _give_up(self, closing: Closing) -> None:
        self._nursery.cancel_scope.cancel()
