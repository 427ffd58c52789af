"""Measure lists of a daemon with many jobs: `python -m benchmarks.lists`, or `--state DIR` to keep the jobs.

The jobs are written directly to the database. Each query is sent over HTTP, to a new page or with new words, so that no
response was computed before. Beside that, a second connection reads a job every 20 ms.
"""

import argparse
import http.client
import itertools
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from progressd.core.job import Job
from progressd.core.messages import JobStatus, ProgressData
from progressd.store import search
from progressd.store.schema import migrate

PORT: Final = 18080
UNFINISHED: Final = 10_000  # jobs
KINDS: Final = ("pdf", "rsync", "backup", "ffmpeg", "pytest", "ci", "scan", "ocr", "train", "export")
OFTEN: Final = (30, 20, 15, 10, 8, 7, 5, 3, 1, 1)
LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
START: Final = datetime(2026, 1, 1, tzinfo=UTC)

_random = random.Random(1)
WORDS: Final = ["".join(_random.choices(LETTERS, k=_random.randint(4, 9))) for _ in range(5000)]
_WEIGHTS: Final = list(itertools.accumulate(1 / number for number in range(1, len(WORDS) + 1)))


def jobs(many: int) -> Iterator[Job]:
    """Yield jobs with names of which some words are frequent and others rare; the newest are unfinished."""
    offset = 1
    for number in range(many):
        first, second, third = _random.choices(WORDS, cum_weights=_WEIGHTS, k=3)
        [kind] = _random.choices(KINDS, OFTEN)
        began = START + timedelta(seconds=20 * number)
        if number >= many - min(UNFINISHED, many // 10):
            status = _random.choice((JobStatus.PROCESSING, JobStatus.QUEUED))
        else:
            [status] = _random.choices((JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED), (93, 5, 2))
        names = {"rsync": f"rsync -a /srv/{first}/{second} backup:/vol/{third}", "backup": f"Backup of {first}"}
        labels = {"host": f"host{_random.randint(1, 200):03}", "team": _random.choice(("scan", "print", "web", "ml"))}
        yield Job(
            id=str(uuid.UUID(int=_random.getrandbits(128), version=4)),
            kind=kind,
            status=status,
            created_at=began,
            created_offset=offset,
            offset=offset + _random.randint(3, 12),
            progress=ProgressData(10, 10, "Page 10", 100),
            labels=labels,
            name=None if kind == "pdf" else names.get(kind, f"{kind} {first} {second} {number}"),
            input_filename=f"{first}-{second}-{number}.pdf" if kind in ("pdf", "scan", "ocr") else None,
            started_at=None if status is JobStatus.QUEUED else began,
            completed_at=began + timedelta(seconds=100) if status.finished else None,
            error=f"exit status 1: {third}: No such file" if status is JobStatus.FAILED else None,
        )
        offset += _random.randint(13, 30)


def fill(path: Path, many: int) -> None:
    """Create a store with jobs and a complete index."""
    encode = msgspec.json.Encoder().encode
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -200000")
        migrate(db, 0)
        db.execute("BEGIN")
        rows = ((job.created_offset, job.id, encode(job).decode()) for job in jobs(many))
        db.executemany("INSERT INTO jobs (created_offset, id, body) VALUES (?, ?, ?)", rows)
        db.execute("UPDATE meta SET value = (SELECT max(created_offset) + 1000 FROM jobs) WHERE key = 'reserved'")
        db.execute("COMMIT")
        search.INDEX_BATCH = 50_000  # type: ignore[misc]
        more = True
        while more:
            db.execute("BEGIN")
            more = search.index(db, 3600)
            db.execute("COMMIT")


def queries(connection: "Connection") -> dict[str, Callable[[], dict[str, Any]]]:
    """Return a function for each kind of query that returns new parameters each time."""
    last = {"next": ""}

    def walk(**given: str) -> dict[str, Any]:
        page = connection.page({**given, "after": last["next"]} if last["next"] else given)
        last["next"] = page.get("next", "")
        return {**given, "after": last["next"]} if last["next"] else given

    words = iter(_random.sample(WORDS[50:], 4000))
    return {
        "newest": dict,
        "deep page, by token": lambda: {"after": f"newest.{_random.randint(1, 20_000_000)}"},
        "deep page, by offset": lambda: {"offset": str(_random.randint(1, 900_000))},
        "two statuses, counts": lambda: {"status": "failed,cancelled", "counts": "true"},
        "attention, counts": lambda: {"attention": "true", "counts": "true"},
        "host, counts": lambda: {"host": f"host{_random.randint(1, 200):03}", "counts": "true"},
        "kind and host, counts": lambda: {
            "kind": _random.choice(KINDS),
            "host": f"host{_random.randint(1, 200):03}",
            "counts": "true",
        },
        "kind and team, counts": lambda: {"kind": _random.choice(KINDS), "label": "team=web", "counts": "true"},
        "rare word, counts": lambda: {"q": next(words), "counts": "true"},
        "unique word, counts": lambda: {"q": str(_random.randint(100_000, 999_999)), "counts": "true"},
        "unknown word, counts": lambda: {"q": "".join(_random.choices(LETTERS, k=7)), "counts": "true"},
        "frequent word, counts": lambda: {"q": _random.choice(("rsync", "backup", *WORDS[:10])), "counts": "true"},
        "frequent word, deep page": lambda: walk(q="rsync", counts="true"),
        "two frequent words, counts": lambda: {"q": f"{_random.choice(WORDS[:10])} rsync", "counts": "true"},
        "two words that never meet": lambda: {"q": "rsync ffmpeg", "counts": "true"},
        "word and status": lambda: {"q": _random.choice(WORDS[:300]), "status": "failed", "counts": "true"},
        "word, kind and host": lambda: {
            "q": _random.choice(WORDS[:300]),
            "kind": "rsync",
            "host": f"host{_random.randint(1, 200):03}",
        },
        "word of two letters": lambda: {"q": "".join(_random.choices(LETTERS, k=2)), "counts": "true"},
        "part of an id": lambda: {"q": f"{_random.getrandbits(32):08x}-{_random.getrandbits(16):04x}"},
        "last finished": lambda: {"sort": "-finished"},
        "last finished, word": lambda: {"sort": "-finished", "q": _random.choice(WORDS[:300])},
        "last updated": lambda: {"sort": "-updated", "counts": "true"},
        "by name, rare word": lambda: {"sort": "name", "q": next(words)},
    }


class Connection:
    """A connection to the daemon."""

    def __init__(self) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)

    def get(self, path: str) -> bytes:
        self._http.request("GET", path)
        response = self._http.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {body.decode()}")
        return body

    def page(self, query: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get(f"/api/jobs?{urlencode(query)}"))
        return found


