"""`POST /api/convert`: an uploaded file becomes a job of the runner."""

from typing import Final

import trio
from quart import Blueprint, Response, request

from progressd.auth.identity import UNRESTRICTED
from progressd.core.events import Registration, SubmitEvent
from progressd.core.job import Job
from progressd.core.pipeline import Pipeline
from progressd.core.status import JobStatus
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
from progressd.http.schemas.responses import JobAccepted

FILE_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "options": {"type": "string", "contentMediaType": "application/json", "examples": ['{"dpi": 300}']},
        "labels": LABELS,
    },
    "required": ["file"],
}
FILE: Final = {FORM: FILE_SCHEMA}
FIELDS: Final = ("file",)

blueprint = Blueprint("convert", __name__)


@blueprint.post("/api/convert")
@described(
    JobAccepted, status=202, errors=SUBMISSION_ERRORS, query=(PipelineQuery,), headers=("Idempotency-Key",), body=FILE
)
async def convert() -> Response:
    """Submit a file. Multipart: `file`, and `options` and `labels` as JSON text."""
    context = request_context()
    name, pipeline = requested_pipeline()
    with claimed_id("job") as job_id:
        known = (await context.scope.registry.find([job_id])).get(job_id)
        if known is None:
            require_unused(job_id in await context.app.scopes.of(UNRESTRICTED).registry.find([job_id]))
            return _accepted(await _create(job_id, name, pipeline))
        await require_same(known, name, FIELDS)
        return _accepted(known, REPLAYED)


class _JobFile:
    """Writes the file of a form to disk, as the input of a future job."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.filename = ""

    async def begin(self, filename: str) -> Upload:
        self.filename = filename
        request_context().app.files.require(request.content_length or 0)
        return self.upload

    async def whole(self) -> None:
        """Do nothing: the type is checked later, after errors of the form itself."""


async def _create(job_id: str, name: str, pipeline: Pipeline) -> Job:
    """Receive the file and create its job."""
    context = request_context()
    async with context.app.files.upload(job_id) as upload:
        sink = _JobFile(upload)
        form, digest = await receive_form(request, sink, FIELDS, context.app.settings.limits)
        check_type(upload.head, sink.filename, pipeline)
        fields = read_submission_fields(form)
        options, priority = fields.checked(pipeline)
        await upload.finish()
        registration = Registration(name, sink.filename[:255], options=options, labels=fields.labels)
        with trio.CancelScope(shield=True):  # a client that disconnects must not remove the input of a stored job
            event = SubmitEvent(job_id, registration, name, None, priority, digest, owner_of_request())
            job = await context.scope.ingest.submit_one(event)
    return job


def _accepted(job: Job, headers: dict[str, str] | None = None) -> Response:
    """Return the same response for every replay."""
    return json_response(JobAccepted(job.id, JobStatus.QUEUED, job.created_at), 202, headers)
