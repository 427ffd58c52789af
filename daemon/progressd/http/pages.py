"""The pages for people. Every page may be opened without a key, because it contains no data: its script requests them.

An error on the way to a page is a page too. Programs receive JSON, as for every other path.
"""

import re
from collections.abc import Iterable
from http.client import responses
from typing import Final

from quart import Blueprint, Response, current_app

from progressd.http.body import SAFE
from progressd.http.static_files import FILES
from progressd.net.request import header

PAGE: Final = re.compile(r"/(?:jobs/[^/]+|batches/[^/]+|stats)?")
FOR_PROGRAMS: Final = re.compile(r"/(?:api|ws|ping|static|badge)(?:/|$)")
HTML: Final = "text/html; charset=utf-8"
VARY: Final = "Accept, Sec-Fetch-Mode"

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


def error_page(status: int, sentence: str, path: str) -> str:
    """Return the page that shows an error. `path`: the path of the request, below the base path."""
    up = "../" * (path.count("/") - 1) or "./"
    sentence = sentence[:1].upper() + sentence[1:].rstrip(".") + "."
    return FILES.page("error.html", status=status, title=responses.get(status, "Error"), sentence=sentence, up=up)
