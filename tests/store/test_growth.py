"""A million finished jobs cost no more than a thousand: start, answers and events."""

import json
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import httpx
import pytest
import trio
from support.daemon import completed, progress, registered
from support.growth import fill
from support.samples import job_id
from torture.fork_server import ForkServer

PAGES = (
    "/api/jobs",
    "/api/jobs?offset=900",
    "/api/jobs?offset={middle}",
    "/api/jobs/history",
    "/api/jobs/history?offset={middle}",
    "/api/jobs?label=user=user7",
    "/api/jobs?label=site=x&status=failed&offset={deep}",
    "/api/jobs?kind=backup&status=completed",
    "/api/jobs?status=processing",
    "/api/jobs/" + job_id(500),
)
SLACK = 0.001  # seconds


class Measured(NamedTuple):
    """Seconds and KiB."""

    start: float
    memory: int
    pages: dict[str, float]
    event: float


def least_of(times: int, what: Callable[[], object]) -> float:
    """Return the best of many, since the machine may be busy."""
    taken = []
    for _ in range(times):
        before = perf_counter()
        what()
        taken.append(perf_counter() - before)
    return min(taken)


def least_event(path: Path) -> float:
    """Return seconds from an event to its durable answer, for a whole job."""
    with socket.socket(socket.AF_UNIX) as producer:
        producer.settimeout(30)
        producer.connect(str(path))
        answers = producer.makefile()
        events = iter(
            event
            for number in range(100)
            for name in [f"00000000-0000-4000-8000-{number:012d}"]
            for event in (registered(name, labels={"site": "x"}), progress(name, 1), completed(name))
        )

        def one() -> None:
            producer.sendall(json.dumps({"ref": 1, **next(events)}).encode() + b"\n")
            assert json.loads(answers.readline())["ok"]

        return least_of(300, one)


def least_pages(url: str, count: int) -> dict[str, float]:
    pages = {}
    with httpx.Client(base_url=url, trust_env=False, verify=False) as client:
        for page in PAGES:
            path = page.format(middle=count // 2, deep=count // 10 - 60)
            assert client.get(path).status_code == 200
            pages[page] = least_of(21, partial(client.get, path))
        assert client.get("/api/jobs").json()["total"] == count
    return pages


async def measure(fork_server: ForkServer, tmp_path: Path, count: int) -> Measured:
    state = tmp_path / str(count)
    state.mkdir()
    fill(state / "progressd.db", count)
    async with fork_server.daemon(tmp_path / "empty") as daemon:
        await daemon.listening()  # everything is loaded
    before = perf_counter()
    async with fork_server.daemon(state) as daemon:
        url = await daemon.listening()
        start = perf_counter() - before
        pages = least_pages(url, count)
        event = least_event(state / "ingest.sock")
        status = await trio.Path(f"/proc/{daemon.pid}/status").read_text()
    [memory] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    return Measured(start, memory, pages, event)


@pytest.mark.torture
async def test_a_million_finished_jobs_cost_nothing(fork_server: ForkServer, tmp_path: Path) -> None:
    few = await measure(fork_server, tmp_path, 1000)
    many = await measure(fork_server, tmp_path, 1_000_000)
    print(few, many, sep="\n")
    assert many.start < 1
    assert many.memory < few.memory + 8 * 1024  # SQLite's caches fill up: 2 MiB for each connection
    for page, seconds in many.pages.items():
        assert seconds < 2 * few.pages[page] + SLACK, page
    assert many.event < 2 * few.event + SLACK
