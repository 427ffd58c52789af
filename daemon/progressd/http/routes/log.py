"""The log of a job: as text, as live text, and as server-sent events."""

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Annotated, Final, NamedTuple

import trio
from msgspec import Meta, Struct
from quart import Blueprint, Response, request
from quart.wrappers.response import ResponseBody

from progressd.broadcast.broadcaster import ReaderOutbox
from progressd.broadcast.envelope import server_sent_event
from progressd.core.errors import InvalidInput
from progressd.core.events import checked_job_id
from progressd.core.job import Job
from progressd.core.log_text import LogText
from progressd.core.messages import JobLog, encode
from progressd.engine.log_reader import LINE_RATE, LogPage, LogStart, log_messages, log_texts, parsed_start, require_log
from progressd.files.job_logs import Chunk, LogWatcher
from progressd.http.context import RequestContext, json_response, request_context
from progressd.http.openapi import described
from progressd.http.response import FileResponse, range_within
from progressd.http.routes.sse import COMMENT, HEADERS, retry_event
from progressd.http.schemas import EVENT_STREAM
from progressd.net.request import LogTextQuery, parsed_query

TEXT: Final = "text/plain; charset=utf-8"
MAX_PAGE_LINES: Final = 20_000

blueprint = Blueprint("log", __name__)


class LinesQuery(Struct, frozen=True):
    """The query of a page: the number of lines, and the offset at which they end."""

    limit: Annotated[int, Meta(ge=1)] = 1000
    before: Annotated[int, Meta(ge=0, le=2**60)] | None = None


@blueprint.get("/api/jobs/<job_id>/log")
@described(
    also={200: {"text/plain": {"type": "string"}}, 206: {"text/plain": {"type": "string"}}},
    query=(LogStart, LogTextQuery),
    errors=(404, 416),
    headers=("Range",),
)
async def job_log(job_id: str) -> Response:
    """Return the log of a job as text; with `follow`, continue until the job has finished."""
    context, job = await _found(job_id)
    query = request.args.to_dict()
    follow, ansi, times = (_is_set(query, name) for name in LogTextQuery.__struct_fields__)
    start, output = _start(query), partial(LogText, ansi=ansi, times=times)
    if follow:
        context.app.streams.require_room(context.client)
    if request.method == "HEAD":
        response = Response(b"", 200, HEADERS, content_type=TEXT)
    elif "Range" in request.headers and not follow:
        measured = await _measured(context, job, start, output())
        response = FileResponse(TextRange(context, job, output(), measured), 200, HEADERS, content_type=TEXT)
        await response.make_conditional(request, accept_ranges=True, complete_length=measured.length)
    else:
        response = Response(LiveText(context, job, start, output(), follow=follow), 200, HEADERS, content_type=TEXT)
    response.accept_ranges = "none" if follow else "bytes"
    response.timeout = None
    return response


@blueprint.get("/api/jobs/<job_id>/log/lines")
@described(LogPage, query=(LinesQuery,), errors=(404,))
async def job_log_lines(job_id: str) -> Response:
    """Return the last lines of a log, or the last lines before an offset: for viewers that load a log backwards."""
    context, job = await _found(job_id)
    query = parsed_query(request.args, LinesQuery)
    page = await context.app.engine.logs.page(job, min(query.limit, MAX_PAGE_LINES), query.before)
    return json_response(page, headers={"Cache-Control": "no-store"})


@blueprint.get("/api/jobs/<job_id>/log/events")
@described(
    also={200: {EVENT_STREAM: {"type": "string"}}, 204: {}},
    query=(LogStart,),
    errors=(404,),
    headers=("Last-Event-ID",),
)
async def job_log_events(job_id: str) -> Response:
    """Stream the log of a job until it has finished: its last 1000 lines, and then new lines."""
    context, job = await _found(job_id)
    query = request.args.to_dict()
    last = request.headers.get("Last-Event-ID", "")
    if last.isdecimal():
        query = {"offset": last}
    start = _start(query)
    if job.status.finished and start.offset is not None:
        async with context.app.engine.logs.open(job, start) as watcher:
            if watcher.at_end:
                return Response(b"", 204, HEADERS)  # stops an EventSource
    context.app.streams.require_room(context.client)
    body = b"" if request.method == "HEAD" else LogEvents(context, job, start)
    response = Response(body, 200, HEADERS, content_type=EVENT_STREAM)
    response.timeout = None
    return response


async def _found(job_id: str) -> tuple[RequestContext, Job]:
    context = request_context()
    job = await context.view.job(checked_job_id(job_id))
    require_log(context.client.identity)
    return context, job


def _start(query: dict[str, str]) -> LogStart:
    return parsed_start({name: value for name, value in query.items() if name in LogStart.__struct_fields__})


