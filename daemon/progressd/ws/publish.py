"""A producer's WebSocket: the lines in its messages are taken while more come, and each is answered with a message."""

import trio
from msgspec import UNSET

from progressd.broadcast.envelope import text_frame
from progressd.core.close_codes import BAD_LINES, TRY_AGAIN
from progressd.core.errors import InvalidInput, ProgressdError
from progressd.core.messages import encode
from progressd.producers.ndjson import SEND_TIMEOUT, refusal
from progressd.producers.ndjson_stream import NDJSONReader
from progressd.ws.websocket import WebSocket


class PublishHandler:
    """Of one connection. Neither direction grows: who does not read its answers is read no further meanwhile."""

    def __init__(self, websocket: WebSocket, lines: NDJSONReader) -> None:
        self._websocket = websocket
        self._lines = lines
        self._news = trio.Event()
        self._room = trio.Event()
        self._over = False  # no more lines come
        self._finished = trio.Event()  # and each that was taken is answered
        self._reading = trio.CancelScope()  # while the producer reads its answers

    async def serve(self) -> None:
        """Until the connection is closed."""
        websocket = self._websocket
        websocket.connection.topics = "publish"
        try:
            if websocket.closing is None:
                websocket.start(self._take_all)
                await websocket.serve(pieces=self)
            else:
                await websocket.serve()
        finally:
            websocket.connection.fate = websocket.fate

    async def take(self, piece: bytes, finished: bool) -> None:
        """A piece of a message; `finished`: its last, with which its last line ends."""
        while self._lines.full and not self._over:
            self._room = trio.Event()
            await self._room.wait()
        if self._over:
            return
        self._lines.feed(piece)
        if finished:
            self._lines.end()
        self._news.set()

    async def settle(self, *, dropping: bool) -> None:
        """Let no more lines come, and wait until those that have are answered; `dropping`: but for those that wait."""
        if dropping:
            self._lines.drop()
        self._end()
        await self._finished.wait()
        if not dropping:
            with trio.move_on_after(SEND_TIMEOUT):
                await self._websocket.outbox.drained()

    def _end(self) -> None:
        self._over = True
        self._news.set()
        self._room.set()
        self._reading.cancel()

    async def _take_all(self) -> None:
        while self._lines or not self._over:
            if self._lines or self._lines.full:
                await self._take_some()
            else:
                self._news = trio.Event()
                await self._news.wait()
        self._finished.set()

    async def _take_some(self) -> None:
        outbox, number = self._websocket.outbox, self._lines.next_number
        closing = None
        try:
            answers = await self._lines.submit()
        except ProgressdError as error:
            answers = [refusal(UNSET, error, number)]
            closing = BAD_LINES if isinstance(error, InvalidInput) else TRY_AGAIN
        if answers:
            outbox.write(b"".join([text_frame(encode(answer)) for answer in answers]))
        self._room.set()
        if closing is not None:
            self._lines.drop()
            self._end()
            outbox.end(closing)
        elif outbox.congested and not self._over:
            with trio.CancelScope() as self._reading:
                await self._websocket.taken()
