"""The Unix socket for local producers. The daemon answers lines with a `ref`, and rejected lines."""

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
from progressd.core.errors import ProgressdError, RequestTimeout, TooManyConnections, Unavailable
from progressd.core.messages import encode
from progressd.engine.commands import Outcome
from progressd.engine.ingest import Ingest
from progressd.net.listener import accept_forever
from progressd.producers.ndjson import CHUNK, MAX_ANSWERS, SEND_TIMEOUT, TURN_LINES, Ack, LineBatch, NDJSONReader, Turn

POLL_INTERVAL: Final = 0.005  # seconds between two reads, unless a producer waits or the last turn was full
MAX_READY: Final = 8  # producers per epoll call; the kernel rotates among the ready ones
MAX_READS: Final = 32  # reads in one round, including reads without a line
STOP_TIMEOUT: Final = 5.0  # seconds for a producer to read its answers while the daemon stops

log = structlog.get_logger(__name__)


class UnixSocket:
    """Serve producers until cancelled or drained."""

    def __init__(self, ingest: Ingest, settings: Settings) -> None:
        self._ingest = ingest
        self._settings = settings.ingest
        self._poller = Poller(ingest)
        self._connected = 0
        self._rejecting = False  # the newest producer was rejected
        self._producers = set[ProducerConnection]()
        self._accepting = trio.CancelScope()
        self._drained = trio.Event()

    def apply_settings(self, settings: Settings) -> None:
        """Use new settings. Connected producers keep the old settings."""
        self._settings = settings.ingest

    async def run(self, *listening: socket.socket) -> None:
        """Accept producers on bound sockets; systemd may pass several. Call once."""
        async with trio.open_nursery() as reading:
            reading.start_soon(self._poller.run)
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
        """Accept no more producers. Process and answer the lines sent so far, then close the connections."""
        self._accepting.cancel()
        await self._drained.wait()

    def _accepted(self, sock: socket.socket, producers: trio.Nursery) -> None:
        if self._connected < self._settings.max_connections:
            self._connected += 1
            self._rejecting = False
            producers.start_soon(self._serve, sock)
            return
        if not self._rejecting:
            log.warning("too many producers, rejecting new ones (ingest.max_connections)", connected=self._connected)
        self._rejecting = True
        error = TooManyConnections(
            f"too many producers: {self._connected} are connected (try again later, or raise ingest.max_connections)"
        )
        with sock, contextlib.suppress(OSError):
            sock.send(_last_answer(error))

    async def _serve(self, sock: socket.socket) -> None:
        """Serve one producer. Its errors are not propagated."""
        try:
            with sock:
                await self._read(sock)
        finally:
            self._connected -= 1

    async def _read(self, sock: socket.socket) -> None:
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        log.debug("producer connected", pid=pid, uid=uid)
        try:
            async with trio.open_nursery() as nursery:
                lines = NDJSONReader(self._settings.max_line_bytes, self._ingest, max_bad_lines=math.inf)
                producer = ProducerConnection(sock, nursery, lines, self._settings.idle_timeout)
                self._producers.add(producer)
                try:
                    if self._accepting.cancel_called:
                        producer.stop()
                    await producer.run(self._poller)
                finally:
                    self._producers.remove(producer)
                nursery.cancel_scope.cancel()
        except* OSError:
            log.debug("producer disconnected without reading its answers", pid=pid)
        except* Exception as group:
            log.error(
                "producer connection closed after an internal error",
                pid=pid,
                error=repr(group.exceptions[0]),
                exc_info=group,
            )


