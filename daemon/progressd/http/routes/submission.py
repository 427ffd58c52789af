"""Checks of submitted files, alone or in a batch: the pipeline, the options, the type and the idempotency key."""

import mimetypes
import shutil
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct
from quart import request

from progressd.auth.client_address import counted_as
from progressd.core.batch import Priority
from progressd.core.errors import IdempotencyKeyReused, InvalidInput, InvalidOption, Unavailable, UnsupportedMedia
from progressd.core.events import Labels
from progressd.core.job import Job
from progressd.core.json import decode
from progressd.core.options import checked_options
from progressd.core.pipeline import Pipeline, shown
from progressd.http.context import request_context
from progressd.http.middleware.idempotency import HEADER
from progressd.http.multipart import printable_name, receive_form

PDF: Final = "application/pdf"
SIGNATURES: Final[Mapping[str, bytes]] = {PDF: b"%PDF-"}  # somewhere in the first 1024 bytes
SUBMISSION_ERRORS: Final = (408, 409, 413, 415, 422, 507)

LABELS: Final[dict[str, Any]] = {  # the OpenAPI schema of the field
    "type": "string",
    "contentMediaType": "application/json",
    "examples": ['{"team": "scan"}'],
}

_decode_options = msgspec.json.Decoder(dict[str, object]).decode
_decode_labels = msgspec.json.Decoder(Labels).decode


class PipelineQuery(Struct, frozen=True):
    """The query of a submission."""

    pipeline: str = "pdf"


class SubmissionFields(NamedTuple):
    """The fields of a form beside its files. `options` may include a `priority`."""

    options: dict[str, object]
    labels: dict[str, str]

    def checked(self, pipeline: Pipeline) -> tuple[dict[str, object], Priority]:
        """Return the pipeline's options, with defaults for those not given, and the priority. Raises InvalidOption.

        If the pipeline has an option named priority, the priority itself is the default.
        """
        given = dict(self.options)
        own = "priority" in pipeline.options
        priority = Priority.NORMAL if own else _priority(given.pop("priority", Priority.NORMAL))
        return checked_options(pipeline, given, lambda program: shutil.which(program) is not None), priority


def requested_pipeline() -> tuple[str, Pipeline]:
    """Return the pipeline in the query, `pdf` by default. Raises InvalidInput, Unavailable."""
    app = request_context().app
    if not app.ready:
        raise Unavailable("the daemon is stopping and accepts no new jobs")
    name = request.args.get("pipeline", "pdf")
    pipeline = app.settings.pipelines.get(name)
    if pipeline is None:
        raise InvalidInput(f"there is no pipeline {name[:60]!r}: choose from {', '.join(app.settings.pipelines)}")
    return name, pipeline


def read_submission_fields(fields: Mapping[str, str]) -> SubmissionFields:
    """Read the fields `options` and `labels`, both JSON. Raises InvalidOption, and InvalidInput for invalid labels."""
    try:
        options = decode(_decode_options, fields.get("options", "").encode() or b"{}", "a JSON object")
    except InvalidInput as error:
        raise InvalidOption(f"the field options is {error}") from None
    try:
        labels = decode(_decode_labels, fields.get("labels", "").encode() or b"{}", "a JSON object of texts")
    except InvalidInput as error:
        raise InvalidInput(f"the field labels is {error}") from None
    return SubmissionFields(options, labels)


def _priority(given: object) -> Priority:
    if isinstance(given, str) and given in list(Priority):
        return Priority(given)
    raise InvalidOption(f"option priority: {shown(given)} is not one of {', '.join(Priority)}")


async def require_same(known: Job, pipeline: str, file_fields: Collection[str], max_files: int = 1) -> None:
    """Receive a form again, and store nothing. Raises IdempotencyKeyReused if it differs, or like `receive_form`."""
    if known.pipeline != pipeline:
        raise IdempotencyKeyReused(f"this {HEADER} was used before, for the pipeline {known.pipeline}: use a new one")
    _, digest = await receive_form(request, None, file_fields, request_context().app.settings.limits, max_files)
    if digest != known.fingerprint:
        raise IdempotencyKeyReused(f"this {HEADER} was used before, with other files, options or labels: use a new one")


def owner_of_request() -> str:
    """Return the name of the request's key, or the client's address."""
    client = request_context().client
    if client.identity.name is not None:
        return f"key:{client.identity.name}"
    return f"address:{counted_as(client.address)}"


def claimed_id(kind: str) -> AbstractContextManager[str]:
    """Return the id of the job or batch to create, which follows from the idempotency key. See IdempotencyKeys."""
    context = request_context()
    return context.app.keys.claimed(request.headers.get(HEADER), kind, context.client.identity.key)


def require_unused(exists: bool) -> None:
    """Raise IdempotencyKeyReused where a job with the claimed id `exists`, hidden from this client."""
    if exists:
        raise IdempotencyKeyReused(
            f"this {HEADER} was used before, for a job that this client cannot see: use a new one"
        )


def check_type(head: bytes, filename: str, pipeline: Pipeline) -> None:
    """Check the type by its signature if it has a known one, else by the file's name. Raises UnsupportedMedia."""
    guessed = mimetypes.guess_type(filename)[0]
    for accepted in pipeline.accept:
        signature = SIGNATURES.get(accepted)
        if signature in head if signature is not None else accepted in (guessed, "*/*"):
            return
    name = printable_name(filename)
    if not head:
        raise UnsupportedMedia(f"{name} is empty")
    kind = "PDF" if pipeline.accept == (PDF,) else f"file of the type {' or '.join(pipeline.accept)}"
    raise UnsupportedMedia(f"{name} is not a {kind}")