def measure(rounds: int) -> None:
    """Print a table with the latency of each kind of query, and of reads of a job beside them."""
    connection, beside = Connection(), Connection()
    [newest] = connection.page({"limit": 1})["jobs"]
    reads, ended = list[float](), threading.Event()

    def read() -> None:
        while not ended.wait(0.02):
            began = time.perf_counter()
            beside.get(f"/api/jobs/{newest['id']}")
            reads.append(time.perf_counter() - began)

    reader = threading.Thread(target=read)
    reader.start()
    every = list[float]()
    print("| query | p50, ms | p99, ms | max, ms | exact |\n|---|---|---|---|---|")
    for name, new in queries(connection).items():
        took, exact = list[float](), 0
        for _ in range(rounds):
            query = new()
            began = time.perf_counter()
            page = connection.page(query)
            took.append(time.perf_counter() - began)
            exact += page.get("exact", True)
        every += took
        print(f"| {name} | {figures(took)} | {100 * exact / rounds:.0f} % |", flush=True)
    ended.set()
    reader.join()
    print(f"| **all queries** | {figures(every)} | |\n| reads of a job beside them | {figures(reads)} | |")


def figures(seconds: list[float]) -> str:
    """Return the median, the 99th percentile and the maximum in milliseconds."""
    p99 = statistics.quantiles(seconds, n=100)[-1]
    return " | ".join(f"{1000 * one:.1f}" for one in (statistics.median(seconds), p99, max(seconds)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lists", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=100, help="of each query")
    parser.add_argument("--state", type=Path, help="a state directory; it is filled if it has no database")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        state = arguments.state or Path(temporary)
        database = state / "progressd.db"
        if not database.exists():
            state.mkdir(parents=True, exist_ok=True)
            fill(database, arguments.jobs)
        print(f"{arguments.jobs:,} jobs, {database.stat().st_size / 2**20:.0f} MiB")
        command = [sys.executable, "-m", "progressd", "serve", "--state-dir", str(state), "--port", str(PORT)]
        os.sched_setaffinity(0, {0})
        command = ["taskset", "-c", "1", *command]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
            try:
                _wait()
                measure(arguments.rounds)
            finally:
                daemon.terminate()


def _wait() -> None:
    for _ in range(600):
        try:
            Connection().get("/api/health/ready")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the daemon does not start")


if __name__ == "__main__":
    os.environ.pop("PROGRESSD_STATE_DIR", None)
    main()
