"""Batches: files that are submitted, queried, cancelled, retried, downloaded and deleted together."""

import uuid
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from pathlib import PurePath
from typing import Final

import trio
from msgspec import UNSET, Struct, UnsetType
from quart import Blueprint, Response, request

from progressd.core.batch import BatchStatus, JobBatch, batch_counts
from progressd.core.errors import Conflict, NotFound, ProgressdError
from progressd.core.events import BatchCancelEvent, Priority, checked_batch_id
from progressd.core.job import Job
from progressd.core.messages import BatchProgressData, Cursor, JobStatus
from progressd.http.context import json_response, request_context
from progressd.http.job_cache import CACHING
from progressd.http.openapi import described
from progressd.http.response import attachment
from progressd.http.routes.jobs import DeleteQuery, purge, result_name, retried
from progressd.http.routes.submission import (
    LABELS,
    MAX_NAME,
    REPLAYED,
    SUBMISSION_ERRORS,
    PipelineQuery,
    claimed_id,
    requested_submission,
    require_ready,
    require_unused,
)
from progressd.http.schemas import FORM, or_unset, shown_progress
from progressd.http.zip_body import ZipBody, ZipMember, unique_names
from progressd.net.request import BasePath, parsed_query

MAX_FILES: Final = 100
FIELDS: Final = ("files[]", "files")
FILES_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "files": {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": MAX_FILES},
        "options": {"type": "string", "contentMediaType": "application/json", "examples": ['{"priority": "high"}']},
        "labels": LABELS,
        "name": {"type": "string", "maxLength": MAX_NAME},
    },
    "required": ["files"],
}
FILES: Final = {FORM: FILES_SCHEMA}
ZIP: Final = "application/zip"

blueprint = Blueprint("batch", __name__, url_prefix="/api/batch")


class BatchAccepted(Struct, frozen=True):
    """The batch created from files."""

    batch_id: str
    status: BatchStatus
    job_count: int
    created_at: datetime


class BatchCancelled(Struct, frozen=True):
    """The cancelled batch; finished jobs stay unchanged. `deleted_jobs` is present if the batch was deleted."""

    batch_id: str
    status: BatchStatus
    cancelled_jobs: int
    completed_jobs: int
    deleted_jobs: int | UnsetType = UNSET


class BatchView(Struct, frozen=True, kw_only=True):
    """A batch. `estimated_completion` is present while only some of the jobs have finished."""

    batch_id: str
    name: str | UnsetType = UNSET
    status: BatchStatus
    priority: Priority
    progress: BatchProgressData
    created_at: datetime
    started_at: datetime | UnsetType = UNSET
    completed_at: datetime | UnsetType = UNSET
    estimated_completion: datetime | UnsetType = UNSET
    cursor: str


def batch_view(batch: JobBatch, store_id: str) -> BatchView:
    """Return a batch for a client."""
    return BatchView(
        batch_id=batch.id,
        name=batch.name or UNSET,
        status=batch.status,
        priority=batch.priority,
        progress=batch_counts(batch),
        created_at=batch.created_at,
        started_at=or_unset(batch.started_at),
        completed_at=or_unset(batch.completed_at),
        estimated_completion=or_unset(batch.estimated_completion),
        cursor=str(Cursor(store_id, batch.offset)),
    )


class BatchJobProgress(Struct, frozen=True):
    """The progress of a job in a batch."""

    percent: int
    step_name: str


class BatchJobView(Struct, frozen=True, kw_only=True):
    """A summary of a job in a batch. `download_url` is present once there is a result."""

    job_id: str
    filename: str
    status: JobStatus
    download_url: str | UnsetType = UNSET
    progress: BatchJobProgress


class BatchJobs(Struct, frozen=True):
    """The jobs of a batch, in order of submission."""

    batch_id: str
    jobs: list[BatchJobView]


def batch_job_view(job: Job, base: BasePath) -> BatchJobView:
    """Return a job of a batch for a client."""
    return BatchJobView(
        job_id=job.id,
        filename=job.input_filename or "",
        status=job.status,
        download_url=or_unset(base.result(job.id, job.output_path)),
        progress=BatchJobProgress(shown_progress(job).percent, job.progress.step_name),
    )


@blueprint.post("")
@described(
    BatchAccepted,
    status=202,
    errors=SUBMISSION_ERRORS,
    query=(PipelineQuery,),
    headers=("Idempotency-Key",),
    body=FILES,
)
async def submit() -> Response:
    """Submit many files. Multipart: `files[]` or `files`, repeated, and `options` and `labels` as JSON text.

    The options may include a `priority`. `name` is the name of the batch.
    """
    context = request_context()
    submission = requested_submission(FIELDS, MAX_FILES)
    with claimed_id("batch") as batch_id:
        known = await context.view.find_batch(batch_id)
        if known is not None:
            for job in (await context.view.jobs_of_batch(known))[:1]:  # all were created by the same request
                await submission.require_same(job)
            return _accepted(known, REPLAYED)
        require_unused(await context.app.engine.batches.find(batch_id) is not None)
        await submission.create_jobs(lambda: str(uuid.uuid4()), batch_id)
        return _accepted(await context.view.batch(batch_id))


@blueprint.get("/<batch_id>")
@described(BatchView)
async def get_batch(batch_id: str) -> Response:
    """Return the state of a batch."""
    return json_response(batch_view(await _find(batch_id), request_context().view.store_id))


