"""The job, and its state machine.

`apply` takes a job and an event, and returns the changed job and the messages for its watchers. It raises an error if
the event is rejected. It uses no clock, store or socket.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, NamedTuple, Protocol, TypeAlias

from msgspec import UNSET, Struct
from msgspec.structs import replace

from progressd.core.errors import Conflict, InvalidInput, NotFound
from progressd.core.events import (
    BatchCancelEvent,
    CompletedEvent,
    ErrorEvent,
    Event,
    LeaseExpiredEvent,
    LogEvent,
    PreviewEvent,
    Priority,
    ProgressEvent,
    RegisterEvent,
    ReportedProgress,
    ReportedResult,
    RequeueEvent,
    RunnerEvent,
    StalledEvent,
    StartEvent,
    StatusEvent,
    SubmitEvent,
)
from progressd.core.messages import (
    Completed,
    CompletedData,
    Error,
    ErrorData,
    Eta,
    JobCreated,
    JobCreatedData,
    JobMessage,
    JobStatus,
    PagePreview,
    Progress,
    ProgressData,
    StatusChange,
    StatusChangeData,
    batch_topic,
    job_topic,
)
from progressd.core.progress import (
    Detail,
    Step,
    detailed,
    done_of,
    ended_steps,
    missing_counts,
    next_step,
    percentage,
)

MIN_FORECAST: Final = 5.0  # seconds; a shorter job shows its remaining time only with its progress
PRODUCER_LOST: Final = "producer lost"  # the error of a job whose lease has expired


class Job(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job. Times are UTC; offsets are positions in the stream of messages."""

    id: str
    kind: str
    status: JobStatus
    created_at: datetime
    created_offset: int = 0  # offset of the first message; larger for newer jobs
    offset: int = 0  # offset of the newest message
    progress_offset: int = 0  # offset of the newest progress; 0 if none
    progress_at: datetime | None = None
    progress: ProgressData = ProgressData(0, 0, "", 0)
    options: dict[str, object] = {}
    labels: dict[str, str] = {}
    name: str | None = None
    pipeline: str | None = None  # pipeline of the job; None for the job of a producer
    input_filename: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    error: str | None = None
    output_path: str | None = None
    page_count: int | None = None
    elapsed_seconds: float | None = None
    attempt: int = 1
    lease_seconds: float | None = None
    batch_id: str | None = None
    steps: tuple[Step, ...] = ()  # the timeline, oldest first
    detail: Detail | None = None  # None: the progress has no unit, phase, rate or tasks
    priority: Priority = Priority.NORMAL
    fingerprint: str | None = None  # length and digest of the submitted form
    owner: str | None = None  # the key or address that submitted the job; the runner's queue is fair between owners

    @property
    def topics(self) -> tuple[str, ...]:
        """Return the topics of the job and of its batch."""
        topic = job_topic(self.id)
        return (topic,) if self.batch_id is None else (topic, batch_topic(self.batch_id))


class Visible(Protocol):
    """A job, or a message about one. Its labels and topics decide who may see it."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Return the labels of the job."""

    @property
    def topics(self) -> tuple[str, ...]:
        """Return the topics of the job or message."""


MaySee: TypeAlias = Callable[[Job], bool]
"""A function that returns whether a job exists for a client."""


def sees_all(_: Job) -> bool:
    """Return True: for most clients every job exists."""
    return True


class Applied(NamedTuple):
    """The result of an event. `durable`: the state changed, so the job must be stored before it is published."""

    job: Job
    messages: tuple[JobMessage, ...]
    durable: bool


Forecast: TypeAlias = Callable[[Job, ReportedProgress, datetime], Eta | None]
"""A function that returns the remaining time of a started job with this progress; None if it is unknown."""


def no_forecast(*_: object) -> None:
    """Return None: nothing is known about the remaining time."""


def apply(job: Job | None, event: Event, now: datetime, forecast: Forecast = no_forecast) -> Applied:
    """Return the result of applying `event` to `job` (None: the job does not exist) at `now` (UTC).

    A repeated end or registration is accepted, without messages. Raises NotFound for an unknown job, Conflict if the
    status of the job does not allow the event, InvalidInput for a result that is not a URL.
    """
    applied = _apply(job, event, now, forecast)
    if applied.job.progress.stalled and not isinstance(event, StalledEvent):
        return _no_longer_stalled(applied)
    return applied


