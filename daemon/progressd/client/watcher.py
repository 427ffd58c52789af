"""Watch jobs over a WebSocket. A watcher reconnects with its cursor whenever the connection is lost.

async with watch("http://127.0.0.1:8080", job_id) as messages:  # in Trio or asyncio
    async for message in messages:
        ...
for message in watch("http://127.0.0.1:8080", job_id):  # without an event loop
    ...
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec
import trio
from msgspec import UNSET
from trio_websocket import ConnectionRejected

from progressd.client import event_loop
from progressd.client.endpoint import (
    MAX_DELAY,
    MAX_LOCAL_DELAY,
    backoff,
    checked_url,
    no_daemon,
    on_this_machine,
    request_headers,
    stream_url,
)
from progressd.client.errors import APIError, ClientError, ConnectError, StreamClosed
from progressd.client.exception_groups import unwrapped
from progressd.client.http import tls_error
from progressd.client.threaded import ThreadedStream
from progressd.client.websocket import CONNECTION_ERRORS, receive_texts
from progressd.core.close_codes import CloseCode
from progressd.core.json import UNDECODABLE
from progressd.core.messages import Hello, JobLog, Message, decode

HEARTBEAT: Final = 30.0  # seconds between pings
BROKEN: Final = 1006  # RFC 6455 §7.1.5: the connection ended without a close frame
NO_STATUS: Final = 1005  # the same section: a close frame without a code, as from some proxies

T = TypeVar("T")


class Received(NamedTuple):
    """A message, as text and decoded. `message`: None if this version does not know its type."""

    text: str
    message: Message | None


class Disconnected(NamedTuple):
    """A lost connection: the reason, the seconds until the next attempt, and the number of failures in a row.

    `reason`: "" if the connection broke.
    """

    reason: str
    delay: float
    failures: int


OnLost: TypeAlias = Callable[[Disconnected], None]
Backoff: TypeAlias = Callable[[int], float]


class Watch(Generic[T]):
    """The messages of a watcher. `async with` works in Trio and asyncio, `with` and `for` anywhere else.

    Leaving the block closes the connection. Outside Trio, a thread of its own receives the messages.
    """

    def __init__(self, opened: Callable[[OnLost], AbstractAsyncContextManager["Stream[T]"]], on_lost: OnLost) -> None:
        self._opened = opened
        self._on_lost = on_lost
        self._in_trio: AbstractAsyncContextManager[Stream[T]] | None = None
        self._threaded: ThreadedStream[T] | None = None

    async def __aenter__(self) -> AsyncIterator[T]:
        if event_loop.trio_runs():
            self._in_trio = self._opened(self._on_lost)
            return await self._in_trio.__aenter__()
        import asyncio

        call_soon = event_loop.call_soon_function()
        self._threaded = ThreadedStream(lambda: self._opened(lambda lost: _call_in(call_soon, self._on_lost, lost)))
        await asyncio.to_thread(self._threaded.start)
        return self._threaded

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._in_trio is not None:
            return await self._in_trio.__aexit__(kind, error, traceback)
        import asyncio

        assert self._threaded is not None
        await asyncio.shield(asyncio.to_thread(self._threaded.stop))
        return None

    def __enter__(self) -> Iterator[T]:
        if event_loop.is_running():
            raise RuntimeError("a plain `with` would block the event loop: use `async with watch(…)`")
        self._threaded = ThreadedStream(lambda: self._opened(self._on_lost))
        self._threaded.start()
        return self._threaded

    def __exit__(self, *_: object) -> None:
        assert self._threaded is not None
        self._threaded.stop()

    def __iter__(self) -> Iterator[T]:
        with self as messages:
            yield from messages


def watch(
    url: str,
    job_id: str | None = None,
    *,
    key: str | None = None,
    on_lost: OnLost = lambda _: None,
    backoff: Backoff | None = None,
    interval: float = 0.0,
) -> Watch[Message]:
    """Return the messages of one job until its end, or of all jobs forever. Messages of unknown types are skipped.

    The iteration raises InvalidURL, InvalidKey, ConnectError if no daemon answers the first attempt, APIError if the
    daemon rejects the connection for good, StreamClosed if it closes the connection for good. After any other loss the
    watcher calls `on_lost` and reconnects.

    Args:
        key: For a daemon that requires one.
        on_lost: Called in the event loop; in a program without one, in another thread.
        backoff: Returns the seconds to wait after the given number of failures in a row. By default, the wait doubles
            up to 30 s, or up to 2 s if the URL is on a loopback address, and has a random part.
        interval: At most one progress message per job in this time, in seconds; 0: all.
    """
    filters = _filters(interval, ())
    return Watch(lambda on_lost: _stream(_Watcher(url, job_id, key, on_lost, backoff, filters), _known), on_lost)


def watch_texts(
    url: str,
    job_id: str | None = None,
    *,
    key: str | None = None,
    on_lost: OnLost = lambda _: None,
    backoff: Backoff | None = None,
    interval: float = 0.0,
    types: Collection[str] = (),
) -> Watch[Received]:
    """Return messages as `watch` does, with the text of each, including messages of unknown types.

    `types`: only messages of these types and of those that are always sent; empty: all.
    """
    filters = _filters(interval, types)
    return Watch(
        lambda on_lost: _stream(_Watcher(url, job_id, key, on_lost, backoff, filters), lambda received: received),
        on_lost,
    )


def _filters(interval: float, types: Collection[str]) -> Mapping[str, str]:
    """Return the query that selects messages."""
    return {
        **({"interval": f"{interval:g}"} if interval else {}),
        **({"types": ",".join(sorted(types))} if types else {}),
    }


def _call_in(call_soon: Callable[..., object], on_lost: OnLost, lost: Disconnected) -> None:
    with suppress(RuntimeError):  # the event loop is closed
        call_soon(on_lost, lost)


def _known(received: Received) -> Message | None:
    return None if isinstance(received.message, Hello) else received.message


def watch_log(
    url: str,
    job_id: str,
    start: Mapping[str, str] = {},
    *,
    key: str | None = None,
    on_lost: OnLost = lambda _: None,
) -> AbstractAsyncContextManager["Stream[JobLog]"]:
    """Return the lines of a log until its job has finished, as `watch` does. No line is missing or comes twice.

    `start`: where to begin, as {"tail": "20"}, {"since": "10m"} or {"offset": "81920"}; by default at the beginning.
    """
    watcher = _Watcher(url, job_id, key, on_lost, None, log_start=start or {"offset": "0"})
    return _stream(watcher, lambda received: received.message if isinstance(received.message, JobLog) else None)


class _Watcher:
    """Receive the messages of one job, or of all, over as many connections as necessary.

    `filters`: the query that selects messages. `log_start`: where to begin in the log of the job; None: receive the
    messages of the job instead of its log.
    """

    def __init__(
        self,
        url: str,
        job_id: str | None,
        key: str | None,
        on_lost: OnLost,
        backoff: Backoff | None,
        filters: Mapping[str, str] = {},
        log_start: Mapping[str, str] | None = None,
    ) -> None:
        self._url = url
        self._job_id = job_id
        self._key = key
        self._on_lost = on_lost
        self._backoff = backoff
        self._filters = filters
        self._log = log_start is not None
        self._query = log_start or {}  # where to begin or to resume
        self._failures = 0
        self._reached = False  # a daemon has answered

    async def run(self, send: Callable[[Received], Awaitable[None]]) -> None:
        """Pass each message to `send`, until the daemon closes the stream for good."""
        url = checked_url(self._url)
        headers = request_headers(url, self._key)
        wait = self._backoff or partial(backoff, max_delay=MAX_LOCAL_DELAY if on_this_machine(url) else MAX_DELAY)

        async def take(text: str) -> None:
            received = Received(text, _decoded(text))
            self._reached, self._failures = True, 0
            await send(received)
            self._query = self._resume_after(received.message) or self._query

        while True:
            started = trio.current_time()
            try:
                address = stream_url(url, self._job_id, {**self._filters, **self._query}, log=self._log)
                await receive_texts(address, headers, HEARTBEAT, take)
                return
            except CONNECTION_ERRORS as error:
                if trio.current_time() - started >= MAX_DELAY:
                    self._failures = 0
                rejection = _rejection(error, url)
                self._reached |= isinstance(error, StreamClosed) or bool(rejection and rejection.code)
                delay = wait(self._failures)
                lost = _lost(rejection or error, url, self._failures, self._reached, delay)
                self._failures += 1
            self._on_lost(lost)
            await trio.sleep(lost.delay)

    def _resume_after(self, message: Message | None) -> Mapping[str, str] | None:
        """Return the query with which the stream continues after a message; None if the query stays the same."""
        if self._log:
            return {"offset": str(message.data.offset)} if isinstance(message, JobLog) else None
        cursor = getattr(message, "cursor", UNSET)
        return {"since": cursor} if isinstance(cursor, str) else None


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
            reason = error.reason or ("" if error.code == BROKEN else f"close code {error.code}")
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


class Stream(Generic[T]):
    """The messages that a background task receives, one at a time. The iteration raises the error of the task."""

    def __init__(self, convert: Callable[[Received], T | None]) -> None:
        self._send, self._receive = trio.open_memory_channel[Received](0)
        self._convert = convert
        self._error: Exception | None = None

    def __aiter__(self) -> "Stream[T]":
        return self

    async def __anext__(self) -> T:
        try:
            while (item := self._convert(await self._receive.receive())) is None:
                pass
        except trio.EndOfChannel:
            raise (self._error or StopAsyncIteration) from None
        return item

    async def _fill(self, watcher: _Watcher) -> None:
        with self._send:
            try:
                await watcher.run(self._send.send)
            except Exception as error:
                self._error = error


@asynccontextmanager
async def _stream(watcher: _Watcher, convert: Callable[[Received], T | None]) -> AsyncIterator[Stream[T]]:
    """Return a stream of converted messages. Leaving the block cancels the watcher.

    An asynchronous generator would not work: it cannot hold a nursery over a `yield`.
    """
    with unwrapped():
        async with trio.open_nursery() as nursery:
            stream = Stream(convert)
            nursery.start_soon(stream._fill, watcher)
            yield stream
            nursery.cancel_scope.cancel()
