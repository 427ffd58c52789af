"""The REST contract of the former converter: requests, and the fields of their responses.

Fields may be added to a row, but not removed or changed: clients rely on them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from support.samples import job_id

QUEUED, RUNNING, DONE, FAILED, UNKNOWN = map(job_id, range(1, 6))
JOB = "id job_id status options progress input_filename created_at"


class Row(NamedTuple):
    """A request and its response. A dot in `fields` means a nested field; `absent` fields are unknown yet."""

    request: str
    status: int
    fields: str
    absent: str = ""
    values: Mapping[str, object] = MappingProxyType({})


ROWS = [
    Row("POST /api/convert", 202, "job_id status created_at", values={"status": "queued"}),
    Row(
        f"GET /api/jobs/{QUEUED}",
        200,
        JOB + " progress.current_step progress.total_steps progress.step_name progress.percent",
        "output_path started_at completed_at error",
        {"id": QUEUED, "job_id": QUEUED, "status": "queued", "input_filename": "a.pdf"},
    ),
    Row(f"GET /api/jobs/{RUNNING}", 200, f"{JOB} started_at", "output_path completed_at error"),
    Row(
        f"GET /api/jobs/{DONE}",
        200,
        f"{JOB} started_at completed_at output_path",
        "error",
        {"output_path": f"/api/jobs/{DONE}/download", "progress.percent": 100},
    ),
    Row(f"GET /api/jobs/{FAILED}", 200, f"{JOB} started_at completed_at error", "output_path", {"error": "no paper"}),
    Row("GET /api/jobs/me", 400, "error"),
    Row(f"GET /api/jobs/{UNKNOWN}", 404, "error"),
    Row(f"PUT /api/jobs/{QUEUED}", 405, "error"),
    Row(f"DELETE /api/jobs/{RUNNING}", 200, f"{JOB} started_at completed_at", values={"status": "cancelled"}),
    Row(f"DELETE /api/jobs/{DONE}", 409, "error"),
    Row(f"DELETE /api/jobs/{UNKNOWN}", 404, "error"),
    Row(f"GET /api/jobs/{UNKNOWN}/download", 404, "error"),
    *(Row(f"GET /api/jobs/{job}/download", 409, "error") for job in (QUEUED, RUNNING, FAILED)),
    Row("POST /api/jobs/CANCELLED/retry", 200, "job_id status message", values={"status": "queued"}),
    Row(f"POST /api/jobs/{DONE}/retry", 409, "error"),
    Row(
        "GET /api/jobs/history?limit=50&offset=0&status=",
        200,
        "jobs total limit offset",
        values={"limit": 50, "total": 2},
    ),
    Row("GET /api/jobs/history?status=failed", 200, "jobs total limit offset", values={"total": 1}),
    Row("GET /api/jobs?limit=1", 200, "jobs total limit offset", values={"limit": 1, "total": 4}),
    Row("POST /api/batch", 202, "batch_id status job_count created_at", values={"status": "queued", "job_count": 2}),
    Row(
        "GET /api/batch/BATCH",
        200,
        "batch_id status progress.completed progress.processing progress.pending progress.failed progress.total"
        " created_at",
        "completed_at",
        {"progress.total": 2},
    ),
    Row(
        "GET /api/batch/BATCH/jobs",
        200,
        "batch_id jobs.job_id jobs.filename jobs.status jobs.progress.percent jobs.progress.step_name",
        "jobs.download_url",
    ),
    Row(
        "DELETE /api/batch/BATCH",
        200,
        "batch_id status cancelled_jobs completed_jobs",
        values={"status": "cancelled", "cancelled_jobs": 2, "completed_jobs": 0},
    ),
    Row(f"GET /api/batch/{UNKNOWN}", 404, "error"),
    Row("GET /api/health", 200, "status version tools", values={"status": "healthy"}),
    Row("GET /api/health/live", 200, "status"),
    Row("GET /api/health/ready", 200, "status"),
    Row(
        "GET /api/stats",
        200,
        "server.version server.uptime_seconds server.started_at jobs.total_jobs jobs.completed_jobs jobs.failed_jobs"
        " jobs.active_jobs jobs.queued_jobs jobs.avg_processing_time jobs.total_pages_processed batches.total"
        " batches.completed batches.processing system.memory_used_mb system.worker_count system.websocket_connections",
        values={"jobs.total_jobs": 4, "jobs.completed_jobs": 1, "jobs.total_pages_processed": 12},
    ),
    Row(
        "GET /api/stats/jobs",
        200,
        "total_jobs completed_jobs failed_jobs active_jobs queued_jobs avg_processing_time total_pages_processed",
        values={"active_jobs": 1, "queued_jobs": 1, "failed_jobs": 1},
    ),
    Row("GET /api/stats/system", 200, "memory_used_mb worker_count websocket_connections", values={"worker_count": 2}),
    Row(
        "GET /api/rate-limit/status",
        200,
        "enabled requests_per_minute burst_size your_remaining reset_at",
        values={"enabled": False, "requests_per_minute": 60, "burst_size": 10},
    ),
    Row(
        "GET /api/auth/status",
        200,
        "authenticated auth_required message",
        values={"authenticated": False, "auth_required": False},
    ),
]
