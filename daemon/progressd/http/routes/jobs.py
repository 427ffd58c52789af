"""Jobs over REST: list, register, cancel, retry and delete them, and download their results."""

import mimetypes
import uuid
from collections.abc import Mapping
from pathlib import PurePath
from typing import Final
from urllib.parse import quote

import msgspec
import trio
from quart import Blueprint, Response, request, send_file

from progressd.core.errors import Conflict, InvalidInput, NotFound, Unavailable
from progressd.core.events import (
    RegisterEvent,
    Registration,
    ReportedStatus,
    StatusEvent,
    SubmitEvent,
    checked_job_id,
    checked_options_size,
)
from progressd.core.job import Job
from progressd.core.json import decode
from progressd.core.status import FINISHED, JobStatus
from progressd.http.body import whole_body
from progressd.http.context import converted, json_response, services
from progressd.http.file_body import FileBody, attachment
from progressd.http.middleware.job_cache import CACHING
from progressd.http.openapi.operations import JSON, described
from progressd.http.requests import DeleteQuery, LongPollQuery, NewJob, PageQuery
from progressd.http.routes.sse import changed_job
from progressd.http.routes.submission import owner_of_request
from progressd.http.schemas.responses import JobPage, RetryAccepted
from progressd.http.schemas.views import JobView, job_view
from progressd.store.base import Filter
from progressd.system.transient import passes

MAX_WAIT: Final = 60.0  # seconds; proxies end a request to which nothing is answered for longer
FILE: Final = {"*/*": {"type": "string", "format": "binary"}}
ELSEWHERE: Final = ("http://", "https://")  # how the URL of a result begins that a producer keeps itself
IN_URLS: Final = "!#$%&'()*+,/:;=?@[]~"  # characters that stay as they are; all others are percent-encoded

blueprint = Blueprint("jobs", __name__, url_prefix="/api/jobs")


_decode_body = msgspec.json.Decoder(NewJob).decode


def _decode_new(text: bytes) -> NewJob:
    return _decode_body(checked_options_size(text))


@blueprint.get("")
@described(JobPage, query=(PageQuery,))
async def list_jobs() -> Response:
    """All jobs, newest first."""
    return await _page(None)


@blueprint.get("/history")
@described(JobPage, query=(PageQuery,))
async def history() -> Response:
    """The finished jobs, newest first."""
    return await _page(FINISHED)


@blueprint.post("")
@described(
    JobView,
    status=201,
    also={200: {JSON: JobView}},
    errors=(404, 408, 413, 507),
    body={JSON: NewJob},
    body_required=False,
)
async def register() -> Response:
    """A job that a producer will report on; the same id twice leaves it as it is."""
    daemon = services()
    text = await whole_body(request, daemon.settings.limits) or b"{}"
    await daemon.ingest.turns.pass_through(len(text))
    new = decode(_decode_new, text, "a job")
    if new.id is None:  # then nobody else can come with the same one
        return _job_response(await daemon.ingest.submit_one(RegisterEvent(str(uuid.uuid4()), new)), 201)
    job_id = checked_job_id(new.id)
    # Two requests that register the same id at once must not both be told that it is new.
    async with daemon.registering.setdefault(job_id, trio.Lock()):
        known = await daemon.registry.find([job_id])
        job = await daemon.ingest.submit_one(RegisterEvent(job_id, new))
    return _job_response(job, 200 if known else 201)


@blueprint.get("/<job_id>")
@described(JobView, also={304: {}}, query=(LongPollQuery,), headers=("If-None-Match",))
async def get_job(job_id: str) -> Response:
    """One job; with `since` and `wait` once it has changed, or as it is after so many seconds."""
    job = await _find(job_id)
    waiting = converted(request.args, LongPollQuery)
    if waiting.since is not None and waiting.wait:
        job = await changed_job(services(), job, waiting.since, min(waiting.wait, MAX_WAIT))
    known, accepted = request.headers.get("If-None-Match"), request.headers.get("Accept-Encoding", "")
    answer = services().answers.answer(
        job, None if known is None else known.encode("latin-1"), accepted.encode("latin-1")
    )
    response = Response(answer.body, answer.status, {name.decode(): value.decode() for name, value in answer.headers})
    if not answer.body:
        del response.headers["Content-Type"], response.headers["Content-Length"]  # they would be about the job
    return response


@blueprint.delete("/<job_id>")
@described(JobView, errors=(409, 507), query=(DeleteQuery,))
async def cancel(job_id: str) -> Response:
    """Cancel a job that has not finished; with `purge`, delete one that has, and its files."""
    job = await _find(job_id)
    if converted(request.args, DeleteQuery).purge:
        return await _purge(job)
    if job.status.finished:
        raise Conflict(f"job {job.id} is already {job.status}")
    cancelled = ReportedStatus(JobStatus.CANCELLED)
    return _job_response(await services().ingest.submit_one(StatusEvent(job.id, cancelled)))


