"""Watches jobs over a WebSocket and reconnects where it left off; it only reads, and never gives up by itself.

async with watch("http://127.0.0.1:8080", job_id) as messages:
    async for message in messages:
        ...
"""

import random
from collections.abc import AsyncGenerator, Callable
from typing import Final, NamedTuple

import msgspec
import trio
from msgspec import UNSET
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError, open_websocket_url
from wsproto.utilities import ProtocolError

from progressd.client.address import checked_url, no_daemon, stream_url
from progressd.client.errors import ClientError, NoDaemon, Refused, StreamClosed
from progressd.client.pulse import ANSWER_TIMEOUT, Pulse
from progressd.core.closing import Closing
from progressd.core.messages import Message, decode

HEARTBEAT: Final = 30.0  # seconds between pings
FIRST_DELAY: Final = 0.5  # seconds
LONGEST_DELAY: Final = 30.0  # seconds
LONGEST_MESSAGE: Final = 16 << 20  # characters; a page preview is by far the longest
DISCONNECT_TIMEOUT: Final = 2.0  # seconds
NO_STATUS: Final = 1005  # RFC 6455 §7.1.5: closed without a code, as some proxies do


_BREAKS = (
    StreamClosed,
    HandshakeError,
    ConnectionClosed,
    ProtocolError,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)


class Received(NamedTuple):
    """A message as it came, and what it means: None if this version does not know its type."""

    text: str
    message: Message | None


class Lost(NamedTuple):
    """The connection is gone: why, in how many seconds the next attempt starts, and how many have failed in a row."""

    reason: str
    delay: float
    failures: int


@trio.as_safe_channel
async def watch(
    url: str,
    job_id: str | None = None,
    *,
    heartbeat: float = HEARTBEAT,
    on_lost: Callable[[Lost], None] = lambda _: None,
) -> AsyncGenerator[Message, None]:
    """The messages of one job until its end, or of all jobs without end. Messages of an unknown type are skipped.

    Raises NoDaemon if nothing answers at first, Refused if the daemon does not know the job or will not have us,
    StreamClosed if it wants us to stay away, BadUrl. Everything else is a reason to reconnect, told to `on_lost`.
    """
    async with watch_texts(url, job_id, heartbeat=heartbeat, on_lost=on_lost) as texts:
        async for received in texts:
            if received.message is not None:
                yield received.message


@trio.as_safe_channel
async def watch_texts(
    url: str,
    job_id: str | None = None,
    *,
    heartbeat: float = HEARTBEAT,
    on_lost: Callable[[Lost], None] = lambda _: None,
) -> AsyncGenerator[Received, None]:
    """Like `watch`, with the text of each message, and with those of an unknown type."""
    url = checked_url(url)
    cursor: str | None = None
    failures = 0
    reached = False
    while True:
        started = trio.current_time()
        try:
            async with _connection(stream_url(url, job_id, cursor), heartbeat) as texts:
                async for text in texts:
                    received = Received(text, _decoded(text))
                    reached, failures = True, 0
                    cursor = _cursor(received.message) or cursor
                    yield received
            return
        except _BREAKS as error:
            if trio.current_time() - started >= LONGEST_DELAY:
                failures = 0
            reached = reached or isinstance(error, StreamClosed | ConnectionRejected)
            lost = _judged(error, url, failures, reached)
            failures += 1
        on_lost(lost)
        await trio.sleep(lost.delay)


@trio.as_safe_channel
async def _connection(url: str, heartbeat: float) -> AsyncGenerator[str, None]:
    """The texts of one connection, until its end with code 1000. Raises StreamClosed at any other end."""
    async with open_websocket_url(
        url,
        message_queue_size=16,
        max_message_size=LONGEST_MESSAGE,
        receive_buffer_size=None,
        connect_timeout=ANSWER_TIMEOUT,
        disconnect_timeout=DISCONNECT_TIMEOUT,
    ) as websocket:
        pulse = Pulse(websocket)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pulse.check, heartbeat, nursery.cancel_scope)
            while (text := await pulse.receive()) is not None:
                yield text
            nursery.cancel_scope.cancel()
        closed = websocket.closed
    if closed is None:
        raise StreamClosed(1006, "no sign of life from the daemon")
    if closed.code != 1000:
        raise StreamClosed(closed.code, closed.reason or "")


def _judged(error: Exception, url: str, failures: int, reached: bool) -> Lost:
    """What to do after a connection ended with this error. Raises it, or a better one, if trying again is no use."""
    delay = backoff(failures)
    match error:
        case ConnectionRejected():
            headers = {name.lower(): value.decode() for name, value in error.headers}
            refused = Refused.answered(error.status_code, error.body or b"", headers.get(b"retry-after"), url)
            if refused.status < 500 and refused.status != 429:
                raise refused from None
            return Lost(str(refused), max(delay, refused.retry_after or 0), failures)
        case StreamClosed():
            if not Closing(error.code, error.reason).reconnect and error.code != NO_STATUS:
                raise error
            return Lost(error.reason or f"close code {error.code}", delay, failures)
    if not reached:
        raise NoDaemon(no_daemon(url)) from None
    return Lost("no answer", delay, failures)


def _decoded(text: str) -> Message | None:
    try:
        message: Message = decode(text)
    except msgspec.ValidationError:
        return None  # a type or a status of a newer daemon
    except msgspec.DecodeError:
        raise ClientError(f"what the daemon sent is not JSON: {text[:60]!r}") from None
    return message


def _cursor(message: Message | None) -> str | None:
    cursor = getattr(message, "cursor", UNSET)
    return cursor if isinstance(cursor, str) else None


def backoff(failures: int) -> float:
    """The seconds to wait after so many failures in a row; random, lest all watchers come back at the same moment."""
    longest = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(failures, 16))
    return random.uniform(longest / 2, longest)
