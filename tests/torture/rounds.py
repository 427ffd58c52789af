"""Rounds: start a daemon, compare it with the ledger, put it under load, and kill it."""

import errno
import math
import random
import shutil
import signal
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from progressd.admin import maintenance
from progressd.core.messages import JobStatus
from torture.disk import Power
from torture.fork_server import ForkedDaemon, ForkServer, client_of
from torture.ledger import ATTEMPTS, Kill, Ledger, Story
from torture.load import Clients
from torture.watchers import Collector, Returner

KINDS = {
    "load": 7,
    "start": 1,
    "drain": 1,
    "failing disk": 2,
    "uploads on a failing disk": 2,
    "jumping clock": 1,
    "upkeep": 2,
}
PATIENCE = 30.0  # seconds for one round
PER_STORE = 50  # rounds per state directory
PER_DISK = 10  # with power cuts

DISK_FAULTS = (
    (("write_errno",), errno.EIO),
    (("write_errno",), errno.ENOSPC),
    (("sync_errno",), errno.EIO),
    (("log_errno",), errno.EIO),
    (("write_errno", "open_errno"), errno.EROFS),
)
CLOCK_SHIFTS = (3600, -3600 * 24 * 7)  # seconds, less than the retention

CONFIG = """
[pipelines.copy]
command = ["sh", "-c", 'echo 1/2; sleep 0.05; cp "$0" "$1" && echo 2/2', "{input}", "{output}"]
progress_pattern = '(?P<current>\\d)/(?P<total>\\d)'

[runner]
concurrency = 2
"""


