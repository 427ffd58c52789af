"""Events from producers over HTTP: one as JSON, or many as NDJSON."""

import math
from typing import Final

from quart import Blueprint, Response, request

from progressd.core.events import ProducerEvent, checked_job_id
from progressd.http.body import BodyChunks, whole_body
from progressd.http.context import json_response, request_context
from progressd.http.openapi.operations import JSON, LINES, described
from progressd.http.routes.ndjson_response import NDJSONResponse
from progressd.producers.ndjson import Ack, NDJSONReader, read_event

TEXT: Final = {"type": "string", "description": "One JSON object per line."}
REPORTS: Final = {JSON: ProducerEvent, LINES: TEXT}
ACKS: Final = {200: {JSON: Ack, LINES: TEXT}}

blueprint = Blueprint("events", __name__)


@blueprint.post("/api/events")
@described(also=ACKS, errors=(404, 408, 409, 413, 507), body=REPORTS)
async def any_job() -> Response:
    """Report events of any jobs."""
    return await _submit(None)


@blueprint.post("/api/jobs/<job_id>/events")
@described(also=ACKS, errors=(404, 408, 409, 413, 507), body=REPORTS)
async def one_job(job_id: str) -> Response:
    """Report events of one job. The events may omit the job id."""
    return await _submit(checked_job_id(job_id))


async def _submit(job_id: str | None) -> Response:
    context = request_context()
    limits, max_bytes = context.app.settings.limits, context.app.settings.ingest.max_line_bytes
    if request.mimetype != LINES:
        text = await whole_body(request, limits, max_bytes)
        await context.scope.ingest.limiter.pass_through(len(text))
        job = await context.scope.ingest.submit_one(read_event(text, job_id))
        return json_response(Ack(ok=True, cursor=context.scope.history.cursor(job.offset), job_id=job.id))
    pieces = BodyChunks(request, limits, math.inf, any_rate=True)
    lines = NDJSONReader(max_bytes, context.scope.ingest, job_id)
    answers = NDJSONResponse(pieces, lines, context.app.streams, context.app.budget)
    await answers.begin()
    response = Response(answers, content_type=LINES)
    response.timeout = None
    return response
