"""Messages to watchers, exactly as they are sent.

Each message is one JSON object with `type`, usually `job_id`, and `data`. When the daemon assigns an offset, it adds
`cursor` and `time`. Times are UTC (RFC 3339).
"""

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from progressd.core.errors import InvalidInput
from progressd.core.event_limits import MAX_ERROR

_CURSOR = re.compile(r"([0-9a-z]{1,32})-([0-9]{1,18})", re.ASCII)


class JobStatus(StrEnum):
    """queued → processing → completed | failed | cancelled. The last three are final."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Return whether the status is final."""
        return self not in (JobStatus.QUEUED, JobStatus.PROCESSING)


FINISHED: Final = frozenset(status for status in JobStatus if status.finished)


def cursor_text(store: str, offset: int) -> str:
    """Return the text of a cursor, in a third of the time of `str(Cursor(store, offset))`."""
    return f"{store}-{offset}"


class Cursor(NamedTuple):
    """An opaque position in the messages of one store, from which a client resumes. Other stores reject it."""

    store: str
    offset: int

    def __str__(self) -> str:
        return cursor_text(self.store, self.offset)

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Parse the result of `str(cursor)`. Raises InvalidInput."""
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise InvalidInput(f"{text[:60]!r} is not a cursor of this daemon")
        return cls(found[1], int(found[2]))


class TaskData(Struct, frozen=True):
    """A part of a job that has its own progress. `total`: 0 if unknown."""

    id: str
    name: str
    current: int
    total: int
    state: JobStatus
    unit: str | UnsetType = UNSET


class Eta(Struct, frozen=True, omit_defaults=True):
    """The remaining time in seconds: with a probability of 80 %, it is between `low` and `high`.

    `source`: the main source of the estimate: earlier `runs` of the job, its speed, or the producer.
    """

    seconds: float
    low: float
    high: float
    source: Literal["history", "rate", "producer"] = field(name="from")
    runs: int = 0


class ProgressData(Struct, frozen=True, omit_defaults=True):
    """The progress of a job. `percent` is 0–100. `eta`, and its `seconds` as `eta_seconds`, are missing if unknown.

    `stalled`: the producer has been silent for longer than its lease. `slow`: the job takes longer than usual; only in
    responses over HTTP. `unit`: of the steps, such as B. `rate`: units a
    second. `phase`: the current part of the job. `tasks`: all current ones.
    """

    current_step: int
    total_steps: int
    step_name: str
    percent: int
    eta_seconds: float | UnsetType = UNSET
    stalled: bool = False
    unit: str | UnsetType = UNSET
    rate: float | UnsetType = UNSET
    phase: str | UnsetType = UNSET
    tasks: tuple[TaskData, ...] = ()
    eta: Eta | UnsetType = UNSET
    slow: bool = False


class Progress(Struct, frozen=True, tag_field="type", tag="progress"):
    """The progress of a job. Newer progress replaces older progress of the same job."""

    job_id: str
    data: ProgressData
    cursor: str | UnsetType = UNSET
    time: datetime | UnsetType = UNSET
    batch_id: str | UnsetType = UNSET


class StatusChangeData(Struct, frozen=True):
    """The old and the new status."""

    old_status: JobStatus
    new_status: JobStatus


class StatusChange(Struct, frozen=True, tag_field="type", tag="status_change"):
    """The status of a job changed."""

    job_id: str
    data: StatusChangeData
    cursor: str | UnsetType = UNSET
    time: datetime | UnsetType = UNSET
    batch_id: str | UnsetType = UNSET


class CompletedData(Struct, frozen=True):
    """The result of a job. `output_path` and `download_url` are the same URL; null for a job without a file."""

    output_path: str | None
    elapsed_seconds: float
    page_count: int | None
    download_url: str | None


class Completed(Struct, frozen=True, tag_field="type", tag="completed"):
    """The last message of a job that succeeded."""

    job_id: str
    data: CompletedData
    cursor: str | UnsetType = UNSET
    time: datetime | UnsetType = UNSET
    batch_id: str | UnsetType = UNSET


class ErrorData(Struct, frozen=True):
    """A sentence for the user who waits for the job."""

    message: Annotated[str, Meta(max_length=MAX_ERROR)]


class Error(Struct, frozen=True, tag_field="type", tag="error"):
    """The last message of a job that failed."""

    job_id: str
    data: ErrorData
    cursor: str | UnsetType = UNSET
    time: datetime | UnsetType = UNSET
    batch_id: str | UnsetType = UNSET


class JobCreatedData(Struct, frozen=True, omit_defaults=True):
    """The fields that a list shows for a new job."""

    kind: str
    status: JobStatus
    created_at: datetime
    input_filename: str | None = None
    labels: dict[str, str] = {}
    pipeline: str | None = None  # set if the daemon runs the job
    name: str | None = None


class JobCreated(Struct, frozen=True, tag_field="type", tag="job_created"):
    """A job was registered. Sent to the watchers of all jobs."""

    job_id: str
    data: JobCreatedData
    cursor: str | UnsetType = UNSET
    time: datetime | UnsetType = UNSET
    batch_id: str | UnsetType = UNSET


class JobDeletedData(Struct, frozen=True, omit_defaults=True):
    """The last status, for clients that count jobs. `labels` decide which watchers may see the message."""

    status: JobStatus
    labels: dict[str, str] = {}


class JobDeleted(Struct, frozen=True, tag_field="type", tag="job_deleted"):
    """A client deleted a finished job. Stored for watchers that resume."""

    job_id: str
    data: JobDeletedData
    cursor: str | UnsetType = UNSET
    time: datetime | UnsetType = UNSET
    batch_id: str | UnsetType = UNSET


class PagePreviewData(Struct, frozen=True):
    """A small picture of a page in base64. `width` and `height` are in pixels."""

    page_number: int
    preview_base64: str
    stage: str
    width: int
    height: int


class PagePreview(Struct, frozen=True, tag_field="type", tag="page_preview"):
    """A preview of the page in progress. Previews are never stored; only current watchers receive them."""

    job_id: str
    data: PagePreviewData
    cursor: str | UnsetType = UNSET
    time: datetime | UnsetType = UNSET
    batch_id: str | UnsetType = UNSET


class BatchProgressData(Struct, frozen=True):
    """The number of jobs of a batch by status."""

    completed: int
    processing: int
    pending: int
    failed: int
    total: int
    cancelled: int


class BatchProgress(Struct, frozen=True, tag_field="type", tag="batch_progress"):
    """The status of a job of a batch changed. A newer message replaces older ones of the same batch."""

    batch_id: str
    data: BatchProgressData
    cursor: str | UnsetType = UNSET
    time: datetime | UnsetType = UNSET


class BatchCompletedData(Struct, frozen=True):
    """The number of jobs of a batch by final status."""

    success_count: int
    failed_count: int
    cancelled_count: int


class BatchCompleted(Struct, frozen=True, tag_field="type", tag="batch_completed"):
    """The last message of a batch: all its jobs have finished."""

    batch_id: str
    data: BatchCompletedData
    cursor: str | UnsetType = UNSET
    time: datetime | UnsetType = UNSET


class ServerShutdownData(Struct, frozen=True):
    """The reason, and the maximum number of seconds until the connection is closed."""

    reason: str
    countdown_secs: int


class ServerShutdown(Struct, frozen=True, tag_field="type", tag="server_shutdown"):
    """The daemon is about to stop."""

    data: ServerShutdownData


class ServerStatusData(Struct, frozen=True, omit_defaults=True):
    """The health of the daemon. `error` is set while the daemon is failing."""

    status: Literal["healthy", "failing"]
    error: str | UnsetType = UNSET


class ServerStatus(Struct, frozen=True, tag_field="type", tag="server_status"):
    """The store has stopped or resumed accepting changes."""

    data: ServerStatusData


class Hello(Struct, frozen=True, tag_field="type", tag="hello"):
    """All past messages were sent, and the stream is live. A client that resumes from the cursor misses no message."""

    cursor: str


class Resync(Struct, frozen=True, tag_field="type", tag="resync"):
    """The cursor is unknown, so a full snapshot follows."""


class Subscribed(Struct, frozen=True, tag_field="type", tag="subscribed"):
    """The topics are live. A client that resumes them from the cursor misses no message."""

    topics: list[str]
    cursor: str


class Unsubscribed(Struct, frozen=True, tag_field="type", tag="unsubscribed"):
    """No further messages of the topics are sent."""

    topics: list[str]


class SubscribeError(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="refused"):
    """A request is invalid, as a whole or for one topic."""

    error: str
    topic: str | UnsetType = UNSET


class Pong(Struct, frozen=True, tag_field="type", tag="pong"):
    """The answer to a client's ping."""


