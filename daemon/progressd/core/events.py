"""The events that come in: what a producer sends, checked and typed, and what only the daemon itself says.

A producer's event is the message a watcher gets, less what the daemon adds. Unknown fields are let through unread, so
that a newer producer can talk to an older daemon.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from progressd.core.batch import Priority
from progressd.core.errors import InvalidInput
from progressd.core.messages import ErrorData, PagePreviewData
from progressd.core.sizes import readable_size
from progressd.core.status import JobStatus

NAME_MOST: Final = 1000  # characters

Count = Annotated[int, Meta(ge=0, le=2**53)]  # what a JavaScript number holds exactly
Label = Annotated[str, Meta(max_length=200)]
Labels = Annotated[dict[Label, Label], Meta(max_length=50)]
Name = Annotated[str, Meta(max_length=NAME_MOST)]

MAX_OPTIONS_BYTES: Final = (
    65536  # bytes of JSON; every job that a watcher, a list or the runner has to do with is in memory
)
LARGE: Final = (
    4 * MAX_OPTIONS_BYTES
)  # bytes of JSON with options that are small enough: ASCII may take six times as much
LEASE_LEAST: Final = 1  # second; the daemon looks at a silent job once a lease
MAX_LEASE: Final = 30 * 86400  # seconds
ELAPSED_MOST: Final = 36500 * 86400  # seconds, a century; statistics add them up, as they do pages
PAGES_MOST: Final = 10**9
MAX_NESTING: Final = 32  # levels of options: a parser of the stored job, Python's or SQLite's, gives up at about 1000

_encode = msgspec.json.Encoder().encode
_decode_parts = msgspec.json.Decoder(dict[str, Raw]).decode
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)


class ReportedProgress(Struct, frozen=True):
    """`percent` is only for a producer that knows better than current_step / total_steps."""

    current_step: Count
    total_steps: Count
    step_name: Name = ""
    percent: Annotated[float, Meta(ge=0)] | None = None


class ProgressEvent(Struct, frozen=True, tag_field="type", tag="progress"):
    """The job moved; a queued job of a producer starts with it."""

    job_id: str
    data: ReportedProgress


class ReportedStatus(Struct, frozen=True):
    """`old_status` is checked when given."""

    new_status: JobStatus
    old_status: JobStatus | None = None


class StatusEvent(Struct, frozen=True, tag_field="type", tag="status_change"):
    """The job starts, or is cancelled."""

    job_id: str
    data: ReportedStatus


class ReportedResult(Struct, frozen=True):
    """What is not given is measured (elapsed_seconds) or not known."""

    output_path: Annotated[str, Meta(max_length=4096)] | None = None
    elapsed_seconds: Annotated[float, Meta(ge=0, le=ELAPSED_MOST)] | None = None
    page_count: Annotated[int, Meta(ge=0, le=PAGES_MOST)] | None = None


class CompletedEvent(Struct, frozen=True, tag_field="type", tag="completed"):
    """The job succeeded."""

    job_id: str
    data: ReportedResult = ReportedResult()


class ErrorEvent(Struct, frozen=True, tag_field="type", tag="error"):
    """The job failed."""

    job_id: str
    data: ErrorData


class PreviewEvent(Struct, frozen=True, tag_field="type", tag="page_preview"):
    """A picture of a page for whoever watches right now."""

    job_id: str
    data: PagePreviewData


def parts_of(text: bytes) -> dict[str, Raw]:
    """Return the values of a JSON object as they came. Raises like a decoder."""
    return _decode_parts(text)


def checked_options_size(text: bytes, within: str = "") -> bytes:
    """Return a JSON object, and check the size of the text of its options if it is LARGE.

    To build the options in 1 MiB of JSON takes 0.1 s. `within`: the key of the object that has them.
    Raises InvalidInput, and like a decoder.
    """
    if len(text) <= LARGE:
        return text
    parts = parts_of(text)  # of keys that come twice, the last one counts
    if within and within in parts:
        parts[within] = Raw(checked_options_size(bytes(parts[within])))
    elif not within and len(bytes(parts.get("options", Raw()))) > LARGE:
        raise _too_large()
    return _encode(parts)


def _too_large() -> InvalidInput:
    return InvalidInput(f"the options are larger than {readable_size(MAX_OPTIONS_BYTES)}")


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


class Registration(Struct, frozen=True):
    """What is known of a job before it starts. `total_steps` of 0 means that nobody knows yet.

    `lease_seconds`: a producer that is silent for longer has stalled, and one that is for three times as long is lost.
    Raises InvalidInput for options that are too large.
    """

    kind: Annotated[str, Meta(min_length=1, max_length=200)] = "job"
    input_filename: Name | None = None
    total_steps: Count = 0
    options: dict[str, object] = {}
    labels: Labels = {}
    lease_seconds: Annotated[float, Meta(ge=LEASE_LEAST, le=MAX_LEASE)] | None = None

    def __post_init__(self) -> None:
        if self.options and len(_encode(self.options)) > MAX_OPTIONS_BYTES:
            raise _too_large()
        level: list[object] = [self.options]
        for _ in range(MAX_NESTING):
            level = [inner for value in level for inner in _inside(value)]
            if not level:
                return
        if any(isinstance(value, dict | list) for value in level):
            raise ValueError(f"options are nested deeper than {MAX_NESTING} levels")


class RegisterEvent(Struct, frozen=True, tag_field="type", tag="job_created"):
    """There is a new job. The same id twice leaves the job as it is; without one the daemon makes it up.

    `cursor`: one that the producer was given for this job before. The store that gave it has deleted the job since.
    """

    job_id: str = ""
    data: Registration = Registration()
    cursor: str = ""


class SubmitEvent(Struct, frozen=True):
    """There is a new job for the runner."""

    job_id: str
    data: Registration
    pipeline: str
    batch_id: str | None = None  # of the files it was handed in with
    priority: Priority = Priority.NORMAL
    fingerprint: str | None = None  # a digest of the form, which may come once more
    owner: str | None = None  # the key or address that submitted it


class StartEvent(Struct, frozen=True):
    """The runner has started a job of its own."""

    job_id: str


class RunnerEvent(Struct, frozen=True):
    """The runner says how a job of its own has ended; a producer may not."""

    job_id: str
    end: CompletedEvent | ErrorEvent


class BatchCancelEvent(Struct, frozen=True):
    """The job is cancelled with the whole batch that it is in."""

    job_id: str


class RequeueEvent(Struct, frozen=True):
    """The daemon died under a job of its runner, or `stopped` in order; the job therefore waits for its turn again.

    Only a death counts as an attempt.
    """

    job_id: str
    stopped: bool = False


class StalledEvent(Struct, frozen=True):
    """The producer of a job has been silent for longer than its lease."""

    job_id: str


class LeaseExpiredEvent(Struct, frozen=True):
    """The producer of a job has been silent for too long to come back."""

    job_id: str


ProducerEvent: TypeAlias = ProgressEvent | StatusEvent | CompletedEvent | ErrorEvent | PreviewEvent | RegisterEvent
LeaseEvent: TypeAlias = StalledEvent | LeaseExpiredEvent
Event: TypeAlias = ProducerEvent | SubmitEvent | StartEvent | RunnerEvent | RequeueEvent | BatchCancelEvent | LeaseEvent


def checked_job_id(text: str) -> str:
    """The id in its one spelling, lower case. Raises InvalidInput when it is not a UUID."""
    return _checked_id(text, "job")


def checked_batch_id(text: str) -> str:
    """The id in its one spelling, lower case. Raises InvalidInput when it is not a UUID."""
    return _checked_id(text, "batch")


def _checked_id(text: str, what: str) -> str:
    id_ = text.lower()
    if _UUID.fullmatch(id_) is None:
        raise InvalidInput(
            f"{text[:60]!r} is not a {what} id: expected a UUID such as 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c"
        )
    return id_