def _apply(job: Job | None, event: Event, now: datetime, forecast: Forecast) -> Applied:
    if job is None:
        if isinstance(event, RegisterEvent | SubmitEvent):
            return _register(event, now)
        raise NotFound(f"no job {event.job_id}")
    match event:
        case ProgressEvent():  # first, because most events are progress
            return _progress(job, event, now, forecast)
        case RegisterEvent() | SubmitEvent():
            return Applied(job, (), False)
        case StatusEvent():
            return _status(job, event, now, forecast)
        case CompletedEvent() | ErrorEvent():
            if job.pipeline is not None:
                raise Conflict(f"job {job.id} is run by the daemon: only its runner can end it")
            _require_url(event)
            return _end(job, event, now)
        case RunnerEvent():
            return _end(job, event.end, now)
        case PreviewEvent():
            _require_unfinished(job, "page previews")
            return Applied(job, (PagePreview(job.id, event.data),), False)
        case StartEvent():
            return Applied(*_start(job, now, forecast), True)
        case RequeueEvent():
            return _requeue(job, event, now)
        case StalledEvent():
            return _stall(job)
        case LeaseExpiredEvent():
            return _fail(job, PRODUCER_LOST, now)
        case BatchCancelEvent():
            _require_unfinished(job, "cancellation")
            return _finish(job, JobStatus.CANCELLED, now)
        case LogEvent():  # ingest writes the lines; they do not change the job
            return Applied(job, (), False)


def _register(event: RegisterEvent | SubmitEvent, now: datetime) -> Applied:
    given = event.data
    job = Job(
        id=event.job_id,
        kind=given.kind,
        status=JobStatus.QUEUED,
        created_at=now,
        progress=ProgressData(0, given.total_steps, "", 0),
        options=given.options,
        labels=given.labels,
        pipeline=event.pipeline if isinstance(event, SubmitEvent) else None,
        batch_id=event.batch_id if isinstance(event, SubmitEvent) else None,
        priority=event.priority if isinstance(event, SubmitEvent) else Priority.NORMAL,
        fingerprint=event.fingerprint if isinstance(event, SubmitEvent) else None,
        owner=event.owner if isinstance(event, SubmitEvent) else None,
        name=given.name,
        input_filename=given.input_filename,
        lease_seconds=given.lease_seconds,
    )
    created = JobCreatedData(job.kind, job.status, now, job.input_filename, job.labels, job.pipeline, job.name)
    return Applied(job, (JobCreated(job.id, created),), True)


def _progress(job: Job, event: ProgressEvent, now: datetime, forecast: Forecast) -> Applied:
    given = event.data
    current, total = given.current_step, given.total_steps
    if (current is None or total is None) and not given.has_details:
        raise missing_counts(given)
    start = job.status is not JobStatus.PROCESSING
    messages: tuple[JobMessage, ...] = ()
    if start:
        _require_unfinished(job, "progress")
        _require_of_producer(job)
        job, messages = _start(job, now)
    # This is has_details without percent and eta_seconds. A call would take 0.6 µs more.
    plain = (job.detail or given.unit or given.phase or given.rate) is None and not given.tasks
    if plain and current is not None and total is not None:
        eta = forecast(job, given, now)
        data = ProgressData(
            current,
            total,
            given.step_name,
            percentage(current, total, given.percent),
            UNSET if eta is None else eta.seconds,
            eta=UNSET if eta is None else eta,
        )
    else:
        job, data = _detailed(job, given, now, forecast)
    steps = next_step(job.steps, job.progress, data, job.detail, now)
    return Applied(replace(job, progress=data, steps=steps), (*messages, Progress(job.id, data)), start)


def _detailed(job: Job, given: ReportedProgress, now: datetime, forecast: Forecast) -> tuple[Job, ProgressData]:
    """Return the job and its progress after a report, if the report or the job has details."""
    data, detail = detailed(job.progress, job.detail or Detail(), given, now)
    counted = given.current_step is not None or given.total_steps is not None
    kept = not counted and given.percent is None and data.percent != percentage(data.current_step, data.total_steps)
    percent = float(data.percent) if data.tasks or kept else given.percent
    whole = replace(given, current_step=data.current_step, total_steps=data.total_steps, percent=percent)
    eta = forecast(job, whole, now)
    if eta is not None:
        data = replace(data, eta_seconds=eta.seconds, eta=eta)
    return replace(job, detail=detail), data


def _status(job: Job, event: StatusEvent, now: datetime, forecast: Forecast) -> Applied:
    old, new = event.data.old_status, event.data.new_status
    if job.status is new is JobStatus.CANCELLED:
        return Applied(job, (), False)
    if old is not None and old is not job.status:
        raise Conflict(f"job {job.id} is {job.status}, not {old}")
    if new is JobStatus.PROCESSING and job.status is JobStatus.QUEUED:
        _require_of_producer(job)
        return Applied(*_start(job, now, forecast), True)
    if new is JobStatus.CANCELLED:
        _require_unfinished(job, "cancellation")
        return _finish(job, new, now)
    if new in (JobStatus.COMPLETED, JobStatus.FAILED):
        kind = "completed" if new is JobStatus.COMPLETED else "error"
        raise Conflict(f"a job becomes {new} with an event of type {kind!r}, which carries the result")
    raise Conflict(f"job {job.id} is {job.status} and cannot become {new}")


