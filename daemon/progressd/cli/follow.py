"""Follows jobs until they end, or until somebody interrupts it; the exit status tells which."""

import signal
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final

import trio

from progressd.cli.display import Display
from progressd.cli.remote import Remote
from progressd.client.watcher import watch_texts
from progressd.client.websocket import unwrapped
from progressd.core.messages import Completed, Error, Message, StatusChange
from progressd.core.status import JobStatus

AT_ONCE: Final = 16  # connections for several jobs; the daemon runs them in order, so the others can wait


def follow(remote: Remote, job_ids: Collection[str] | None, display: Display) -> int:
    """Show the messages of these jobs until all have ended; of all jobs if None, without end.

    The exit status: 0 if all are completed, 1 if not, 130 if interrupted (143 by SIGTERM). Raises ClientError.
    """
    with display:
        if job_ids is None:
            return trio.run(_until_interrupted, partial(_follow_all, remote, display))
        return trio.run(_until_interrupted, partial(_follow_each, remote, job_ids, display))


async def _until_interrupted(run: Callable[[], Awaitable[int]]) -> int:
    status = 0
    with unwrapped(), trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def wait_for_signal() -> None:
                nonlocal status
                status = 128 + await anext(signals)
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_signal)
            status = await run()
            nursery.cancel_scope.cancel()
    return status


async def _follow_all(remote: Remote, display: Display) -> int:
    async with watch_texts(remote.url, key=remote.key, on_lost=display.lost) as received:
        async for one in received:
            display.show(one)
    return 0


async def _follow_each(remote: Remote, job_ids: Collection[str], display: Display) -> int:
    turns = trio.CapacityLimiter(AT_ONCE)
    ends: list[JobStatus] = []

    async def follow_in_turn(job_id: str) -> None:
        async with turns:
            ends.append(await _follow_one(remote, job_id, display))

    async with trio.open_nursery() as nursery:
        for job_id in job_ids:
            nursery.start_soon(follow_in_turn, job_id)
    return 0 if all(status is JobStatus.COMPLETED for status in ends) else 1


async def _follow_one(remote: Remote, job_id: str, display: Display) -> JobStatus:
    ended: JobStatus | None = None
    async with watch_texts(remote.url, job_id, key=remote.key, on_lost=display.lost) as received:
        async for one in received:
            display.show(one)
            ended = _end(one.message) or ended
    if ended is None:  # a proxy can close a stream with 1000 as well
        return await trio.to_thread.run_sync(_status, remote, job_id)
    return ended


def _end(message: Message | None) -> JobStatus | None:
    match message:
        case StatusChange(_, data) if data.new_status.finished:
            return data.new_status
        case Completed():
            return JobStatus.COMPLETED
        case Error():
            return JobStatus.FAILED
    return None


def _status(remote: Remote, job_id: str) -> JobStatus:
    with remote.client() as client:
        return JobStatus(client.job(job_id)["status"])
