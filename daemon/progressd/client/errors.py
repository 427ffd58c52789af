"""The errors of a client. `str(error)` is a sentence for its user."""

from typing import Any, Final

_OF_OTHER_SERVERS: Final = (404, 405, 501)  # progressd sends these with a message in JSON


def is_temporary(status: int) -> bool:
    """Return whether a request that the daemon rejected with this HTTP status may succeed later."""
    return status >= 500 or status == 429  # RFC 6585 §4


class ClientError(Exception):
    """A request to a daemon failed."""


class InvalidURL(ClientError):
    """The URL is not the address of a daemon."""


class InvalidKey(ClientError):
    """The key is invalid. The message does not contain it."""


class ConnectError(ClientError):
    """No daemon answers at this address, or TLS failed."""


class ResponseTimeout(ClientError):
    """The response did not arrive completely. The daemon may have accepted the request."""


class APIError(ClientError):
    """The daemon rejected the request.

    `retry_after`: the seconds to wait before a retry, if the daemon sent them. `code`: the daemon's code for the
    reason; "" if the response is not from a daemon.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.code = code

    @property
    def temporary(self) -> bool:
        """Return whether the same request may succeed later."""
        return is_temporary(self.status)

    @classmethod
    def from_response(cls, status: int, body: bytes, retry_after: str | None, url: str) -> "APIError":
        """Read the error from a response: from `message` in its JSON, or else from `error`."""
        import msgspec  # not above: these errors are imported before a command may start

        from progressd.core.json import UNDECODABLE

        try:
            decoded: Any = msgspec.json.decode(body)
        except UNDECODABLE:
            decoded = None
        answer = decoded if isinstance(decoded, dict) else {}
        hint = "; this does not seem to be progressd (check the URL)" if status in _OF_OTHER_SERVERS else ""
        message = answer.get("message") or answer.get("error") or f"{url} answered with HTTP status {status}{hint}"
        seconds = int(retry_after[:9]) if retry_after and retry_after.isdecimal() else None
        return cls(status, str(message), seconds, str(answer.get("code") or answer.get("error", "")))


class StreamClosed(ClientError):
    """The daemon closed the stream (RFC 6455 §7.4 close code)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the daemon closed the stream: {reason or 'no reason given'} (close code {code})")
        self.code = code
        self.reason = reason


class JobCancelled(ClientError):
    """The job was cancelled, so the program should stop working on it."""
