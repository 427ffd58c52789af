"""The pings of Healthchecks (https://healthchecks.io/docs/http_api/): a job from its start to its end, without JSON.

So clients such as borgmatic, runitor and scripts with curl can report to progressd without changes.
"""

import re
import uuid
from typing import Annotated, Final, Literal

import trio
from msgspec import Meta, Struct
from quart import Blueprint, Response, request

from progressd.auth.api_keys import hashed
from progressd.core.errors import InvalidInput
from progressd.core.events import (
    CompletedEvent,
    ErrorEvent,
    Event,
    RegisterEvent,
    Registration,
    ReportedStatus,
    StatusEvent,
)
from progressd.core.job import Job
from progressd.core.messages import ErrorData, JobStatus
from progressd.http.body import whole_body
from progressd.http.context import request_context
from progressd.http.openapi import described
from progressd.net.request import parsed_query
from progressd.store.base import Filter

MAX_BODY: Final = 1024 * 1024  # bytes
BODY_LIMIT: Final = 100_000  # bytes; clients shorten their bodies to this header
MAX_ERROR: Final = 1000  # characters
MAX_RUNNING: Final = 1000  # jobs that are searched for the run that ends
SUCCESS: Final = "0"
LABEL: Final = "ping"  # its value is the name of the key, or a part of the key's hash
RUN: Final = "rid"  # label with the id of a run
NAMESPACE: Final = uuid.UUID("0f7c2c2e-6f0e-4d0b-8f5c-3f4a1e1b8c55")
OK: Final = {200: {"text/plain": {"type": "string", "const": "OK"}}}
TEXT: Final = {"*/*": {"type": "string"}}
ERRORS: Final = (404, 408, 409, 413, 507)

_SLUG: Final = re.compile(r"[A-Za-z0-9_-]{1,200}")
_STATUS: Final = re.compile(r"[0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5]")
_KEY: Final = re.compile(r"/ping/([^/]+)")

blueprint = Blueprint("ping", __name__, url_prefix="/ping/<key>/<slug>")


class PingQuery(Struct, frozen=True):
    """The query of a ping. `rid`: a UUID that all pings of one run share. `create` has no effect."""

    rid: (
        Annotated[
            str,
            Meta(pattern="^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$", extra_json_schema={"format": "uuid"}),
        ]
        | None
    ) = None
    create: Literal["0", "1"] = "0"


def masked(path: str) -> str:
    """Return a path without the key of a ping, for the log."""
    return _KEY.sub("/ping/…", path, count=1)


@blueprint.get("")
@described(also=OK, errors=ERRORS, query=(PingQuery,))
async def success(key: str, slug: str) -> Response:
    """Complete the run of the job `slug`. Without a start, the run begins and ends now."""
    return await _ping(key, slug, SUCCESS)


@blueprint.post("")
@described(also=OK, errors=ERRORS, query=(PingQuery,), body=TEXT, body_required=False)
async def success_with_body(key: str, slug: str) -> Response:
    """Complete the run of the job `slug`. The body is ignored."""
    return await _ping(key, slug, SUCCESS)


@blueprint.get("/<signal>")
@described(also=OK, errors=ERRORS, query=(PingQuery,))
async def signal(key: str, slug: str, signal: str) -> Response:
    """Report a `start`, a `fail`, a `log` or an exit status of the job `slug`."""
    return await _ping(key, slug, signal)


@blueprint.post("/<signal>")
@described(also=OK, errors=ERRORS, query=(PingQuery,), body=TEXT, body_required=False)
async def signal_with_body(key: str, slug: str, signal: str) -> Response:
    """Report a `start`, a `fail`, a `log` or an exit status of the job `slug`.

    The last line of the body is the error of a failed job. The body of a `log` is ignored.
    """
    return await _ping(key, slug, signal)


async def _ping(key: str, slug: str, signal: str) -> Response:
    context = request_context()
    query = parsed_query(request.args, PingQuery)
    if not _SLUG.fullmatch(slug):
        raise InvalidInput(f"{slug[:60]!r} is not a slug: use letters, digits, hyphens and underscores")
    if signal not in ("start", "fail", "log") and not _STATUS.fullmatch(signal):
        raise InvalidInput(f"{signal[:60]!r} is not a signal: use start, fail, log or an exit status from 0 to 255")
    body = await whole_body(request, context.app.settings.limits, MAX_BODY) if request.method == "POST" else b""
    if signal != "log":
        sender = context.client.identity.name or hashed(key)[:8]
        run = _Run(slug, sender, None if query.rid is None else query.rid.lower())
        async with context.app.registering.setdefault(run.lock, trio.Lock()):
            events = run.started(await run.job()) if signal == "start" else run.ended(await run.job(), signal, body)
            await context.view.submit_all(*events)
    headers = {"Cache-Control": "no-store", "Ping-Body-Limit": str(BODY_LIMIT)}
    return Response("OK", headers=headers, content_type="text/plain; charset=utf-8")


class _Run:
    """One run of a job. A run with an id has the same job id after a restart; any other run is the newest one."""

    def __init__(self, slug: str, sender: str, rid: str | None) -> None:
        self._slug = slug
        self._labels = {LABEL: sender, **({RUN: rid} if rid is not None else {})}
        self._new_id = str(uuid.uuid4() if rid is None else uuid.uuid5(NAMESPACE, f"{sender}/{slug}/{rid}"))
        self.lock = f"ping {sender}/{slug}"

    async def job(self) -> Job | None:
        """Return the job of a run that has started."""
        view = request_context().view
        if RUN in self._labels:
            return await view.find_job(self._new_id)
        running = Filter([JobStatus.PROCESSING], self._slug, tuple(self._labels.items()))
        found, _ = await view.list_jobs(running, MAX_RUNNING, 0)
        return next((job for job in found if RUN not in job.labels), None)

    def started(self, job: Job | None) -> list[Event]:
        """Return the events of a start. A run without an id ends the previous one: pings cannot tell them apart."""
        if job is None:
            return self._start()
        if RUN in self._labels:  # a repeated request
            return []
        return [ErrorEvent(job.id, ErrorData("the next run began before this one ended")), *self._start()]

    def ended(self, job: Job | None, signal: str, body: bytes) -> list[Event]:
        """Return the events of an end. A run that has not started begins now."""
        job_id, events = (self._new_id, self._start()) if job is None else (job.id, [])
        if signal == SUCCESS:
            return [*events, CompletedEvent(job_id)]
        sentence = "failed" if signal == "fail" else f"failed with exit status {signal}"
        return [*events, ErrorEvent(job_id, ErrorData(_last_line(body) or sentence))]

    def _start(self) -> list[Event]:
        return [
            RegisterEvent(self._new_id, Registration(kind=self._slug, labels=self._labels)),
            StatusEvent(self._new_id, ReportedStatus(JobStatus.PROCESSING)),
        ]


def _last_line(body: bytes) -> str:
    """Return the last line of a body that contains text, shortened; "" if there is none."""
    for line in reversed(body.decode(errors="replace").splitlines()):
        if text := "".join(one if one.isprintable() else " " for one in line).strip():
            return text if len(text) <= MAX_ERROR else f"{text[: MAX_ERROR - 1]}…"
    return ""
