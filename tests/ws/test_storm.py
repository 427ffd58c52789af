"""Watchers that lose their connections and resume miss nothing and get nothing twice."""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import trio
from support.daemon import RunningDaemon, completed, failed, progress, registered, running_daemon, status_change
from support.samples import job_id
from support.waiting import eventually
from trio_websocket import ConnectionClosed

CHANGES = ("job_created", "status_change", "completed", "error")


class ResumingWatcher:
    """A watcher that drops its connection after some messages and resumes with its last cursor.

    `jobs`: the ids that it watches. `requests`: on a socket of many topics, the topics of each subscription. With an
    interval, messages since that cursor may come again.
    """

    def __init__(
        self,
        daemon: RunningDaemon,
        path: str,
        jobs: Sequence[str],
        chance: random.Random,
        requests: Sequence[Sequence[str]] = (),
        interval: float = 0.0,
    ) -> None:
        self.jobs = jobs
        self.changes: dict[str, list[str]] = defaultdict(list)
        self.steps: dict[str, list[int]] = defaultdict(list)
        self.returns = -1
        self.live = trio.Event()
        self.watches_all = path == "/ws/jobs" or any("jobs" in topics for topics in requests)
        self._daemon = daemon
        self._path = path
        self._chance = chance
        self._requests = requests
        self._interval = interval
        self._cursor: str | None = None
        self._unanswered = 0
        self._uncertain: list[dict[str, Any]] = []  # messages since the cursor, which come again
        self._seen: set[tuple[str, ...]] = set()

    async def run(self) -> None:
        """Watch until all jobs have ended."""
        while not self._over:
            self.returns += 1
            async with self._daemon.watch(self._target) as watcher:
                self._uncertain.clear()
                self._unanswered = len(self._requests)
                for topics in self._requests:
                    request = {"type": "subscribe", "topics": topics, "since": self._cursor}
                    await watcher.websocket.send_message(json.dumps(request))
                if not self._requests:
                    self.live.set()
                left = self._chance.randint(1, 30 + 5 * len(self.jobs) * len(self._requests))
                try:
                    while left or self._cursor is None:
                        self._take(await watcher.receive())
                        if self._over:
                            return
                        left = max(left - 1, 0)
                except ConnectionClosed:
                    return  # the job has finished
                if self._chance.random() < 0.8:
                    await trio.aclose_forcefully(watcher.stream)

    @property
    def _target(self) -> str:
        query = {"interval": self._interval or None, "since": None if self._requests else self._cursor}
        return f"{self._path}?{urlencode({name: value for name, value in query.items() if value is not None})}"

    @property
    def _over(self) -> bool:
        return all(self._is_over(job) for job in self.jobs)

    def _is_over(self, job: str) -> bool:
        changes = self.changes[job]
        return changes[-1:] in (["cancelled"], ["error"]) or changes[-2:] == ["completed", "completed"]

    def _take(self, message: dict[str, Any]) -> None:
        assert message["type"] not in ("resync", "refused")
        if message["type"] == "subscribed":
            self._unanswered -= 1
            if not self._unanswered:
                self.live.set()
        else:
            self._uncertain.append(message)
        if "cursor" in message and not self._unanswered:
            self._cursor = message["cursor"]
            for certain in self._uncertain:
                self._note(certain)
            self._uncertain.clear()

    def _note(self, message: dict[str, Any]) -> None:
        job, data = message["job_id"], message["data"]
        if self._interval:
            known = (job, message["type"], str(data))
            if known in self._seen:
                return
            self._seen.add(known)
        if message["type"] == "progress":
            self.steps[job].append(data["current_step"])
        elif message["type"] in CHANGES:
            self.changes[job].append(data.get("new_status", message["type"]))


def watcher_of_kind(daemon: RunningDaemon, number: int, jobs: int) -> ResumingWatcher:
    """Return a watcher; the kind depends on the number."""
    ids = [job_id(id_) for id_ in range(jobs)]
    some = [ids[(number + add) % jobs] for add in range(3)]
    topics = [f"job:{id_}" for id_ in some]
    chance = random.Random(number)
    interval = 0.05 if number % 8 >= 4 else 0.0
    match number % 4:
        case 0:
            return ResumingWatcher(daemon, f"/ws/jobs/{some[0]}", some[:1], chance, interval=interval)
        case 1:
            return ResumingWatcher(daemon, "/ws/jobs", ids, chance, interval=interval)
        case 2:
            return ResumingWatcher(daemon, "/ws", some, chance, [topics[:2], topics[2:]], interval)
        case _:
            return ResumingWatcher(daemon, "/ws", ids, chance, [["jobs"], topics[:1]], interval)


async def report_job(daemon: RunningDaemon, number: int, steps: int) -> None:
    """Report a job until it completes, fails or is cancelled."""
    id_ = job_id(number)
    for step in range(1, steps + 1):
        await daemon.report(progress(id_, step, steps))
    await daemon.report([completed(id_), failed(id_, "no paper"), status_change(id_, "cancelled")][number % 3])


async def storm(directory: Path, watchers: int, jobs: int, steps: int) -> int:
    """Run jobs and watchers. Return how often watchers resumed."""
    expected = [
        ["processing", "completed", "completed"],
        ["processing", "failed", "error"],
        ["processing", "cancelled"],
    ]
    limits = {"max_connections": 2 * watchers, "max_connections_per_address": 2 * watchers}
    async with running_daemon(directory, limits=limits) as daemon:
        async with trio.open_nursery() as nursery:
            await daemon.report(*(registered(job_id(number)) for number in range(jobs)))
            watching = [watcher_of_kind(daemon, number, jobs) for number in range(watchers)]
            for each in watching:
                nursery.start_soon(each.run)
            for each in watching:
                await each.live.wait()
            for number in range(jobs):
                nursery.start_soon(report_job, daemon, number, steps)
        for each in watching:
            assert each.changes.keys() == set(each.jobs)
            for number in range(jobs):
                id_ = job_id(number)
                if id_ in each.jobs:
                    assert each.changes[id_] == ["job_created"] * each.watches_all + expected[number % 3]
                    assert each.steps[id_] == sorted(set(each.steps[id_]))
                    assert each.steps[id_][-1] == steps
        await eventually(lambda: not daemon.daemon.websockets)
    return sum(each.returns for each in watching)


async def test_watchers_that_resume_miss_nothing(tmp_path: Path) -> None:
    assert await storm(tmp_path, watchers=16, jobs=9, steps=30) > 16


@pytest.mark.torture
async def test_a_thousand_watchers_that_resume_miss_nothing(tmp_path: Path) -> None:
    assert await storm(tmp_path, watchers=1000, jobs=100, steps=50) > 1000
