"""Streams over plain HTTP: server-sent events (HTML §9.2), and long polls.

Like WebSockets, both read an outbox of the broadcaster. They do so in the task of their request.
"""

import random
from contextlib import ExitStack
from types import TracebackType
from typing import Final

import structlog
import trio
from quart import Blueprint, Response, request
from quart.wrappers.response import ResponseBody

from progressd.broadcast.broadcaster import Reader, ReaderOutbox
from progressd.broadcast.envelope import NoticeEnvelope
from progressd.broadcast.filters import filtered_outbox
from progressd.core.errors import NotFound, SlowConsumer, StoreFailed
from progressd.core.events import checked_batch_id, checked_job_id
from progressd.core.job import Job
from progressd.core.messages import ALL_JOBS, Hello, Resync, batch_topic, job_topic
from progressd.http.context import RequestContext, request_context
from progressd.http.openapi import described
from progressd.http.schemas import EVENT_STREAM
from progressd.net.request import StreamQuery, StreamRequest, stream_request

HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # otherwise nginx buffers the events
}
RETRY: Final = (1000, 3000)  # milliseconds until a client reconnects; random, to spread the load
COMMENT: Final = b":\n\n"

log = structlog.get_logger(__name__)

blueprint = Blueprint("streams", __name__)


@blueprint.get("/api/events")
@described(also={200: {EVENT_STREAM: {"type": "string"}}, 204: {}}, query=(StreamQuery,), headers=("Last-Event-ID",))
async def all_events() -> Response:
    """Stream the events of every job."""
    return await _stream(ALL_JOBS)


@blueprint.get("/api/jobs/<job_id>/events")
@described(also={200: {EVENT_STREAM: {"type": "string"}}, 204: {}}, query=(StreamQuery,), headers=("Last-Event-ID",))
async def job_events(job_id: str) -> Response:
    """Stream the events of one job until it finishes."""
    return await _stream(job_topic(checked_job_id(job_id)))


@blueprint.get("/api/batch/<batch_id>/events")
@described(also={200: {EVENT_STREAM: {"type": "string"}}, 204: {}}, query=(StreamQuery,), headers=("Last-Event-ID",))
async def batch_events(batch_id: str) -> Response:
    """Stream the events of one batch and its jobs until it finishes."""
    return await _stream(batch_topic(checked_batch_id(batch_id)))


async def _stream(topic: str) -> Response:
    context = request_context()
    engine = context.app.engine
    query = request.args.to_dict()
    if last := request.headers.get("Last-Event-ID"):  # newer than the cursor in an EventSource's URL
        query["since"] = last
    wanted = stream_request(topic, query)
    await context.view.require(topic)
    after = None if wanted.since is None else engine.history.offset(wanted.since, engine.broadcaster.offset)
    if after is not None and await engine.history.over(topic, after):
        return Response(b"", 204, HEADERS)  # stops an EventSource
    context.app.streams.require_room(context.client)
    body = b"" if request.method == "HEAD" else SSEResponse(context, wanted, after)
    response = Response(body, 200, HEADERS, content_type=EVENT_STREAM)
    response.timeout = None
    return response


class SSEResponse(ResponseBody):
    """The body of an event stream: live events, and comments as heartbeats."""

    def __init__(self, context: RequestContext, wanted: StreamRequest, after: int | None) -> None:
        self._context = context
        self._wanted = wanted
        self._after = after
        self._stack = ExitStack()
        self._begun = False
        self._reader: Reader

    async def __aenter__(self) -> "SSEResponse":
        wanted, app, client = self._wanted, self._context.app, self._context.client
        outbox = ReaderOutbox(app.settings.limits.send_buffer_bytes)
        self._stack.enter_context(app.streams.opened(outbox, client))
        history = app.engine.history  # `self` in the lambda below would be a reference cycle
        filtered = filtered_outbox(outbox, wanted.types, self._context.view.message_filter)
        reader = app.engine.broadcaster.read(
            str(wanted.topic),
            outbox,
            filtered,
            self._after,
            lambda upto: outbox.say(Hello(history.cursor(upto))),
            wanted.interval,
        )
        self._reader = self._stack.enter_context(reader)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def __aiter__(self) -> "SSEResponse":
        return self

    async def __anext__(self) -> bytes:
        if not self._begun:
            self._begun = True
            retry = retry_event()
            unknown = self._wanted.since is not None and self._after is None
            return retry + NoticeEnvelope(Resync()).event if unknown else retry
        with trio.move_on_after(self._context.app.settings.limits.heartbeat_interval):
            try:
                items = await self._reader.read()
            except (SlowConsumer, StoreFailed, NotFound) as error:  # the client gets the error when it reconnects
                log.info("stream ended early", topic=self._wanted.topic, error=str(error))
                raise StopAsyncIteration from None
            if not items:
                raise StopAsyncIteration
            return b"".join([item.event for item in items])
        return COMMENT


def retry_event() -> bytes:
    """Return the beginning of a stream: when a client reconnects after it."""
    return b"retry: %d\n\n" % random.randint(*RETRY)  # noqa: S311, not a secret


async def changed_job(context: RequestContext, job: Job, since: str, seconds: float) -> Job:
    """Return the job once it is newer than the cursor `since`, or unchanged after `seconds` or on shutdown.

    Raises TooManyConnections, TooManyOfAddress, TooManyOfKey, Stopping, NotFound, StoreFailed.
    """
    app = context.app
    after = app.engine.history.offset(since, app.engine.broadcaster.offset)
    if after is None or job.offset > after or job.status.finished:
        return job
    app.streams.require_room(context.client)
    outbox = ReaderOutbox(app.settings.limits.send_buffer_bytes)
    topic = job_topic(job.id)
    with (
        app.streams.opened(outbox, context.client),
        app.engine.broadcaster.read(topic, outbox, outbox, after) as reader,
        trio.move_on_after(seconds),
    ):
        while job.offset <= after and await reader.read():
            job = await context.view.job(job.id)
    return job
