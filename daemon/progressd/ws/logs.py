"""The logs of jobs over WebSockets: one job on its own connection, or as a topic beside others."""

from collections.abc import Collection
from functools import partial

import trio

from progressd.core.close_codes import JOB_DELETED, JOB_FINISHED
from progressd.core.job import Job
from progressd.engine.log_reader import LINE_RATE, LogReaders, LogStart, log_messages
from progressd.ws.websocket import WebSocket


async def send_log(websocket: WebSocket, readers: LogReaders, job: Job, start: LogStart) -> bool:
    """Send the log until the job has finished. Return whether the job was deleted.

    While the client reads slowly, nothing accumulates: the log is read later.
    """
    async with readers.open(job, start) as watcher:
        while (chunk := await watcher.read()) is not None:
            for message in log_messages(job.id, chunk):
                await readers.limiter.pass_through(1)
                while websocket.outbox.congested:  # the logs of other topics share the outbox
                    await websocket.drained()
                websocket.send(message)
                await trio.sleep(len(message.data.lines) / LINE_RATE)
        return watcher.deleted


async def serve_log(websocket: WebSocket, readers: LogReaders, job: Job, start: LogStart) -> None:
    """Serve a client that watches only this log."""
    entry = websocket.connection.log_entry
    entry.topics = f"log:{job.id}"

    async def send() -> None:
        deleted = await send_log(websocket, readers, job, start)
        websocket.outbox.end(JOB_DELETED if deleted else JOB_FINISHED)

    try:
        websocket.nursery.start_soon(send)
        await websocket.serve()
    finally:
        entry.outcome = websocket.outcome


class LogSubscriptions:
    """The logs among the topics of one connection."""

    def __init__(self, websocket: WebSocket, readers: LogReaders) -> None:
        self._websocket = websocket
        self._readers = readers
        self._open = dict[str, trio.CancelScope]()

    @property
    def topics(self) -> Collection[str]:
        """Return the topics of the logs that are sent."""
        return self._open.keys()

    def subscribe(self, topic: str, job: Job, start: LogStart) -> None:
        """Send a log until it ends, or until `unsubscribe`."""
        if topic not in self._open:
            self._open[topic] = scope = trio.CancelScope()
            self._websocket.nursery.start_soon(partial(self._send, topic, scope, job, start))

    def unsubscribe(self, topic: str) -> None:
        """Stop sending a log."""
        if (scope := self._open.pop(topic, None)) is not None:
            scope.cancel()

    async def _send(self, topic: str, scope: trio.CancelScope, job: Job, start: LogStart) -> None:
        with scope:
            await send_log(self._websocket, self._readers, job, start)
        if self._open.get(topic) is scope:
            del self._open[topic]
