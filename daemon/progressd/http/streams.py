"""Manage the streams over plain HTTP: limit them, send announcements to them, and close them on shutdown."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from progressd.auth.authenticator import Client
from progressd.auth.limits import ConnectionLimiter
from progressd.broadcast.broadcaster import ReaderOutbox
from progressd.core.close_codes import DRAINING, TRY_AGAIN, CloseCode
from progressd.core.errors import Stopping, Unavailable
from progressd.core.messages import Notice


class HTTPStreams:
    """The open event streams and long polls, and the producers that report NDJSON."""

    def __init__(self, connection_limiter: ConnectionLimiter) -> None:
        self._connection_limiter = connection_limiter
        self._open: dict[ReaderOutbox, None] = {}
        self._reporting: dict[Callable[[], None], None] = {}
        self._announced: Notice | None = None
        self._draining = False

    def __len__(self) -> int:
        return len(self._open)

    def require_room(self, client: Client) -> None:
        """Check the limits for another stream. Raises TooManyConnections, TooManyOfAddress, TooManyOfKey, Stopping."""
        if self._draining:
            raise Stopping("the daemon is stopping")
        self._connection_limiter.check(client)

    @contextmanager
    def opened(self, outbox: ReaderOutbox, client: Client) -> Iterator[None]:
        """Keep the stream open inside the block. Close it at once if another client has taken the last slot."""
        try:
            self._connection_limiter.check(client)
        except Unavailable:
            outbox.end(TRY_AGAIN)
        self._open[outbox] = None
        self._connection_limiter.add(client)
        if self._announced is not None:
            outbox.say(self._announced)
        if self._draining:
            outbox.end(DRAINING)
        try:
            yield
        finally:
            del self._open[outbox]
            self._connection_limiter.remove(client)

    @contextmanager
    def reporting(self, stop: Callable[[], None]) -> Iterator[None]:
        """Register a producer inside the block. Producers are not limited. `stop` is called on shutdown."""
        self._reporting[stop] = None
        if self._draining:
            stop()
        try:
            yield
        finally:
            del self._reporting[stop]

    def announce(self, message: Notice, *, later: bool = True) -> None:
        """Send a notice to all streams; with `later`, to new streams too, until the next announcement."""
        self._announced = message if later else None
        for outbox in self._open:
            outbox.say(message)

    def close(self, closing: CloseCode) -> None:
        """Reject new streams, and close every open stream after its pending messages."""
        self._draining = True
        for outbox in self._open:
            outbox.end(closing)
        for stop in tuple(self._reporting):
            stop()
