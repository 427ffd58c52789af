"""Watch jobs over a WebSocket. A watcher reconnects with its cursor, as often as necessary.

async with watch("http://127.0.0.1:8080", job_id) as messages:
    async for message in messages:
        ...
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec
import trio
from msgspec import UNSET
from trio_websocket import ConnectionRejected

from progressd.client.endpoint import MAX_DELAY, backoff, checked_url, no_daemon, request_headers, stream_url
from progressd.client.errors import APIError, ClientError, ConnectError, StreamClosed
from progressd.client.http import tls_error
from progressd.client.websocket import CONNECTION_ERRORS, receive_texts, unwrapped
from progressd.core.close_codes import CloseCode
from progressd.core.json import UNDECODABLE
from progressd.core.messages import Hello, Message, decode

HEARTBEAT: Final = 30.0  # seconds between pings
BROKEN: Final = 1006  # RFC 6455 §7.1.5: the connection ended without a close frame
NO_STATUS: Final = 1005  # the same section: a close frame without a code, as from some proxies

T = TypeVar("T")
Send: TypeAlias = Callable[[T], Awaitable[None]]


class Received(NamedTuple):
    """A message, as text and decoded. `message`: None if this version does not know its type."""

    text: str
    message: Message | None


class Disconnected(NamedTuple):
    """A lost connection: the reason, the seconds until the next attempt, and the number of failures in a row."""

    reason: str
    delay: float
    failures: int


def watch(
    url: str,
    job_id: str | None = None,
    *,
    key: str | None = None,
    heartbeat: float = HEARTBEAT,
    on_lost: Callable[[Disconnected], None] = lambda _: None,
    backoff: Callable[[int], float] = backoff,
) -> AbstractAsyncContextManager["Stream[Message]"]:
    """Return the messages of one job until its end, or of all jobs forever. Messages of unknown types are skipped.

    The iteration raises InvalidURL, InvalidKey, ConnectError if no daemon answers the first attempt, APIError if the
    daemon rejects the connection for good, StreamClosed if it closes the connection for good. After any other loss the
    watcher calls `on_lost` and reconnects.

    Args:
        key: For a daemon that requires one.
        heartbeat: Seconds between pings.
        backoff: Returns the seconds to wait after the given number of failures in a row.
    """

    async def produce(send: Send[Message]) -> None:
        async def send_known(received: Received) -> None:
            if received.message is not None and not isinstance(received.message, Hello):
                await send(received.message)

        await _follow(url, job_id, key, heartbeat, on_lost, backoff, send_known)

    return _stream(produce)


def watch_texts(
    url: str,
    job_id: str | None = None,
    *,
    key: str | None = None,
    heartbeat: float = HEARTBEAT,
    on_lost: Callable[[Disconnected], None] = lambda _: None,
    backoff: Callable[[int], float] = backoff,
) -> AbstractAsyncContextManager["Stream[Received]"]:
    """Return messages as `watch` does, with the text of each, including messages of unknown types."""

    async def produce(send: Send[Received]) -> None:
        await _follow(url, job_id, key, heartbeat, on_lost, backoff, send)

    return _stream(produce)


async def _follow(
    url: str,
    job_id: str | None,
    key: str | None,
    heartbeat: float,
    on_lost: Callable[[Disconnected], None],
    backoff: Callable[[int], float],
    send: Send[Received],
) -> None:
    url = checked_url(url)
    headers = request_headers(url, key)
    cursor: str | None = None
    failures = 0
    reached = False

    async def take(text: str) -> None:
        nonlocal cursor, failures, reached
        received = Received(text, _decoded(text))
        reached, failures = True, 0
        await send(received)
        cursor = _cursor(received.message) or cursor

    while True:
        started = trio.current_time()
        try:
            await receive_texts(stream_url(url, job_id, cursor), headers, heartbeat, take)
            return
        except CONNECTION_ERRORS as error:
            if trio.current_time() - started >= MAX_DELAY:
                failures = 0
            rejection = _rejection(error, url)
            reached = reached or isinstance(error, StreamClosed) or bool(rejection and rejection.code)
            lost = _lost(rejection or error, url, failures, reached, backoff(failures))
            failures += 1
        on_lost(lost)
        await trio.sleep(lost.delay)


def _lost(error: Exception, url: str, failures: int, reached: bool, delay: float) -> Disconnected:
    """Return why the connection was lost. Raises the error, or a clearer one, if reconnecting is useless."""
    match error:
        case APIError():
            if not error.temporary or not reached:  # the answer may not be from a daemon
                raise error from None
            return Disconnected(str(error), max(delay, error.retry_after or 0), failures)
        case StreamClosed():
            if not CloseCode(error.code, error.reason).reconnect and error.code != NO_STATUS:
                raise error
            reason = error.reason or ("it broke" if error.code == BROKEN else f"close code {error.code}")
            return Disconnected(reason, delay, failures)
    tls = tls_error(error, url)
    if not reached:
        raise ConnectError(tls or no_daemon(url)) from None
    return Disconnected(tls or "no answer", delay, failures)


def _rejection(error: Exception, url: str) -> APIError | None:
    """Return the daemon's error if it rejected the handshake."""
    if not isinstance(error, ConnectionRejected):
        return None
    headers = {name.lower(): value.decode() for name, value in error.headers}
    return APIError.from_response(error.status_code, error.body or b"", headers.get(b"retry-after"), url)


def _decoded(text: str) -> Message | None:
    try:
        message: Message = decode(text)
    except msgspec.ValidationError:
        return None  # from a newer daemon
    except UNDECODABLE:
        raise ClientError(f"the daemon sent a message that is not JSON: {text[:60]!r}") from None
    return message


def _cursor(message: Message | None) -> str | None:
    cursor = getattr(message, "cursor", UNSET)
    return cursor if isinstance(cursor, str) else None


class Stream(Generic[T]):
    """The items that a background task produces, one at a time. The iteration raises the error of the task."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[T](0)
        self._error: Exception | None = None

    def __aiter__(self) -> "Stream[T]":
        return self

    async def __anext__(self) -> T:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise (self._error or StopAsyncIteration) from None

    async def _fill(self, produce: Callable[[Send[T]], Awaitable[None]]) -> None:
        with self._send:
            try:
                await produce(self._send.send)
            except Exception as error:
                self._error = error


@asynccontextmanager
async def _stream(produce: Callable[[Send[T]], Awaitable[None]]) -> AsyncIterator[Stream[T]]:
    """Return a stream of the items that `produce(send)` sends. Leaving the block cancels `produce`.

    An asynchronous generator would not work: it cannot hold a nursery over a `yield`.
    """
    with unwrapped():
        async with trio.open_nursery() as nursery:
            source = Stream[T]()
            nursery.start_soon(source._fill, produce)
            yield source
            nursery.cancel_scope.cancel()
