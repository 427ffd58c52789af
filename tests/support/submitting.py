"""Jobs of the runner: small programs as pipelines, uploads, and the end of jobs."""

import uuid
from collections.abc import Mapping
from typing import Any

import trio
from progressd.core.events import Registration, ReportedStatus, StatusEvent, SubmitEvent
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.core.pipeline import Pipeline

from support.daemon import PATIENCE, RunningDaemon
from support.waiting import eventually

PDF = b"%PDF-1.7\nnot much of a book\n"
COPY = "import shutil, sys; shutil.copy(*sys.argv[1:])"  # a program that succeeds


def python(program: str, *, result: bool = False, **fields: Any) -> Pipeline:
    """Return a pipeline of a Python program with {input}, and {output} if it writes a `result`."""
    files = ("{input}", "{output}") if result else ("{input}",)
    return Pipeline(("{python}", "-uc", program, *files), **fields)


def shell(program: str, **fields: Any) -> Pipeline:
    """Return a pipeline of a shell script without a result; $0 is {input}."""
    return Pipeline(("sh", "-c", program, "{input}"), **fields)


async def submit(
    running: RunningDaemon,
    pipeline: str,
    content: bytes = PDF,
    options: Mapping[str, object] | None = None,
    owner: str | None = None,
) -> str:
    """Submit a file to a pipeline, and return the id of its job."""
    daemon, job_id = running.daemon, str(uuid.uuid4())
    with trio.fail_after(PATIENCE):
        async with daemon.files.upload(job_id) as upload:
            await upload.write(content)
            await upload.finish()
            registration = Registration(kind=pipeline, input_filename="book.pdf", options=dict(options or {}))
            await daemon.ingest.submit_one(SubmitEvent(job_id, registration, pipeline, owner=owner))
    return job_id


async def running_job(running: RunningDaemon, pipeline: str) -> str:
    """Submit a file, wait until its job runs, and return its id."""
    job_id = await submit(running, pipeline)
    await eventually(lambda: running.daemon.registry.unfinished[job_id].status is JobStatus.PROCESSING)
    return job_id


async def ended(running: RunningDaemon, job_id: str) -> Job:
    """Wait for the end of a job, and return the job."""
    with trio.fail_after(2 * PATIENCE):
        await running.daemon.registry.wait_finished(job_id)
        return await running.daemon.registry.get(job_id)


async def run(running: RunningDaemon, pipeline: str) -> Job:
    """Submit a file, wait for the end of its job, and return the job."""
    return await ended(running, await submit(running, pipeline))


async def cancel(running: RunningDaemon, job_id: str) -> Job:
    """Cancel a job, and return it."""
    return await running.daemon.ingest.submit_one(StatusEvent(job_id, ReportedStatus(JobStatus.CANCELLED)))