class LogLine(Struct, frozen=True, omit_defaults=True):
    """A line of a log. `s`: o for standard output, e for standard error, n for a note of progressd.

    `partial`: the rest of the line follows.
    """

    t: str
    s: str
    text: str
    partial: bool = False


class JobLogData(Struct, frozen=True, omit_defaults=True):
    """Lines of a log. A client resumes at `offset`. `missed`: the bytes of the log that are missing before them."""

    offset: int
    lines: list[LogLine]
    missed: int = 0


class JobLog(Struct, frozen=True, tag_field="type", tag="log"):
    """Lines that a job has written. Only watchers of its log receive them."""

    job_id: str
    data: JobLogData


StateChange: TypeAlias = JobCreated | StatusChange | Completed | Error
JobMessage: TypeAlias = StateChange | Progress | PagePreview
Notice: TypeAlias = ServerShutdown | ServerStatus | Hello | Resync | Subscribed | Unsubscribed | SubscribeError | Pong
BatchMessage: TypeAlias = BatchProgress | BatchCompleted
TopicMessage: TypeAlias = JobMessage | JobDeleted | BatchMessage
Message: TypeAlias = TopicMessage | Notice | JobLog

ALL_JOBS = "jobs"
encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Message).decode


def job_topic(job_id: str) -> str:
    """Return the topic of one job."""
    return f"job:{job_id}"


