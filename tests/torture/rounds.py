"""Rounds: a daemon starts, the books are compared, work goes on, and it is killed."""

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
from torture.disk import Control, Power
from torture.forge import Forge, ForgedDaemon
from torture.ledger import ATTEMPTS, Kill, Ledger, Story
from torture.load import Clients
from torture.watchers import Collector, Returner

KINDS = ("load", "start", "drain", "failing disk", "jumping clock")
PATIENCE = 30.0  # seconds for one round, beside what it is meant to take
PER_STORE = 50  # rounds until a new state directory is begun
PER_DISK = 10  # and where its disk is rebuilt in each

DISK_FAULTS = (
    (("write_errno",), errno.EIO),
    (("write_errno",), errno.ENOSPC),
    (("sync_errno",), errno.EIO),
    (("log_errno",), errno.EIO),
    (("write_errno", "open_errno"), errno.EROFS),
)
CLOCK_SHIFTS = (3600, -3600 * 24 * 365)  # seconds

CONFIG = """
[pipelines.copy]
command = ["sh", "-c", 'echo 1/2; sleep 0.05; cp "$0" "$1" && echo 2/2', "{input}", "{output}"]
progress_pattern = '(?P<current>\\d)/(?P<total>\\d)'

[runner]
slots = 2
"""


