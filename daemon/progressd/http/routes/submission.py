"""File submissions, which create jobs; and `POST /api/convert`, which submits a single file.

A second request with the same `Idempotency-Key` finds the jobs that the first one created. The job id is derived from
the key, so the store remembers the key for as long as it keeps the job. See draft-ietf-httpapi-idempotency-key-header.
"""

import mimetypes
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec
import trio
from msgspec import Struct
from quart import Blueprint, Response, request

from progressd.auth.limits import address_group
from progressd.core.errors import (
    Conflict,
    IdempotencyKeyReused,
    InvalidInput,
    InvalidOption,
    Unavailable,
    UnsupportedMedia,
)
from progressd.core.events import Labels, Priority, Registration, SubmitEvent
from progressd.core.job import Job
from progressd.core.json import decode
from progressd.core.messages import JobStatus
from progressd.core.pipeline import Pipeline, checked_options, shown
from progressd.files.job_files import JobFiles, Upload
from progressd.http.body import BodyChunks, form_body, printable_name, receive_form
from progressd.http.context import json_response, request_context
from progressd.http.openapi import described
from progressd.http.schemas import FORM

PDF: Final = "application/pdf"
SIGNATURES: Final[Mapping[str, bytes]] = {PDF: b"%PDF-"}  # anywhere in the first 1024 bytes
DEFAULT_PIPELINE: Final = "pdf"
MAX_NAME: Final = 255  # characters of the name of a batch
HEADER: Final = "Idempotency-Key"
KEY: Final = re.compile(r"[!-~]{1,255}", re.ASCII)  # with or without the quotes that the draft requires
REPLAYED: Final = {"Idempotency-Replayed": "true"}
SUBMISSION_ERRORS: Final = (408, 409, 413, 415, 422, 507)

LABELS: Final[dict[str, Any]] = {  # the OpenAPI schema of the field
    "type": "string",
    "contentMediaType": "application/json",
    "examples": ['{"team": "scan"}'],
}

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

_decode_options = msgspec.json.Decoder(dict[str, object]).decode
_decode_labels = msgspec.json.Decoder(Labels).decode


class JobAccepted(Struct, frozen=True):
    """The job created from a file."""

    job_id: str
    status: JobStatus
    created_at: datetime


class PipelineQuery(Struct, frozen=True):
    """The query of a submission."""

    pipeline: str = DEFAULT_PIPELINE


@blueprint.post("/api/convert")
@described(
    JobAccepted, status=202, errors=SUBMISSION_ERRORS, query=(PipelineQuery,), headers=("Idempotency-Key",), body=FILE
)
async def convert() -> Response:
    """Submit a file. Multipart: `file`, and `options` and `labels` as JSON text."""
    context = request_context()
    submission = requested_submission(FIELDS)
    with claimed_id("job") as job_id:
        known = await context.view.find_job(job_id)
        if known is not None:
            await submission.require_same(known)
            return _accepted(known, REPLAYED)
        require_unused(job_id in await context.app.engine.registry.find([job_id]))
        [job] = await submission.create_jobs(lambda: job_id)
        return _accepted(job)


def _accepted(job: Job, headers: dict[str, str] | None = None) -> Response:
    """Return the same response for every replay."""
    return json_response(JobAccepted(job.id, JobStatus.QUEUED, job.created_at), 202, headers)


