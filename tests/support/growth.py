"""Fill a store with finished jobs quickly: 10,000 in half a second, a million in a minute."""

from contextlib import closing
from pathlib import Path

import msgspec
from progressd.core.messages import JobStatus, StateChange
from progressd.store.sqlite import SQLiteStore

from support.samples import created, job, started, succeeded

NAME = "printf('6e4d1c9e-0d5c-4f0e-9d3a-%012x', n)"  # as `samples.job_id` has it
TIME = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ? || ' days', '+' || (n / 1000.0) || ' seconds')"


def fill(path: Path, count: int, days_ago: float = 1) -> None:
    """Insert jobs of two kinds with labels, finished `days_ago` at intervals of 1 ms; job `n` has the offset 5 n."""
    with closing(SQLiteStore.open(path, "OFF")) as store:
        db = store._writer
        db.execute("BEGIN")
        ended = job(1, JobStatus.COMPLETED, input_filename="scan.pdf", labels={"site": "x"}, page_count=12)
        db.execute(
            f"""
            INSERT INTO jobs (created_offset, id, body)
            WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
            SELECT 5 * n, {NAME}, json_set(?, '$.id', {NAME}, '$.created_offset', 5 * n, '$.offset', 5 * n + 4,
                '$.kind', iif(n % 3, 'scan', 'backup'), '$.status', iif(n % 10, 'completed', 'failed'),
                '$.labels.user', 'user' || (n % 50), '$.completed_at', {TIME}, '$.progress_offset', 5 * n + 2)
            FROM numbers
            """,
            (count, msgspec.json.encode(ended).decode(), days_ago),
        )
        story: list[StateChange] = [created(), started(), *succeeded()]
        for place, message in zip((0, 1, 3, 4), story, strict=True):
            db.execute(
                "INSERT INTO changes SELECT created_offset + ?, id, json_set(?, '$.job_id', id) FROM jobs",
                (place, msgspec.json.encode(message).decode()),
            )
        db.execute("UPDATE meta SET value = ? WHERE key = 'reserved'", (5 * count + 5,))
        db.execute("COMMIT")