class Campaign:
    """The rounds over one state directory."""

    def __init__(self, directory: Path, forge: Forge, chance: random.Random, power: Power | None, config: str) -> None:
        self._power = power
        self._plain_state_dir = directory / "state"
        self.ledger = Ledger()
        self.chance = chance
        self._forge = forge
        self._config = directory / "progressd.toml"
        self._config.write_text(CONFIG + config)
        self._by_unix: list[Story] = []
        self._by_http: list[Story] = []
        self._returners = [Returner(), Returner(), Collector()]
        self._whole = set[str]()  # jobs whose result has been looked at
        self._last_kill = Kill(time.monotonic())

    @property
    def state_dir(self) -> Path:
        """Where the daemon has its files."""
        return self._power.state_dir if self._power else self._plain_state_dir

    async def round(self, kind: str = "") -> None:
        """Start a daemon, compare, and kill it at some moment: under load, in the drain, or at its next start."""
        self.ledger.counted["kills"] += 1
        kind = kind or self.chance.choices(KINDS, [7, 1, 1, 2, 1] if self._power else [7, 1, 1, 0, 0])[0]
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
                async with self.load(clients):
                    await trio.sleep(self.chance.choice([0.1, 0.4, 0.4, 1.0, 2.5]) * self.chance.random())
                    if kind == "failing disk" and self._power:
                        await self._fail(clients, self._power.control)
                    if kind == "jumping clock" and self._power:
                        await self._jump(self._power.control)
                    if kind == "drain":
                        clients.draining = True
                        daemon.kill(signal.SIGTERM)
                        await trio.sleep(self.chance.uniform(0, 0.5))
                    self._last_kill = Kill(time.monotonic(), daemon.starved())
                    daemon.kill()
                    status = await daemon.ended()
                    assert status == -signal.SIGKILL or (kind == "drain" and status == 0), f"it ended with {status}"
                    if status == 0:
                        self._last_kill = Kill(math.inf)  # in order, and nothing at all may be lost

    async def _fail(self, clients: Clients, control: Control) -> None:
        """Let the disk fail for a while; after that, the daemon takes everything again by itself."""
        names, value = self.chance.choice(DISK_FAULTS)
        self.ledger.disk_fails(time.monotonic())
        for name in names:
            control[name] = value
        await trio.sleep(self.chance.uniform(0, 0.5))
        for name in names:
            control[name] = 0
        if self.chance.random() < 0.7:
            await clients.mended()

    async def _jump(self, control: Control) -> None:
        """Set the clock of the day for a while, which is no excuse for anything."""
        control["clock_shift"] = self.chance.choice(CLOCK_SHIFTS)
        await trio.sleep(self.chance.uniform(0, 0.5))
        control["clock_shift"] = 0

    async def finish(self) -> None:
        """The last daemon brings everything to its end, and is stopped as it should be; then all is compared."""
        with trio.fail_after(PATIENCE):
            async with self.daemon() as daemon:
                clients = Clients(self.ledger, await daemon.listening(), self.chance)
                await self.compare(clients)
                async with clients.http() as client:
                    while not await self._all_finished(client):  # noqa: ASYNC110, nothing tells when
                        await trio.sleep(0.05)
                    for job_id in self.ledger.abandoned:
                        self.ledger.compare_abandoned((await client.get(f"/api/jobs/{job_id}")).json())
                self.ledger.start_over()
                self._whole.clear()
                await self.compare(clients, most=100_000)
                daemon.kill(signal.SIGTERM)
                assert await daemon.ended() == 0

    @asynccontextmanager
    async def daemon(self) -> AsyncGenerator[ForgedDaemon]:
        """The next daemon over the state directory."""
        environment = self._power.plug_in() if self._power else {}
        async with self._forge.daemon(self.state_dir, environment, self._config) as daemon:
            yield daemon
        if self._power:
            self._power.cut()

    @asynccontextmanager
    async def load(self, clients: Clients) -> AsyncGenerator[None]:
        """All that goes on; at the end, when the daemon is gone, everybody has taken what was there for them."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.over_unix, str(self.state_dir / "ingest.sock"), self._by_unix)
            nursery.start_soon(clients.over_http, self._by_http)
            nursery.start_soon(clients.uploads)
            nursery.start_soon(clients.batches)
            nursery.start_soon(clients.abandon)
            for returner in self._returners:
                nursery.start_soon(returner.watch, clients)
            yield

    async def compare(self, clients: Clients, most: int = 500) -> None:
        """What this daemon says of changes, and of so many jobs, and what is on the disk, against the books."""
        async with clients.http() as client:
            await self._compare_changes(clients, client)
            for story in [*self._by_unix, *self._by_http]:
                found = await client.get(f"/api/jobs/{story.id}")
                self.ledger.compare_story(story, found.json() if found.status_code == 200 else None, self._last_kill)
            for job in await jobs_of(client, "", most):
                self.ledger.compare_job(job)
            for job in await jobs_of(client, "&kind=copy"):
                await self._compare_files(client, job)
        self.ledger.compare_accepted()
        self.ledger.compare_batches()
        for returner in self._returners:
            returner.check(self.ledger)
        self._compare_directories()
        self.ledger.settled()

    async def _compare_changes(self, clients: Clients, client: httpx.AsyncClient) -> None:
        """Have all changes since the last time replayed, up to a job made for this."""
        marker = str(uuid.uuid4())
        answer = await client.post("/api/jobs", json={"id": marker, "kind": "marker"})
        assert answer.status_code == 201, answer.text
        self.ledger.offset(answer.json()["cursor"])  # which tells whether it is still the same store
        replayed = []
        since = f"{self.ledger.store}-{self.ledger.audited}"
        async with aclosing(clients.messages(f"/ws/jobs?since={since}")) as messages:
            async for message in messages:
                replayed.append(message)
                if message["type"] == "job_created" and message["job_id"] == marker:
                    break
        assert replayed, "the daemon has closed the connection"
        self.ledger.compare_changes(replayed)
        await client.delete(f"/api/jobs/{marker}")

    async def _compare_files(self, client: httpx.AsyncClient, job: dict[str, Any]) -> None:
        job_id, name = job["id"], job["input_filename"]
        directory = self.state_dir / "jobs" / job_id
        if job_id not in self.ledger.uploaded:
            path = directory / "input"
            self.ledger.compare_upload(job_id, name, path.read_bytes() if path.exists() else None)
        if job["status"] == "completed":
            if job_id not in self._whole:
                result = (directory / "output").read_bytes()
                assert result == self.ledger.inputs[name], f"the result of job {job_id} is not whole"
                self._whole.add(job_id)
        elif job["status"] == "failed":
            assert job["error"] != "interrupted" or job["attempt"] == ATTEMPTS, job  # why else, the ledger judges
        else:
            offered = await client.get(f"/api/jobs/{job_id}/download")
            fresh = (await client.get(f"/api/jobs/{job_id}")).json()
            assert offered.status_code == 409 or fresh["status"] == "completed", offered.status_code

    def _compare_directories(self) -> None:
        """An upload that was not answered leaves nothing behind, or has become a job as a whole."""
        uploads = list((self.state_dir / "uploads").iterdir())
        assert not uploads, f"half of an upload is left: {uploads}"
        strangers = {path.name for path in (self.state_dir / "jobs").iterdir()} - self.ledger.uploaded.keys()
        assert not strangers, f"files without a job: {strangers}"

    async def _all_finished(self, client: httpx.AsyncClient) -> bool:
        kinds, statuses = ("copy", "abandoned"), ("queued", "processing")
        unfinished = [await jobs_of(client, f"&kind={kind}&status={status}") for kind in kinds for status in statuses]
        return not any(unfinished)


async def jobs_of(client: httpx.AsyncClient, query: str, most: int = 100_000) -> list[dict[str, Any]]:
    """The newest jobs that a query finds."""
    found = list[dict[str, Any]]()
    while len(found) < most:
        answer = await client.get(f"/api/jobs?limit=500&offset={len(found)}{query}")
        jobs = answer.json()["jobs"]
        found += jobs
        if len(jobs) < 500:
            break
    return found


async def torture(
    forge: Forge,
    directory: Path,
    rounds: int,
    seed: int,
    *,
    cuts: bool = False,
    config: str = "",
    ignoring: str = "",
    say: Callable[[str], None] = print,
) -> Counter[str]:
    """So many rounds; what was counted. The seed decides all that chance decides here, as far as time lets it.

    `cuts`: each kill is a power cut, and sometimes the disk fails; `ignoring`: see `disk.Disk`.
    """
    total: Counter[str] = Counter()
    per_store = PER_DISK if cuts else PER_STORE
    for first in range(0, rounds, per_store):
        place = directory / str(first)
        place.mkdir()
        chance = random.Random(f"{seed} {first}")
        power = Power(place, chance, ignoring) if cuts else None
        campaign = Campaign(place, forge, chance, power, config)
        for number in range(first, min(first + per_store, rounds)):
            try:
                await campaign.round()
            except BaseException:
                say(f"round {number} of seed {seed}, in {place}")
                raise
        await campaign.finish()
        total += campaign.ledger.counted
        shutil.rmtree(place, ignore_errors=True)
        say(f"{min(first + per_store, rounds)} rounds: " + ", ".join(f"{n} {what}" for what, n in total.items()))
    return total