class Campaign:
    """The rounds with one state directory."""

    def __init__(
        self, directory: Path, fork_server: ForkServer, chance: random.Random, power: Power, config: str = ""
    ) -> None:
        self._power = power
        self.ledger = Ledger()
        self.chance = chance
        self._fork_server = fork_server
        self._config = directory / "progressd.toml"
        self._config.write_text(CONFIG + config)
        self._by_unix: list[Story] = []
        self._by_http: list[Story] = []
        self._returners = [Returner(), Returner(), Collector()]
        self._whole = set[str]()  # jobs with a verified result
        self._last_kill = Kill(time.monotonic())

    @property
    def state_dir(self) -> Path:
        """Return the state directory."""
        return self._power.state_dir

    async def round(self, kind: str = "") -> None:
        """Start a daemon, compare, and kill it at a random moment. The default kind is random."""
        kind = kind or self.chance.choices([*KINDS], [*KINDS.values()])[0]
        self.ledger.counted["kills"] += 1
        self.ledger.counted[f"kills during {kind}"] += 1
        with trio.fail_after(PATIENCE):
            async with self.daemon() as daemon:
                if kind == "start":
                    await trio.sleep(self.chance.uniform(0, 0.3))
                    daemon.kill()
                    status = await daemon.ended()
                    assert status == -signal.SIGKILL, f"it did not start, and ended with {status}"
                    return
                clients = Clients(self.ledger, await daemon.listening(), self.chance)
                await self.compare(clients)
                async with (
                    self.load(clients, uploads=3 if kind == "uploads on a failing disk" else 1),
                    trio.open_nursery() as nursery,
                ):
                    if kind == "upkeep":
                        nursery.start_soon(self._look_after, clients)
                    await trio.sleep(self.chance.choice([0.1, 0.4, 0.4, 1.0, 2.5]) * self.chance.random())
                    if "failing disk" in kind:
                        await self._fail(clients)
                    if kind == "jumping clock":
                        await self._jump()
                    if kind == "drain":
                        clients.draining = clients.ending = True
                        daemon.kill(signal.SIGTERM)
                        await trio.sleep(self.chance.uniform(0, 0.5))
                    await self._end(daemon, clients, by_itself="uploads" in kind and self.chance.random() < 0.5)

    async def _look_after(self, clients: Clients) -> None:
        """Run an operator's commands beside the daemon."""
        while not clients.ending:
            await trio.to_thread.run_sync(self._look_after_once)
            self.ledger.counted["backups"] += 1

    def _look_after_once(self) -> None:
        found = [problem.sentence for problem in maintenance.check(self.state_dir)]
        assert not found, found
        copy = self.state_dir.with_name("copy")
        maintenance.backup(self.state_dir, copy)
        copy.unlink()
        assert sum(1 for _ in maintenance.export(self.state_dir, set(JobStatus))) > 0

    async def _end(self, daemon: ForkedDaemon, clients: Clients, by_itself: bool) -> None:
        """Kill the daemon now, or let it die after a disk operation."""
        clients.ending = True
        self._last_kill = Kill(time.monotonic(), daemon.starved())
        if by_itself:
            self._power.control["die_after"] = self.chance.randint(1, 60)
            with trio.move_on_after(0.5):  # it may be idle
                await daemon.ended()
        daemon.kill()
        status = await daemon.ended()
        assert status == -signal.SIGKILL or (clients.draining and status == 0), f"it ended with {status}"
        if status == 0:
            self._last_kill = Kill(math.inf)  # a clean end loses nothing

    async def _fail(self, clients: Clients) -> None:
        """Let the disk fail temporarily or until the end. The daemon recovers by itself."""
        names, value = self.chance.choice(DISK_FAULTS)
        self.ledger.disk_fails(time.monotonic())
        for name in names:
            self._power.control[name] = value
        await trio.sleep(self.chance.uniform(0, 0.5))
        if self.chance.random() < 0.3:
            return
        for name in names:
            self._power.control[name] = 0
        if self.chance.random() < 0.5:
            await clients.recovered()
            await trio.sleep(self.chance.uniform(0, 0.1))

    async def _jump(self) -> None:
        """Change the system time temporarily."""
        self._power.control["clock_shift"] = self.chance.choice(CLOCK_SHIFTS)
        await trio.sleep(self.chance.uniform(0, 0.5))
        self._power.control["clock_shift"] = 0

    async def finish(self) -> None:
        """Let the last daemon finish all jobs, compare everything, and stop it."""
        with trio.fail_after(PATIENCE):
            async with self.daemon() as daemon:
                clients = Clients(self.ledger, await daemon.listening(), self.chance)
                await self.compare(clients)
                async with client_of(clients.url) as client:
                    while not await self._all_finished(client):  # noqa: ASYNC110, there is no event
                        await trio.sleep(0.05)
                    for job_id in self.ledger.abandoned:
                        self.ledger.compare_abandoned((await client.get(f"/api/jobs/{job_id}")).json())
                self.ledger.start_over()
                self._whole.clear()
                await self.compare(clients, most=100_000)
                daemon.kill(signal.SIGTERM)
                assert await daemon.ended() == 0

    @asynccontextmanager
    async def daemon(self) -> AsyncGenerator[ForkedDaemon]:
        """Run the next daemon."""
        async with self._fork_server.daemon(self.state_dir, self._power.plug_in(), self._config) as daemon:
            yield daemon
        self._power.cut()

    @asynccontextmanager
    async def load(self, clients: Clients, uploads: int = 1) -> AsyncGenerator[None]:
        """Run the load. It ends after the daemon, when all received data is handled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.over_unix, str(self.state_dir / "ingest.sock"), self._by_unix)
            nursery.start_soon(clients.over_http, self._by_http)
            for _ in range(uploads):
                nursery.start_soon(clients.uploads)
            nursery.start_soon(clients.batches)
            nursery.start_soon(clients.abandon)
            for returner in self._returners:
                nursery.start_soon(returner.watch, clients)
            yield

    async def compare(self, clients: Clients, most: int = 500) -> None:
        """Compare changes, jobs and files of the daemon with the ledger."""
        async with client_of(clients.url) as client:
            await self._compare_changes(clients, client)
            for story in [*self._by_unix, *self._by_http]:
                found = await client.get(f"/api/jobs/{story.id}")
                self.ledger.compare_story(story, found.json() if found.status_code == 200 else None, self._last_kill)
            jobs = await jobs_of(client, "", most)
            for job in jobs:
                self.ledger.compare_job(job)
            if len(jobs) < most:
                self.ledger.compare_all({job["id"] for job in jobs})
            for job in await jobs_of(client, "&kind=copy"):
                await self._compare_files(client, job)
        self.ledger.uploads.compare_accepted()
        self.ledger.uploads.compare_batches()
        for returner in self._returners:
            returner.check(self.ledger)
        self._compare_directories()
        self.ledger.settled()

    async def _compare_changes(self, clients: Clients, client: httpx.AsyncClient) -> None:
        """Replay all changes since the last comparison, up to a new marker job."""
        marker = str(uuid.uuid4())
        answer = await client.post("/api/jobs", json={"id": marker, "kind": "marker"})
        assert answer.status_code == 201, answer.text
        self.ledger.offset(answer.json()["cursor"])  # checks the store
        replayed = []
        since = f"{self.ledger.store}-{self.ledger.audited}"
        async with aclosing(clients.messages(f"/ws/jobs?since={since}")) as messages:
            async for message in messages:
                if message["type"] == "hello":
                    continue
                replayed.append(message)
                if message["type"] == "job_created" and message["job_id"] == marker:
                    break
        assert replayed, "the daemon has closed the connection"
        self.ledger.compare_changes(replayed)
        await client.delete(f"/api/jobs/{marker}")

    async def _compare_files(self, client: httpx.AsyncClient, job: dict[str, Any]) -> None:
        job_id, name = job["id"], job["input_filename"]
        directory = self.state_dir / "jobs" / job_id
        if job_id not in self.ledger.uploads.made:
            path = directory / "input"
            self.ledger.uploads.compare(job_id, name, path.read_bytes() if path.exists() else None)
        if job["status"] == "completed":
            if job_id not in self._whole:
                result = (directory / "output").read_bytes()
                assert result == self.ledger.uploads.inputs[name], f"the result of job {job_id} is not whole"
                self._whole.add(job_id)
        elif job["status"] == "failed":
            assert job["error"] != "interrupted" or job["attempt"] == ATTEMPTS, job  # the ledger checks other errors
        else:
            assert job["status"] in ("queued", "processing"), job
            offered = await client.get(f"/api/jobs/{job_id}/download")
            fresh = (await client.get(f"/api/jobs/{job_id}")).json()
            assert offered.status_code == 409 or fresh["status"] == "completed", offered.status_code

    def _compare_directories(self) -> None:
        """Check that no upload left partial files."""
        uploads = list((self.state_dir / "uploads").iterdir())
        assert not uploads, f"half of an upload is left: {uploads}"
        halves = list((self.state_dir / "jobs").glob("*/input.*"))
        assert not halves, f"half of an upload is left: {halves}"
        strangers = {path.name for path in (self.state_dir / "jobs").iterdir()} - self.ledger.uploads.made.keys()
        assert not strangers, f"files without a job: {strangers}"

    async def _all_finished(self, client: httpx.AsyncClient) -> bool:
        kinds, statuses = ("copy", "abandoned"), ("queued", "processing")
        unfinished = [await jobs_of(client, f"&kind={kind}&status={status}") for kind in kinds for status in statuses]
        return not any(unfinished)


async def jobs_of(client: httpx.AsyncClient, query: str, most: int = 100_000) -> list[dict[str, Any]]:
    """Return the newest jobs of a query."""
    found = list[dict[str, Any]]()
    while len(found) < most:
        answer = await client.get(f"/api/jobs?limit=500&offset={len(found)}{query}")
        jobs = answer.json()["jobs"]
        found += jobs
        if len(jobs) < 500:
            break
    return found


async def torture(
    fork_server: ForkServer,
    directory: Path,
    rounds: int,
    seed: int,
    *,
    cuts: bool = False,
    kind: str = "",
    config: str = "",
    ignoring: str = "",
    say: Callable[[str], None] = print,
) -> Counter[str]:
    """Run rounds, and return the counters. The seed determines all random choices.

    With `cuts`, each kill is a power cut. `kind` is one of KINDS. `ignoring`: see `disk.Disk`.
    """
    total: Counter[str] = Counter()
    per_store = PER_DISK if cuts else PER_STORE
    for first in range(0, rounds, per_store):
        place = directory / str(first)
        place.mkdir()
        chance = random.Random(f"{seed} {first}")
        power = Power(place, chance if cuts else None, ignoring)
        campaign = Campaign(place, fork_server, chance, power, config)
        for number in range(first, min(first + per_store, rounds)):
            try:
                await campaign.round(kind)
            except BaseException:
                say(f"round {number} of seed {seed}, in {place}")
                raise
        await campaign.finish()
        total += campaign.ledger.counted
        shutil.rmtree(place, ignore_errors=True)
        say(f"{min(first + per_store, rounds)} rounds: " + ", ".join(f"{n} {what}" for what, n in total.items()))
    return total
