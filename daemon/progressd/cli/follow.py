"""Watch jobs on the command line until they end or a signal arrives."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeAlias

import trio

from progressd.cli.display import Display, display_for
from progressd.cli.interruption import until_interrupted
from progressd.cli.remote import Remote
from progressd.client.errors import APIError, StreamClosed
from progressd.client.watcher import watch_texts
from progressd.core.close_codes import JOB_DELETED
from progressd.core.messages import Completed, Error, JobStatus, Message, StatusChange

Wanted: TypeAlias = Callable[[Message | None], bool]  # whether to show a message; None: of an unknown type

MAX_CONNECTIONS: Final = 16  # at once; the daemon runs jobs in order, so later jobs can wait


def follow(
    remote: Remote,
    job_ids: Collection[str],
    names: Mapping[str, str],
    *,
    as_json: bool = False,
    interval: float = 0.0,
) -> int:
    """Show the messages of these jobs until all have ended.

    Return the exit status: 0 if all completed, 1 if not, 130 after SIGINT, 143 after SIGTERM. `names`: known job
    names by id. `interval`: seconds between two progress messages of a job. Raises ClientError.
    """
    with display_for(remote.url, names, as_json=as_json) as display:
        return trio.run(until_interrupted, partial(_follow_each, remote, job_ids, display, interval))


def follow_all(remote: Remote, wanted: Wanted, *, as_json: bool, interval: float) -> int:
    """Show the messages of all jobs, as far as they are wanted, until a signal. Return the exit status."""
    with display_for(remote.url, {}, as_json=as_json, all_jobs=True) as display:
        return trio.run(until_interrupted, partial(_follow_all, remote, wanted, display, interval))


async def _follow_all(remote: Remote, wanted: Wanted, display: Display, interval: float) -> int:
    options: Any = {"key": remote.key, "on_lost": display.disconnected, "interval": interval}
    async with watch_texts(remote.url, **options) as received:
        async for one in received:
            if wanted(one.message):
                display.show(one)
            elif one.message is not None:
                display.hide(one.message)
    return 0


async def _follow_each(remote: Remote, job_ids: Collection[str], display: Display, interval: float = 0.0) -> int:
    limiter = trio.CapacityLimiter(MAX_CONNECTIONS)
    ends: list[JobStatus] = []

    async def follow_one(job_id: str) -> None:
        async with limiter:
            try:
                ends.append(await follow_job(remote, job_id, display, interval))
            except (APIError, StreamClosed) as error:
                if len(job_ids) == 1 or not _deleted(error):
                    raise
                display.job_deleted(job_id)  # continue with the other jobs

    async with trio.open_nursery() as nursery:
        for job_id in job_ids:
            nursery.start_soon(follow_one, job_id)
    return 0 if ends == [JobStatus.COMPLETED] * len(job_ids) else 1


async def follow_job(remote: Remote, job_id: str, display: Display, interval: float = 0.0) -> JobStatus:
    """Show the messages of a job until its end, and return its status. Raises ClientError."""
    ended: JobStatus | None = None
    options: Any = {"key": remote.key, "on_lost": display.disconnected, "interval": interval}
    async with watch_texts(remote.url, job_id, **options) as received:
        async for one in received:
            display.show(one)
            ended = _final_status(one.message) or ended
    if ended is None:  # a proxy may also close the stream with 1000
        return await trio.to_thread.run_sync(_status, remote, job_id)
    return ended


def _final_status(message: Message | None) -> JobStatus | None:
    match message:
        case StatusChange(_, data) if data.new_status.finished:
            return data.new_status
        case Completed():
            return JobStatus.COMPLETED
        case Error():
            return JobStatus.FAILED
    return None


def _deleted(error: APIError | StreamClosed) -> bool:
    return error.status == HTTPStatus.NOT_FOUND if isinstance(error, APIError) else error.code == JOB_DELETED.code


def _status(remote: Remote, job_id: str) -> JobStatus:
    with remote.client() as client:
        return JobStatus(client.job(job_id)["status"])