async def _purge(job: Job) -> Response:
    daemon = services()
    if not job.status.finished:
        raise Conflict(f"job {job.id} is {job.status}: only finished jobs can be deleted, so cancel it first")
    async with daemon.deleting:
        with trio.CancelScope(shield=True):  # or its files were left behind
            async with daemon.files.deletion(job.id):
                await daemon.ingest.delete(job)
    return _job_response(job)


@blueprint.post("/<job_id>/retry")
@described(RetryAccepted, errors=(409, 507))
async def retry(job_id: str) -> Response:
    """A new job over the same input and options."""
    daemon = services()
    job = await _find(job_id)
    if not daemon.ready:
        raise Unavailable("the daemon is stopping and accepts no new jobs")
    if job.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
        raise Conflict(f"job {job.id} is {job.status}: only failed or cancelled jobs can be retried")
    if job.pipeline is None:
        raise Conflict(f"job {job.id} is not run by the daemon: only its producer can retry it")
    again = str(uuid.uuid4())
    registration = Registration(
        kind=job.kind, input_filename=job.input_filename, options=job.options, labels=job.labels
    )
    async with daemon.files.copied_input(job.id, again):
        with trio.CancelScope(shield=True):  # as for a first try
            owner = owner_of_request()
            new = await daemon.ingest.submit_one(
                SubmitEvent(again, registration, job.pipeline, priority=job.priority, owner=owner)
            )
    return json_response(RetryAccepted(new.id, new.status, f"retrying job {job.id}"))


@blueprint.get("/<job_id>/download")
@described(also={200: FILE, 206: FILE, 303: {}, 304: {}}, errors=(409, 416), headers=("Range", "If-None-Match"))
async def download(job_id: str) -> Response:
    """The result; a redirect where its producer keeps it at a URL of its own."""
    daemon = services()
    job = await _find(job_id)
    if job.status is not JobStatus.COMPLETED:
        raise Conflict(f"job {job.id} has no result to download: its status is {job.status}")
    if job.output_path is None:
        raise NotFound(f"job {job.id} has no result to download: it completed without one")
    if job.output_path.startswith(ELSEWHERE):
        location = quote(job.output_path, safe=IN_URLS)
        return Response(b"", 303, {"Location": location, "Cache-Control": CACHING})
    pipeline = daemon.settings.pipelines.get(job.pipeline or "")
    suffix = PurePath(pipeline.output).suffix if pipeline else ""
    stem = PurePath(job.input_filename or "").stem or job.kind
    name = "".join(letter if letter.isprintable() else "_" for letter in stem) + suffix
    path = daemon.files.output(job.id)
    try:
        await trio.to_thread.run_sync(
            lambda: path.open("rb").close()
        )  # what sends it finds out only when it is too late to say no
        response = await send_file(
            path,
            mimetype=mimetypes.guess_type(name)[0] or "application/octet-stream",
            conditional=True,
        )
    except FileNotFoundError:
        raise NotFound(f"the result of job {job.id} is not on this server") from None
    except OSError as error:
        if passes(error):
            raise Unavailable(f"the daemon cannot open the result at the moment: {error.strerror}") from error
        raise
    if request.method == "HEAD" and isinstance(response.response, FileBody):
        response.response.leave_out()
    response.headers["Content-Disposition"] = attachment(name)
    response.headers["Cache-Control"] = CACHING
    response.accept_ranges = "bytes"
    response.timeout = None  # as long as the client keeps reading
    return response


async def _find(text: str) -> Job:
    return await services().registry.get(checked_job_id(text))


def _job_response(job: Job, status: int = 200) -> Response:
    return json_response(job_view(job, services().store.id, services().base), status)


def _given(query: Mapping[str, str]) -> dict[str, str]:
    """Without what was left empty, as forms do: `?status=` asks for every status."""
    return {name: value for name, value in query.items() if value}


async def _page(statuses: frozenset[JobStatus] | None) -> Response:
    daemon = services()
    given = _given(request.args)
    if "label" in given and not all(given["label"].partition("=")[:2]):  # else a pattern would be the answer
        raise InvalidInput(f"the query is wrong: label {given['label'][:60]!r} is not of the form NAME=VALUE")
    paging = converted(given, PageQuery)
    if paging.status is not None:
        statuses = frozenset([paging.status]) & (statuses or frozenset(JobStatus))
    limit = min(paging.limit, 1000)
    key, _, value = (paging.label or "").partition("=")
    which = Filter(statuses, paging.kind, ((key, value),) if key else ())
    stored, total = await daemon.store.list_jobs(which, limit, paging.offset)
    jobs = [job_view(daemon.registry.known(job.id) or job, daemon.store.id, daemon.base) for job in stored]
    if len(jobs) < min(limit, total - paging.offset):  # large ones: who goes on behind `limit` of them misses none
        limit = max(1, len(jobs))
    return json_response(JobPage(jobs, total, limit, paging.offset))