class ProducerConnection:
    """One connection. The poller reads it, and passes on the outcomes of its events."""

    def __init__(
        self,
        sock: socket.socket,
        nursery: trio.Nursery,
        lines: NDJSONReader,
        idle_timeout: float = math.inf,
        stop_timeout: float = STOP_TIMEOUT,
    ) -> None:
        self._socket = sock
        self._nursery = nursery
        self._lines = lines
        self._idle_timeout = idle_timeout
        self._stop_timeout = stop_timeout
        self._idle = trio.CancelScope()
        self._active_at = trio.current_time()  # when it last sent data, or when its data was last processed
        self._answers = SocketOutbox(self, MAX_ANSWERS, nursery.start_soon, self._abort)
        self._with_logs: LineBatch | None = None  # submitted by this connection, because logs may be slow
        self._undecided = 0  # number of batches
        self._decided = trio.Event()
        self._ended = False  # the producer has closed its side
        self._cut = False  # the daemon stopped reading, perhaps within a line
        self._send_timeout = math.inf  # seconds for the producer to read its answers
        self._sending = trio.CancelScope()

    async def run(self, poller: "Poller") -> None:
        """Serve until the producer closes its side, and has read all answers. Raises the error of `read`."""
        try:
            if self._idle_timeout < math.inf:
                self._nursery.start_soon(self._end_when_idle)
            with self._idle:
                while not self._ended:
                    await poller.read(self)
                    await self._submit_logs()
                    await self._answers_sent()
            if self._idle.cancelled_caught:
                self._answers.write(_last_answer(_idle(self._idle_timeout)))
            while self._undecided:
                self._decided = trio.Event()
                await self._decided.wait()
            self._send_timeout = min(self._send_timeout, SEND_TIMEOUT)
            await self._answers_sent()
        finally:
            self._answers.discard()  # including later answers

    def stop(self) -> None:
        """Process the lines sent so far. The producer's next write fails, as a sign that the rest is not processed."""
        if not _has_shut_down(self._socket):
            self._cut = True
            self._socket.shutdown(socket.SHUT_RD)
        self._send_timeout = self._stop_timeout
        self._sending.deadline = min(self._sending.deadline, trio.current_time() + self._stop_timeout)

    async def _answers_sent(self) -> None:
        """Wait until the producer has read its answers; disconnect it at the timeout."""
        with trio.move_on_after(self._send_timeout) as self._sending:
            await self._answers.drained()
        if self._sending.cancelled_caught:
            self._nursery.cancel_scope.cancel()

    async def _end_when_idle(self) -> None:
        """Stop reading after the idle timeout. It is suspended while the producer waits for the daemon.

        There is one timer for many reads, because changing a deadline takes 4 µs.
        """
        due = trio.current_time() + self._idle_timeout
        while True:
            await trio.sleep_until(due)
            now = trio.current_time()
            due = (now if self._undecided else self._active_at) + self._idle_timeout
            if due <= now:
                self._idle.cancel()
                return

    def fileno(self) -> int:
        """Return the descriptor, for the poller."""
        return self._socket.fileno()

    @property
    def paused(self) -> bool:
        """Return whether the poller stops reading: the producer must read its answers first, or has closed its side."""
        return self._ended or self._with_logs is not None or self._answers.congested

    def send(self, data: bytes) -> int:
        """Send bytes, for the outbox."""
        return self._socket.send(data)

    async def wait_writable(self) -> None:
        """Wait until the socket accepts bytes, for the outbox."""
        await trio.lowlevel.wait_writable(self._socket)

    def read(self, max_lines: int, now: float) -> LineBatch | None:
        """Read the next lines, for the poller. The rest stays in the socket, so the socket stays readable.

        `now`: the current time, which the poller reads once for many producers.
        """
        try:
            chunk = _first_lines(self._socket.recv(CHUNK, socket.MSG_PEEK), max_lines)
        except BlockingIOError:
            return None
        if chunk:
            self._socket.recv(len(chunk))
            self._lines.feed(chunk)
        else:
            if not self._cut:
                self._lines.end()
            self._ended = True
        batch = self._lines.take() if self._lines else None
        self._undecided += batch is not None
        self._active_at = now
        if batch is not None and batch.logs:
            self._with_logs = batch
            return None
        return batch

    async def _submit_logs(self) -> None:
        """Submit a batch with lines of logs. Until they are written, the producer is not read."""
        if (batch := self._with_logs) is None:
            return
        while self._undecided > 1:  # the lines may be about jobs of earlier batches
            self._decided = trio.Event()
            await self._decided.wait()
        outcomes = await self._lines.outcomes(batch)
        self._with_logs = None
        self.decided(batch, outcomes, trio.current_time())

    def decided(self, batch: LineBatch, outcomes: Sequence[Outcome], now: float) -> None:
        """Answer lines with a `ref`, and rejected lines, for the poller."""
        self._undecided -= 1
        self._decided.set()
        self._active_at = now
        if batch.asks or any(isinstance(outcome, ProgressdError) for outcome in outcomes):
            answers = self._lines.answers(batch, outcomes)
            sent = [encode(answer) + b"\n" for answer in answers if not answer.ok or answer.ref is not UNSET]
            self._answers.write(b"".join(sent))

    def _abort(self, closing: CloseCode) -> None:
        self._nursery.cancel_scope.cancel()


