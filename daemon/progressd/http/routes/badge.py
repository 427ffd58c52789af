"""Badges: the state of a job, or of the newest job of a kind, as a small picture or in Shields' endpoint form.

A picture is in the language of the browser. Proxies of pictures, such as GitHub's, ask for none and receive English.
Shields draws its own picture from the JSON: https://shields.io/badges/endpoint-badge. `/embed/ID` is a page with one
job for an iframe.
"""

from hashlib import sha256
from typing import Annotated, Final, NamedTuple
from xml.sax.saxutils import escape, quoteattr

import msgspec
from msgspec import Meta, Struct
from quart import Blueprint, Response, current_app, request

from progressd.core.errors import NotFound
from progressd.core.events import checked_job_id
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.http.context import request_context
from progressd.http.language import preferred
from progressd.http.openapi import described
from progressd.http.schemas import JSON
from progressd.net.request import ALWAYS, parsed_query
from progressd.store.base import Filter

SVG: Final = "image/svg+xml"
RUNNING_MAX_AGE: Final = 5  # seconds; proxies of pictures, such as GitHub's, respect it
FINISHED_MAX_AGE: Final = 60

# The colours have a contrast of 4.5 with white text. Shields knows the words.
WORDS: Final = {
    JobStatus.QUEUED: ("queued", "lightgrey", "#6b7075"),
    JobStatus.PROCESSING: ("", "blue", "#2f51cf"),
    JobStatus.COMPLETED: ("done", "brightgreen", "#1f7a52"),
    JobStatus.FAILED: ("failed", "red", "#b2382c"),
    JobStatus.CANCELLED: ("cancelled", "lightgrey", "#6b7075"),
}
UNKNOWN: Final = ("no job", "lightgrey", "#6b7075")
STALLED: Final = ("orange", "#8a5a00")

# The widths of characters in Verdana, 11 pixels high, in pixels.
WIDTHS: Final = {**dict.fromkeys("fijlt.,:;'|!()[] -/", 4.2), **dict.fromkeys("mwMWOQ%@", 9.8)}
WIDTH: Final = 6.7  # of other letters
FULL_WIDTH: Final = 11.0  # of Chinese, Japanese and Korean characters, from `FULL` on
FULL: Final = "\u2e80"
PADDING: Final = 6

POLICY: Final = b"content-security-policy"

blueprint = Blueprint("badge", __name__)


class BadgeQuery(Struct, frozen=True):
    """The query of a badge: another text on its left side."""

    label: Annotated[str, Meta(max_length=100)] | None = None


class Badge(NamedTuple):
    """The content of a badge."""

    label: str
    message: str
    colour_name: str
    colour: str
    finished: bool
    failed: bool = False


class ShieldsBadge(Struct, frozen=True, rename="camel", omit_defaults=True):
    """A badge in Shields' endpoint form."""

    schema_version: int
    label: str
    message: str
    color: str
    is_error: bool = False


@blueprint.get("/badge/job/<job_id>.<any(svg, json):form>")
@described(also={200: {SVG: {"type": "string"}, JSON: ShieldsBadge}, 304: {}, 404: {}}, query=(BadgeQuery,))
async def of_job(job_id: str, form: str) -> Response:
    """Return the badge of a job: `ID.svg`, or `ID.json` for Shields."""
    try:
        job = await request_context().view.job(checked_job_id(job_id))
    except NotFound:
        return _response(None, "job", form, 404)
    return _response(job, job.name or job.input_filename or job.kind, form)


@blueprint.get("/badge/kind/<path:kind>.<any(svg, json):form>")
@described(also={200: {SVG: {"type": "string"}, JSON: ShieldsBadge}, 304: {}, 404: {}}, query=(BadgeQuery,))
async def of_kind(kind: str, form: str) -> Response:
    """Return the badge of the newest job of a kind: `KIND.svg`, or `KIND.json` for Shields."""
    found, _ = await request_context().view.list_jobs(Filter(kind=kind), 1, 0)
    return _response(found[0] if found else None, kind, form)


