"""Every way progressd says no, in one tree, each with its HTTP status.

ProgressdError
├── InvalidInput 400        malformed id, line, event or cursor
│   └── InvalidOption 422   an option of a pipeline, named
├── Unauthorized 401        no key, or not a good one
│   └── TokenExpired 401
├── Forbidden 403           a page of another site
│   └── OutOfScope 403      the key does not allow it
├── NotFound 404            no such job
├── Stalled 408             the client stopped sending in the middle
├── Conflict 409            the job's state does not allow it
├── TooLarge 413
├── UnsupportedMedia 415    not the kind of file the pipeline takes
├── IdempotencyKeyReused 422           an Idempotency-Key that stands for another request
├── Unavailable 503         try again, after `retry_after` seconds
│   ├── StoreFailed 503     the store could not keep it, and nobody sees it
│   │   ├── StoreFull 507   since its disk is full
│   │   └── Unreadable 500  or what it has makes no sense any more
│   ├── Stopping 503        the daemon is about to end
│   ├── TooManyConnections 503
│   ├── TooManyOfAddress 503
│   ├── TooManyOfKey 503
│   ├── RateLimited 429     this client asks too often
│   └── TooManyUploads 503
├── InsufficientStorage 507             no room on the disk, or none allowed, for what was sent
├── SlowConsumer            an in-process reader has missed messages
├── InstallationFailed      something on this machine is not as it has to be
└── SettingsError           the daemon cannot start with these settings
    └── StoreDamaged        or with this file
"""

from typing import ClassVar


class ProgressdError(Exception):
    """A refusal; `str(error)` is the sentence the client gets."""

    status: ClassVar[int] = 500

    def body(self) -> dict[str, object]:
        """The JSON that a client gets."""
        return {"error": str(self)}

    def headers(self) -> dict[str, str]:
        """What the answer has beside it."""
        return {}


class InvalidInput(ProgressdError):
    """What was sent cannot be understood."""

    status = 400


class InvalidOption(InvalidInput):
    """An option is unknown, of the wrong type, out of range, or needs what is not installed."""

    status = 422


class Unauthorized(ProgressdError):
    """The client has to say who it is."""

    status = 401

    def body(self) -> dict[str, object]:
        return {"error": "unauthorized", "message": str(self)}

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class TokenExpired(Unauthorized):
    """The client's token was good once."""


class Forbidden(ProgressdError):
    """The client may not do this."""

    status = 403


class OutOfScope(Forbidden):
    """The client's key does not have the scope that this takes."""

    def body(self) -> dict[str, object]:
        return {"error": "forbidden", "message": str(self)}


class NotFound(ProgressdError):
    """There is no such thing."""

    status = 404


class RequestTimeout(ProgressdError):
    """The client stopped sending in the middle."""

    status = 408


class Conflict(ProgressdError):
    """The job is in a state that does not allow this."""

    status = 409


class TooLarge(ProgressdError):
    """More bytes than the limit allows."""

    status = 413


class UnsupportedMedia(ProgressdError):
    """Not the kind of file that the pipeline accepts."""

    status = 415


class IdempotencyKeyReused(ProgressdError):
    """The Idempotency-Key came with another request before."""

    status = 422


class Unavailable(ProgressdError):
    """Not now; the same request may succeed after `retry_after` seconds."""

    status = 503

    def __init__(self, sentence: str, retry_after: int = 5) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after

    def body(self) -> dict[str, object]:
        return {**super().body(), "retry_after": self.retry_after}

    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after)}


class StoreFailed(Unavailable):
    """The store could not keep a change, so nobody is shown it.

    Where it failed in the commit itself the change may be there all the same, once the store is opened again.
    """

    undecided = False  # whether that is so


class StoreFull(StoreFailed):
    """There is no room for a change on the store's disk."""

    status = 507


class CorruptRecord(StoreFailed):
    """What is asked for is in the store, but its disk has changed it. `row_id` is the job's, for one that has an id."""

    status = 500

    def __init__(self, sentence: str, row_id: str) -> None:
        super().__init__(sentence)
        self.row_id = row_id

    def body(self) -> dict[str, object]:
        return {"error": str(self)}

    def headers(self) -> dict[str, str]:
        return {}


class Stopping(Unavailable):
    """The daemon is about to end."""


class TooManyConnections(Unavailable):
    """There is no room for one more."""


class TooManyOfAddress(Unavailable):
    """There is no room for one more from this address."""


class TooManyOfKey(Unavailable):
    """There is no room for one more with this key or token."""


class RateLimited(Unavailable):
    """The client asks too often."""

    status = 429

    def body(self) -> dict[str, object]:
        return {"error": "rate_limit_exceeded", "message": str(self), "retry_after": self.retry_after}


class TooManyUploads(Unavailable):
    """As many files as may come at a time are coming in."""


class InsufficientStorage(ProgressdError):
    """There is no room for what was sent: on the disk, or in what the files of jobs may take."""

    status = 507


class SlowConsumer(ProgressdError):
    """The reader was too slow, so messages were dropped; it can resume from the last cursor it has."""


class SettingsError(ProgressdError):
    """A setting is unknown or impossible."""


class StoreDamaged(SettingsError):
    """The store's file makes no sense, or never was one."""


class InstallationFailed(ProgressdError):
    """Something on this machine is not as a service needs it."""
