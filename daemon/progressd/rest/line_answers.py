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

from progressd.core.errors import ProgressdError, Stopping
from progressd.ingest import Submitting
from progressd.producers.intake import take_lines
from progressd.producers.lines import LineSplitter, refusal
from progressd.rest.body import Pieces
from progressd.rest.open_streams import OpenStreams

# Bytes of answers that may wait. Many clients read none before they have sent all, so that few would lock them up.
WAITING_MOST: Final = 16 * 1024 * 1024
SEND_MOST: Final = 65536  # bytes sent at once

_encode_lines = msgspec.json.Encoder().encode_lines


class LineAnswers(ResponseBody):
    """`begin` first, as long as the request may still be refused as a whole; then it is the body of the response."""

    def __init__(
        self, pieces: Pieces, splitter: LineSplitter, ingest: Submitting, job_id: str | None, streams: OpenStreams
    ) -> None:
        self._pieces = pieces
        self._splitter = splitter
        self._ingest = ingest
        self._job_id = job_id
        self._streams = streams
        self._waiting = bytearray()  # to be sent
        self._over = False  # all that will be taken is taken
        self._stopping = False
        self._reading = trio.CancelScope()
        self._news = trio.Event()
        self._room = trio.Event()
        self._stack = AsyncExitStack()

    async def begin(self) -> None:
        """Wait for the first answers, or the end. Raises Stalled, Stopping, Unavailable."""
        with self._streams.reporting(self._stop):
            while not self._waiting and not self._over:
                await self._take_next()
        self._pieces.read_on()

    async def __aenter__(self) -> "LineAnswers":
        tasks = await self._stack.enter_async_context(trio.open_nursery())
        tasks.start_soon(self._take_all)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pieces.discard()
        await self._stack.__aexit__(kind, error, traceback)

    def __aiter__(self) -> "LineAnswers":
        return self

    async def __anext__(self) -> bytes:
        while not self._waiting:
            if self._over:
                raise StopAsyncIteration
            self._news = trio.Event()
            await self._news.wait()
        piece = bytes(self._waiting[:SEND_MOST])
        del self._waiting[:SEND_MOST]
        self._room.set()
        return piece

    async def _take_all(self) -> None:
        """Until the end. What ends it sooner is the last answer, to the first line that was not taken."""
        with self._streams.reporting(self._stop):
            while not self._over:
                if len(self._waiting) > WAITING_MOST:
                    self._room = trio.Event()
                    await self._room.wait()
                    continue
                number = self._splitter.number + 1
                try:
                    await self._take_next()
                except ProgressdError as error:
                    self._waiting += _encode_lines([refusal(UNSET, error, number)])
                    self._over = True
                self._news.set()

    async def _take_next(self) -> None:
        """Take the lines that come next. Raises Stalled, Stopping, Unavailable."""
        try:
            lines, over = self._splitter.feed(await self._next_piece()), False
        except StopAsyncIteration:
            lines, over = self._splitter.end(), True
        self._waiting += _encode_lines(await take_lines(self._ingest, lines, self._job_id))
        self._over = over

    async def _next_piece(self) -> bytes:
        with trio.CancelScope() as self._reading:
            if self._stopping:
                self._reading.cancel()
            return await anext(self._pieces)
        raise Stopping("the daemon is stopping")

    def _stop(self) -> None:
        """Read no further."""
        self._stopping = True
        self._reading.cancel()
