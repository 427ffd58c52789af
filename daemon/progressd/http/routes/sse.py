"""Streams over plain HTTP: server-sent events (HTML §9.2), and whoever waits for a job to change.

Both read an outbox of the broadcaster, as the watchers on WebSockets have one, in the task that serves their request.
"""

import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final

import structlog
import trio
from quart import Blueprint, Response, request
from quart.wrappers.response import ResponseBody

from progressd.auth.connection_limit import Client
from progressd.broadcast.envelope import NoticeEnvelope
from progressd.broadcast.reader import Reader, ReaderOutbox
from progressd.broadcast.throttle import filtered_outbox
from progressd.core.errors import NotFound, SlowConsumer, StoreFailed
from progressd.core.events import checked_batch_id, checked_job_id
from progressd.core.job import Job
from progressd.core.messages import ALL_JOBS, Hello, Resync, batch_topic, job_topic
from progressd.http.context import AppContext, services
from progressd.http.middleware.access import who_asks
from progressd.http.openapi.operations import EVENTS, described
from progressd.ws.handshake import StreamQuery, StreamRequest, stream_request

HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would collect what comes
}
RETRY: Final = (1000, 3000)  # milliseconds until a client connects again, not all at once
COMMENT: Final = b":\n\n"

log = structlog.get_logger(__name__)

blueprint = Blueprint("streams", __name__)


@blueprint.get("/api/events")
@described(also={200: {EVENTS: {"type": "string"}}, 204: {}}, query=(StreamQuery,), headers=("Last-Event-ID",))
async def all_events() -> Response:
    """The events of every job."""
    return await _stream(ALL_JOBS)


@blueprint.get("/api/jobs/<job_id>/events")
@described(also={200: {EVENTS: {"type": "string"}}, 204: {}}, query=(StreamQuery,), headers=("Last-Event-ID",))
async def job_events(job_id: str) -> Response:
    """The events of one job, until its end."""
    return await _stream(job_topic(checked_job_id(job_id)))


@blueprint.get("/api/batch/<batch_id>/events")
@described(also={200: {EVENTS: {"type": "string"}}, 204: {}}, query=(StreamQuery,), headers=("Last-Event-ID",))
async def batch_events(batch_id: str) -> Response:
    """The events of one batch and its jobs, until its end."""
    return await _stream(batch_topic(checked_batch_id(batch_id)))


async def _stream(topic: str) -> Response:
    daemon = services()
    query = request.args.to_dict()
    if last := request.headers.get("Last-Event-ID"):  # what the client has had since it asked for this first
        query["since"] = last
    wish = stream_request(topic, query)
    await daemon.history.require(topic)
    after = None if wish.since is None else daemon.history.offset(wish.since, daemon.broadcaster.offset)
    if after is not None and await daemon.history.over(topic, after):
        return Response(b"", 204, HEADERS)  # which keeps an EventSource from asking again
    client = Client(daemon.access.address(request.scope), who_asks(request.scope))
    daemon.streams.require_room(client)
    body = b"" if request.method == "HEAD" else SSEResponse(daemon, wish, after, client)
    response = Response(body, 200, HEADERS, content_type="text/event-stream")
    response.timeout = None
    return response


class SSEResponse(ResponseBody):
    """The events of a stream as they come, and a comment where nothing has come for a while."""

    def __init__(self, daemon: AppContext, wish: StreamRequest, after: int | None, client: Client) -> None:
        self._daemon = daemon
        self._wish = wish
        self._after = after
        self._client = client
        self._stack = AsyncExitStack()
        self._tasks: trio.Nursery | None = None
        self._begun = False
        self._reader: Reader

    async def __aenter__(self) -> "SSEResponse":
        wish = self._wish
        if wish.interval:
            self._tasks = await self._stack.enter_async_context(trio.open_nursery())
        outbox = ReaderOutbox(self._daemon.settings.limits.send_buffer_bytes)
        self._stack.enter_context(self._daemon.streams.opened(outbox, self._client))
        start = self._tasks.start_soon if self._tasks else _never
        behind = filtered_outbox(outbox, wish.types, wish.interval, self._client.identity.labels, start)
        reader = self._daemon.broadcaster.read(
            str(wish.topic),
            outbox,
            behind,
            self._after,
            lambda upto: outbox.say(Hello(self._daemon.history.cursor(upto))),
        )
        self._reader = self._stack.enter_context(reader)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()
        await self._stack.__aexit__(kind, error, traceback)

    def __aiter__(self) -> "SSEResponse":
        return self

    async def __anext__(self) -> bytes:
        if not self._begun:
            self._begun = True
            retry = b"retry: %d\n\n" % random.randint(*RETRY)  # noqa: S311, spread, and no secret
            unknown = self._wish.since is not None and self._after is None
            return retry + NoticeEnvelope(Resync()).event if unknown else retry
        with trio.move_on_after(self._daemon.settings.limits.heartbeat_interval):
            try:
                items = await self._reader.read()
            except (SlowConsumer, StoreFailed, NotFound) as error:  # the client may come back, and is told then
                log.info("stream ended early", topic=self._wish.topic, error=str(error))
                raise StopAsyncIteration from None
            if not items:
                raise StopAsyncIteration
            return b"".join([item.event for item in items])
        return COMMENT


def _never(task: Callable[[], Awaitable[None]]) -> None:
    raise AssertionError("no task is needed without an interval")


async def changed_job(daemon: AppContext, job: Job, since: str, seconds: float) -> Job:
    """The job, once it is newer than the cursor `since`, or as it is after so many seconds, or when the daemon stops.

    Raises TooManyConnections, TooManyOfAddress, TooManyOfKey, Stopping, NotFound, StoreFailed.
    """
    after = daemon.history.offset(since, daemon.broadcaster.offset)
    if after is None or job.offset > after or job.status.finished:
        return job
    client = Client(daemon.access.address(request.scope), who_asks(request.scope))
    daemon.streams.require_room(client)
    outbox = ReaderOutbox(daemon.settings.limits.send_buffer_bytes)
    topic = job_topic(job.id)
    with (
        daemon.streams.opened(outbox, client),
        daemon.broadcaster.read(topic, outbox, outbox, after) as reader,
        trio.move_on_after(seconds),
    ):
        while job.offset <= after and await reader.read():
            job = await daemon.registry.get(job.id)
    return job
