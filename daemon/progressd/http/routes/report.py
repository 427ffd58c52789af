"""Producers' events over HTTP: one as JSON, or many as lines (NDJSON)."""

import math
from typing import Final

from quart import Blueprint, Response, request

from progressd.core.events import ProducerEvent, checked_job_id
from progressd.http.body import BodyChunks, whole_body
from progressd.http.context import json_response, services
from progressd.http.openapi.operations import JSON, LINES, described
from progressd.http.routes.ndjson_response import NDJSONResponse
from progressd.producers.ndjson import Ack, read_event
from progressd.producers.ndjson_stream import NDJSONReader

TEXT: Final = {"type": "string", "description": "One JSON object a line."}
REPORTS: Final = {JSON: ProducerEvent, LINES: TEXT}
TAKEN: Final = {200: {JSON: Ack, LINES: TEXT}}

blueprint = Blueprint("events", __name__)


@blueprint.post("/api/events")
@described(also=TAKEN, errors=(404, 408, 409, 413, 507), body=REPORTS)
async def any_job() -> Response:
    """Events of any jobs."""
    return await _take(None)


@blueprint.post("/api/jobs/<job_id>/events")
@described(also=TAKEN, errors=(404, 408, 409, 413, 507), body=REPORTS)
async def one_job(job_id: str) -> Response:
    """Events of one job, which need not name it."""
    return await _take(checked_job_id(job_id))


async def _take(job_id: str | None) -> Response:
    daemon = services()
    limits, most = daemon.settings.limits, daemon.settings.ingest.max_line_bytes
    if request.mimetype != LINES:
        event = read_event(await whole_body(request, limits, most), job_id)
        job = await daemon.ingest.submit_one(event)
        return json_response(Ack(ok=True, cursor=daemon.history.cursor(job.offset), job_id=job.id))
    pieces = BodyChunks(request, limits, math.inf, in_its_time=True)
    lines = NDJSONReader(most, daemon.ingest, job_id)
    answers = NDJSONResponse(pieces, lines, daemon.streams, daemon.budget)
    await answers.begin()
    response = Response(answers, content_type=LINES)
    response.timeout = None
    return response
