"""What files that are handed in must be like, alone or in a batch: the pipeline, the options and the type."""

import mimetypes
import shutil
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from quart import request

from progressd.auth.client_address import counted_as
from progressd.core.batch import Priority
from progressd.core.errors import IdempotencyKeyReused, InvalidInput, InvalidOption, Unavailable, UnsupportedMedia
from progressd.core.events import Labels
from progressd.core.job import Job
from progressd.core.json import decode
from progressd.core.pipeline import Pipeline, checked_options, shown
from progressd.http.context import services
from progressd.http.middleware.access import who_asks
from progressd.http.middleware.idempotency import HEADER
from progressd.http.multipart import printable_name, receive_form

PDF: Final = "application/pdf"
SIGNATURES: Final[Mapping[str, bytes]] = {PDF: b"%PDF-"}  # somewhere in the first 1024 bytes
SUBMISSION: Final = (408, 409, 413, 415, 422, 507)  # how a submission may be refused

LABELS: Final[dict[str, Any]] = {  # how OpenAPI has that field
    "type": "string",
    "contentMediaType": "application/json",
    "examples": ['{"team": "scan"}'],
}

_decode_options = msgspec.json.Decoder(dict[str, object]).decode
_decode_labels = msgspec.json.Decoder(Labels).decode


class SubmissionFields(NamedTuple):
    """What the fields beside the files ask for; `options` as they were given, which may have a `priority`."""

    options: dict[str, object]
    labels: dict[str, str]

    def checked(self, pipeline: Pipeline) -> tuple[dict[str, object], Priority]:
        """All options of the pipeline, those that were not given with their defaults. Raises InvalidOption.

        A pipeline's own option of that name is no priority.
        """
        given = dict(self.options)
        own = "priority" in pipeline.options
        priority = Priority.NORMAL if own else _priority(given.pop("priority", Priority.NORMAL))
        return checked_options(pipeline, given, lambda program: shutil.which(program) is not None), priority


def pipeline_asked_for() -> tuple[str, Pipeline]:
    """What `?pipeline=NAME` names, `pdf` without it. Raises InvalidInput, and Unavailable when no work is taken."""
    daemon = services()
    if not daemon.ready:
        raise Unavailable("the daemon is stopping and accepts no new jobs")
    name = request.args.get("pipeline", "pdf")
    pipeline = daemon.settings.pipelines.get(name)
    if pipeline is None:
        raise InvalidInput(f"there is no pipeline {name[:60]!r}: choose from {', '.join(daemon.settings.pipelines)}")
    return name, pipeline


def read_submission_fields(fields: Mapping[str, str]) -> SubmissionFields:
    """The fields `options` and `labels`, both JSON. Raises InvalidOption, and InvalidInput for labels that are none."""
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


async def require_same(known: Job, pipeline: str, file_fields: Collection[str], files_most: int = 1) -> None:
    """Receive the same form again, and keep nothing. Raises IdempotencyKeyReused, or like `receive_form`."""
    if known.pipeline != pipeline:
        raise IdempotencyKeyReused(f"this {HEADER} was used before, for the pipeline {known.pipeline}: use a new one")
    _, digest = await receive_form(request, None, file_fields, services().settings.limits, files_most)
    if digest != known.fingerprint:
        raise IdempotencyKeyReused(f"this {HEADER} was used before, with other files, options or labels: use a new one")


def owner_of_request() -> str:
    """Return the name of the key that the request came with, or the client's address."""
    name = who_asks(request.scope).name
    if name is not None:
        return f"key:{name}"
    return f"address:{counted_as(services().access.address(request.scope))}"


def require_unused(there: bool) -> None:
    """Raises IdempotencyKeyReused where what a new one would be called by is `there`, unseen by who asks."""
    if there:
        raise IdempotencyKeyReused(
            f"this {HEADER} was used before, for a job that this client cannot see: use a new one"
        )


def check_type(head: bytes, filename: str, pipeline: Pipeline) -> None:
    """A type with a known signature is told by the content, any other by the file's name. Raises UnsupportedMedia."""
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
