"""Jobs: list, register, cancel, retry and delete them, and download their results."""

import mimetypes
import uuid
from pathlib import PurePath
from typing import Annotated, Final
from urllib.parse import quote

import msgspec
import trio
from msgspec import UNSET, Meta, Struct, UnsetType
from quart import Blueprint, Response, request, send_file

from progressd.core.errors import Conflict, NotFound, Unavailable
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
from progressd.core.messages import FINISHED, JobStatus
from progressd.http.body import whole_body
from progressd.http.context import json_response, request_context
from progressd.http.job_cache import CACHING
from progressd.http.list_query import PageQuery, list_query, token_of
from progressd.http.openapi import described
from progressd.http.response import FileBody, attachment
from progressd.http.routes.sse import changed_job
from progressd.http.schemas import JSON, JobView, job_view
from progressd.net.request import parsed_query
from progressd.store.base import Numbers

MAX_WAIT: Final = 60.0  # seconds; proxies time out a request without a response after longer
FILE: Final = {"*/*": {"type": "string", "format": "binary"}}
ELSEWHERE: Final = ("http://", "https://")  # prefixes of a result that the producer keeps at its own URL
IN_URLS: Final = "!#$%&'()*+,/:;=?@[]~"  # all other characters are percent-encoded

blueprint = Blueprint("jobs", __name__, url_prefix="/api/jobs")


class NewJob(Registration, frozen=True):
    """The body of `POST /api/jobs`."""

    id: str | None = None


class JobCounts(Struct, frozen=True):
    """The numbers of jobs with the same words, kind and labels, whatever their status.

    `attention`: failed jobs, and jobs that are stalled or slower than usual. `done`: finished, in any way.
    """

    running: int
    waiting: int
    attention: int
    done: int
    all: int


class JobPage(Struct, frozen=True):
    """A page of jobs; `total` counts all pages. `next`: the `after` of the next page, if there is one.

    `exact`: false if a search stopped early, so that `total` and `counts` are lower bounds. Otherwise left out.
    """

    jobs: list[JobView]
    total: int
    limit: int
    offset: int
    next: str | UnsetType = UNSET
    counts: JobCounts | UnsetType = UNSET
    exact: bool | UnsetType = UNSET


class RetryAccepted(Struct, frozen=True):
    """The new job with the same input and options."""

    job_id: str
    status: JobStatus
    message: str


class LongPollQuery(Struct, frozen=True):
    """The query of a job: wait for at most `wait` seconds until it is newer than the cursor `since`."""

    since: str | None = None
    wait: Annotated[float, Meta(ge=0)] = 0


class DeleteQuery(Struct, frozen=True):
    """The query of a deletion: cancel the job, or with `purge` delete it."""

    purge: bool = False


_decode_body = msgspec.json.Decoder(NewJob).decode


def _decode_new(text: bytes) -> NewJob:
    return _decode_body(checked_options_size(text))


@blueprint.get("")
@described(JobPage, query=(PageQuery,))
async def list_jobs() -> Response:
    """Return all jobs, newest first."""
    return await _page(None)


@blueprint.get("/history")
@described(JobPage, query=(PageQuery,))
async def history() -> Response:
    """Return the finished jobs, newest first."""
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
    """Register a job that a producer will report on. A job with this id is returned unchanged."""
    context = request_context()
    text = await whole_body(request, context.app.settings.limits) or b"{}"
    await context.view.limiter.pass_through(len(text))
    new = decode(_decode_new, text, "a job")
    if new.id is None:
        return _job_response(await context.view.submit_one(RegisterEvent(str(uuid.uuid4()), new)), 201)
    job_id = checked_job_id(new.id)
    async with context.app.registering.setdefault(job_id, trio.Lock()):  # otherwise two requests might both return 201
        known = await context.view.find_job(job_id)
        job = await context.view.submit_one(RegisterEvent(job_id, new))
    return _job_response(job, 200 if known else 201)


@blueprint.get("/<job_id>")
@described(JobView, also={304: {}}, query=(LongPollQuery,), headers=("If-None-Match",))
async def get_job(job_id: str) -> Response:
    """Return a job. With `since` and `wait`, return it once it has changed, or unchanged after `wait` seconds."""
    job = await _find(job_id)
    query = parsed_query(request.args, LongPollQuery)
    if query.since is not None and query.wait:
        job = await changed_job(request_context(), job, query.since, min(query.wait, MAX_WAIT))
    known = request.headers.get("If-None-Match")
    place = request_context().app.queue_estimates.place(job)
    job = request_context().view.shown(job)
    answer = request_context().app.answers.answer(job, None if known is None else known.encode("latin-1"), place)
    response = Response(answer.body, answer.status, {name.decode(): value.decode() for name, value in answer.headers})
    if not answer.body:
        del response.headers["Content-Type"], response.headers["Content-Length"]  # these headers would describe the job
    return response


@blueprint.delete("/<job_id>")
@described(JobView, errors=(409, 507), query=(DeleteQuery,))
async def cancel(job_id: str) -> Response:
    """Cancel an unfinished job. With `purge`, delete a finished job and its files."""
    job = await _find(job_id)
    if parsed_query(request.args, DeleteQuery).purge:
        return await _purge(job)
    if job.status.finished:
        raise Conflict(f"job {job.id} is already {job.status}")
    cancelled = ReportedStatus(JobStatus.CANCELLED)
    return _job_response(await request_context().view.submit_one(StatusEvent(job.id, cancelled)))


