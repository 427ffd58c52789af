"""`POST /api/convert`: a file comes in and becomes a job of the runner."""

from typing import Final

import trio
from quart import Blueprint, Response, request

from progressd.core.events import Registration, SubmitEvent
from progressd.core.job import Job
from progressd.core.pipeline import Pipeline
from progressd.core.status import JobStatus
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
@described(JobAccepted, status=202, errors=SUBMISSION, query=(PipelineChoice,), headers=("Idempotency-Key",), body=FILE)
async def convert() -> Response:
    """Multipart: `file`, and `options` and `labels` as JSON text; `?pipeline=NAME` for another than `pdf`."""
    daemon = services()
    name, pipeline = pipeline_asked_for()
    with daemon.keys.claimed(request.headers.get(HEADER), "job") as job_id:
        known = (await daemon.registry.find([job_id])).get(job_id)
        if known is None:
            require_unused(job_id in await daemon.everything.registry.find([job_id]))
            return _accepted(await _take(job_id, name, pipeline))
        await require_same(known, name, FIELDS)
        return _accepted(known, REPLAYED)


class _OneFile:
    """The file of the form."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.filename = ""

    async def begin(self, filename: str) -> Upload:
        self.filename = filename
        services().files.require(request.content_length or 0)
        return self.upload

    async def whole(self) -> None:
        """Checked later: what is wrong with the form itself is said first."""


async def _take(job_id: str, name: str, pipeline: Pipeline) -> Job:
    """Receive the file, and make the job of it."""
    daemon = services()
    async with daemon.files.upload(job_id) as upload:
        inbox = _OneFile(upload)
        fields, digest = await receive_form(request, inbox, FIELDS, daemon.settings.limits)
        check_type(upload.head, inbox.filename, pipeline)
        wishes = read_submission_fields(fields)
        options, priority = wishes.checked(pipeline)
        await upload.finish()
        registration = Registration(name, inbox.filename[:255], options=options, labels=wishes.labels)
        with trio.CancelScope(shield=True):  # a client that leaves must not take the input of a job that is kept
            event = SubmitEvent(job_id, registration, name, None, priority, digest, owner_of_request())
            job = await daemon.ingest.submit_one(event)
    return job


def _accepted(job: Job, headers: dict[str, str] | None = None) -> Response:
    """The same answer however often it is asked for."""
    return json_response(JobAccepted(job.id, JobStatus.QUEUED, job.created_at), 202, headers)
