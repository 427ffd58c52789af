"""Close codes of WebSockets, and their reasons (RFC 6455 §7.4).

After codes 4000–4499 the client should reconnect; after codes 4500–4999 it should not.
"""

from typing import NamedTuple


class CloseCode(NamedTuple):
    """A close code and its reason, at most 123 bytes of UTF-8."""

    code: int
    reason: str

    @property
    def reconnect(self) -> bool:
        """Return whether the client should reconnect."""
        return self.code in (1001, 1006, 1012, 1013) or 4000 <= self.code < 4500


JOB_FINISHED = CloseCode(1000, "job finished")
BATCH_FINISHED = CloseCode(1000, "batch finished")
DRAINING = CloseCode(1001, "draining")
GONE = CloseCode(1006, "gone")  # never sent: the client has left
TRY_AGAIN = CloseCode(1013, "try again later")
SLOW_CONSUMER = CloseCode(4000, "slow consumer")
TIMED_OUT = CloseCode(4001, "timed out")
CREDENTIALS_EXPIRED = CloseCode(4500, "credentials expired")
BAD_LINES = CloseCode(4502, "too many bad lines")
JOB_DELETED = CloseCode(4501, "job deleted")
