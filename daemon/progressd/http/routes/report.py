"""Events from producers over HTTP: one as JSON, or many as NDJSON.

Each line of NDJSON is answered as soon as its event is durable, while further lines arrive. Both directions run at the
same time, which RFC 9112 §9.3 allows. Neither accumulates: lines become events at once, and the daemon stops reading
lines while too many answers are unread.
"""

import math
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final

import msgspec
import trio
from msgspec import UNSET
from quart import Blueprint, Response, request
from quart.wrappers.response import ResponseBody

from progressd.broadcast.outbox import MemoryBudget
from progressd.core.errors import ProgressdError, RequestTimeout, Stopping
from progressd.core.events import ProducerEvent, checked_job_id
from progressd.http.body import BodyChunks, whole_body
from progressd.http.context import json_response, request_context
from progressd.http.openapi import described
from progressd.http.schemas import JSON, NDJSON
from progressd.http.streams import HTTPStreams
from progressd.producers.ndjson import CHUNK, MAX_ANSWERS, Ack, NDJSONReader, read_event, rejection
from progressd.system.condition import Condition

TEXT: Final = {"type": "string", "description": "One JSON object per line."}
REPORTS: Final = {JSON: ProducerEvent, NDJSON: TEXT}
ACKS: Final = {200: {JSON: Ack, NDJSON: TEXT}}

MAX_SEND: Final = 65536  # bytes per send

blueprint = Blueprint("events", __name__)

_encode_lines = msgspec.json.Encoder().encode_lines


@blueprint.post("/api/events")
@described(also=ACKS, errors=(404, 408, 409, 413, 507), body=REPORTS)
async def any_job() -> Response:
    """Report events of any jobs."""
    return await _submit(None)


@blueprint.post("/api/jobs/<job_id>/events")
@described(also=ACKS, errors=(404, 408, 409, 413, 507), body=REPORTS)
async def one_job(job_id: str) -> Response:
    """Report events of one job. The events may omit the job id."""
    return await _submit(checked_job_id(job_id))


async def _submit(job_id: str | None) -> Response:
    context = request_context()
    limits, max_bytes = context.app.settings.limits, context.app.settings.ingest.max_line_bytes
    if request.mimetype != NDJSON:
        text = await whole_body(request, limits, max_bytes)
        await context.view.limiter.pass_through(len(text))
        job = await context.view.submit_one(read_event(text, job_id))
        return json_response(Ack(ok=True, cursor=context.app.engine.history.cursor(job.offset), job_id=job.id))
    pieces = BodyChunks(request, limits, math.inf, any_rate=True)
    lines = NDJSONReader(max_bytes, context.view, job_id)
    answers = NDJSONResponse(pieces, lines, context.app.streams, context.app.budget)
    await answers.begin()
    response = Response(answers, content_type=NDJSON)
    response.timeout = None
    return response


class NDJSONResponse(ResponseBody):
    """The body of the response. Await `begin` first, while the request can still be rejected as a whole."""

    def __init__(self, pieces: BodyChunks, lines: NDJSONReader, streams: HTTPStreams, budget: MemoryBudget) -> None:
        self._pieces = pieces
        self._lines = lines
        self._streams = streams
        self._budget = budget
        self._piece = b""  # chunk of the body, not yet split into lines
        self._ended = False  # the body has ended
        self._unsent = bytearray()
        self._over = False  # no further lines will be answered
        self._stopping = False
        self._reading = trio.CancelScope()
        self._changed = Condition()
        self._stack = AsyncExitStack()

    async def begin(self) -> None:
        """Wait for the first answers, or the end of the body. Raises RequestTimeout, Stopping, Unavailable."""
        with self._streams.reporting(self._stop):
            while not self._unsent and not self._over:
                await self._answer_next()
        self._pieces.read_on()

    async def __aenter__(self) -> "NDJSONResponse":
        tasks = await self._stack.enter_async_context(trio.open_nursery())
        tasks.start_soon(self._answer_all)
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
        await self._changed.wait_for(lambda: self._unsent or self._over)
        if not self._unsent:
            raise StopAsyncIteration
        piece = bytes(self._unsent[:MAX_SEND])
        del self._unsent[:MAX_SEND]
        self._budget.hold(self, len(self._unsent))
        self._changed.notify()
        return piece

    async def _answer_all(self) -> None:
        """Answer all lines. An error that stops this early is the answer to the first line that was not accepted."""
        with self._streams.reporting(self._stop):
            while not self._over:
                number = self._lines.next_number
                try:
                    await self._answer_next()
                except ProgressdError as error:
                    self._end(error, number)
                self._budget.hold(self, len(self._unsent))
                self._changed.notify()
                await self._changed.wait_for(lambda: len(self._unsent) <= MAX_ANSWERS)

    async def _answer_next(self) -> None:
        """Answer some lines. Raises RequestTimeout, Stopping, Unavailable; InvalidInput for too many invalid lines."""
        if not self._lines:
            try:
                self._lines.feed(await self._next_piece())
            except StopAsyncIteration:
                self._lines.end()
                self._ended = True
        answers = await self._lines.submit()
        if not self._over:
            self._unsent += _encode_lines(answers)
            self._over = self._ended and not self._lines

    def _end(self, error: ProgressdError, number: int) -> None:
        if not self._over:
            self._unsent += _encode_lines([rejection(UNSET, error, number)])
            self._over = True

    async def _next_piece(self) -> bytes:
        with trio.CancelScope() as self._reading:
            if self._stopping and not self._pieces.whole:
                self._reading.cancel()
            if not self._piece:
                self._piece = await anext(self._pieces)
            piece, self._piece = self._piece[:CHUNK], self._piece[CHUNK:]
            return piece
        raise Stopping("the daemon is stopping")

    def give_up(self) -> None:
        """Discard the unsent answers and stop reading. The budget calls this for a client that reads no answers."""
        del self._unsent[self._unsent.find(b"\n") + 1 :]  # keep the rest of a line that was sent in part
        self._end(
            RequestTimeout("answers were discarded because the client did not read them"),
            self._lines.next_number,
        )
        self._changed.notify()
        self._reading.cancel()

    def _stop(self) -> None:
        """Stop reading, unless only the end of the body is missing."""
        self._stopping = True
        if not self._pieces.whole:
            self._reading.cancel()