async def _purge(job: Job) -> Response:
    await purge(job)
    return _job_response(job)


async def purge(job: Job) -> None:
    """Delete a finished job and its files. Raises Conflict, NotFound."""
    context = request_context()
    if not job.status.finished:
        raise Conflict(f"job {job.id} is {job.status}: only finished jobs can be deleted, so cancel it first")
    async with context.app.deleting:
        with trio.CancelScope(shield=True):  # otherwise its files might be left behind
            async with context.app.files.deletion(job.id):
                await context.view.delete(job)


@blueprint.post("/<job_id>/retry")
@described(RetryAccepted, errors=(409, 507))
async def retry(job_id: str) -> Response:
    """Create a new job with the same input and options."""
    context = request_context()
    job = await _find(job_id)
    if not context.app.ready:
        raise Unavailable("the daemon is stopping and accepts no new jobs")
    if job.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
        raise Conflict(f"job {job.id} is {job.status}: only failed or cancelled jobs can be retried")
    if job.pipeline is None:
        raise Conflict(f"job {job.id} is not run by the daemon: only its producer can retry it")
    again = str(uuid.uuid4())
    async with context.app.files.copied_input(job.id, again):
        with trio.CancelScope(shield=True):  # a client that disconnects must not remove the input of a stored job
            new = await context.view.submit_one(retried(job, again))
    return json_response(RetryAccepted(new.id, new.status, f"retrying job {job.id}"))


@blueprint.get("/<job_id>/download")
@described(also={200: FILE, 206: FILE, 303: {}, 304: {}}, errors=(409, 416), headers=("Range", "If-None-Match"))
async def download(job_id: str) -> Response:
    """Return the result, or a redirect to the producer's URL for it."""
    app = request_context().app
    job = await _find(job_id)
    if job.status is not JobStatus.COMPLETED:
        raise Conflict(f"job {job.id} has no result to download: its status is {job.status}")
    if job.output_path is None:
        raise NotFound(f"job {job.id} has no result to download: it completed without one")
    if job.output_path.startswith(ELSEWHERE):
        location = quote(job.output_path, safe=IN_URLS)
        return Response(b"", 303, {"Location": location, "Cache-Control": CACHING})
    name = result_name(job)
    mimetype = mimetypes.guess_type(name)[0] or "application/octet-stream"
    try:
        response = await send_file(app.files.output(job.id), mimetype=mimetype, conditional=True)
        if isinstance(response.response, FileBody):
            await response.response.require_opens()
    except FileNotFoundError:
        raise NotFound(f"the result of job {job.id} is not on this server") from None
    if request.method == "HEAD" and isinstance(response.response, FileBody):
        response.response.leave_out()
    response.headers["Content-Disposition"] = attachment(name)
    response.headers["Cache-Control"] = CACHING
    response.accept_ranges = "bytes"
    response.timeout = None  # a client that keeps reading has no time limit
    return response


def result_name(job: Job) -> str:
    """Return the file name of a result: that of the input, with the suffix of the pipeline's output."""
    pipeline = request_context().app.settings.pipelines.get(job.pipeline or "")
    suffix = PurePath(pipeline.output).suffix if pipeline else ""
    stem = PurePath(job.input_filename or "").stem or job.kind
    return "".join(letter if letter.isprintable() else "_" for letter in stem) + suffix


def retried(job: Job, again: str, batch_id: str | None = None, batch_name: str = "") -> SubmitEvent:
    """Return the event that submits a job again, under the id `again`."""
    registration = Registration(
        kind=job.kind, name=job.name, input_filename=job.input_filename, options=job.options, labels=job.labels
    )
    owner, pipeline = request_context().owner, job.pipeline or ""
    return SubmitEvent(again, registration, pipeline, batch_id, job.priority, owner=owner, batch_name=batch_name)


async def _find(text: str) -> Job:
    return await request_context().view.job(checked_job_id(text))


def _job_response(job: Job, status: int = 200) -> Response:
    context = request_context()
    return json_response(
        job_view(job, context.view.store_id, context.app.base, context.app.queue_estimates.place(job)), status
    )


async def _page(among: frozenset[JobStatus] | None) -> Response:
    context = request_context()
    which, paging, with_counts = list_query(request.args, among)
    page = await context.view.page(which, paging)
    place = context.app.queue_estimates.place
    jobs = [job_view(job, context.view.store_id, context.app.base, place(job)) for job in page.jobs]
    limit = paging.limit
    if page.next is not None and len(jobs) < limit:  # the store returned fewer jobs, because they are large
        limit = max(1, len(jobs))
    return json_response(
        JobPage(
            jobs,
            page.numbers.total(which.statuses, attention=which.attention),
            limit,
            paging.offset,
            UNSET if page.next is None else token_of(page.next, paging.sort),
            _counts(page.numbers, among) if with_counts else UNSET,
            UNSET if page.numbers.exact else False,
        )
    )


def _counts(numbers: Numbers, among: frozenset[JobStatus] | None) -> JobCounts:
    return JobCounts(
        running=numbers.total([JobStatus.PROCESSING]),
        waiting=numbers.total([JobStatus.QUEUED]),
        attention=numbers.total(among, attention=True),
        done=numbers.total(FINISHED),
        all=numbers.total(among),
    )
