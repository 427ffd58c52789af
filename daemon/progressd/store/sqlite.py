"""The embedded store: one SQLite file in WAL mode, with a thread for writes, one for look-ups and one for lists.

A job is one JSON document; the columns for searches are generated from it. The round trip of a thread costs 130 µs and
a FULL commit 213 µs, regardless of the number of changes.
"""

import contextlib
import math
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Self, TypeVar

import structlog
import trio
from prometheus_client import Histogram

from progressd.core.batch import BatchStatus, JobBatch
from progressd.core.errors import CorruptRecord, StoreFailed, StoreFull
from progressd.core.eta import KeyedRun
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.store import search
from progressd.store.base import EVERY_JOB, Change, Deletion, Filter, Page, Paging
from progressd.store.connection import BUSY_TIMEOUT, Checkpointer, WALLimits, connected
from progressd.store.errors import UnreadableRow, damaged, index_damaged, shortage, store_error
from progressd.store.listing import PAGE_BYTES, SEARCH_SECONDS, Listing
from progressd.store.rows import (
    AMONG,
    BATCH,
    CHANGE,
    DELETE_SECONDS,
    DELETION,
    JOB,
    JOB_AND_STEPS,
    RUN,
    batch_of,
    change_of,
    delete,
    deletion_of,
    in_json,
    job_of,
    job_with_steps_of,
    readable,
    run_of,
    write,
)
from progressd.store.schema import read_meta
from progressd.system.transient_errors import is_transient

DELETE_BATCH: Final = 16  # jobs in a delete transaction
INDEX_SECONDS: Final = 0.01  # duration of a transaction that updates the index for searches; other writes wait for it
INDEX_INTERVAL: Final = 1.0  # seconds between two updates of the index for searches
INDEX_RETRY: Final = 30.0  # seconds after a failure

T = TypeVar("T")
log = structlog.get_logger(__name__)