def batch_topic(batch_id: str) -> str:
    """Return the topic of one batch and its jobs."""
    return f"batch:{batch_id}"


def log_topic(job_id: str) -> str:
    """Return the topic of the log of one job."""
    return f"log:{job_id}"


def topics_of(message: TopicMessage) -> tuple[str, ...]:
    """Return the topics of a message, the topic of its job first."""
    if isinstance(message, Progress) and message.batch_id is UNSET:  # most messages
        return job_topic(message.job_id), ALL_JOBS
    if isinstance(message, BatchMessage):
        return (batch_topic(message.batch_id),)
    # the topic of a job has no watchers when the job has just been created, or after its end
    topics = (ALL_JOBS,) if isinstance(message, JobCreated | JobDeleted) else (job_topic(message.job_id), ALL_JOBS)
    return topics if message.batch_id is UNSET else (*topics, batch_topic(message.batch_id))


def type_of(message: Message | type[Message]) -> str:
    """Return the `type` of a message."""
    tag = message.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def ends_job(message: Message) -> bool:
    """Return whether this is the last message of its job."""
    if isinstance(message, StatusChange):
        return message.data.new_status is JobStatus.CANCELLED
    return isinstance(message, Completed | Error)


def ended_topic(message: TopicMessage) -> str | None:
    """Return the topic that ends with this message, if any."""
    if isinstance(message, BatchMessage):
        return batch_topic(message.batch_id) if isinstance(message, BatchCompleted) else None
    return job_topic(message.job_id) if ends_job(message) else None
