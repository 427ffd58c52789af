"""Batches: files that are submitted, queried and cancelled together."""

import uuid
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

import trio
from msgspec.structs import replace
from quart import Blueprint, Response, request

from progressd.auth.identity import UNRESTRICTED
from progressd.core.batch import BatchStatus, JobBatch
from progressd.core.errors import Conflict, ProgressdError
from progressd.core.events import BatchCancelEvent, Registration, SubmitEvent, checked_batch_id
from progressd.core.job import Job
from progressd.core.pipeline import Pipeline
from progressd.files.job_files import JobFiles
from progressd.files.upload import Upload
from progressd.http.context import json_response, request_context
from progressd.http.middleware.idempotency import REPLAYED
from progressd.http.multipart import receive_form
from progressd.http.openapi.operations import FORM, described
from progressd.http.routes.submission import (
    LABELS,
    SUBMISSION_ERRORS,
    PipelineQuery,
    check_type,
    claimed_id,
    owner_of_request,
    read_submission_fields,
    requested_pipeline,
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
    BatchAccepted,
    status=202,
    errors=SUBMISSION_ERRORS,
    query=(PipelineQuery,),
    headers=("Idempotency-Key",),
    body=FILES,
)
async def submit() -> Response:
    """Submit many files. Multipart: `files[]` or `files`, repeated, and `options` and `labels` as JSON text.

    The options may include a `priority`.
    """
    context = request_context()
    name, pipeline = requested_pipeline()
    with claimed_id("batch") as batch_id:
        known = await context.scope.batches.find(batch_id)
        if known is not None:
            for job in (await _jobs(known))[:1]:  # all came with the same request
                await require_same(job, name, FIELDS, MAX_FILES)
            return _accepted(known, REPLAYED)
        require_unused(await context.app.scopes.of(UNRESTRICTED).batches.find(batch_id) is not None)
        return _accepted(await _create(batch_id, name, pipeline))


@blueprint.get("/<batch_id>")
@described(BatchView)
async def get_batch(batch_id: str) -> Response:
    """Return the state of a batch."""
    return json_response(batch_view(await _find(batch_id), request_context().scope.store.id))


@blueprint.get("/<batch_id>/jobs")
@described(BatchJobs)
async def jobs_of_batch(batch_id: str) -> Response:
    """Return the jobs of a batch, in the order they were submitted."""
    batch = await _find(batch_id)
    base = request_context().app.base
    return json_response(BatchJobs(batch.id, [batch_job_view(job, base) for job in await _jobs(batch)]))


@blueprint.delete("/<batch_id>")
@described(BatchCancelled, errors=(409, 507))
async def cancel(batch_id: str) -> Response:
    """Cancel the unfinished jobs of a batch."""
    scope = request_context().scope
    batch = await _find(batch_id)
    if batch.status.finished:
        raise Conflict(f"batch {batch.id} is already {batch.status}")
    events = [BatchCancelEvent(job.id) for job in await _jobs(batch) if not job.status.finished]
    outcomes = await scope.ingest.submit(*events)
    _raise_unless(outcomes, Conflict)  # some may have finished just before
    after = await scope.batches.get(batch.id)
    cancelled = sum(isinstance(outcome, Job) for outcome in outcomes)
    if not cancelled:
        raise Conflict(f"batch {batch.id} is already {after.status}")
    return json_response(BatchCancelled(batch.id, BatchStatus.CANCELLED, cancelled, after.completed))


class _File(NamedTuple):
    job_id: str
    filename: str
    upload: Upload


class _BatchFiles:
    """Writes the files of a form to disk, each as the input of a future job."""

    def __init__(self, files: JobFiles, pipeline: Pipeline, uploads: AsyncExitStack) -> None:
        self.received: list[_File] = []
        self._files = files
        self._pipeline = pipeline
        self._uploads = uploads

    async def begin(self, filename: str) -> Upload:
        if not self.received:
            self._files.require(request.content_length or 0)
        job_id = str(uuid.uuid4())
        upload = await self._uploads.enter_async_context(self._files.upload(job_id))
        self.received.append(_File(job_id, filename, upload))
        return upload

    async def whole(self) -> None:
        file = self.received[-1]
        check_type(file.upload.head, file.filename, self._pipeline)
        await file.upload.finish()


async def _create(batch_id: str, name: str, pipeline: Pipeline) -> JobBatch:
    """Receive the files and create their jobs: all or none."""
    context = request_context()
    async with AsyncExitStack() as uploads:
        sink = _BatchFiles(context.app.files, pipeline, uploads)
        form, digest = await receive_form(request, sink, FIELDS, context.app.settings.limits, MAX_FILES)
        fields = read_submission_fields(form)
        options, priority = fields.checked(pipeline)
        owner = owner_of_request()
        registration = Registration(name, options=options, labels=fields.labels)
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
            for job_id, filename, _ in sink.received
        ]
        with trio.CancelScope(shield=True):  # as for a single file
            _raise_unless(await context.scope.ingest.submit(*events))
            await uploads.aclose()  # shielded, because to the other uploads a Cancelled would be a failure
    return await context.scope.batches.get(batch_id)


def _raise_unless(outcomes: list[Job | ProgressdError], *accepted: type[ProgressdError]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, ProgressdError) and not isinstance(outcome, accepted):
            raise outcome


def _accepted(batch: JobBatch, headers: dict[str, str] | None = None) -> Response:
    """Return the same response for every replay."""
    return json_response(BatchAccepted(batch.id, BatchStatus.QUEUED, batch.total, batch.created_at), 202, headers)


async def _find(text: str) -> JobBatch:
    return await request_context().scope.batches.get(checked_batch_id(text))


async def _jobs(batch: JobBatch) -> list[Job]:
    scope = request_context().scope
    return [scope.registry.known(job.id) or job for job in await scope.store.jobs_of_batch(batch.id)]
