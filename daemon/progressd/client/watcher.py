"""Watches jobs over a WebSocket and reconnects where it left off; it only reads, and never gives up by itself.

async with watch("http://127.0.0.1:8080", job_id) as messages:
    async for message in messages:
        ...
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple

import msgspec
import trio
from msgspec import UNSET
from trio_websocket import ConnectionRejected

from progressd.client import tls
from progressd.client.backoff import LONGEST_DELAY, backoff
from progressd.client.endpoint import checked_url, credentials, no_daemon, stream_url
from progressd.client.errors import APIError, ClientError, ConnectError, StreamClosed
from progressd.client.stream import Send, Stream, stream
from progressd.client.websocket import BREAKS, receive_texts
from progressd.core.close_codes import CloseCode
from progressd.core.json import UNDECODABLE
from progressd.core.messages import Hello, Message, decode

HEARTBEAT: Final = 30.0  # seconds between pings
BROKEN: Final = 1006  # RFC 6455 §7.1.5: not closed at all
NO_STATUS: Final = 1005  # the same section: closed without a code, as some proxies do


class Received(NamedTuple):
    """A message as it came, and what it means: None if this version does not know its type."""

    text: str
    message: Message | None


class Disconnected(NamedTuple):
    """The connection is gone: why, in how many seconds the next attempt starts, and how many have failed in a row."""

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
) -> AbstractAsyncContextManager[Stream[Message]]:
    """The messages of one job until its end, or of all jobs without end. Messages of an unknown type are skipped.

    The iteration raises ConnectError if nothing answers at first, APIError if the daemon does not know the job or will
    not have us, or if at first something else answers than a daemon, StreamClosed if it wants us to stay away, BadUrl,
    BadKey. Everything else is a reason to reconnect, told to `on_lost`. `key`: where the daemon asks for one.
    `heartbeat`: seconds between pings.
    """

    async def produce(send: Send[Message]) -> None:
        async def send_known(received: Received) -> None:
            if received.message is not None and not isinstance(received.message, Hello):
                await send(received.message)

        await _follow(url, job_id, key, heartbeat, on_lost, send_known)

    return stream(produce)


def watch_texts(
    url: str,
    job_id: str | None = None,
    *,
    key: str | None = None,
    heartbeat: float = HEARTBEAT,
    on_lost: Callable[[Disconnected], None] = lambda _: None,
) -> AbstractAsyncContextManager[Stream[Received]]:
    """Like `watch`, with the text of each message, and with those of an unknown type."""

    async def produce(send: Send[Received]) -> None:
        await _follow(url, job_id, key, heartbeat, on_lost, send)

    return stream(produce)


async def _follow(
    url: str,
    job_id: str | None,
    key: str | None,
    heartbeat: float,
    on_lost: Callable[[Disconnected], None],
    send: Send[Received],
) -> None:
    url = checked_url(url)
    headers = credentials(key)
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
        except BREAKS as error:
            if trio.current_time() - started >= LONGEST_DELAY:
                failures = 0
            refused = _refused(error, url)
            reached = reached or isinstance(error, StreamClosed) or bool(refused and refused.code)
            lost = _judged(refused or error, url, failures, reached)
            failures += 1
        on_lost(lost)
        await trio.sleep(lost.delay)


def _judged(error: Exception, url: str, failures: int, reached: bool) -> Disconnected:
    """What to do after a connection ended with this error. Raises it, or a better one, if trying again is no use."""
    delay = backoff(failures)
    match error:
        case APIError():
            if not error.later or not reached:  # by now no daemon has answered, and maybe none ever will
                raise error from None
            return Disconnected(str(error), max(delay, error.retry_after or 0), failures)
        case StreamClosed():
            if not CloseCode(error.code, error.reason).reconnect and error.code != NO_STATUS:
                raise error
            reason = error.reason or ("it broke" if error.code == BROKEN else f"close code {error.code}")
            return Disconnected(reason, delay, failures)
    complaint = tls.complaint(error, url)
    if not reached:
        raise ConnectError(complaint or no_daemon(url)) from None
    return Disconnected(complaint or "no answer", delay, failures)


def _refused(error: Exception, url: str) -> APIError | None:
    """The answer to a handshake, where it was another one than to come in."""
    if not isinstance(error, ConnectionRejected):
        return None
    headers = {name.lower(): value.decode() for name, value in error.headers}
    return APIError.answered(error.status_code, error.body or b"", headers.get(b"retry-after"), url)


def _decoded(text: str) -> Message | None:
    try:
        message: Message = decode(text)
    except msgspec.ValidationError:
        return None  # a type or a status of a newer daemon
    except UNDECODABLE:
        raise ClientError(f"what the daemon sent is not JSON: {text[:60]!r}") from None
    return message


def _cursor(message: Message | None) -> str | None:
    cursor = getattr(message, "cursor", UNSET)
    return cursor if isinstance(cursor, str) else None
