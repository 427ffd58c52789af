"""`GET /api/stats`: the daemon in numbers, as dashboards ask for them; /jobs and /system are its parts."""

import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from quart import Blueprint, Response, request

from progressd import __version__
from progressd.core.job import Job
from progressd.core.status import JobStatus
from progressd.http.context import json_response, services
from progressd.http.middleware.access import who_asks
from progressd.http.openapi.operations import described
from progressd.http.schemas.responses import BatchStats, JobStats, ServerStats, Stats, SystemStats
from progressd.store.base import Filter

NEWEST: Final = 1000  # jobs

blueprint = Blueprint("stats", __name__, url_prefix="/api/stats")


@blueprint.get("")
@described(Stats)
async def stats() -> Response:
    """All of it."""
    collector = services().collector
    server = ServerStats(__version__, round(collector.uptime, 3), datetime.fromtimestamp(collector.started_at, UTC))
    return json_response(Stats(server, await _jobs(), await _batches(), _system()))


@blueprint.get("/jobs")
@described(JobStats)
async def job_stats() -> Response:
    """The jobs."""
    return json_response(await _jobs())


@blueprint.get("/system")
@described(SystemStats)
async def system_stats() -> Response:
    """The process."""
    return json_response(_system())


async def _jobs() -> JobStats:
    """The jobs there are; and how long those took that completed since the start, and how many pages they had."""
    daemon = services()
    counts = await daemon.store.counts()
    if who_asks(request.scope).bound:
        newest = await _newest()
        took = [job.elapsed_seconds for job in newest if job.elapsed_seconds is not None]
        mean, pages = sum(took) / len(took) if took else 0.0, sum(job.page_count or 0 for job in newest)
    else:
        counters = daemon.collector.ingest.counters
        mean, pages = counters.mean_processing_seconds, counters.pages
    return JobStats(
        total_jobs=sum(counts.values()),
        completed_jobs=counts[JobStatus.COMPLETED],
        failed_jobs=counts[JobStatus.FAILED],
        cancelled_jobs=counts[JobStatus.CANCELLED],
        active_jobs=counts[JobStatus.PROCESSING],
        queued_jobs=counts[JobStatus.QUEUED],
        avg_processing_time=round(mean, 3),
        total_pages_processed=pages,
    )


async def _batches() -> BatchStats:
    daemon = services()
    if who_asks(request.scope).bound:
        ids = {job.batch_id for job in await _newest() if job.batch_id is not None}
        found = [await daemon.batches.find(batch_id) for batch_id in ids]
        counts = Counter([batch.status for batch in found if batch is not None])
    else:
        counts = Counter(await daemon.collector.store.batch_counts())
    return BatchStats(
        total=counts.total(),
        completed=sum(count for status, count in counts.items() if status.finished),
        processing=sum(count for status, count in counts.items() if not status.finished),
    )


async def _newest() -> list[Job]:
    """Of a key that is for some jobs only, what is not counted for it: the newest of its jobs have to do."""
    jobs, _ = await services().store.list_jobs(Filter(), NEWEST, 0)
    return jobs


def _system() -> SystemStats:
    collector = services().collector
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return SystemStats(
        memory_used_mb=round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        worker_count=collector.workers,
        websocket_connections=len(collector.watchers),
    )
