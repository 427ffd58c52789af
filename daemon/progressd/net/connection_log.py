"""The connection log: count the outcomes of connections, and write one line for each."""

import re
from collections import Counter
from typing import Final, NamedTuple

import structlog
import trio

from progressd.core.errors import ProgressdError

MAX_LINES: Final = 200  # lines in a window: a client that reconnects in a loop must not fill the journal
WINDOW: Final = 10.0  # seconds

_EVENTS: Final = {
    "rejected": "connection rejected",
    "closed": "watcher closed",
    "left": "watcher left",
    "failed": "connection failed",
}

log = structlog.get_logger(__name__)


class ConnectionOutcome(NamedTuple):
    """The end of a connection. `reason` has few values; text from the client is in `detail`.

    | kind | reason |
    |---|---|
    | `http` | `served`: the API or the page; `not read`: the client did not read it; neither is logged |
    | `rejected` | `not found`, `too many connections`, …: the handshake failed |
    | `closed` | code and reason of the daemon's close: `1000 job finished` |
    | `left` | the code of the client's close, or the stage at which it disconnected |
    | `failed` | `error`: a defect of the daemon |
    """

    kind: str
    reason: str
    detail: str = ""


NO_REQUEST: Final = ConnectionOutcome("left", "before a request")
LEFT_HANDSHAKE: Final = ConnectionOutcome("left", "in the handshake")
SERVED: Final = ConnectionOutcome("http", "served")
UNREAD: Final = ConnectionOutcome("http", "not read")
HANDSHAKE_TIMEOUT: Final = ConnectionOutcome("rejected", "handshake timeout")
TOO_MANY_HANDSHAKES: Final = ConnectionOutcome("rejected", "too many handshakes")
TOO_MANY_SOCKETS: Final = ConnectionOutcome("rejected", "too many sockets of address")
CUT_OFF: Final = ConnectionOutcome("closed", "cut off")
FAILED: Final = ConnectionOutcome("failed", "error")


def rejected(error: ProgressdError) -> ConnectionOutcome:
    """Return the outcome of a rejected handshake, such as "too many connections" for TooManyConnections."""
    return ConnectionOutcome("rejected", re.sub(r"\B[A-Z]", " \\g<0>", type(error).__name__).lower(), str(error))


class LogEntry:
    """The content of the log line for an open connection. Its attributes are set as they become known."""

    __slots__ = ("address", "opened_at", "outcome", "topics")

    def __init__(self, address: str) -> None:
        self.address = address
        self.opened_at = trio.current_time()
        self.outcome = NO_REQUEST
        self.topics = ""


class ConnectionLog:
    """Count connections and log their ends.

    Attributes:
        accepted: all connections so far.
        open: the open connections.
        counts: ended connections, by kind and reason.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.open = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self._lines = 0  # lines written or omitted in this window
        self._window_end = 0.0

    def add(self, address: str) -> LogEntry:
        """Count an accepted connection."""
        self.accepted += 1
        self.open += 1
        return LogEntry(address)

    def finish(self, entry: LogEntry, error: BaseException | None = None) -> None:
        """Count and log the end of a connection; `error`: the daemon's, if it failed."""
        outcome = FAILED if error is not None else entry.outcome
        self.open -= 1
        self.counts[outcome.kind, outcome.reason] += 1
        if outcome.kind == "http" or outcome == NO_REQUEST or not self._may_write():
            return
        fields = {
            "peer": entry.address,
            "reason": outcome.reason,
            "topics": entry.topics,
            "detail": outcome.detail,
            "seconds": round(trio.current_time() - entry.opened_at, 3),
        }
        fields = {name: value for name, value in fields.items() if value != ""}
        if error is None:
            log.info(_EVENTS[outcome.kind], **fields)
        else:
            log.error(_EVENTS[outcome.kind], error=repr(error), exc_info=error, **fields)

    def _may_write(self) -> bool:
        """Count a line, and return whether this window has room for it. Log how many lines the last one omitted."""
        now = trio.current_time()
        if now >= self._window_end:
            omitted, self._lines = self._lines - MAX_LINES, 0
            self._window_end = now + WINDOW
            if omitted > 0:
                log.warning("connections not logged", connections=omitted, seconds=WINDOW)
        self._lines += 1
        return self._lines <= MAX_LINES
