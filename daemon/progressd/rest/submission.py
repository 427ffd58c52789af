"""What files that are handed in must be like, alone or in a batch: the pipeline, the options and the type."""

import mimetypes
import shutil
from collections.abc import Collection, Mapping
from typing import Final

import msgspec
from quart import request

from progressd.core.decoding import decoded
from progressd.core.errors import InvalidInput, InvalidOption, KeyReused, Unavailable, UnsupportedMedia
from progressd.core.job import Job
from progressd.core.options import checked_options
from progressd.core.pipeline import Pipeline
from progressd.rest.fingerprint import Digested
from progressd.rest.idempotency import HEADER
from progressd.rest.multipart import receive_form
from progressd.rest.services import services

SIGNATURES: Final[Mapping[str, bytes]] = {"application/pdf": b"%PDF-"}  # somewhere in the first 1024 bytes
SUBMISSION: Final = (408, 409, 413, 415, 422, 507)  # how a submission may be refused

_decode_options = msgspec.json.Decoder(dict[str, object]).decode


def pipeline_asked_for() -> tuple[str, Pipeline]:
    """What `?pipeline=NAME` names, `pdf` without it. Raises InvalidInput, and Unavailable when no work is taken."""
    daemon = services()
    if not daemon.ready:
        raise Unavailable("the daemon is stopping and takes no work")
    name = request.args.get("pipeline", "pdf")
    pipeline = daemon.settings.pipelines.get(name)
    if pipeline is None:
        raise InvalidInput(f"there is no pipeline {name[:60]!r}: there are {', '.join(daemon.settings.pipelines)}")
    return name, pipeline


def read_options(text: str) -> dict[str, object]:
    """The field `options`, as it was given. Raises InvalidOption."""
    try:
        return decoded(_decode_options, text.encode() or b"{}", "a JSON object")
    except InvalidInput as error:
        raise InvalidOption(f"the field options is {error}") from None


def options_for(pipeline: Pipeline, given: Mapping[str, object]) -> dict[str, object]:
    """All options of the pipeline, those that were not given with their defaults. Raises InvalidOption."""
    return checked_options(pipeline, given, lambda program: shutil.which(program) is not None)


async def require_same(known: Job, pipeline: str, file_fields: Collection[str], files_most: int = 1) -> None:
    """Receive the same once more, and keep nothing. Raises KeyReused for anything else, or like `receive_form`."""
    digested = Digested(pipeline)
    fields = await receive_form(request, digested, file_fields, services().settings.limits, files_most)
    if digested.fingerprint(read_options(fields.get("options", ""))) != known.fingerprint:
        raise KeyReused(f"this {HEADER} came with another request before: the files or the options were others")


def require_unused(there: bool) -> None:
    """Raises KeyReused where what a new one would be called by is `there`, unseen by who asks."""
    if there:
        raise KeyReused(f"this {HEADER} came before, with what this client has nothing to do with any more")


def check_type(head: bytes, filename: str, pipeline: Pipeline) -> None:
    """A type with a known signature is told by the content, any other by the file's name. Raises UnsupportedMedia."""
    guessed = mimetypes.guess_type(filename)[0]
    for accepted in pipeline.accept:
        signature = SIGNATURES.get(accepted)
        if signature in head if signature is not None else accepted in (guessed, "*/*"):
            return
    raise UnsupportedMedia(f"{filename[:60]!r} is not a file of the type {' or '.join(pipeline.accept)}")
