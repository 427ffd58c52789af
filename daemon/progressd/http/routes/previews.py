"""The newest preview of each page of a job."""

import re
from typing import Final

from msgspec import Struct
from quart import Blueprint, Response, request

from progressd.core.errors import InvalidInput, NotFound
from progressd.core.events import checked_job_id
from progressd.core.job import Job
from progressd.http.context import json_response, request_context
from progressd.http.job_cache import CACHING
from progressd.http.openapi import described

PICTURE: Final = {"image/*": {"type": "string", "format": "binary"}}
_NUMBER: Final = re.compile("-?[0-9]{1,18}", re.ASCII)

blueprint = Blueprint("previews", __name__, url_prefix="/api/jobs")


class PreviewView(Struct, frozen=True):
    """A preview. `width` and `height` are in pixels, `bytes` is the size of the picture at `…/previews/PAGE_NUMBER`."""

    page_number: int
    stage: str
    width: int
    height: int
    bytes: int


class PreviewList(Struct, frozen=True):
    """The previews of a job, in order of their pages."""

    previews: list[PreviewView]


@blueprint.get("/<job_id>/previews")
@described(PreviewList)
async def previews(job_id: str) -> Response:
    """Return which pages have a preview. The daemon keeps the newest of each page in memory."""
    job = await _job(job_id)
    found = request_context().app.engine.ingest.previews.of(job.id)
    views = [PreviewView(one.page_number, one.stage, one.width, one.height, len(one.picture)) for one in found]
    return json_response(PreviewList(views), headers={"Cache-Control": "no-store"})


@blueprint.get("/<job_id>/previews/<page_number>")
@described(also={200: PICTURE, 304: {}}, headers=("If-None-Match",))
async def preview(job_id: str, page_number: str) -> Response:
    """Return the newest preview of a page: a picture, as its producer sent it."""
    job = await _job(job_id)
    app = request_context().app
    if not _NUMBER.fullmatch(page_number):
        raise InvalidInput(f"{page_number[:60]!r} is not the number of a page")
    found = app.engine.ingest.previews.find(job.id, int(page_number))
    if found is None:
        raise NotFound(f"job {job.id} has no preview of page {page_number}")
    response = Response(found.picture, headers={"Cache-Control": CACHING}, content_type=found.media_type)
    response.set_etag(f"{app.engine.ingest.store_id}-{app.metrics.started_at:.0f}-{found.number}")
    await response.make_conditional(request)
    return response


async def _job(job_id: str) -> Job:
    return await request_context().view.job(checked_job_id(job_id))
