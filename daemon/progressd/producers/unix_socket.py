"""The Unix socket: producers of this host write lines, and are answered where they ask (`ref`) or err."""

import contextlib
import math
import select
import socket
import struct
from collections.abc import Sequence
from typing import Final

import structlog
import trio
from msgspec import UNSET

from progressd.broadcast.outbox import SocketOutbox
from progressd.config.settings import Settings
from progressd.config.units import seconds_text
from progressd.core.close_codes import CloseCode
from progressd.core.errors import ProgressdError, RequestTimeout, TooManyConnections
from progressd.core.messages import encode
from progressd.engine.ingest import Ingest, Outcome
from progressd.net.accept import accept_forever
from progressd.producers.ndjson import CHUNK, MAX_ANSWERS, SEND_TIMEOUT, Ack, LineBatch, LineSplitter
from progressd.producers.poller import Poller

STOP_PATIENCE: Final = 5.0  # seconds that a producer may take to read its answers once the daemon stops

log = structlog.get_logger(__name__)


class UnixSocket:
    """Serves producers until cancelled, or until `drain` is done with them."""

    def __init__(self, ingest: Ingest, settings: Settings) -> None:
        self._ingest = ingest
        self._settings = settings.ingest
        self._sweep = Poller(ingest)
        self._connected = 0
        self._full = False  # which was logged
        self._producers = set[ProducerConnection]()
        self._accepting = trio.CancelScope()
        self._drained = trio.Event()

    def use(self, settings: Settings) -> None:
        """Settings that have been read again; producers that are connected keep theirs."""
        self._settings = settings.ingest

    async def run(self, *listening: socket.socket) -> None:
        """Accept producers on bound sockets, of which systemd may pass on several; run it once for all of them."""
        async with trio.open_nursery() as reading:
            reading.start_soon(self._sweep.run)
            async with trio.open_nursery() as producers:
                with self._accepting:
                    async with trio.open_nursery() as accepting:
                        for one in listening:
                            accepting.start_soon(accept_forever, one, lambda sock, _: self._accepted(sock, producers))
                for producer in self._producers:
                    producer.stop()
            reading.cancel_scope.cancel()
        self._drained.set()

    async def drain(self) -> None:
        """Accept no more producers; take and answer what the others have written so far, and close them."""
        self._accepting.cancel()
        await self._drained.wait()

    def _accepted(self, sock: socket.socket, producers: trio.Nursery) -> None:
        most = self._settings.max_connections
        if self._connected < most:
            self._full = self._full and 2 * self._connected > most  # not to log every change around the limit
            self._connected += 1
            producers.start_soon(self._serve, sock)
            return
        if not self._full:
            self._full = True
            log.warning("too many producers, refusing more (ingest.max_connections)", connected=self._connected)
        error = TooManyConnections(
            f"too many producers: {self._connected} are connected (try again later, or raise ingest.max_connections)"
        )
        with sock, contextlib.suppress(OSError):
            sock.send(_refused(error))

    async def _serve(self, sock: socket.socket) -> None:
        """The boundary of one producer."""
        try:
            with sock:
                await self._converse(sock)
        finally:
            self._connected -= 1

    async def _converse(self, sock: socket.socket) -> None:
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        log.debug("producer connected", pid=pid, uid=uid)
        try:
            async with trio.open_nursery() as nursery:
                splitter = LineSplitter(self._settings.max_line_bytes)
                producer = ProducerConnection(
                    sock, nursery, splitter, self._ingest.store_id, self._settings.idle_timeout
                )
                self._producers.add(producer)
                try:
                    if self._accepting.cancel_called:
                        producer.stop()
                    await producer.run(self._sweep)
                finally:
                    self._producers.remove(producer)
                nursery.cancel_scope.cancel()
        except* OSError:
            log.debug("producer left without reading its answers", pid=pid)
        except* Exception as group:
            log.error("producer failed", pid=pid, error=repr(group.exceptions[0]), exc_info=group)