@blueprint.get("/embed/<job_id>")
async def embed(job_id: str) -> Response:
    """Return a page with one job for an iframe, on pages of the allowed sites only."""
    checked_job_id(job_id)
    response = await current_app.send_static_file("embed.html")
    ours = dict(ALWAYS)[POLICY].decode()
    sites = " ".join(["'self'", *request_context().app.settings.server.allowed_origins])
    response.headers["Content-Security-Policy"] = ours.replace("frame-ancestors 'none'", f"frame-ancestors {sites}")
    return response


def _badge(job: Job | None, label: str) -> Badge:
    if job is None:
        return Badge(label, *UNKNOWN, finished=True)
    message, colour_name, colour = WORDS[job.status]
    if job.status is JobStatus.PROCESSING:
        progress = job.progress
        message = f"{progress.percent}%" if progress.percent or progress.total_steps else "running"
        if progress.stalled:
            message, colour_name, colour = f"{message}, stalled", *STALLED
    return Badge(label, message, colour_name, colour, job.status.finished, job.status is JobStatus.FAILED)


def _response(job: Job | None, label: str, form: str, status: int = 200) -> Response:
    label = parsed_query(_known(), BadgeQuery).label or label[:100]
    label = "".join(letter if letter.isprintable() else " " for letter in label)  # XML permits no control characters
    badge = _badge(job, label)
    if form == "svg":
        _, known = preferred(request.headers.get("Accept-Language", ""))
        words = map(known.sentence, badge.message.split(", "))  # the percentage stays as it is
        badge = badge._replace(message=", ".join(words))
        body, content_type = _svg(badge).encode(), f"{SVG}; charset=utf-8"
    else:
        shields = ShieldsBadge(1, badge.label, badge.message, badge.colour_name, badge.failed)
        body, content_type = msgspec.json.encode(shields), JSON
    max_age = FINISHED_MAX_AGE if badge.finished else RUNNING_MAX_AGE
    headers = {"Cache-Control": f"max-age={max_age}"}
    if request_context().client.identity.topic is not None:  # a token in the URL, so any site may show the picture
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    etag = sha256(body).hexdigest()[:20]
    response = Response(body, status, headers, content_type=content_type)
    if status == 200 and etag in request.if_none_match.as_set(include_weak=True):
        response = Response(b"", 304, headers)
        del response.headers["Content-Type"], response.headers["Content-Length"]
    response.set_etag(etag)
    if form == "svg":
        response.vary.add("Accept-Language")
    return response


def _known() -> dict[str, str]:
    return {name: value for name, value in request.args.items() if name in BadgeQuery.__struct_fields__}


def _svg(badge: Badge) -> str:
    """Return a flat badge like those of Shields. `textLength` fits the text, whichever font the viewer has."""
    left, right = (round(_width(text)) for text in (badge.label, badge.message))
    begin, whole = left + 2 * PADDING, left + right + 4 * PADDING
    title = f"{badge.label}: {badge.message}"
    texts = "".join(
        f'<text x="{x}" y="14" textLength="{width}">{escape(text)}</text>'
        for x, width, text in ((PADDING, left, badge.label), (begin + PADDING, right, badge.message))
        if text
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="20" role="img" aria-label={quoteattr(title)}>'
        f"<title>{escape(title)}</title>"
        f'<clipPath id="r"><rect width="{whole}" height="20" rx="3"/></clipPath>'
        f'<g clip-path="url(#r)"><rect width="{begin}" height="20" fill="#555"/>'
        f'<rect x="{begin}" width="{whole - begin}" height="20" fill="{badge.colour}"/></g>'
        f'<g fill="#fff" font-family="Verdana,Geneva,DejaVu Sans,sans-serif" font-size="11">{texts}</g></svg>'
    )


def _width(text: str) -> float:
    return sum(WIDTHS.get(letter, FULL_WIDTH if letter >= FULL else WIDTH) for letter in text)
