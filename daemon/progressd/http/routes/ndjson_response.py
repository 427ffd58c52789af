"""The answers to a stream of lines, each as soon as its event is durable, while the others are still coming.

Both directions go on at once (RFC 9112 §9.3 has nothing against it), and neither grows: what is read becomes events at
once, and who does not read the answers is read no further when too many of them wait.
"""

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final

import msgspec
import trio
from msgspec import UNSET
from quart.wrappers.response import ResponseBody

from progressd.broadcast.memory_budget import MemoryBudget
from progressd.core.errors import ProgressdError, RequestTimeout, Stopping
from progressd.http.body import BodyChunks
from progressd.http.open_streams import StreamRegistry
from progressd.producers.ndjson import CHUNK, MAX_ANSWERS, refusal
from progressd.producers.ndjson_stream import NDJSONReader

# Bytes of answers that may wait for all clients together; MAX_ANSWERS for each is much, because many read none before
# they have sent all. Whoever keeps most of it is given up.
MAX_PENDING: Final = 4 * MAX_ANSWERS
MAX_SEND: Final = 65536  # bytes sent at once

_encode_lines = msgspec.json.Encoder().encode_lines


class NDJSONResponse(ResponseBody):
    """`begin` first, as long as the request may still be refused as a whole; then it is the body of the response."""

    def __init__(self, pieces: BodyChunks, lines: NDJSONReader, streams: StreamRegistry, budget: MemoryBudget) -> None:
        self._pieces = pieces
        self._lines = lines
        self._streams = streams
        self._budget = budget
        self._piece = b""  # of the body, of which so much is not yet split
        self._ended = False  # the body
        self._waiting = bytearray()  # to be sent
        self._over = False  # all that will be taken is taken
        self._stopping = False
        self._reading = trio.CancelScope()
        self._news = trio.Event()
        self._room = trio.Event()
        self._stack = AsyncExitStack()

    async def begin(self) -> None:
        """Wait for the first answers, or the end. Raises RequestTimeout, Stopping, Unavailable."""
        with self._streams.reporting(self._stop):
            while not self._waiting and not self._over:
                await self._take_next()
        self._pieces.read_on()

    async def __aenter__(self) -> "NDJSONResponse":
        tasks = await self._stack.enter_async_context(trio.open_nursery())
        tasks.start_soon(self._take_all)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pieces.discard()
        self._budget.hold(self, 0)
        await self._stack.__aexit__(kind, error, traceback)

    def __aiter__(self) -> "NDJSONResponse":
        return self

    async def __anext__(self) -> bytes:
        while not self._waiting:
            if self._over:
                raise StopAsyncIteration
            self._news = trio.Event()
            await self._news.wait()
        piece = bytes(self._waiting[:MAX_SEND])
        del self._waiting[:MAX_SEND]
        self._budget.hold(self, len(self._waiting))
        self._room.set()
        return piece

    async def _take_all(self) -> None:
        """Until the end. What ends it sooner is the last answer, to the first line that was not taken."""
        with self._streams.reporting(self._stop):
            while not self._over:
                if len(self._waiting) > MAX_ANSWERS:
                    self._room = trio.Event()
                    await self._room.wait()
                    continue
                number = self._lines.next_number
                try:
                    await self._take_next()
                except ProgressdError as error:
                    self._end(error, number)
                self._budget.hold(self, len(self._waiting))
                self._news.set()

    async def _take_next(self) -> None:
        """Take some lines. Raises RequestTimeout, Stopping, Unavailable; InvalidInput where too many are no events."""
        if not self._lines:
            try:
                self._lines.feed(await self._next_piece())
            except StopAsyncIteration:
                self._lines.end()
                self._ended = True
        answers = await self._lines.take()
        if not self._over:
            self._waiting += _encode_lines(answers)
            self._over = self._ended and not self._lines

    def _end(self, error: ProgressdError, number: int) -> None:
        if not self._over:
            self._waiting += _encode_lines([refusal(UNSET, error, number)])
            self._over = True

    async def _next_piece(self) -> bytes:
        with trio.CancelScope() as self._reading:
            if self._stopping:
                self._reading.cancel()
            if not self._piece:
                self._piece = await anext(self._pieces)
            piece, self._piece = self._piece[:CHUNK], self._piece[CHUNK:]
            return piece
        raise Stopping("the daemon is stopping")

    def give_up(self) -> None:
        """For the budget: let go of what waits for a client that does not read it, and read no further."""
        del self._waiting[self._waiting.find(b"\n") + 1 :]  # but for the rest of what has been sent in part
        self._end(
            RequestTimeout("the answers are not read, and no more of them can be kept: some are missing"),
            self._lines.next_number,
        )
        self._room.set()
        self._reading.cancel()

    def _stop(self) -> None:
        """Read no further."""
        self._stopping = True
        self._reading.cancel()
