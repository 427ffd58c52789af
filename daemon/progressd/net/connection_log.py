"""What became of every connection of the one port: counted by kind and reason, and told in one line of the log each."""

import re
from collections import Counter
from typing import Final, NamedTuple, Protocol

import structlog
import trio

from progressd.core.errors import ProgressdError

MAX_LINES: Final = 200  # lines of the log in a window, lest whoever connects again and again fills the journal
WINDOW: Final = 10.0  # seconds

_LINES: Final = {
    "refused": "connection refused",
    "closed": "watcher closed",
    "left": "watcher left",
    "failed": "connection failed",
}

log = structlog.get_logger(__name__)


class ConnectionOutcome(NamedTuple):
    """How a connection ended. `reason` is one of few; whatever a client can choose goes into `detail`.

    | kind | reason |
    |---|---|
    | `http` | `served`: one of REST or the page; `not read`: nor was its answer; neither is told in the log |
    | `refused` | `not found`, `too many connections`, …, before the handshake was through |
    | `closed` | code and reason of the daemon's close: `1000 job finished` |
    | `left` | the code of the client's close, or where it was when it vanished |
    | `failed` | `error`: the daemon's own |
    """

    kind: str
    reason: str
    detail: str = ""


ABANDONED: Final = ConnectionOutcome("left", "before a request")
VANISHED: Final = ConnectionOutcome("left", "in the handshake")
SERVED: Final = ConnectionOutcome("http", "served")
UNREAD: Final = ConnectionOutcome("http", "not read")
SILENT: Final = ConnectionOutcome("refused", "handshake timeout")
CROWDED_OUT: Final = ConnectionOutcome("refused", "too many handshakes")
TLS_TO_PLAIN: Final = ConnectionOutcome("refused", "TLS to a port without")
PLAIN_TO_TLS: Final = ConnectionOutcome("refused", "no TLS to a port with")
TOO_MANY_OF_ADDRESS: Final = ConnectionOutcome("refused", "too many open of address")
CUT_OFF: Final = ConnectionOutcome("closed", "cut off")
FAILED: Final = ConnectionOutcome("failed", "error")


def refused(error: ProgressdError) -> ConnectionOutcome:
    """The reason is the name of the error, in words: `TooManyConnections` is "too many connections"."""
    return ConnectionOutcome("refused", re.sub(r"\B[A-Z]", " \\g<0>", type(error).__name__).lower(), str(error))


class ClosedConnection(Protocol):
    """A connection that is over."""

    peer: str
    topics: str
    fate: ConnectionOutcome
    began: float


class ConnectionLog:
    """`opened` and `ended` are called once for each connection; the counts are there to be read.

    `accepted`: connections so far; `open`: at this moment; `counts`: those that are over, by kind and reason.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.open = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self._lines = 0  # written or left out in this window
        self._window = trio.Event()  # has begun

    async def run(self) -> None:
        """Let lines into the log again after each window, and say how many were left out."""
        while True:
            await self._window.wait()
            try:
                await trio.sleep(WINDOW)
            finally:
                left_out, self._lines = self._lines - MAX_LINES, 0
                self._window = trio.Event()
                if left_out > 0:
                    log.warning("connections ended that are not in the log", connections=left_out, seconds=WINDOW)

    def opened(self) -> None:
        """A connection was accepted."""
        self.accepted += 1
        self.open += 1

    def ended(self, connection: ClosedConnection, error: BaseException | None = None) -> None:
        """It is over; `error`: what failed, when the daemon did."""
        fate = FAILED if error is not None else connection.fate
        self.open -= 1
        self.counts[fate.kind, fate.reason] += 1
        if fate.kind == "http" or fate == ABANDONED or not self._may_write():
            return
        facts = {
            "peer": connection.peer,
            "reason": fate.reason,
            "topics": connection.topics,
            "detail": fate.detail,
            "seconds": round(trio.current_time() - connection.began, 3),
        }
        facts = {name: fact for name, fact in facts.items() if fact != ""}
        if error is None:
            log.info(_LINES[fate.kind], **facts)
        else:
            log.error(_LINES[fate.kind], error=repr(error), exc_info=error, **facts)

    def _may_write(self) -> bool:
        self._window.set()
        self._lines += 1
        return self._lines <= MAX_LINES
