"""Statistics: `/api/stats` and its parts for dashboards, and `/api/metrics` for Prometheus."""

import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from msgspec import Struct
from prometheus_client.exposition import choose_encoder
from quart import Blueprint, Response, request

from progressd import __version__
from progressd.core.errors import OutOfScope
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.http.context import json_response, request_context
from progressd.http.openapi import described
from progressd.http.stats_history import INTERVAL, StatsSample
from progressd.store.base import Filter

MAX_JOBS: Final = 1000  # newest jobs, used for the statistics of a bound key
TEXT: Final = {"type": "string"}

blueprint = Blueprint("stats", __name__, url_prefix="/api")


class ServerStats(Struct, frozen=True):
    """The daemon."""

    version: str
    uptime_seconds: float
    started_at: datetime


class JobStats(Struct, frozen=True):
    """Counts of stored jobs, and the mean duration and the pages of jobs completed since the start."""

    total_jobs: int
    completed_jobs: int
    failed_jobs: int
    cancelled_jobs: int
    active_jobs: int
    queued_jobs: int
    avg_processing_time: float
    total_pages_processed: int


class BatchStats(Struct, frozen=True):
    """Counts of stored batches; `completed` counts all finished batches."""

    total: int
    completed: int
    processing: int


class SystemStats(Struct, frozen=True):
    """The process."""

    memory_used_mb: float
    worker_count: int
    websocket_connections: int


class Stats(Struct, frozen=True):
    """Statistics of the daemon."""

    server: ServerStats
    jobs: JobStats
    batches: BatchStats
    system: SystemStats


class StatsHistoryView(Struct, frozen=True):
    """The samples of the last hour, the oldest first."""

    interval_seconds: float
    samples: list[StatsSample]


@blueprint.get("/stats")
@described(Stats)
async def stats() -> Response:
    """Return all statistics."""
    metrics = request_context().app.metrics
    server = ServerStats(__version__, round(metrics.uptime, 3), datetime.fromtimestamp(metrics.started_at, UTC))
    return json_response(Stats(server, await _jobs(), await _batches(), _system()))


@blueprint.get("/stats/jobs")
@described(JobStats)
async def job_stats() -> Response:
    """Return the statistics of jobs."""
    return json_response(await _jobs())


@blueprint.get("/stats/system")
@described(SystemStats)
async def system_stats() -> Response:
    """Return the statistics of the process."""
    return json_response(_system())


@blueprint.get("/stats/history")
@described(StatsHistoryView)
async def stats_history() -> Response:
    """Return the last hour, with a sample for every 15 seconds. The last sample is the current one."""
    context = request_context()
    if context.client.identity.bound:
        raise OutOfScope("the statistics cover all jobs, but this key may see only some")
    return json_response(StatsHistoryView(INTERVAL, context.app.stats_history.samples()))


@blueprint.get("/metrics")
@described(also={200: {"text/plain": TEXT, "application/openmetrics-text": TEXT}})
async def metrics() -> Response:
    """Return the metrics as OpenMetrics if the client accepts that, otherwise in Prometheus' text format."""
    context = request_context()
    if context.client.identity.bound:
        raise OutOfScope("the metrics cover all jobs, but this key may see only some")
    try:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    except (TypeError, ValueError):  # prometheus_client fails on a version such as 1.x
        encode, content_type = choose_encoder("")
    return Response(encode(context.app.metrics.registry), headers={"Vary": "Accept"}, content_type=content_type)


async def _jobs() -> JobStats:
    context = request_context()
    counts = await context.view.counts()
    if context.client.identity.bound:
        newest = await _newest()
        seconds = [job.elapsed_seconds for job in newest if job.elapsed_seconds is not None]
        mean, pages = sum(seconds) / len(seconds) if seconds else 0.0, sum(job.page_count or 0 for job in newest)
    else:
        counters = context.app.engine.ingest.counters
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
    context = request_context()
    if context.client.identity.bound:
        ids = {job.batch_id for job in await _newest() if job.batch_id is not None}
        found = [await context.view.find_batch(batch_id) for batch_id in ids]
        counts = Counter([batch.status for batch in found if batch is not None])
    else:
        counts = Counter(await context.app.engine.store.batch_counts())
    return BatchStats(
        total=counts.total(),
        completed=sum(count for status, count in counts.items() if status.finished),
        processing=sum(count for status, count in counts.items() if not status.finished),
    )


async def _newest() -> list[Job]:
    jobs, _ = await request_context().view.list_jobs(Filter(), MAX_JOBS, 0)
    return jobs


def _system() -> SystemStats:
    metrics = request_context().app.metrics
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return SystemStats(
        memory_used_mb=round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        worker_count=metrics.workers,
        websocket_connections=len(metrics.websockets),
    )
