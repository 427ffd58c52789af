"""Batches over REST: files that are handed in together, looked at together, and called off together."""

import uuid
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

import trio
from msgspec.structs import replace
from quart import Blueprint, Response, request

from progressd.core.batch import BatchStatus, JobBatch
from progressd.core.errors import Conflict, ProgressdError
from progressd.core.events import BatchCancelEvent, Registration, SubmitEvent, checked_batch_id
from progressd.core.job import Job
from progressd.core.pipeline import Pipeline
from progressd.files.job_files import JobFiles
from progressd.files.upload import Upload
from progressd.http.context import json_response, services
from progressd.http.middleware.idempotency import HEADER, REPLAYED
from progressd.http.multipart import receive_form
from progressd.http.openapi.operations import FORM, described
from progressd.http.requests import PipelineChoice
from progressd.http.routes.submission import (
    LABELS,
    SUBMISSION,
    check_type,
    owner_of_request,
    pipeline_asked_for,
    read_submission_fields,
    require_same,
    require_unused,
)
from progressd.http.schemas.responses import BatchAccepted, BatchCancelled, BatchJobs
from progressd.http.schemas.views import BatchView, batch_job_view, batch_view

MAX_FILES: Final = 100
FIELDS: Final = ("files[]", "files")
FILES_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "files": {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": MAX_FILES},
        "options": {"type": "string", "contentMediaType": "application/json", "examples": ['{"priority": "high"}']},
        "labels": LABELS,
    },
    "required": ["files"],
}
FILES: Final = {FORM: FILES_SCHEMA}

blueprint = Blueprint("batch", __name__, url_prefix="/api/batch")


@blueprint.post("")
@described(
    BatchAccepted, status=202, errors=SUBMISSION, query=(PipelineChoice,), headers=("Idempotency-Key",), body=FILES
)
async def submit() -> Response:
    """Multipart: `files[]` or `files`, repeated; `options`, which may have a `priority`, and `labels` as JSON text."""
    daemon = services()
    name, pipeline = pipeline_asked_for()
    with daemon.keys.claimed(request.headers.get(HEADER), "batch") as batch_id:
        known = await daemon.batches.find(batch_id)
        if known is not None:
            for job in (await _jobs(known))[:1]:  # all came with the same request
                await require_same(job, name, FIELDS, MAX_FILES)
            return _accepted(known, REPLAYED)
        require_unused(await daemon.everything.batches.find(batch_id) is not None)
        return _accepted(await _take(batch_id, name, pipeline))


@blueprint.get("/<batch_id>")
@described(BatchView)
async def get_batch(batch_id: str) -> Response:
    """How far a batch is."""
    return json_response(batch_view(await _find(batch_id), services().store.id))


@blueprint.get("/<batch_id>/jobs")
@described(BatchJobs)
async def jobs_of_batch(batch_id: str) -> Response:
    """The jobs of a batch, as they were handed in."""
    batch = await _find(batch_id)
    base = services().base
    return json_response(BatchJobs(batch.id, [batch_job_view(job, base) for job in await _jobs(batch)]))


@blueprint.delete("/<batch_id>")
@described(BatchCancelled, errors=(409, 507))
async def cancel(batch_id: str) -> Response:
    """Cancel the jobs of a batch that have not finished."""
    daemon = services()
    batch = await _find(batch_id)
    if batch.status.finished:
        raise Conflict(f"batch {batch.id} is already {batch.status}")
    events = [BatchCancelEvent(job.id) for job in await _jobs(batch) if not job.status.finished]
    outcomes = await daemon.ingest.submit(*events)
    _raise_unless(outcomes, Conflict)  # some may have finished just before
    after = await daemon.batches.get(batch.id)
    cancelled = sum(isinstance(outcome, Job) for outcome in outcomes)
    if not cancelled:
        raise Conflict(f"batch {batch.id} is already {after.status}")
    return json_response(BatchCancelled(batch.id, BatchStatus.CANCELLED, cancelled, after.completed))


class _File(NamedTuple):
    job_id: str
    filename: str
    upload: Upload


class _ManyFiles:
    """The files of the form, each on the disk as the input of a job to be."""

    def __init__(self, files: JobFiles, pipeline: Pipeline, uploads: AsyncExitStack) -> None:
        self.taken: list[_File] = []
        self._files = files
        self._pipeline = pipeline
        self._uploads = uploads

    async def begin(self, filename: str) -> Upload:
        if not self.taken:
            self._files.require(request.content_length or 0)
        job_id = str(uuid.uuid4())
        upload = await self._uploads.enter_async_context(self._files.upload(job_id))
        self.taken.append(_File(job_id, filename, upload))
        return upload

    async def whole(self) -> None:
        file = self.taken[-1]
        check_type(file.upload.head, file.filename, self._pipeline)
        await file.upload.finish()


async def _take(batch_id: str, name: str, pipeline: Pipeline) -> JobBatch:
    """Receive the files, and make the jobs of them: all or none."""
    daemon = services()
    async with AsyncExitStack() as uploads:
        inbox = _ManyFiles(daemon.files, pipeline, uploads)
        fields, digest = await receive_form(request, inbox, FIELDS, daemon.settings.limits, MAX_FILES)
        wishes = read_submission_fields(fields)
        options, priority = wishes.checked(pipeline)
        owner = owner_of_request()
        registration = Registration(name, options=options, labels=wishes.labels)
        events = [
            SubmitEvent(
                job_id,
                replace(registration, input_filename=filename[:255]),
                name,
                batch_id,
                priority,
                digest,
                owner,
            )
            for job_id, filename, _ in inbox.taken
        ]
        with trio.CancelScope(shield=True):  # as for a single file
            _raise_unless(await daemon.ingest.submit(*events))
            await uploads.aclose()  # within this: leaving one may raise Cancelled, which to the others is a failure
    return await daemon.batches.get(batch_id)


def _raise_unless(outcomes: list[Job | ProgressdError], *accepted: type[ProgressdError]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, ProgressdError) and not isinstance(outcome, accepted):
            raise outcome


def _accepted(batch: JobBatch, headers: dict[str, str] | None = None) -> Response:
    """The same answer however often it is asked for."""
    return json_response(BatchAccepted(batch.id, BatchStatus.QUEUED, batch.total, batch.created_at), 202, headers)


async def _find(text: str) -> JobBatch:
    return await services().batches.get(checked_batch_id(text))


async def _jobs(batch: JobBatch) -> list[Job]:
    daemon = services()
    return [daemon.registry.known(job.id) or job for job in await daemon.store.jobs_of_batch(batch.id)]
