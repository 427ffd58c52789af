"""All errors of progressd, each with its HTTP status; and the text of sizes in error messages."""

from collections.abc import Iterable, Iterator
from typing import ClassVar, Final


class ProgressdError(Exception):
    """An error for a client. `str(error)` is the sentence that the client receives.

    `code` is a word for programs. It is part of the REST API, see docs/rest.md.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def body(self) -> dict[str, object]:
        """Return the JSON body of the response."""
        return {"error": str(self), "code": self.code}

    def headers(self) -> dict[str, str]:
        """Return extra headers of the response."""
        return {}


class InvalidInput(ProgressdError):
    """The input is malformed."""

    status = 400
    code = "bad_request"


class InvalidOption(InvalidInput):
    """An option is unknown, of the wrong type, out of range, or needs a program that is not installed."""

    status = 422
    code = "bad_option"


class Unauthorized(ProgressdError):
    """The client must authenticate."""

    status = 401
    code = "unauthorized"

    def body(self) -> dict[str, object]:
        return {"error": "unauthorized", "message": str(self), "code": self.code}

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class TokenExpired(Unauthorized):
    """The token of the client has expired."""

    code = "credentials_expired"


class Forbidden(ProgressdError):
    """The client may not make this request."""

    status = 403
    code = "origin"


class OutOfScope(Forbidden):
    """The key of the client lacks the scope for this request."""

    code = "forbidden"

    def body(self) -> dict[str, object]:
        return {"error": "forbidden", "message": str(self), "code": self.code}


class NotFound(ProgressdError):
    """The job, batch, topic or path does not exist."""

    status = 404
    code = "not_found"


class RequestTimeout(ProgressdError):
    """The client stopped sending in the middle of a request."""

    status = 408
    code = "timeout"


class Conflict(ProgressdError):
    """The state of the job does not allow this request."""

    status = 409
    code = "conflict"


class Gone(ProgressdError):
    """The upload has expired."""

    status = 410
    code = "gone"


class PreconditionFailed(ProgressdError):
    """The client uses another version of a protocol."""

    status = 412
    code = "unsupported_version"


class Locked(ProgressdError):
    """Another request is working on this."""

    status = 423
    code = "locked"


class ChecksumMismatch(ProgressdError):
    """The bytes that arrived do not have the announced checksum. The status is that of tus."""

    status = 460
    code = "checksum_mismatch"


class TooLarge(ProgressdError):
    """The input has more bytes than the limit allows."""

    status = 413
    code = "too_large"


class UnsupportedMedia(ProgressdError):
    """The pipeline does not accept this type of file."""

    status = 415
    code = "unsupported_type"


class IdempotencyKeyReused(ProgressdError):
    """The Idempotency-Key was used for another request."""

    status = 422
    code = "idempotency_key_reused"


class Unavailable(ProgressdError):
    """The same request may succeed after `retry_after` seconds."""

    status = 503
    code = "unavailable"

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
    code = "storage_full"


class CorruptRecord(StoreFailed):
    """A row of the store is corrupt and cannot be read. `row_id`: the id of the job, batch or change."""

    status = 500
    code = "internal_error"

    def __init__(self, sentence: str, row_id: str) -> None:
        super().__init__(sentence)
        self.row_id = row_id

    def body(self) -> dict[str, object]:
        return {"error": str(self), "code": self.code}

    def headers(self) -> dict[str, str]:
        return {}


class Stopping(Unavailable):
    """The daemon is stopping."""


class TooManyConnections(Unavailable):
    """All connections are in use."""

    code = "too_many_connections"


class TooManyOfAddress(Unavailable):
    """This address has too many connections."""

    code = "too_many_connections"


class TooManyOfKey(Unavailable):
    """This key or token has too many connections."""

    code = "too_many_connections"


class RateLimited(Unavailable):
    """The client sends too many requests."""

    status = 429
    code = "rate_limited"

    def body(self) -> dict[str, object]:
        sentence = {"error": "rate_limit_exceeded", "message": str(self)}
        return {**sentence, "retry_after": self.retry_after, "code": self.code}


class TooManyUploads(Unavailable):
    """Too many uploads are in progress."""

    code = "too_many_uploads"


class InsufficientStorage(ProgressdError):
    """No disk space is left for an upload, or the files of jobs have reached their quota."""

    status = 507
    code = "storage_full"


class SlowConsumer(ProgressdError):
    """The reader was too slow, so messages were dropped. It can resume from its last cursor."""


class SettingsError(ProgressdError):
    """A setting is unknown or invalid."""


class StoreDamaged(SettingsError):
    """The database is damaged, or is not a database."""


class InstallationFailed(ProgressdError):
    """The machine does not meet a requirement of the service."""


# The usual code of each HTTP status.
CODES: Final = {
    **{
        error.status: error.code
        for error in (
            InvalidInput,
            Unauthorized,
            OutOfScope,
            NotFound,
            RequestTimeout,
            Conflict,
            Gone,
            PreconditionFailed,
            TooLarge,
            UnsupportedMedia,
            InvalidOption,
            Locked,
            RateLimited,
            ChecksumMismatch,
            ProgressdError,
            Unavailable,
            InsufficientStorage,
        )
    },
    405: "method_not_allowed",
    416: "range_not_satisfiable",
    426: "upgrade_required",
}


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
