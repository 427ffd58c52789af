"""All errors of progressd, each with its HTTP status; and the text of sizes in error messages."""

from collections.abc import Iterable, Iterator
from typing import ClassVar


class ProgressdError(Exception):
    """An error for a client. `str(error)` is the sentence that the client receives."""

    status: ClassVar[int] = 500

    def body(self) -> dict[str, object]:
        """Return the JSON body of the response."""
        return {"error": str(self)}

    def headers(self) -> dict[str, str]:
        """Return extra headers of the response."""
        return {}


class InvalidInput(ProgressdError):
    """The input is malformed."""

    status = 400


class InvalidOption(InvalidInput):
    """An option is unknown, of the wrong type, out of range, or needs a program that is not installed."""

    status = 422


class Unauthorized(ProgressdError):
    """The client must authenticate."""

    status = 401

    def body(self) -> dict[str, object]:
        return {"error": "unauthorized", "message": str(self)}

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class TokenExpired(Unauthorized):
    """The token of the client has expired."""


class Forbidden(ProgressdError):
    """The client may not make this request."""

    status = 403


class OutOfScope(Forbidden):
    """The key of the client lacks the scope for this request."""

    def body(self) -> dict[str, object]:
        return {"error": "forbidden", "message": str(self)}


class NotFound(ProgressdError):
    """The job, batch, topic or path does not exist."""

    status = 404


class RequestTimeout(ProgressdError):
    """The client stopped sending in the middle of a request."""

    status = 408


class Conflict(ProgressdError):
    """The state of the job does not allow this request."""

    status = 409


class Gone(ProgressdError):
    """The upload has expired."""

    status = 410


class PreconditionFailed(ProgressdError):
    """The client uses another version of a protocol."""

    status = 412


class Locked(ProgressdError):
    """Another request is working on this."""

    status = 423


class ChecksumMismatch(ProgressdError):
    """The bytes that arrived do not have the announced checksum. The status is that of tus."""

    status = 460


class TooLarge(ProgressdError):
    """The input has more bytes than the limit allows."""

    status = 413


class UnsupportedMedia(ProgressdError):
    """The pipeline does not accept this type of file."""

    status = 415


class IdempotencyKeyReused(ProgressdError):
    """The Idempotency-Key was used for another request."""

    status = 422


class Unavailable(ProgressdError):
    """The same request may succeed after `retry_after` seconds."""

    status = 503

    def __init__(self, sentence: str, retry_after: int = 5) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after

    def body(self) -> dict[str, object]:
        return {**super().body(), "retry_after": self.retry_after}

    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after)}


class StoreFailed(Unavailable):
    """The store rejected a change, so the change is not published.

    `undecided`: the commit itself failed, so the change may be there when the store is opened again.
    """

    undecided = False


class StoreFull(StoreFailed):
    """The disk of the store is full."""

    status = 507


class CorruptRecord(StoreFailed):
    """A row of the store is corrupt and cannot be read. `row_id`: the id of the job, batch or change."""

    status = 500

    def __init__(self, sentence: str, row_id: str) -> None:
        super().__init__(sentence)
        self.row_id = row_id

    def body(self) -> dict[str, object]:
        return {"error": str(self)}

    def headers(self) -> dict[str, str]:
        return {}


class Stopping(Unavailable):
    """The daemon is stopping."""


class TooManyConnections(Unavailable):
    """All connections are in use."""


class TooManyOfAddress(Unavailable):
    """This address has too many connections."""


class TooManyOfKey(Unavailable):
    """This key or token has too many connections."""


class RateLimited(Unavailable):
    """The client sends too many requests."""

    status = 429

    def body(self) -> dict[str, object]:
        return {"error": "rate_limit_exceeded", "message": str(self), "retry_after": self.retry_after}


class TooManyUploads(Unavailable):
    """Too many uploads are in progress."""


class InsufficientStorage(ProgressdError):
    """No disk space is left for an upload, or the files of jobs have reached their quota."""

    status = 507


class SlowConsumer(ProgressdError):
    """The reader was too slow, so messages were dropped. It can resume from its last cursor."""


class SettingsError(ProgressdError):
    """A setting is unknown or invalid."""


class StoreDamaged(SettingsError):
    """The database is damaged, or is not a database."""


class InstallationFailed(ProgressdError):
    """The machine does not meet a requirement of the service."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Iterate over the errors in an exception group, or over the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def readable_size(size: int) -> str:
    """Return a number of bytes as text, in powers of 1024: 17 B, 38.1 MiB."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1023.95:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def meant(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name, which suggests the most similar known name, if any."""
    import difflib  # few errors need it

    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""
