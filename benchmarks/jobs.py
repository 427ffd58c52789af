"""The jobs of a run: registered with the daemon, or stored as finished."""

import json
import shutil
import socket
import sys
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import trio
from msgspec.structs import replace
from progressd.core.events import CompletedEvent, ProgressEvent, RegisterEvent, Registration, ReportedProgress
from progressd.core.job import Job, apply
from progressd.core.messages import Cursor, JobMessage, Progress, ProgressData, StateChange, encode
from progressd.store.base import Change
from progressd.store.schema import MIGRATIONS
from progressd.store.sqlite import SQLiteStore

from benchmarks.install import BUILT

MAX_BATCH: Final = 5000  # jobs in one transaction


def job_id(number: int) -> str:
    """Return the id that the load client uses."""
    return f"00000000-0000-4000-8000-{number:012d}"


def message_size() -> int:
    """Return the bytes of the progress messages. The messages of the peers are padded to this size."""
    data = ProgressData(500, 1000, f"@{0:016d}", 50, 12.3)
    return len(encode(Progress(job_id(0), data, "0123abcd-100123", datetime.now(UTC).replace(microsecond=123456))))


def register(path: Path, count: int) -> str:
    """Register jobs with progress over the Unix socket, and wait until they are durable. Return the newest cursor."""
    lines = b"".join(
        encode({"type": "job_created", "job_id": job_id(number), "data": {"total_steps": 1000}})
        + b"\n"
        + encode({"type": "progress", "job_id": job_id(number), "data": {"current_step": 1, "total_steps": 1000}})
        + b"\n"
        for number in range(count)
    )
    with socket.socket(socket.AF_UNIX) as producer:
        producer.settimeout(60)
        producer.connect(str(path))
        newest = {"type": "progress", "job_id": job_id(0), "ref": 0, "data": {"current_step": 2, "total_steps": 1000}}
        producer.sendall(lines + encode(newest) + b"\n")
        answer = producer.recv(65536)
    assert b'"ok":true' in answer, answer
    cursor = json.loads(answer)["cursor"]
    assert isinstance(cursor, str)
    return cursor


def state_with_finished_jobs(count: int) -> Path:
    """Return a state directory with finished jobs, made once per schema version (a minute, 2 GB)."""
    state = BUILT / f"finished-{count}-schema-{len(MIGRATIONS)}"
    if not state.exists():
        print(f"+ filling a store with {count:,} finished jobs", file=sys.stderr)
        unfinished = state.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        trio.run(_fill, unfinished / "progressd.db", count)
        unfinished.rename(state)
    return state


async def _fill(path: Path, count: int) -> None:
    with closing(SQLiteStore.open(path, "OFF")) as store:
        offset = store.first_offset
        for start in range(0, count, MAX_BATCH):
            jobs: list[Job] = []
            changes: list[Change] = []
            for _ in range(min(MAX_BATCH, count - start)):
                job, messages = _finished_job(datetime.now(UTC) - timedelta(days=1), store.id, offset)
                changes += [Change(at, message) for at, message in messages if isinstance(message, StateChange)]
                jobs.append(job)
                offset = job.offset + 1
            await store.reserve(offset)
            await store.commit(jobs, changes)


def _finished_job(now: datetime, store_id: str, offset: int) -> tuple[Job, list[tuple[int, JobMessage]]]:
    """Return a finished job, and its messages with their offsets, as ingest stores them."""
    name = str(uuid.uuid4())
    events = (
        RegisterEvent(name, Registration("pdf", f"{name}.pdf", 12)),
        ProgressEvent(name, ReportedProgress(12, 12, "AI Upscaling")),
        CompletedEvent(name),
    )
    job: Job | None = None
    messages: list[tuple[int, JobMessage]] = []
    for event in events:
        applied = apply(job, event, now)
        job = applied.job
        for at, message in enumerate(applied.messages, offset + len(messages)):
            messages.append((at, replace(message, cursor=str(Cursor(store_id, at)), time=now)))
            if isinstance(message, Progress):
                job = replace(job, progress_offset=at, progress_at=now)
            job = replace(job, offset=at, created_offset=job.created_offset or at)
    assert job is not None
    return job, messages
