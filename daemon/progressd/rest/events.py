"""Producers' events over HTTP: one as JSON, or many as lines (NDJSON)."""

from typing import Final

import msgspec
from quart import Blueprint, Response, request

from progressd.core.errors import TooLarge
from progressd.core.events import ProducerEvent, checked_job_id
from progressd.producers.intake import take_lines
from progressd.producers.lines import Answer, LineSplitter, read_event
from progressd.rest.body import Pieces, whole_body
from progressd.rest.operations import JSON, LINES, described
from progressd.rest.services import json_response, services

STREAM_MOST: Final = 64 * 1024 * 1024  # bytes of lines in one request
ANSWERS_MOST: Final = 16 * 1024 * 1024  # bytes of the answers to them, which are held until its end

_encode_lines = msgspec.json.Encoder().encode_lines
TEXT: Final = {"type": "string", "description": "One JSON object a line."}
REPORTS: Final = {JSON: ProducerEvent, LINES: TEXT}
TAKEN: Final = {200: {JSON: Answer, LINES: TEXT}}

blueprint = Blueprint("events", __name__)


@blueprint.post("/api/events")
@described(
    also={200: {JSON: Answer, LINES: TEXT}}, errors=(404, 408, 409, 413), body={JSON: ProducerEvent, LINES: TEXT}
)
async def any_job() -> Response:
    """Events of any jobs."""
    return await _take(None)


@blueprint.post("/api/jobs/<job_id>/events")
@described(
    also={200: {JSON: Answer, LINES: TEXT}}, errors=(404, 408, 409, 413), body={JSON: ProducerEvent, LINES: TEXT}
)
async def one_job(job_id: str) -> Response:
    """Events of one job, which need not name it."""
    return await _take(checked_job_id(job_id))


async def _take(job_id: str | None) -> Response:
    daemon = services()
    limits, most = daemon.settings.limits, daemon.settings.ingest.max_line_bytes
    if request.mimetype != "application/x-ndjson":
        event = read_event(await whole_body(request, limits, most), job_id)
        job = await daemon.ingest.submit_one(event)
        return json_response(Answer(ok=True, cursor=daemon.history.cursor(job.offset), job_id=job.id))
    splitter = LineSplitter(most)
    answers = bytearray()
    async for piece in Pieces(request, limits, STREAM_MOST, in_its_time=True):
        answers += _encode_lines(await take_lines(daemon.ingest, splitter.feed(piece), job_id))
        if len(answers) > ANSWERS_MOST:
            raise TooLarge(f"too many lines for one request: {splitter.number} were taken, send the others in another")
    answers += _encode_lines(await take_lines(daemon.ingest, splitter.end(), job_id))
    return Response(bytes(answers), content_type="application/x-ndjson")
