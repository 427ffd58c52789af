"""What all watchers are told of the daemon itself: that its store keeps nothing, or does so again; that it stops."""

from collections.abc import Awaitable, Callable

from progressd.core.errors import StoreFailed
from progressd.core.messages import Notice, ServerShutdown, ServerShutdownData, ServerStatus, ServerStatusData
from progressd.engine.ingest import Ingest
from progressd.http.open_streams import StreamRegistry
from progressd.ws.server import WebSocketServer


class Announcer:
    """`run` tells of the store, until `stopping`."""

    def __init__(self, watchers: WebSocketServer, streams: StreamRegistry) -> None:
        self._watchers = watchers
        self._streams = streams
        self._stopping = False

    async def run(self, ingest: Ingest, settle: Callable[[], Awaitable[None]]) -> None:
        """Tell when the store keeps nothing any more, and when it does again, before things are settled with it."""
        told: StoreFailed | None = None
        while True:
            told = await ingest.turned(told)
            if self._stopping:
                return
            if told is not None:
                self._say(ServerStatus(ServerStatusData("failing", str(told))))
            else:
                self._say(ServerStatus(ServerStatusData("healthy")), later=False)
                await settle()

    def stopping(self, seconds: float) -> None:
        """Tell that the daemon stops, and how long it waits for jobs."""
        self._stopping = True
        self._say(ServerShutdown(ServerShutdownData("the daemon is stopping", round(seconds))))

    def _say(self, message: Notice, *, later: bool = True) -> None:
        """`later`: also to those who come from now on, until the next notice."""
        self._watchers.announce(message, later=later)
        self._streams.announce(message, later=later)