class Submission(NamedTuple):
    """A request that submits the files in some form fields to a pipeline."""

    name: str
    pipeline: Pipeline
    file_fields: Collection[str]
    max_files: int

    async def create_jobs(self, new_id: Callable[[], str], batch_id: str | None = None) -> list[Job]:
        """Receive the files, and create a job for each file: all or none. `new_id` returns the id of the next job."""
        context = request_context()
        with uploading(self._body) as body:
            async with AsyncExitStack() as uploads:
                sink = _Files(context.app.files, self.pipeline, uploads, new_id)
                limits = context.app.settings.limits
                form = await receive_form(request, body, sink, self.file_fields, limits, self.max_files)
                batch_name = checked_batch_name(form.get("name", "")) if batch_id is not None else ""
                given, labels = read_fields(form)
                options, priority = checked(self.pipeline, given)
                fingerprint, owner = _fingerprint(), context.owner
                events = []
                for job_id, filename, _ in sink.received:
                    registration = Registration(self.name, filename[:255], options=options, labels=labels)
                    events.append(
                        SubmitEvent(job_id, registration, self.name, batch_id, priority, fingerprint, owner, batch_name)
                    )
                # A client that disconnects must not remove the input of a stored job.
                with trio.CancelScope(shield=True):
                    jobs = await context.view.submit_all(*events)
                    await uploads.aclose()  # shielded: the other uploads would report a Cancelled as a failure
        return jobs

    async def require_same(self, known: Job) -> None:
        """Receive a form again and discard it. Raises IdempotencyKeyReused, and the errors of BodyChunks."""
        if known.pipeline != self.name:
            raise IdempotencyKeyReused(
                f"this {HEADER} was used before, for the pipeline {known.pipeline}: use a new one"
            )
        if known.fingerprint != _fingerprint():
            raise IdempotencyKeyReused(f"this {HEADER} was used before, with another body: use a new one")
        with uploading(self._body) as body:
            async for _ in body:
                pass

    @property
    def _body(self) -> BodyChunks:
        return form_body(request, request_context().app.settings.limits, self.max_files)


def _fingerprint() -> str:
    """Return the identity of the request's body: its length, and its digest if the client sends one."""
    return f"{request.content_length} {request.headers.get('Content-Digest', '')}"


class _ReceivedFile(NamedTuple):
    job_id: str
    filename: str
    upload: Upload


class _Files:
    """Write the files of a form to disk, each as the input of a future job."""

    def __init__(self, files: JobFiles, pipeline: Pipeline, uploads: AsyncExitStack, new_id: Callable[[], str]) -> None:
        self.received: list[_ReceivedFile] = []
        self._files = files
        self._pipeline = pipeline
        self._uploads = uploads
        self._new_id = new_id

    async def begin(self, filename: str) -> Upload:
        if not self.received:
            self._files.require(request.content_length or 0)
        job_id = self._new_id()
        upload = await self._uploads.enter_async_context(self._files.upload(job_id))
        self.received.append(_ReceivedFile(job_id, filename, upload))
        return upload

    async def whole(self) -> None:
        file = self.received[-1]
        require_type(file.upload.head, file.filename, self._pipeline)
        await file.upload.finish()


def requested_submission(file_fields: Collection[str], max_files: int = 1) -> Submission:
    """Return the submission with the pipeline in the query, `pdf` by default. Raises InvalidInput, Unavailable."""
    require_ready()
    name = request.args.get("pipeline", DEFAULT_PIPELINE)
    return Submission(name, pipeline_named(name), file_fields, max_files)


def require_ready() -> None:
    """Check that the daemon accepts jobs. Raises Unavailable."""
    if not request_context().app.ready:
        raise Unavailable("the daemon is stopping and accepts no new jobs")


def pipeline_named(name: str) -> Pipeline:
    """Return a pipeline. Raises InvalidInput."""
    pipelines = request_context().app.settings.pipelines
    if name not in pipelines:
        raise InvalidInput(f"there is no pipeline {name[:60]!r}: choose from {', '.join(pipelines)}")
    return pipelines[name]


@contextmanager
def uploading(body: BodyChunks) -> Iterator[BodyChunks]:
    """Count an upload of the client inside the block. Raises TooManyUploads, RequestTimeout."""
    context = request_context()
    client = context.client
    owner = client.identity.key or address_group(client.address)
    exempt = context.app.rate_limits.exempts(client.address)
    with context.app.transfers.uploading(owner, body, context.app.settings.limits, exempt=exempt):
        yield body


