"""Clients that come and go do not make the memory of the daemon grow.

    make torture ARGS="-s tests/torture/test_memory.py --rounds 600"

has 720,000 operations in two hours, and prints a table.
"""

import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import trio
from support.serving import ServedDaemon, served_daemon
from torture.churn import CONFIG, WEIGHTS, Churn

ROUND = 12.0  # seconds of churn for each of --rounds
RATE = 100.0  # operations a second, as far as the machine keeps up
INTERVAL = 2.0  # seconds from one sample to the next
GROWTH = 8.0  # MiB by which the last third may be above the second one


class Sample(NamedTuple):
    """The daemon at one moment; sizes in MiB."""

    minutes: float
    operations: int
    resident: float
    anonymous: float
    threads: int
    connections: int
    unfinished_jobs: int


def sample(daemon: ServedDaemon, minutes: float, operations: int) -> Sample:
    """Return what the daemon has and does now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines())
    text = httpx.get(f"{daemon.url}/api/metrics", trust_env=False, timeout=60, verify=False).text
    metrics = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return Sample(
        minutes,
        operations,
        int(status["VmRSS"].split()[0]) / 1024,
        int(status["RssAnon"].split()[0]) / 1024,
        int(status["Threads"]),
        int(float(metrics["progressd_connections"])),
        int(float(metrics["progressd_unfinished_jobs"])),
    )


async def measure(
    daemon: ServedDaemon, churn: Churn, seconds: float, rate: float, say: Callable[[str], None] = print
) -> list[Sample]:
    """Run the churn. Return a sample for each INTERVAL, and print one for each minute."""
    samples = []
    say(f"{'minutes':>8}{'operations':>12}{'RSS':>8}{'anon':>8}{'threads':>9}{'connections':>13}{'unfinished':>12}")
    start = trio.current_time()

    async def watch() -> None:
        while True:
            minutes = (trio.current_time() - start) / 60
            one = await trio.to_thread.run_sync(sample, daemon, minutes, churn.counted.total())
            if not samples or int(one.minutes) > int(samples[-1].minutes):
                say("{:8.1f}{:12}{:8.1f}{:8.1f}{:9}{:13}{:12}".format(*one))
            samples.append(one)
            await trio.sleep(INTERVAL)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await churn.run(seconds, rate)
        nursery.cancel_scope.cancel()
    return samples


def growth(samples: list[Sample]) -> float:
    """Return by how many MiB the median of the last third is above the median of the second one.

    Only anonymous memory counts, because Linux takes back pages of files as it likes.
    """
    third = len(samples) // 3
    second, last = samples[third : 2 * third], samples[2 * third :]
    return statistics.median(one.anonymous for one in last) - statistics.median(one.anonymous for one in second)


async def test_each_operation_succeeds(tmp_path: Path) -> None:
    names = WEIGHTS.keys() - {"stay_half_open"}  # it takes 10 s
    with served_daemon(tmp_path / "state", config=CONFIG) as daemon:
        churn = Churn(daemon, random.Random(1))
        await churn.register_job()
        async with trio.open_nursery() as reporting:
            reporting.start_soon(churn.report_on_job)
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(churn.do, name)
            reporting.cancel_scope.cancel()
    assert churn.counted.keys() == names


@pytest.mark.torture
async def test_memory_is_flat_while_clients_come_and_go(tmp_path: Path, rounds: int, seed: int) -> None:
    with (
        (tmp_path / "log").open("w") as log,
        served_daemon(tmp_path / "state", config=CONFIG, log=log) as daemon,
    ):
        churn = Churn(daemon, random.Random(seed))
        samples = await measure(daemon, churn, rounds * ROUND, RATE)
    assert not churn.errors
    assert growth(samples) < GROWTH
