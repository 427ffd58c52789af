"""What a client of the daemon can be told, in one tree; `str(error)` is a sentence for the person who asked.

ClientError
├── InvalidURL          not the address of a daemon
├── InvalidKey          not a key
├── ConnectError        nothing answers there, or nothing that we can talk to
├── ResponseTimeout        somebody does, but the answer did not come: nobody knows what was taken
├── Refused         the daemon said no, with an HTTP status
├── StreamClosed    the daemon closed the stream of messages for good, with a close code
└── JobCancelled    somebody has cancelled the job that is being worked on
"""

from typing import Any, Final

import msgspec

from progressd.core.json import UNDECODABLE

TOO_OFTEN: Final = 429  # RFC 6585 §4


def may_change(status: int) -> bool:
    """Whether what is refused with this HTTP status may be taken later."""
    return status >= 500 or status == TOO_OFTEN


class ClientError(Exception):
    """Something did not work out."""


class InvalidURL(ClientError):
    """This is not the address of a daemon."""


class InvalidKey(ClientError):
    """This cannot be a key; what it is, is not told."""


class ConnectError(ClientError):
    """Nothing answers at this address, or no connection comes about with what does."""


class ResponseTimeout(ClientError):
    """The answer did not come, or not whole, so nobody knows what became of the request."""


class APIError(ClientError):
    """The daemon said no. `retry_after`: the seconds to wait if it may say yes later.

    `code`: what it calls the reason, a word or the sentence itself; "" where it was no daemon that answered.
    """

    def __init__(self, status: int, sentence: str, retry_after: float | None = None, code: str = "") -> None:
        super().__init__(sentence)
        self.status = status
        self.retry_after = retry_after
        self.code = code

    @property
    def later(self) -> bool:
        """Whether the daemon may say yes later."""
        return may_change(self.status)

    @classmethod
    def answered(cls, status: int, body: bytes, retry_after: str | None, url: str) -> "APIError":
        """From an answer: its JSON body has the sentence in `message`, or else in `error`."""
        try:
            said: Any = msgspec.json.decode(body)
        except UNDECODABLE:
            said = None
        said = said if isinstance(said, dict) else {}
        sentence = said.get("message") or said.get("error") or f"{url} answered with HTTP status {status}"
        seconds = int(retry_after[:9]) if retry_after and retry_after.isdecimal() else None
        return cls(status, str(sentence), seconds, str(said.get("error", "")))


class StreamClosed(ClientError):
    """The daemon closed the stream for good (RFC 6455 §7.4 close code)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the daemon closed the stream: {reason or 'without a reason'} (close code {code})")
        self.code = code
        self.reason = reason


class JobCancelled(ClientError):
    """Somebody has cancelled the job, and so it is to be left."""