class SQLiteStore:
    """The SQLite store. `store.base.Store` describes its methods. Open it with `SQLiteStore.open`."""

    def __init__(
        self,
        path: Path,
        writer: sqlite3.Connection,
        *others: sqlite3.Connection,
        delete_seconds: float,
        page_bytes: int,
        search_seconds: float,
        wal: WALLimits,
    ) -> None:
        self._writer = writer
        self._lister, self._reader, checkpointer = others
        self._connections = (checkpointer, self._lister, self._reader, writer)
        self._checkpointer = Checkpointer(path, checkpointer, wal)
        self._writing = trio.CapacityLimiter(1)
        self._checkpointing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(1)
        self._listing = trio.CapacityLimiter(1)  # separate, because lists may be slow
        self._delete_seconds = delete_seconds
        self._page_bytes = page_bytes
        self._search_seconds = search_seconds
        self.delete_durations = Histogram(
            "progressd_store_delete_duration_seconds",
            "How long a deletion of finished jobs blocked other writes.",
            registry=None,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
        )
        self.damage: StoreFailed | None = None
        self.unreadable: CorruptRecord | None = None
        self._noted = set[str]()
        self._indexing = trio.Event()  # set after each commit, and if the index for searches is damaged
        self.index_damaged = False
        self.id, self.first_offset, self.oldest_cursor = read_meta(writer)

    @classmethod
    def open(
        cls,
        path: Path,
        synchronous: str = "FULL",
        *,
        delete_seconds: float = DELETE_SECONDS,
        page_bytes: int = PAGE_BYTES,
        search_seconds: float = SEARCH_SECONDS,
        busy_timeout: float = BUSY_TIMEOUT,
        wal: WALLimits = WALLimits(),  # noqa: B008, a constant
    ) -> Self:
        """Open or create the file, and migrate its schema. Blocks.

        `delete_seconds`: the target duration of a delete transaction. `page_bytes`: the size at which a list ends.
        `search_seconds`: the duration of a search for a page.
        `busy_timeout`: seconds to wait for another process. Raises SettingsError for a file that is not a store of
        this or an older version, and does not change that file.
        """
        with connected(path, synchronous, wal.restart, busy_timeout) as connections:
            return cls(
                path,
                *connections,
                delete_seconds=delete_seconds,
                page_bytes=page_bytes,
                search_seconds=search_seconds,
                wal=wal,
            )

    def close(self) -> None:
        """Close the file. Blocks."""
        for connection in self._connections:
            connection.close()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._index)
            await self._checkpointer.run(
                partial(self._in_thread, limiter=self._checkpointing), partial(self._in_thread, limiter=self._writing)
            )

    async def _index(self) -> None:
        """Add finished jobs to the index for searches, until cancelled. Other writes have at least half of the time."""
        while True:
            self._indexing = trio.Event()
            began = trio.current_time()
            try:
                more = await self._transaction(
                    search.empty if self.index_damaged else partial(search.index, seconds=INDEX_SECONDS)
                )
                self.index_damaged = False
            except StoreFailed as error:
                log.error("cannot index jobs for searches", error=str(error))
                await trio.sleep(INDEX_INTERVAL if self.index_damaged else INDEX_RETRY)
                continue
            if more:
                await trio.sleep(trio.current_time() - began)
            else:
                self._indexing = trio.Event()  # set by commits, and also by the one above
                await self._indexing.wait()
                await trio.sleep(INDEX_INTERVAL)

    async def reserve(self, offset: int) -> None:
        def write(db: sqlite3.Connection) -> None:  # no cursor: after a failed commit it would keep the file open
            db.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'reserved'", (offset,))

        await self._transaction(write)
        # Even if the write-ahead log (WAL) is damaged, no offset is assigned twice.
        await self._in_thread(self._checkpointer.checkpoint, self._checkpointing)

    async def commit(
        self,
        jobs: Iterable[Job],
        changes: Sequence[Change],
        batches: Iterable[JobBatch] = (),
        runs: Sequence[KeyedRun] = (),
    ) -> None:
        jobs, batches = list(jobs), list(batches)
        await self._transaction(lambda db: write(db, jobs, changes, batches, runs))

    async def runs(self) -> list[KeyedRun]:
        return await self._readable(run_of, f"SELECT {RUN} FROM runs ORDER BY id")

    async def last_seen(self) -> datetime | None:
        which = "created_offset < ? ORDER BY created_offset DESC"
        jobs = await self._readable_jobs(which, self.first_offset, limit=1)
        return jobs[0].created_at if jobs else None

    async def delete_finished(self, before: datetime, limit: int) -> list[str]:
        limit = min(limit, DELETE_BATCH)  # reading jobs that are not deleted would delay other readers
        # Without a fraction: a time is compared as text, and any fraction or suffix sorts after this prefix.
        second = before.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
        which = "completed_at < ? ORDER BY completed_at"
        return await self._delete(await self._readable_jobs(which, second, limit=limit))

    async def delete(self, ids: Collection[str], deletion: Deletion | None = None) -> list[str]:
        return await self._delete([job for job in (await self.jobs(ids)).values() if job.status.finished], deletion)

    async def _delete(self, jobs: Sequence[Job], deletion: Deletion | None = None) -> list[str]:
        if not jobs:
            return []
        step = jobs[:DELETE_BATCH]
        gone, self.oldest_cursor = await self._transaction(
            lambda db: delete(db, step, deletion, self._delete_seconds), self.delete_durations.observe
        )
        return [job.id for job in gone]

    async def jobs(self, ids: Collection[str]) -> Mapping[str, Job]:
        query = f"SELECT {JOB_AND_STEPS} FROM jobs WHERE id {AMONG}"
        found = await self._documents(job_with_steps_of, query, in_json(ids))
        return {job.id: job for job in found}

    async def readable_jobs(self, ids: Collection[str]) -> Mapping[str, Job]:
        found = await self._readable_jobs(f"id {AMONG}", in_json(ids))
        return {job.id: job for job in found}

    async def known(self, ids: Collection[str]) -> Collection[str]:
        return {job_id for (job_id,) in await self._read(f"SELECT id FROM jobs WHERE id {AMONG}", in_json(ids))}

    async def batches(self, ids: Collection[str]) -> Mapping[str, JobBatch]:
        found = await self._documents(batch_of, f"SELECT {BATCH} FROM batches WHERE id {AMONG}", in_json(ids))
        return {batch.id: batch for batch in found}

    async def unfinished_batches(self) -> list[JobBatch]:
        return await self._documents(
            batch_of, f"SELECT {BATCH} FROM batches WHERE status IN ('queued', 'processing') ORDER BY created_offset"
        )

    async def jobs_of_batch(self, batch_id: str) -> list[Job]:
        return await self._documents(
            job_of, f"SELECT {JOB} FROM jobs WHERE batch_id = ? ORDER BY created_offset", batch_id
        )

    async def unfinished(self) -> list[Job]:
        which = "status IN ('queued', 'processing') ORDER BY created_offset"
        return await self._documents(job_with_steps_of, f"SELECT {JOB_AND_STEPS} FROM jobs WHERE {which}")

    async def list_jobs(self, which: Filter, limit: int, offset: int) -> tuple[list[Job], int]:
        page = await self.page(which, Paging(limit, offset))
        return page.jobs, page.numbers.total(which.statuses)

    async def page(self, which: Filter, paging: Paging) -> Page:
        def read() -> Page:
            self._lister.execute("BEGIN")  # so that the page and the numbers are consistent
            try:
                found = Listing(self._lister, which, self._search_seconds if paging.limited else math.inf)
                numbers = found.numbers({*(JobStatus if which.statuses is None else which.statuses), *paging.counted})
                rows, following = found.page(paging, self._page_bytes)
            finally:
                self._lister.execute("ROLLBACK")
            return Page(list(readable(job_of, rows, self._skip)), numbers, following)

        return await self._in_thread(read, self._listing)

    async def counts(self, which: Filter = EVERY_JOB) -> Mapping[JobStatus, int]:
        def read() -> Mapping[JobStatus, int]:
            return Listing(self._lister, which, math.inf).numbers(JobStatus).by_status

        return await self._in_thread(read, self._listing)

    async def batch_counts(self) -> Mapping[BatchStatus, int]:
        rows = await self._read("SELECT status, count(*) FROM batches GROUP BY status")
        return {BatchStatus(status): count for status, count in rows}

    async def changes(self, after: int, upto: int, limit: int, job_id: str | None = None) -> list[Change]:
        query = f"SELECT {CHANGE} FROM changes WHERE offset > ? AND offset <= ?"
        if job_id is None:
            return await self._readable(change_of, f"{query} ORDER BY offset", after, upto, limit=limit)
        query += " AND job_id = ? ORDER BY offset LIMIT ?"
        return await self._documents(change_of, query, after, upto, job_id, limit)

    async def deletions(self, after: int, upto: int, limit: int) -> list[Deletion]:
        query = f"SELECT {DELETION} FROM deletions WHERE offset > ? AND offset <= ? ORDER BY offset LIMIT ?"
        return await self._documents(deletion_of, query, after, upto, limit)

    async def changes_of_unfinished(self, upto: int) -> list[Change]:
        return await self._documents(
            change_of,
            f"SELECT {CHANGE} FROM changes WHERE offset <= ?1 AND job_id IN ("
            " SELECT id FROM jobs WHERE status IN ('queued', 'processing')"
            " UNION SELECT job_id FROM changes WHERE offset > ?1"
            ") ORDER BY offset",
            upto,
        )

    async def moved(self, after: int, upto: int, limit: int) -> list[Job]:
        which = "progress_offset > ? AND progress_offset <= ? ORDER BY progress_offset"
        return await self._readable_jobs(which, after, upto, limit=limit)

    async def _transaction(
        self, write: Callable[[sqlite3.Connection], T], took: Callable[[float], None] | None = None
    ) -> T:
        """Run `write` in a transaction, in the writing thread, and wait for the end even if cancelled.

        `took` is called in that thread with the number of seconds for which other writes were blocked.
        """
        committing = False

        def run() -> T:
            nonlocal committing
            began = perf_counter()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                result = write(self._writer)
                committing = True
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
            if took is not None:
                took(perf_counter() - began)
            return result

        # No shield is necessary: `run_sync` itself waits for the thread, and delivers a cancellation afterwards.
        try:
            return await self._in_thread(run, self._writing)
        except StoreFailed as error:
            # On a full disk, the last page of the commit was certainly not written.
            if committing and not isinstance(error, StoreFull):
                error.undecided = True
            raise
        finally:
            self._checkpointer.written.set()
            self._indexing.set()

    async def _in_thread(self, function: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
        """Run a function in a thread. Raises StoreFailed. A damaged file is never written, to avoid losing data."""
        if self.damage is not None and limiter is self._writing:
            raise self.damage
        try:
            return await trio.to_thread.run_sync(function, limiter=limiter)
        except (MemoryError, OSError) as error:  # SQLite's SQLITE_NOMEM is a MemoryError
            if not is_transient(error):
                raise
            raise shortage(error) from error
        except sqlite3.Error as error:
            failed = store_error(error)
            if isinstance(failed, CorruptRecord):
                self._note(failed)
            elif index_damaged(error):
                log.error("the index for searches is damaged and is built again", error=str(error))
                self.index_damaged = True
                self._indexing.set()
            elif damaged(error):
                self.damage = failed
            else:
                log.error("the database failed", error=str(error))
            raise failed from error

    def _skip(self, row: UnreadableRow) -> None:
        """Record an unreadable row. Call this from one of Trio's worker threads."""
        failed = store_error(row)
        assert isinstance(failed, CorruptRecord)
        trio.from_thread.run_sync(self._note, failed)

    def _note(self, failed: CorruptRecord) -> None:
        if str(failed) not in self._noted:
            log.error("unreadable row in the database", error=str(failed))
        self._noted.add(str(failed))
        self.unreadable = failed

    async def _documents(self, decode: Callable[[Any], T], query: str, *values: object) -> list[T]:
        return await self._in_thread(lambda: list(map(decode, self._reader.execute(query, values))), self._reading)

    async def _readable_jobs(self, which: str, *values: object, limit: int | None = None) -> list[Job]:
        return await self._readable(job_of, f"SELECT {JOB} FROM jobs WHERE {which}", *values, limit=limit)

    async def _readable(
        self, decode: Callable[[Any], T], query: str, *values: object, limit: int | None = None
    ) -> list[T]:
        def read() -> list[T]:
            with contextlib.closing(self._reader.execute(query, values)) as rows:
                return list(islice(readable(decode, rows, self._skip), limit))

        return await self._in_thread(read, self._reading)

    async def _read(self, query: str, *values: object) -> list[Any]:
        return await self._in_thread(lambda: self._reader.execute(query, values).fetchall(), self._reading)