class ProducerConnection:
    """One connection. The sweep reads it; it is answered once ingest has decided what was read of all."""

    def __init__(
        self,
        sock: socket.socket,
        nursery: trio.Nursery,
        splitter: LineSplitter,
        store_id: str,
        idle_timeout: float = math.inf,
    ) -> None:
        self.fileno = sock.fileno
        self.send = sock.send
        self._socket = sock
        self._nursery = nursery
        self._splitter = splitter
        self._store_id = store_id
        self._idle_timeout = idle_timeout
        self._idle = trio.CancelScope()
        self._answers = SocketOutbox(self, MAX_ANSWERS, nursery.start_soon, self._give_up)
        self._undecided = 0  # intakes
        self._decided = trio.Event()
        self._said_all = False
        self._cut = False  # by the daemon, perhaps within a line
        self._patience = math.inf  # seconds that it may take to read its answers
        self._waiting = trio.CancelScope()  # until it has

    async def run(self, sweep: Poller) -> None:
        """Until the producer closes its side, and has all its answers. Raises what its reading raised."""
        try:
            self._wait_for_more()
            with self._idle:
                while not self._said_all:
                    await sweep.read(self)
                    await self._answers_read()
            if self._idle.cancelled_caught:
                self._answers.write(_refused(_idle(self._idle_timeout)))
            while self._undecided:
                self._decided = trio.Event()
                await self._decided.wait()
            self._patience = min(self._patience, SEND_TIMEOUT)
            await self._answers_read()
        finally:
            self._answers.discard()  # whatever ingest still decides

    def stop(self) -> None:
        """Take what the producer has written so far. Its next write fails, so it knows what was not taken."""
        if not _has_shut_down(self._socket):
            self._cut = True
            self._socket.shutdown(socket.SHUT_RD)
        self._patience = STOP_PATIENCE
        self._waiting.deadline = min(self._waiting.deadline, trio.current_time() + STOP_PATIENCE)

    async def _answers_read(self) -> None:
        """Wait until the producer has read its answers, or give it up."""
        with trio.move_on_after(self._patience) as self._waiting:
            await self._answers.drained()
        if self._waiting.cancelled_caught:
            self._nursery.cancel_scope.cancel()

    def _wait_for_more(self) -> None:
        """Let the time run in which something has to come, or stop it while the producer waits for the daemon."""
        self._idle.deadline = math.inf if self._undecided else trio.current_time() + self._idle_timeout

    @property
    def enough(self) -> bool:
        """For the sweep: whether its answers come first."""
        return self._said_all or self._answers.congested

    async def wait_writable(self) -> None:
        """For the outbox."""
        await trio.lowlevel.wait_writable(self._socket)

    def read(self, most: int) -> LineBatch | None:
        """For the sweep: the next lines. The others stay in the socket, which therefore stays readable."""
        try:
            chunk = _first_lines(self._socket.recv(CHUNK, socket.MSG_PEEK), most)
        except BlockingIOError:
            return None
        if chunk:
            self._socket.recv(len(chunk))
            lines = self._splitter.feed(chunk)
        else:
            lines = [] if self._cut else self._splitter.end()
            self._said_all = True
        self._undecided += bool(lines)
        self._wait_for_more()
        return LineBatch(lines) if lines else None

    def decided(self, intake: LineBatch, outcomes: Sequence[Outcome]) -> None:
        """For the sweep: tell who asked, or was wrong."""
        self._undecided -= 1
        self._decided.set()
        self._wait_for_more()
        if intake.asks or any(isinstance(outcome, ProgressdError) for outcome in outcomes):
            answers = intake.answers(outcomes, self._store_id)
            told = [encode(answer) + b"\n" for answer in answers if not answer.ok or answer.ref is not UNSET]
            self._answers.write(b"".join(told))

    def _give_up(self, closing: CloseCode) -> None:
        self._nursery.cancel_scope.cancel()


def _has_shut_down(sock: socket.socket) -> bool:
    """Return whether the peer sends nothing more."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def _refused(error: ProgressdError) -> bytes:
    """Return the answer that is sent before a connection is closed."""
    return encode(Ack(ok=False, error=str(error), status=error.status)) + b"\n"


def _idle(seconds: float) -> RequestTimeout:
    return RequestTimeout(
        f"connection closed: nothing came for {seconds_text(seconds)} (send an empty line meanwhile, or raise "
        "ingest.idle_timeout)"
    )


def _first_lines(chunk: bytes, most: int) -> bytes:
    """Return the first lines of a chunk, or all of it where it has fewer than `most`."""
    *lines, rest = chunk.split(b"\n", most)
    return chunk if len(lines) < most else chunk[: len(chunk) - len(rest)]
