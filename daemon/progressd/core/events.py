"""The events of producers and of the daemon itself, typed and validated.

An event of a producer has the format of the message to watchers, without the fields that the daemon adds. Unknown
fields are ignored, so that a newer producer can send events to an older daemon.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from progressd.core.errors import InvalidInput, readable_size
from progressd.core.event_limits import (
    MAX_COUNT,
    MAX_ELAPSED,
    MAX_ETA,
    MAX_JOB_NAME,
    MAX_KIND,
    MAX_LABEL,
    MAX_LABELS,
    MAX_LEASE,
    MAX_LOG_TEXT,
    MAX_NESTING,
    MAX_OPTIONS_BYTES,
    MAX_PAGES,
    MAX_PHASE,
    MAX_RATE,
    MAX_STEP_NAME,
    MAX_TASK_ID,
    MAX_TASKS,
    MAX_UNIT,
    MIN_LEASE,
)
from progressd.core.messages import ErrorData, JobStatus, PagePreviewData

Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Label = Annotated[str, Meta(max_length=MAX_LABEL)]
Labels = Annotated[dict[Label, Label], Meta(max_length=MAX_LABELS)]
StepName = Annotated[str, Meta(max_length=MAX_STEP_NAME)]
Unit = Annotated[str, Meta(max_length=MAX_UNIT)]

LARGE: Final = 4 * MAX_OPTIONS_BYTES  # bytes of JSON; allowed options with ASCII escapes may be six times the limit

_encode = msgspec.json.Encoder().encode
_decode_parts = msgspec.json.Decoder(dict[str, Raw]).decode
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)


class ReportedTask(Struct, frozen=True):
    """A part of a job that has its own progress, such as one of several downloads. Omitted values stay as they are."""

    id: Annotated[str, Meta(min_length=1, max_length=MAX_TASK_ID)]
    name: Annotated[str, Meta(max_length=MAX_PHASE)] | None = None
    current: Count | None = None
    total: Count | None = None
    unit: Unit | None = None
    state: JobStatus | None = None


class ReportedProgress(Struct, frozen=True, omit_defaults=True):
    """The progress of a job. `percent`: for a producer whose percentage is not current_step / total_steps.

    `unit`: of the steps, such as B or pages. `rate`: for a producer whose rate cannot be computed from the steps.
    `phase`: the current part of the job; the steps may start again in each phase. `tasks`: those that have changed.
    With one of these, the steps may be omitted, and omitted values stay as they are. An empty unit or phase removes the
    earlier one. `eta_seconds`: the remaining time, for a producer that knows it better than the daemon can estimate it.
    """

    current_step: Count | None = None
    total_steps: Count | None = None
    step_name: StepName = ""
    percent: Annotated[float, Meta(ge=0)] | None = None
    unit: Unit | None = None
    rate: Annotated[float, Meta(ge=0, le=MAX_RATE)] | None = None
    phase: Annotated[str, Meta(max_length=MAX_PHASE)] | None = None
    tasks: Annotated[tuple[ReportedTask, ...], Meta(max_length=MAX_TASKS)] = ()
    eta_seconds: Annotated[float, Meta(ge=0, le=MAX_ETA)] | None = None

    @property
    def has_details(self) -> bool:
        """Return whether the report contains more than counts and the name of a step."""
        given = (self.percent, self.unit, self.phase, self.rate, self.eta_seconds)
        return bool(self.tasks) or any(value is not None for value in given)


class ProgressEvent(Struct, frozen=True, tag_field="type", tag="progress"):
    """The job has progress. A queued job of a producer starts with this event."""

    job_id: str
    data: ReportedProgress


class ReportedStatus(Struct, frozen=True):
    """The new status of a job. If `old_status` is set, it must be the current status."""

    new_status: JobStatus
    old_status: JobStatus | None = None


class StatusEvent(Struct, frozen=True, tag_field="type", tag="status_change"):
    """The job starts or is cancelled."""

    job_id: str
    data: ReportedStatus


class ReportedResult(Struct, frozen=True):
    """The result of a job. A missing `elapsed_seconds` is measured by the daemon; other missing values are unknown."""

    output_path: Annotated[str, Meta(max_length=4096)] | None = None
    elapsed_seconds: Annotated[float, Meta(ge=0, le=MAX_ELAPSED)] | None = None
    page_count: Annotated[int, Meta(ge=0, le=MAX_PAGES)] | None = None


class CompletedEvent(Struct, frozen=True, tag_field="type", tag="completed"):
    """The job succeeded."""

    job_id: str
    data: ReportedResult = ReportedResult()


class ErrorEvent(Struct, frozen=True, tag_field="type", tag="error"):
    """The job failed."""

    job_id: str
    data: ErrorData


class PreviewEvent(Struct, frozen=True, tag_field="type", tag="page_preview"):
    """A picture of a page for current watchers."""

    job_id: str
    data: PagePreviewData


class LogStream(StrEnum):
    """The stream that a program wrote to. A note is a remark about the log, such as that lines are missing."""

    STDOUT = "stdout"
    STDERR = "stderr"
    NOTE = "note"


class ReportedLog(Struct, frozen=True):
    """Lines of a log. `partial`: the last line is not complete. `time`: when they were written; now by default.

    A producer that repeats events after a lost answer numbers them: lines of the same `source` whose number `seq` is
    not greater than the last one are stored already.
    """

    text: Annotated[str, Meta(max_length=MAX_LOG_TEXT)]
    stream: LogStream = LogStream.STDOUT
    partial: bool = False
    time: Annotated[datetime, Meta(tz=True)] | None = None
    source: Annotated[str, Meta(pattern="^[0-9a-f]{1,16}$")] | None = None
    seq: Count = 0


class LogEvent(Struct, frozen=True, tag_field="type", tag="log"):
    """The job has written lines. They go to its log, not to the watchers of jobs."""

    job_id: str
    data: ReportedLog


def parts_of(text: bytes) -> dict[str, Raw]:
    """Return the undecoded values of a JSON object. Raises the errors of a msgspec decoder."""
    return _decode_parts(text)


def checked_options_size(text: bytes, within: str = "") -> bytes:
    """Return a JSON object. If it is LARGE, check the size of its options first.

    Decoding the options in 1 MiB of JSON takes 0.1 s. `within`: the key of the object that contains the options.
    Raises InvalidInput and the errors of a msgspec decoder.
    """
    if len(text) <= LARGE:
        return text
    parts = parts_of(text)  # of duplicate keys, the last one counts
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


class Priority(StrEnum):
    """The priority of a job in the runner's queue. With equal priority, the oldest job starts first."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"

    @property
    def rank(self) -> int:
        """Return the priority as a number. Jobs with a larger number start first."""
        return list(Priority).index(self)


