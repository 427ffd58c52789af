"""The pages for people. Every page may be opened without a key, because it contains no data: its script requests them.

An error on the way to a page is a page too. Programs receive JSON, as for every other path.
"""

import re
from collections.abc import Iterable
from http.client import responses
from typing import Final

from quart import Blueprint, Response, current_app

from progressd.http.body import SAFE
from progressd.http.language import preferred
from progressd.http.static_files import FILES
from progressd.net.request import header

PAGE: Final = re.compile(r"/(?:jobs/[^/]+|batches/[^/]+|stats)?")
FOR_PROGRAMS: Final = re.compile(r"/(?:api|ws|ping|static|badge)(?:/|$)")
FULL_STOPS: Final = {"ja": "。"}
HEADINGS: Final = {404: "There is nothing here", 401: "This needs a key or a valid link"}
HTML: Final = "text/html; charset=utf-8"
VARY: Final = "Accept, Accept-Language, Sec-Fetch-Mode"

blueprint = Blueprint("pages", __name__)


@blueprint.get("/")
async def jobs() -> Response:
    """Return the page of all jobs."""
    return await current_app.send_static_file("index.html")


@blueprint.get("/jobs/<job_id>")
async def job(job_id: str) -> Response:
    """Return the page of one job. Its script says whether the job exists."""
    return await current_app.send_static_file("job.html")


@blueprint.get("/batches/<batch_id>")
async def batch(batch_id: str) -> Response:
    """Return the page of one batch. Its script says whether the batch exists."""
    return await current_app.send_static_file("batch.html")


@blueprint.get("/stats")
async def stats() -> Response:
    """Return the page with the statistics."""
    return await current_app.send_static_file("stats.html")


def prefers_page(method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a person opened this path in a browser.

    Some programs accept HTML without wanting it. So below `/api` and the like, only a navigation counts.
    """
    fields = list(headers)
    if method not in SAFE or "text/html" not in header(fields, b"accept"):
        return False
    return header(fields, b"sec-fetch-mode") == "navigate" or not FOR_PROGRAMS.match(path)


def error_page(status: int, sentence: str, code: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the page that shows an error, in the language of the browser. `path`: that below the base path."""
    language, known = preferred(header(headers, b"accept-language"))
    title = responses.get(status, "Error")
    sentence = known.sentence(sentence, code).rstrip(".。")
    return FILES.page(
        "error.html",
        language=language,
        up="../" * (path.count("/") - 1) or "./",
        title=known.sentence(title),
        heading=known.sentence(HEADINGS.get(status, title)),
        sentence=f"{sentence[:1].upper()}{sentence[1:]}{FULL_STOPS.get(language, '.')}",
        link=known.sentence("All jobs"),
    )
