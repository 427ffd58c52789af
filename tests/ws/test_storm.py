"""Watchers that keep losing their connections, and resume: no gap, no change twice, no end missed."""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import trio
from samples import job_id
from trio_websocket import ConnectionClosed

from daemon import RunningDaemon, completed, failed, progress, registered, running_daemon, status_change

CHANGES = ("job_created", "status_change", "completed", "error")


class Wanderer:
    """A watcher that drops its connection after some messages and comes back with the cursor of the last."""

    def __init__(self, daemon: RunningDaemon, path: str, chance: random.Random) -> None:
        self.changes: dict[str, list[str]] = defaultdict(list)
        self.steps: dict[str, list[int]] = defaultdict(list)
        self.returns = -1
        self._daemon = daemon
        self._path = path
        self._chance = chance
        self._cursor: str | None = None

    async def run(self, ends: int) -> None:
        """Until so many jobs have ended."""
        while self._ended < ends:
            self.returns += 1
            since = "" if self._cursor is None else f"?since={self._cursor}"
            async with self._daemon.watch(self._path + since) as watcher:
                try:
                    for _ in range(self._chance.randint(1, 30)):
                        self._take(await watcher.receive())
                        if self._ended == ends:
                            return
                except ConnectionClosed:
                    return  # the job has finished
                if self._chance.random() < 0.8:
                    await trio.aclose_forcefully(watcher.stream)

    @property
    def _ended(self) -> int:
        return sum(self._is_over(job) for job in self.changes)

    def _is_over(self, job: str) -> bool:
        return self.changes[job][-1] in ("cancelled", "error") or self.changes[job][-2:] == ["completed", "completed"]

    def _take(self, message: dict[str, Any]) -> None:
        assert message["type"] != "resync"
        self._cursor = message["cursor"]
        job, data = message["job_id"], message["data"]
        if message["type"] == "progress":
            self.steps[job].append(data["current_step"])
        elif message["type"] in CHANGES:
            self.changes[job].append(data.get("new_status", message["type"]))


async def report_job(daemon: RunningDaemon, number: int, steps: int, go: trio.Event) -> None:
    """One job from its start to its end, good, bad or cancelled."""
    id_ = job_id(number)
    await go.wait()
    for step in range(1, steps + 1):
        await daemon.report(progress(id_, step, steps))
    await daemon.report([completed(id_), failed(id_, "no paper"), status_change(id_, "cancelled")][number % 3])


async def storm(directory: Path, watchers: int, jobs: int, steps: int) -> int:
    """Run one; how often a watcher came back."""
    expected = [
        ["processing", "completed", "completed"],
        ["processing", "failed", "error"],
        ["processing", "cancelled"],
    ]
    limits = {"max_connections": 2 * watchers, "max_connections_per_address": 2 * watchers}
    async with running_daemon(directory, limits=limits) as daemon:
        go = trio.Event()
        async with trio.open_nursery() as nursery:
            await daemon.report(*(registered(job_id(number)) for number in range(jobs)))
            wanderers = []
            for number in range(watchers):
                path = "/ws/jobs" if number % 2 else f"/ws/jobs/{job_id(number // 2 % jobs)}"
                wanderers.append((number, Wanderer(daemon, path, random.Random(number))))
                nursery.start_soon(wanderers[-1][1].run, jobs if number % 2 else 1)
            for number in range(jobs):
                nursery.start_soon(report_job, daemon, number, steps, go)
            go.set()
        for number, wanderer in wanderers:
            ids = range(jobs) if number % 2 else [number // 2 % jobs]
            assert wanderer.changes.keys() == {job_id(id_) for id_ in ids}
            for id_ in ids:
                created = ["job_created"] if number % 2 else []
                assert wanderer.changes[job_id(id_)] == created + expected[id_ % 3]
                assert wanderer.steps[job_id(id_)] == sorted(set(wanderer.steps[job_id(id_)]))
                assert wanderer.steps[job_id(id_)][-1] == steps
        assert len(daemon.daemon.watchers) == 0
    return sum(wanderer.returns for _, wanderer in wanderers)


async def test_watchers_who_come_and_go_miss_nothing_and_get_nothing_twice(tmp_path: Path) -> None:
    assert await storm(tmp_path, watchers=30, jobs=9, steps=40) > 30


@pytest.mark.torture
async def test_a_thousand_watchers_who_come_and_go(tmp_path: Path) -> None:
    assert await storm(tmp_path, watchers=1000, jobs=100, steps=50) > 1000