@blueprint.get("/<batch_id>/jobs")
@described(BatchJobs)
async def jobs_of_batch(batch_id: str) -> Response:
    """Return the jobs of a batch, in order of submission."""
    context = request_context()
    batch = await _find(batch_id)
    jobs = [batch_job_view(job, context.app.base) for job in await context.view.jobs_of_batch(batch)]
    return json_response(BatchJobs(batch.id, jobs))


@blueprint.delete("/<batch_id>")
@described(BatchCancelled, errors=(409, 507), query=(DeleteQuery,))
async def cancel(batch_id: str) -> Response:
    """Cancel the unfinished jobs of a batch. With `purge`, delete a finished batch, its jobs and their files."""
    view = request_context().view
    batch = await _find(batch_id)
    if parsed_query(request.args, DeleteQuery).purge:
        return await _purge(batch)
    if batch.status.finished:
        raise Conflict(f"batch {batch.id} is already {batch.status}")
    events = [BatchCancelEvent(job.id) for job in await view.jobs_of_batch(batch) if not job.status.finished]
    outcomes = await view.submit(*events)
    _raise_unless(outcomes, Conflict)  # some jobs may have finished in the meantime
    after = await view.batch(batch.id)
    cancelled = sum(isinstance(outcome, Job) for outcome in outcomes)
    if not cancelled:
        raise Conflict(f"batch {batch.id} is already {after.status}")
    return json_response(BatchCancelled(batch.id, BatchStatus.CANCELLED, cancelled, after.completed))


async def _purge(batch: JobBatch) -> Response:
    """Delete the jobs one by one. The batch is deleted with the last one."""
    if not batch.status.finished:
        raise Conflict(f"batch {batch.id} is {batch.status}: only finished batches can be deleted, so cancel it first")
    jobs = await request_context().view.jobs_of_batch(batch)
    for job in jobs:
        with suppress(NotFound):  # deleted in the meantime
            await purge(job)
    return json_response(BatchCancelled(batch.id, batch.status, batch.cancelled, batch.completed, len(jobs)))


@blueprint.post("/<batch_id>/retry")
@described(BatchAccepted, status=202, errors=(409, 507), headers=("Idempotency-Key",))
async def retry(batch_id: str) -> Response:
    """Create a new batch from the failed jobs of a finished batch, and from the cancelled ones if it was cancelled."""
    context = request_context()
    require_ready()
    batch = await _find(batch_id)
    with claimed_id(f"retry {batch.id}") as new_id:
        if (known := await context.view.find_batch(new_id)) is not None:
            return _accepted(known, REPLAYED)
        require_unused(await context.app.engine.batches.find(new_id) is not None)
        if not batch.status.finished:
            raise Conflict(f"batch {batch.id} is {batch.status}: only finished batches can be retried")
        statuses = {JobStatus.FAILED, *([JobStatus.CANCELLED] if batch.status is BatchStatus.CANCELLED else [])}
        jobs = [job for job in await context.view.jobs_of_batch(batch) if job.status in statuses]
        if not jobs:
            raise Conflict(f"batch {batch.id} has no failed jobs")
        events = [retried(job, str(uuid.uuid4()), new_id, batch.name) for job in jobs]
        async with AsyncExitStack() as inputs:
            for job, event in zip(jobs, events, strict=True):
                await inputs.enter_async_context(context.app.files.copied_input(job.id, event.job_id))
            with trio.CancelScope(shield=True):  # a client that disconnects must not remove the input of a stored job
                await context.view.submit_all(*events)
                await inputs.aclose()
        return _accepted(await context.view.batch(new_id))


@blueprint.get("/<batch_id>/download")
@described(also={200: {ZIP: {"type": "string", "format": "binary"}}}, errors=(409,))
async def download(batch_id: str) -> Response:
    """Return a ZIP file with the results of the completed jobs."""
    context = request_context()
    batch = await _find(batch_id)
    jobs = [job for job in await context.view.jobs_of_batch(batch) if job.status is JobStatus.COMPLETED]
    paths = [context.app.files.output(job.id) for job in jobs]
    there = await trio.to_thread.run_sync(lambda: [path.is_file() for path in paths])
    results = [(job, path) for job, path, exists in zip(jobs, paths, there, strict=True) if exists]
    if not results:
        raise Conflict(f"batch {batch.id} has no results to download: its status is {batch.status}")
    names = unique_names([result_name(job) for job, _ in results])
    members = [
        ZipMember(name, path, job.completed_at or job.created_at)
        for name, (job, path) in zip(names, results, strict=True)
    ]
    body = b"" if request.method == "HEAD" else ZipBody(members)
    response = Response(body, 200, {"Cache-Control": CACHING}, content_type=ZIP)
    title = batch.name or PurePath(jobs[0].input_filename or jobs[0].kind).stem
    title = "".join(letter if letter.isprintable() else "_" for letter in title)
    response.headers["Content-Disposition"] = attachment(f"{title}.zip")
    response.accept_ranges = "none"
    response.timeout = None
    return response


def _raise_unless(outcomes: list[Job | ProgressdError], *accepted: type[ProgressdError]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, ProgressdError) and not isinstance(outcome, accepted):
            raise outcome


def _accepted(batch: JobBatch, headers: dict[str, str] | None = None) -> Response:
    """Return the same response for every replay."""
    return json_response(BatchAccepted(batch.id, BatchStatus.QUEUED, batch.total, batch.created_at), 202, headers)


async def _find(text: str) -> JobBatch:
    return await request_context().view.batch(checked_batch_id(text))
