"""The JSON of a job for clients, and the media types of bodies. Unknown values are absent, never null."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, TypeVar

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from progressd.core.eta import UsualStep
from progressd.core.events import Priority
from progressd.core.job import Job
from progressd.core.messages import Cursor, JobStatus, ProgressData
from progressd.core.progress import Step, renamed_step
from progressd.engine.queue_estimates import QueuePlace
from progressd.net.request import BasePath

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
EVENT_STREAM: Final = "text/event-stream"
FORM: Final = "multipart/form-data"

T = TypeVar("T")


class StepView(Struct, frozen=True, kw_only=True):
    """A step or a phase in the timeline of a job. `rate` is in units a second.

    `merged`: the number of short steps that are shown as this one.
    """

    step_name: str
    phase: str | UnsetType = UNSET
    started_at: datetime
    ended_at: datetime | UnsetType = UNSET
    unit: str | UnsetType = UNSET
    rate: float | UnsetType = UNSET
    merged: int | UnsetType = UNSET


def step_view(step: Step) -> StepView:
    """Return a step for a client."""
    return StepView(
        step_name=step.name,
        phase=step.phase,
        started_at=step.began_at,
        ended_at=or_unset(step.ended_at),
        unit=step.unit,
        rate=or_unset(step.rate),
        merged=step.merged if step.merged > 1 else UNSET,
    )


class UsualStepView(Struct, frozen=True, kw_only=True):
    """A step in earlier runs of similar jobs: its median start, since that of the job, and duration, in seconds.

    `step_name` is absent until the job has reached the step.
    """

    step_name: str | UnsetType = UNSET
    phase: str | UnsetType = UNSET
    after_seconds: float
    seconds: float
    runs: int


class JobView(Struct, frozen=True, kw_only=True):
    """A job. `id` and `job_id` are the same. Times are UTC."""

    id: str
    job_id: str
    status: JobStatus
    kind: str
    name: str | UnsetType = UNSET
    pipeline: str | UnsetType = UNSET  # if the daemon runs the job
    options: dict[str, object]
    progress: ProgressData
    input_filename: str | UnsetType = UNSET
    output_path: str | UnsetType = UNSET
    created_at: datetime
    started_at: datetime | UnsetType = UNSET
    completed_at: datetime | UnsetType = UNSET
    error: str | UnsetType = UNSET
    page_count: int | UnsetType = UNSET
    elapsed_seconds: float | UnsetType = UNSET
    attempt: int
    lease_seconds: float | UnsetType = UNSET
    progress_at: datetime | UnsetType = UNSET  # time of `progress`; of an unfinished job
    labels: dict[str, str]
    batch_id: str | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET  # if the job belongs to a batch
    queue_position: int | UnsetType = UNSET  # of a job that waits for the runner, from 1
    expected_start: datetime | UnsetType = UNSET  # of a job that waits for the runner
    steps: list[StepView] | UnsetType = UNSET  # the timeline, oldest first; not in lists
    usual_steps: list[UsualStepView] | UnsetType = UNSET  # of earlier runs; not in lists
    cursor: str


def job_view(
    job: Job,
    store_id: str,
    base: BasePath,
    place: QueuePlace | None = None,
    *,
    with_steps: bool = False,
    usual: Sequence[UsualStep] = (),
) -> JobView:
    """Return a job for a client. `place`: its place in the queue of the runner. `usual`: the steps of earlier runs."""
    return JobView(
        id=job.id,
        job_id=job.id,
        status=job.status,
        kind=job.kind,
        name=or_unset(job.name),
        pipeline=or_unset(job.pipeline),
        options=job.options,
        progress=shown_progress(job),
        input_filename=or_unset(job.input_filename),
        output_path=or_unset(base.result(job.id, job.output_path)),
        created_at=job.created_at,
        started_at=or_unset(job.started_at),
        completed_at=or_unset(job.completed_at),
        error=or_unset(job.error),
        page_count=or_unset(job.page_count),
        elapsed_seconds=or_unset(job.elapsed_seconds),
        attempt=job.attempt,
        lease_seconds=or_unset(job.lease_seconds),
        progress_at=UNSET if job.status.finished else or_unset(job.progress_at),
        labels=job.labels,
        batch_id=or_unset(job.batch_id),
        priority=UNSET if job.batch_id is None else job.priority,
        queue_position=UNSET if place is None else place.position,
        expected_start=UNSET if place is None else place.expected_start,
        steps=[step_view(renamed_step(step, job.progress)) for step in job.steps]
        if with_steps and job.steps
        else UNSET,
        usual_steps=list(map(usual_step_view, usual)) or UNSET,
        cursor=str(Cursor(store_id, job.offset)),
    )


def usual_step_view(step: UsualStep) -> UsualStepView:
    """Return a step of earlier runs for a client."""
    return UsualStepView(
        step_name=or_unset(step.name),
        phase=or_unset(step.phase),
        after_seconds=step.after,
        seconds=step.seconds,
        runs=step.runs,
    )


def shown_progress(job: Job) -> ProgressData:
    """Return the progress to show. A finished job has no remaining time and no rate. A completed job has 100 %."""
    if not job.status.finished:
        return job.progress
    percent = 100 if job.status is JobStatus.COMPLETED else job.progress.percent
    return replace(job.progress, percent=percent, eta_seconds=UNSET, eta=UNSET, rate=UNSET)


def or_unset(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value