class Registration(Struct, frozen=True):
    """A job before it starts. `total_steps`: 0 if unknown. `name`: for people; `kind` groups similar jobs.

    `lease_seconds`: if the producer is silent for longer, the job stalls; after three times as long the job fails.
    Raises InvalidInput for options that are too large.
    """

    kind: Annotated[str, Meta(min_length=1, max_length=MAX_KIND)] = "job"
    input_filename: StepName | None = None
    total_steps: Count = 0
    options: dict[str, object] = {}
    labels: Labels = {}
    lease_seconds: Annotated[float, Meta(ge=MIN_LEASE, le=MAX_LEASE)] | None = None
    name: Annotated[str, Meta(min_length=1, max_length=MAX_JOB_NAME)] | None = None

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
    """Register a new job. A repeated id changes nothing. Without an id the daemon chooses one.

    `cursor`: a cursor that the producer received earlier for this job. If it is from this store and the job does not
    exist, the job was deleted.
    """

    job_id: str = ""
    data: Registration = Registration()
    cursor: str = ""


class SubmitEvent(Struct, frozen=True):
    """Register a new job for the runner."""

    job_id: str
    data: Registration
    pipeline: str
    batch_id: str | None = None  # set if the job was submitted with other files
    priority: Priority = Priority.NORMAL
    fingerprint: str | None = None  # length and digest of the form, to recognize a repeated submission
    owner: str | None = None  # the key or address that submitted the job
    batch_name: str = ""  # for people; the first job of a batch names it


class StartEvent(Struct, frozen=True):
    """The runner has started a job."""

    job_id: str


class RunnerEvent(Struct, frozen=True):
    """The runner reports the end of a job. A producer may not end such a job."""

    job_id: str
    end: CompletedEvent | ErrorEvent


class BatchCancelEvent(Struct, frozen=True):
    """The job is cancelled together with its batch."""

    job_id: str


class RequeueEvent(Struct, frozen=True):
    """The daemon crashed or `stopped` while it ran the job, so the job is queued again.

    Only a crash counts as an attempt.
    """

    job_id: str
    stopped: bool = False


class StalledEvent(Struct, frozen=True):
    """The producer of a job has been silent for longer than its lease."""

    job_id: str


class LeaseExpiredEvent(Struct, frozen=True):
    """The producer of a job has been silent for so long that the job fails."""

    job_id: str


ProducerEvent: TypeAlias = (
    ProgressEvent | StatusEvent | CompletedEvent | ErrorEvent | PreviewEvent | RegisterEvent | LogEvent
)
LeaseEvent: TypeAlias = StalledEvent | LeaseExpiredEvent
Event: TypeAlias = ProducerEvent | SubmitEvent | StartEvent | RunnerEvent | RequeueEvent | BatchCancelEvent | LeaseEvent


def checked_job_id(text: str) -> str:
    """Return the id in lower case. Raises InvalidInput if it is not a UUID."""
    return _checked_id(text, "job")


def checked_batch_id(text: str) -> str:
    """Return the id in lower case. Raises InvalidInput if it is not a UUID."""
    return _checked_id(text, "batch")


def _checked_id(text: str, what: str) -> str:
    id_ = text.lower()
    if _UUID.fullmatch(id_) is None:
        raise InvalidInput(
            f"{text[:60]!r} is not a {what} id: expected a UUID such as 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c"
        )
    return id_