def _require_url(event: CompletedEvent | ErrorEvent) -> None:
    """Raise InvalidInput unless the result is a URL. Watchers must not receive paths on a disk."""
    path = event.data.output_path if isinstance(event, CompletedEvent) else None
    if path is not None and not path.startswith(("https://", "http://", "/api/")):
        raise InvalidInput(f"output_path {path[:60]!r} is not a URL: it has to begin with https:// or http://")


def _end(job: Job, event: CompletedEvent | ErrorEvent, now: datetime) -> Applied:
    return _complete(job, event, now) if isinstance(event, CompletedEvent) else _fail(job, event.data.message, now)


def _complete(job: Job, event: CompletedEvent, now: datetime) -> Applied:
    given = event.data
    if job.status is JobStatus.COMPLETED and _agree(job, given):
        return Applied(job, (), False)
    _require_unfinished(job, "completion")
    if job.started_at is None:
        raise Conflict(f"job {job.id} is {job.status}: it must be processing before it can be completed")
    elapsed = given.elapsed_seconds
    if elapsed is None:
        elapsed = max(0.0, round((now - job.started_at).total_seconds(), 3))
    job = replace(job, output_path=given.output_path, page_count=given.page_count, elapsed_seconds=elapsed)
    data = CompletedData(given.output_path, elapsed, given.page_count, given.output_path)
    return _finish(job, JobStatus.COMPLETED, now, Completed(job.id, data))


def _agree(job: Job, given: ReportedResult) -> bool:
    """Return whether a repeated completion agrees with the first."""
    repeated = (given.output_path, given.page_count, given.elapsed_seconds)
    known = (job.output_path, job.page_count, job.elapsed_seconds)
    return all(new is None or new == old for new, old in zip(repeated, known, strict=True))


def _fail(job: Job, sentence: str, now: datetime) -> Applied:
    if job.status is JobStatus.FAILED and job.error == sentence:
        return Applied(job, (), False)
    _require_unfinished(job, "failure")
    job = replace(job, error=sentence)
    return _finish(job, JobStatus.FAILED, now, Error(job.id, ErrorData(sentence)))


def _stall(job: Job) -> Applied:
    _require_unfinished(job, "stall")
    if job.progress.stalled:
        return Applied(job, (), False)
    data = replace(job.progress, stalled=True, eta_seconds=UNSET, eta=UNSET, rate=UNSET)
    return Applied(replace(job, progress=data), (Progress(job.id, data),), False)


def _no_longer_stalled(applied: Applied) -> Applied:
    """Clear `stalled`, because the producer is back or the job has ended. If the job has ended, add no message."""
    data = replace(applied.job.progress, stalled=False)
    job = replace(applied.job, progress=data)
    if job.status.finished:
        return applied._replace(job=job)
    return applied._replace(job=job, messages=(*applied.messages, Progress(job.id, data)))


def _requeue(job: Job, event: RequeueEvent, now: datetime) -> Applied:
    if job.status is not JobStatus.PROCESSING:
        raise Conflict(f"job {job.id} is {job.status}: only a processing job can be queued again")
    again = replace(
        job,
        status=JobStatus.QUEUED,
        started_at=None,
        attempt=job.attempt if event.stopped else job.attempt + 1,
        progress=ProgressData(0, job.progress.total_steps, "", 0),
        progress_offset=0,
        progress_at=None,
        steps=ended_steps(job.steps, job.progress, done_of(job.progress, job.detail), now),
        detail=None,
    )
    return Applied(again, (_changed(job, JobStatus.QUEUED),), True)


def _start(job: Job, now: datetime, forecast: Forecast = no_forecast) -> tuple[Job, tuple[JobMessage, ...]]:
    """Start a job. If its duration can be estimated from earlier runs, it has progress from the beginning."""
    if job.status is not JobStatus.QUEUED:
        raise Conflict(f"job {job.id} is {job.status}: only a queued job can start")
    started = replace(job, status=JobStatus.PROCESSING, started_at=now)
    changed = _changed(job, JobStatus.PROCESSING)
    eta = forecast(started, ReportedProgress(0, job.progress.total_steps), now)
    if eta is None or eta.seconds < MIN_FORECAST:
        return started, (changed,)
    data = replace(job.progress, eta_seconds=eta.seconds, eta=eta)
    return replace(started, progress=data), (changed, Progress(job.id, data))


def _finish(job: Job, status: JobStatus, now: datetime, *last: JobMessage) -> Applied:
    steps = ended_steps(job.steps, job.progress, done_of(job.progress, job.detail), now) if job.steps else ()
    finished = replace(job, status=status, completed_at=now, steps=steps)
    return Applied(finished, (_changed(job, status), *last), True)


def _changed(job: Job, new: JobStatus) -> StatusChange:
    return StatusChange(job.id, StatusChangeData(job.status, new))


def _require_unfinished(job: Job, what: str) -> None:
    if job.status.finished:
        raise Conflict(f"job {job.id} is already {job.status} and accepts no {what}")


def _require_of_producer(job: Job) -> None:
    if job.pipeline is not None:
        raise Conflict(f"job {job.id} is queued: only the runner can start it")