def _is_set(query: dict[str, str], name: str) -> bool:
    """Return a flag of a query. Raises InvalidInput."""
    value = query.get(name, "false").lower()
    if value not in ("true", "1", "false", "0"):
        raise InvalidInput(f"the query is wrong: {name} is {value[:60]!r}, not true or false")
    return value in ("true", "1")


class Measured(NamedTuple):
    """A part of a log: its offsets, and the length of its text."""

    begin: int
    end: int
    length: int


async def _measured(context: RequestContext, job: Job, start: LogStart, output: LogText) -> Measured:
    """Return the part of the log that exists now."""
    readers, length = context.app.engine.logs, 0
    async with readers.open(job, start, default_tail=None) as watcher:
        begin, end = watcher.position, watcher.end
        while watcher.position < end and (chunk := await watcher.read()) is not None:
            for text in log_texts(output, chunk):
                await readers.limiter.pass_through(1)
                length += len(text)
        return Measured(begin, watcher.position, length)


class LogBody(ResponseBody):
    """The body of a response that reads a log. On shutdown it ends."""

    def __init__(self, context: RequestContext, job: Job, start: LogStart, *, follow: bool = True) -> None:
        self._context = context
        self._job = job
        self._start = start
        self._follow = follow
        self._stack = AsyncExitStack()
        self._watcher: LogWatcher

    async def __aenter__(self) -> "LogBody":
        await self._stack.enter_async_context(self._opened())
        return self

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        app, client = self._context.app, self._context.client
        outbox = ReaderOutbox(app.settings.limits.send_buffer_bytes)
        async with AsyncExitStack() as stack:
            if self._follow:
                stack.enter_context(app.streams.opened(outbox, client))
            readers = app.engine.logs
            self._watcher = await stack.enter_async_context(readers.open(self._job, self._start, self.default_tail))
            async with trio.open_nursery() as nursery:
                if self._follow:
                    nursery.start_soon(self._end_with, outbox)
                yield
                nursery.cancel_scope.cancel()

    default_tail: int | None = None

    async def _end_with(self, outbox: ReaderOutbox) -> None:
        while await outbox.wait():
            outbox.take(1)
        self._watcher.stop()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    def __aiter__(self) -> "LogBody":
        return self

    async def _chunk(self) -> Chunk:
        chunk = None if not self._follow and self._watcher.at_end else await self._watcher.read()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    @abstractmethod
    async def __anext__(self) -> bytes:
        """Return the next part of the body."""


class LiveText(LogBody):
    """The log as text."""

    def __init__(self, context: RequestContext, job: Job, start: LogStart, output: LogText, *, follow: bool) -> None:
        super().__init__(context, job, start, follow=follow)
        self._output = output
        self._texts: Iterator[bytes] = iter(())

    async def __anext__(self) -> bytes:
        while True:
            await self._context.app.engine.logs.limiter.pass_through(1)
            text = next(self._texts, None)
            if text is None:
                self._texts = log_texts(self._output, await self._chunk())
            elif text:
                return text


class TextRange(LiveText):
    """A range of a log's text that is read from the disk while it is sent.

    If the log has lost lines since it was measured, the body is too short, and the connection is closed.
    """

    def __init__(self, context: RequestContext, job: Job, output: LogText, measured: Measured) -> None:
        super().__init__(context, job, LogStart(offset=measured.begin), output, follow=False)
        self.begin, self.end = 0, measured.length
        self._measured = measured
        self._position = 0  # in the text

    async def make_conditional(self, begin: int, end: int | None, max_partial_size: int | None = None) -> int:
        """Select a range. Returns the length of the whole text."""
        self.begin, self.end = range_within(self._measured.length, begin, end)
        return self._measured.length

    async def _chunk(self) -> Chunk:
        if self._watcher.position >= self._measured.end:
            raise StopAsyncIteration
        return await super()._chunk()

    async def __anext__(self) -> bytes:
        while self._position < self.end:
            text = await super().__anext__()
            part = text[max(self.begin - self._position, 0) : self.end - self._position]
            self._position += len(text)
            if part:
                return part
        raise StopAsyncIteration


class LogEvents(LogBody):
    """The log as server-sent events, and comments as heartbeats."""

    default_tail = 1000

    def __init__(self, context: RequestContext, job: Job, start: LogStart) -> None:
        super().__init__(context, job, start)
        self._messages: Iterator[JobLog] = iter(())
        self._begun = False

    async def __anext__(self) -> bytes:
        if not self._begun:  # the head of the response is sent with the first bytes of the body
            self._begun = True
            return retry_event()
        with trio.move_on_after(self._context.app.settings.limits.heartbeat_interval):
            while (message := next(self._messages, None)) is None:
                self._messages = log_messages(self._job.id, await self._chunk())
        if message is None:
            return COMMENT
        await self._context.app.engine.logs.limiter.pass_through(1)
        await trio.sleep(len(message.data.lines) / LINE_RATE)
        return server_sent_event(encode(message), str(message.data.offset))