class _Polled:
    """A producer in the poller."""

    def __init__(self, producer: ProducerConnection) -> None:
        self.producer = producer
        self.over = trio.Event()
        self.error: Exception | None = None

    def read(self, max_lines: int, now: float) -> LineBatch | None:
        """Read what is ready. Pass an error to the task of the producer, so that other producers continue."""
        try:
            batch = self.producer.read(max_lines, now)
        except Exception as error:
            self.error = error
            self.over.set()
            return None
        if self.producer.paused:
            self.over.set()
        return batch


class Poller:
    """Read the ready lines of all producers together, so that they share a transaction, its commit and its sends.

    With 20 watchers of all jobs, a single event costs 65 µs; each of ten events together costs 25 µs. So one task waits
    for an epoll set of all sockets. A task per producer would be woken for each event.
    """

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._epoll = select.epoll()
        self._polled: dict[int, _Polled] = {}

    async def read(self, producer: ProducerConnection) -> None:
        """Read a producer until it is paused. Raises the error of its `read`."""
        polled = _Polled(producer)
        descriptor = producer.fileno()
        self._epoll.register(descriptor, select.EPOLLIN)
        self._polled[descriptor] = polled
        try:
            await polled.over.wait()
        finally:
            self._forget(descriptor)
        if polled.error is not None:
            raise polled.error

    async def run(self) -> None:
        """Read until cancelled."""
        with self._epoll:
            while True:
                began = trio.current_time()
                if batches := self._read():
                    await self._submit(batches)
                    full = sum(len(batch) for _, batch in batches) >= TURN_LINES
                    if not full and not any(batch.asks for _, batch in batches):
                        await trio.sleep_until(began + POLL_INTERVAL)
                else:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())

    def _read(self) -> list[tuple[ProducerConnection, LineBatch]]:
        batches, turn, reads = list[tuple[ProducerConnection, LineBatch]](), Turn(), 0
        now = trio.current_time()
        while not turn.over and reads < MAX_READS and (ready := self._epoll.poll(0, MAX_READY)):
            reads += len(ready)
            share = max(1, turn.left // len(ready))
            for descriptor, _ in ready:
                polled = self._polled[descriptor]
                if batch := polled.read(share, now):
                    batches.append((polled.producer, batch))
                    turn.count(len(batch))
                if polled.over.is_set():
                    self._forget(descriptor)
        return batches

    def _forget(self, descriptor: int) -> None:
        if self._polled.pop(descriptor, None) and not self._epoll.closed:
            self._epoll.unregister(descriptor)

    async def _submit(self, batches: Sequence[tuple[ProducerConnection, LineBatch]]) -> None:
        events = [event for _, batch in batches for event in batch.events]
        outcomes: Sequence[Outcome]
        try:
            outcomes = await self._ingest.submit(*events)
        except Unavailable as error:
            outcomes = [error] * len(events)
        position, now = 0, trio.current_time()
        for producer, batch in batches:
            end = position + len(batch.events)
            producer.decided(batch, outcomes[position:end], now)
            position = end


def _has_shut_down(sock: socket.socket) -> bool:
    """Return whether the peer has stopped sending."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def _last_answer(error: ProgressdError) -> bytes:
    """Return the answer to send before a connection is closed."""
    return encode(Ack(ok=False, error=str(error), status=error.status)) + b"\n"


def _idle(seconds: float) -> RequestTimeout:
    return RequestTimeout(
        f"connection closed: no data for {seconds_text(seconds)} (send an empty line in time, or raise "
        "ingest.idle_timeout)"
    )


def _first_lines(chunk: bytes, max_lines: int) -> bytes:
    """Return the first lines of a chunk, or all of it if it has fewer."""
    if chunk.count(b"\n") <= max_lines:
        return chunk
    return chunk[: len(chunk) - len(chunk.split(b"\n", max_lines)[-1])]
