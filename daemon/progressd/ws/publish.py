"""A producer's WebSocket: process the lines of its messages as they arrive, and answer each with a message."""

import trio
from msgspec import UNSET

from progressd.broadcast.envelope import text_frame
from progressd.core.close_codes import BAD_LINES, TRY_AGAIN
from progressd.core.errors import InvalidInput, ProgressdError
from progressd.core.messages import encode
from progressd.producers.ndjson import SEND_TIMEOUT, NDJSONReader, rejection
from progressd.system.condition import Condition
from progressd.ws.websocket import WebSocket


class PublishHandler:
    """Serve one producer. Stop reading while lines wait for their commit or answers wait for the client."""

    def __init__(self, websocket: WebSocket, lines: NDJSONReader) -> None:
        self._websocket = websocket
        self._lines = lines
        self._changed = Condition()  # notified on changes of the waiting `lines` and of `_ended`
        self._ended = False  # no further lines are taken
        self._finished = trio.Event()  # all taken lines are answered
        self._waiting_for_client = trio.CancelScope()

    async def serve(self) -> None:
        """Serve until the connection is closed."""
        websocket = self._websocket
        entry = websocket.connection.log_entry
        entry.topics = "publish"
        try:
            if websocket.closing is None:
                websocket.nursery.start_soon(self._take_all)
                await websocket.serve(fragments=self)
            else:
                await websocket.serve()
        finally:
            entry.outcome = websocket.outcome

    async def take(self, fragment: bytes, finished: bool) -> None:
        """Take a fragment of a message; `finished`: the last one, which completes the last line."""
        await self._changed.wait_for(lambda: self._ended or not self._lines.full)
        if self._ended:
            return
        self._lines.feed(fragment)
        if finished:
            self._lines.end()
        self._changed.notify()

    async def settle(self, *, dropping: bool) -> None:
        """Stop taking lines, and wait until the taken lines are answered; `dropping`: discard the waiting lines."""
        if dropping:
            self._lines.drop()
        self._end()
        await self._finished.wait()
        if not dropping:
            with trio.move_on_after(SEND_TIMEOUT):
                await self._websocket.outbox.drained()

    def _end(self) -> None:
        self._ended = True
        self._changed.notify()
        self._waiting_for_client.cancel()

    async def _take_all(self) -> None:
        while True:
            await self._changed.wait_for(lambda: self._lines or self._lines.full or self._ended)
            if not (self._lines or self._lines.full):
                break
            await self._take_some()
        self._finished.set()

    async def _take_some(self) -> None:
        outbox, number = self._websocket.outbox, self._lines.next_number
        closing = None
        try:
            answers = await self._lines.submit()
        except ProgressdError as error:
            answers = [rejection(UNSET, error, number)]
            closing = BAD_LINES if isinstance(error, InvalidInput) else TRY_AGAIN
        if answers:
            outbox.write(b"".join([text_frame(encode(answer)) for answer in answers]))
        self._changed.notify()
        if closing is not None:
            self._lines.drop()
            self._end()
            outbox.end(closing)
        elif outbox.congested and not self._ended:
            with trio.CancelScope() as self._waiting_for_client:
                await self._websocket.drained()