def checked_batch_name(name: str) -> str:
    """Return the name of a batch. Raises InvalidInput."""
    if len(name) > MAX_NAME:
        raise InvalidInput(f"the name of the batch has more than {MAX_NAME} characters")
    return name


def read_fields(fields: Mapping[str, str]) -> tuple[dict[str, object], dict[str, str]]:
    """Read the fields `options` and `labels`, both JSON. Raises InvalidOption, and InvalidInput for invalid labels."""
    try:
        options = decode(_decode_options, fields.get("options", "").encode() or b"{}", "a JSON object")
    except InvalidInput as error:
        raise InvalidOption(f"the field options is {error}") from None
    try:
        labels = decode(_decode_labels, fields.get("labels", "").encode() or b"{}", "a JSON object of texts")
    except InvalidInput as error:
        raise InvalidInput(f"the field labels is {error}") from None
    return options, labels


def checked(pipeline: Pipeline, given: dict[str, object]) -> tuple[dict[str, object], Priority]:
    """Return all options of the pipeline, including defaults, and the priority. Raises InvalidOption.

    If the pipeline has an option named priority, the job's priority is always normal.
    """
    own = "priority" in pipeline.options
    priority = Priority.NORMAL if own else _priority(given.pop("priority", Priority.NORMAL))
    return checked_options(pipeline, given, lambda program: shutil.which(program) is not None), priority


def _priority(given: object) -> Priority:
    if isinstance(given, str) and given in list(Priority):
        return Priority(given)
    raise InvalidOption(f"option priority: {shown(given)} is not one of {', '.join(Priority)}")


@contextmanager
def claimed_id(kind: str) -> Iterator[str]:
    """Yield the id of the "job" or "batch" to create; it is random without an idempotency key.

    Each access key has its own idempotency keys. Raises InvalidInput for a malformed key, and Conflict while another
    request with this key is in progress.
    """
    context = request_context()
    key = request.headers.get(HEADER)
    if key is None:
        yield str(uuid.uuid4())
        return
    if KEY.fullmatch(key) is None:
        raise InvalidInput(f"{HEADER} is malformed: send 1 to 255 printable ASCII characters without spaces")
    claimed, id_ = context.app.claimed_ids, id_of(f"{kind} {key}")
    if id_ in claimed:
        raise Conflict(f"another request with this {HEADER} is being served: wait for its response")
    claimed.add(id_)
    try:
        yield id_
    finally:
        claimed.discard(id_)


def id_of(name: str) -> str:
    """Return the id that a name from a client stands for. Each access key has its own names."""
    context = request_context()
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, f"progressd:{context.view.store_id}")
    if access_key := context.client.identity.key:
        namespace = uuid.uuid5(namespace, access_key)
    return str(uuid.uuid5(namespace, name))


def require_unused(exists: bool) -> None:
    """Raise IdempotencyKeyReused if a job with the claimed id `exists` but is hidden from this client."""
    if exists:
        raise IdempotencyKeyReused(
            f"this {HEADER} was used before, for a job that this client cannot see: use a new one"
        )


def has_signature(pipeline: Pipeline) -> bool:
    """Return whether the type of a file depends on its first bytes."""
    return not SIGNATURES.keys().isdisjoint(pipeline.accept)


def require_type(head: bytes, filename: str, pipeline: Pipeline, filetype: str = "") -> None:
    """Check the type by its signature if known, otherwise by the file's name. Raises UnsupportedMedia.

    `filetype`: the type according to the client, for a name that tells nothing.
    """
    guessed = mimetypes.guess_type(filename)[0] or filetype
    for accepted in pipeline.accept:
        signature = SIGNATURES.get(accepted)
        if signature in head if signature is not None else accepted in (guessed, "*/*"):
            return
    name = printable_name(filename)
    if not head:
        raise UnsupportedMedia(f"{name} is empty")
    kind = "PDF" if pipeline.accept == (PDF,) else f"file of the type {' or '.join(pipeline.accept)}"
    raise UnsupportedMedia(f"{name} is not a {kind}")
