"""`POST /api/convert`: a file comes in and becomes a job of the runner."""

import mimetypes
import shutil
from collections.abc import Mapping
from typing import Final

import msgspec
import trio
from quart import Blueprint, Response, request

from progressd.core.decoding import decoded
from progressd.core.errors import InvalidInput, InvalidOption, KeyReused, Unavailable, UnsupportedMedia
from progressd.core.events import Registration, SubmitEvent
from progressd.core.job import Job
from progressd.core.options import checked_options
from progressd.core.pipeline import Pipeline
from progressd.core.status import JobStatus
from progressd.rest.idempotency import HEADER, REPLAYED
from progressd.rest.multipart import receive_form
from progressd.rest.services import json_response, services

SIGNATURES: Final[Mapping[str, bytes]] = {"application/pdf": b"%PDF-"}  # somewhere in the first 1024 bytes

_decode_options = msgspec.json.Decoder(dict[str, object]).decode

blueprint = Blueprint("convert", __name__)


@blueprint.post("/api/convert")
async def convert() -> Response:
    """Multipart: `file`, and `options` as JSON text; `?pipeline=NAME` for another than `pdf`."""
    daemon = services()
    if not daemon.ready:
        raise Unavailable("the daemon is stopping and takes no work")
    name = request.args.get("pipeline", "pdf")
    pipeline = daemon.settings.pipelines.get(name)
    if pipeline is None:
        raise InvalidInput(f"there is no pipeline {name[:60]!r}: there are {', '.join(daemon.settings.pipelines)}")
    with daemon.keys.claimed(request.headers.get(HEADER), "job") as job_id:
        known = (await daemon.registry.find([job_id])).get(job_id)
        if known is None:
            return _accepted(await _take(job_id, name, pipeline))
        if known.pipeline != name:
            raise KeyReused(f"this {HEADER} came with a file for the pipeline {known.pipeline} before, not {name}")
        return _accepted(known, REPLAYED)


async def _take(job_id: str, name: str, pipeline: Pipeline) -> Job:
    """Receive the file, and make the job of it."""
    daemon = services()
    async with daemon.files.upload(job_id) as upload:
        form = await receive_form(request, upload, "file", daemon.settings.limits.max_upload_bytes)
        _check_type(upload.head, form.filename, pipeline)
        options = checked_options(pipeline, _options(form.fields.get("options", "")), _available)
        await upload.finish()
        registration = Registration(kind=name, input_filename=form.filename[:255], options=options)
        with trio.CancelScope(shield=True):  # a client that leaves must not take the input of a job that is kept
            job = await daemon.ingest.submit_one(SubmitEvent(job_id, registration, name))
    return job


def _accepted(job: Job, headers: dict[str, str] | None = None) -> Response:
    """The same answer however often it is asked for."""
    body = {"job_id": job.id, "status": JobStatus.QUEUED, "created_at": job.created_at}
    return json_response(body, 202, headers)


def _options(text: str) -> dict[str, object]:
    try:
        return decoded(_decode_options, text.encode() or b"{}", "a JSON object")
    except InvalidInput as error:
        raise InvalidOption(f"the field options is {error}") from None


def _check_type(head: bytes, filename: str, pipeline: Pipeline) -> None:
    """A type with a known signature is told by the content, any other by the file's name."""
    guessed = mimetypes.guess_type(filename)[0]
    for accepted in pipeline.accept:
        signature = SIGNATURES.get(accepted)
        if signature in head if signature is not None else accepted in (guessed, "*/*"):
            return
    raise UnsupportedMedia(f"not a file of the type {' or '.join(pipeline.accept)}")


def _available(program: str) -> bool:
    return shutil.which(program) is not None
