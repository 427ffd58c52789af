"""A power cut after each write, sync, link or removal of an operation, instead of at random moments.

Each operation runs once undisturbed, to count its changes of the disk. Then it runs again for each change, and is
killed after it. The next daemon must find everything. The suite tests some of these points, `make torture` all.
"""

import random
import shutil
import signal
import sqlite3
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import httpx
import msgspec
import pytest
import trio
from progressd.core.job import Job
from progressd.core.messages import JobStatus
from progressd.store.base import Change
from progressd.store.schema import MIGRATIONS
from progressd.store.sqlite import SQLiteStore
from support.daemon import completed, progress, registered
from support.http_client import FORM_TYPE, file_part, form
from support.samples import created, job_id
from support.submitting import PDF
from support.tus import OCTETS, TUS, encoded
from torture.disk import Power
from torture.fork_server import ForkedDaemon, ForkServer, client_of

SOME = 2  # points of each operation in the suite

Talk = Callable[[httpx.AsyncClient, Path], Awaitable[None]]


def make(directory: Path) -> None:
    directory.mkdir(parents=True)


async def nothing(state_dir: Path) -> None:
    await trio.lowlevel.checkpoint()


async def only_start(client: httpx.AsyncClient, state_dir: Path) -> None:
    await trio.lowlevel.checkpoint()


@dataclass
class Operation:
    """An operation: `prepare` a state directory, run a daemon until `done`, and `check` the next daemon."""

    check: Talk
    prepare: Callable[[Path], Awaitable[None]] = nothing
    done: Talk = only_start
    stop: bool = False  # the stop of the daemon is interrupted
    command: tuple[str, ...] = ()  # this command in the state directory is interrupted, not a daemon
    slow: bool = False  # it has so many points that the suite omits it, and `make torture` tests a hundred


async def takes_work(client: httpx.AsyncClient, state_dir: Path) -> None:
    for event in (registered(job_id(999)), progress(job_id(999), 1), completed(job_id(999))):
        assert (await client.post("/api/events", json=event)).status_code == 200


# An old store


async def old_store(state_dir: Path) -> None:
    """A database of the first schema version, with twenty jobs."""
    make(state_dir)
    with closing(sqlite3.connect(state_dir / "progressd.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN; {MIGRATIONS[0]}; PRAGMA user_version = 1; COMMIT;")
        db.execute("UPDATE meta SET value = 1000 WHERE key = 'reserved'")
        for number in range(1, 21):
            body = msgspec.json.encode(finished(number, days_ago=1)).decode()
            db.execute("INSERT INTO jobs VALUES (?, ?, ?)", (number, job_id(number), body))
    await trio.lowlevel.checkpoint()


async def has_the_old_jobs(client: httpx.AsyncClient, state_dir: Path) -> None:
    page = (await client.get("/api/jobs?kind=scan&label=by=eve&limit=100")).json()
    assert page["total"] == 20
    assert {job["id"] for job in page["jobs"]} == {job_id(number) for number in range(1, 21)}
    with closing(sqlite3.connect(state_dir / "progressd.db.v1")) as old:
        assert old.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert old.execute("SELECT count(*) FROM jobs").fetchall() == [(20,)]


# Retention


def finished(number: int, days_ago: float) -> Job:
    then = datetime.now(UTC) - timedelta(days=days_ago)
    return Job(
        id=job_id(number),
        kind="scan",
        status=JobStatus.COMPLETED,
        created_at=then,
        completed_at=then,
        created_offset=number,
        offset=number,
        labels={"by": "eve"},
    )


async def old_jobs(state_dir: Path) -> None:
    """Ten expired jobs and five others, all with files."""
    make(state_dir)
    with closing(SQLiteStore.open(state_dir / "progressd.db")) as store:
        jobs = [finished(number, 40) for number in range(1, 11)] + [finished(number, 1) for number in range(11, 16)]
        await store.reserve(1000)
        await store.commit(jobs, [Change(number, created(job_id(number))) for number in range(1, 16)])
    for job in jobs:
        make(state_dir / "jobs" / job.id)
        (state_dir / "jobs" / job.id / "input").write_bytes(PDF)


async def only_the_young_are_left(client: httpx.AsyncClient, state_dir: Path, young: int = 5) -> None:
    with trio.fail_after(30):
        while (await client.get("/api/jobs?kind=scan")).json()["total"] > young:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def each_job_has_its_files(client: httpx.AsyncClient, state_dir: Path) -> None:
    before = (await client.get("/api/jobs?kind=scan&limit=100")).json()["jobs"]
    young = {job_id(number) for number in range(11, 16)}
    assert {job["id"] for job in before} >= young
    await only_the_young_are_left(client, state_dir)
    page = (await client.get("/api/jobs?kind=scan&label=by=eve&limit=100")).json()
    assert {job["id"] for job in page["jobs"]} == young
    assert page["total"] == 5
    assert all((state_dir / "jobs" / id_ / "input").read_bytes() == PDF for id_ in young)


# Stopping


async def some_work(client: httpx.AsyncClient, state_dir: Path) -> None:
    for number in range(1, 6):
        for event in (registered(job_id(number)), progress(job_id(number), 1), progress(job_id(number), 2)):
            assert (await client.post("/api/events", json=event)).status_code == 200
    assert (await client.post("/api/events", json=completed(job_id(1)))).status_code == 200


async def has_that_work(client: httpx.AsyncClient, state_dir: Path) -> None:
    for number in range(1, 6):
        job = (await client.get(f"/api/jobs/{job_id(number)}")).json()
        assert job["status"] == ("completed" if number == 1 else "processing")
        assert job["progress"]["current_step"] in ((2,) if number == 1 else (1, 2))


# An upload


async def upload(client: httpx.AsyncClient, state_dir: Path) -> None:
    headers = {"Host": client.base_url.netloc.decode(), **FORM_TYPE}
    answer = await client.post("/api/convert?pipeline=none", content=form(file_part()), headers=headers)
    assert answer.status_code == 202
    (state_dir.parent.parent / "answered").write_text(answer.json()["job_id"])


async def whole_or_not_at_all(client: httpx.AsyncClient, state_dir: Path) -> None:
    jobs = (await client.get("/api/jobs?kind=none")).json()["jobs"]
    answered = state_dir.parent.parent / "answered"
    if answered.exists():
        assert [job["id"] for job in jobs] == [answered.read_text()]
    assert {path.name for path in (state_dir / "jobs").iterdir()} == {job["id"] for job in jobs}
    assert all((state_dir / "jobs" / job["id"] / "input").read_bytes() == PDF for job in jobs)
    assert not list((state_dir / "uploads").iterdir())
    answered.unlink(missing_ok=True)


# A resumable upload

HALF = len(PDF) // 2


async def resumable_upload(client: httpx.AsyncClient, state_dir: Path) -> None:
    answered, host = state_dir.parent.parent / "answered", {"Host": client.base_url.netloc.decode()}
    metadata = encoded(filename="a.pdf", pipeline="none")
    headers = {**host, **TUS, "Upload-Length": str(len(PDF)), "Upload-Metadata": metadata}
    answer = await client.post("/api/uploads", headers=headers)
    assert answer.status_code == 201
    answered.write_text(f"{answer.headers['Location']} 0")
    for offset, piece, checksum in [(0, PDF[:HALF], False), (HALF, PDF[HALF:], True)]:
        digest = b64encode(sha256(piece).digest()).decode()
        how = {
            **host,
            **OCTETS,
            "Upload-Offset": str(offset),
            **({"Upload-Checksum": f"sha256 {digest}"} if checksum else {}),
        }
        answer = await client.patch(answer.headers.get("Location") or answer.url, headers=how, content=piece)
        assert answer.status_code == 204
        answered.write_text(f"{answer.url.path} {answer.headers['Upload-Offset']}")


async def continues_where_it_was(client: httpx.AsyncClient, state_dir: Path) -> None:
    answered, host = state_dir.parent.parent / "answered", {"Host": client.base_url.netloc.decode()}
    if answered.exists():
        url, reported = answered.read_text().split()
        answered.unlink()
        state = await client.head(url, headers={**host, **TUS})
        assert state.status_code == 200
        offset = int(state.headers["Upload-Offset"])
        assert int(reported) <= offset <= len(PDF)
        how = {**host, **OCTETS, "Upload-Offset": str(offset)}
        answer = await client.patch(url, headers=how, content=PDF[offset:])
        job_id = answer.headers["Progressd-Job-Id"]
        assert (state_dir / "jobs" / job_id / "input").read_bytes() == PDF
        assert [job["id"] for job in (await client.get("/api/jobs?kind=none")).json()["jobs"]] == [job_id]
        assert [path.name for path in (state_dir / "partial").iterdir()] == [f"{job_id}.json"]
    assert not list((state_dir / "uploads").iterdir())


# A backup


async def has_a_backup_or_none(client: httpx.AsyncClient, state_dir: Path) -> None:
    backup = state_dir / "backup.db"
    if backup.exists():
        with closing(sqlite3.connect(backup)) as copy:
            assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert copy.execute("SELECT count(*) FROM jobs").fetchall() == [(15,)]
    assert (await client.get(f"/api/jobs/{job_id(15)}")).status_code == 200


# A repair


async def old_jobs_and_a_log(state_dir: Path) -> None:
    """A damaged database that a daemon still opens, and a log with five more jobs."""
    make(state_dir)
    origin = state_dir.parent / "origin"
    await old_jobs(origin)
    with closing(sqlite3.connect(origin / "progressd.db", isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET sql = replace(sql, 'count(*)', 'count(1)') WHERE name = 'counted'")
    with closing(SQLiteStore.open(origin / "progressd.db")) as store:
        await store.commit([finished(number, 1) for number in range(16, 21)], [])
        for ending in ("", "-wal"):
            shutil.copy(origin / f"progressd.db{ending}", state_dir)
    shutil.rmtree(origin)


async def has_the_jobs_of_the_log(client: httpx.AsyncClient, state_dir: Path) -> None:
    await only_the_young_are_left(client, state_dir, 10)
    jobs = (await client.get("/api/jobs?kind=scan&limit=100")).json()["jobs"]
    assert {job["id"] for job in jobs} == {job_id(number) for number in range(11, 21)}


# The log of the database is moved into it


def large(number: int) -> Job:
    return msgspec.structs.replace(
        finished(number, 1), labels={"by": "eve", "more": "x" * 190}, options={"o": "y" * 9000}
    )


async def long_log(state_dir: Path) -> None:
    """A store with a log of six megabytes, as after a kill."""
    make(state_dir)
    store = SQLiteStore.open(state_dir.parent / "origin.db")
    with closing(store):
        await store.reserve(1000)
        await store.commit([large(number) for number in range(1, 501)], [])
        for ending in ("", "-wal"):
            whole = (state_dir.parent / f"origin.db{ending}").read_bytes()
            (state_dir / f"progressd.db{ending}").write_bytes(whole)
    (state_dir.parent / "origin.db").unlink()


async def wakes_the_log(client: httpx.AsyncClient, state_dir: Path) -> None:
    await takes_work(client, state_dir)
    with trio.fail_after(30):
        while (state_dir / "progressd.db").stat().st_size < 2**22:
            await client.get("/api/health/live")  # fails when it is dead
            await trio.sleep(0.02)


async def has_the_large_jobs(client: httpx.AsyncClient, state_dir: Path) -> None:
    page = (await client.get("/api/jobs?kind=scan&limit=1000")).json()
    assert page["total"] == 500
    assert all(job["options"] == {"o": "y" * 9000} for job in page["jobs"])
    assert len(page["jobs"]) == 500


OPERATIONS = {
    "the first start": Operation(takes_work),
    "a migration": Operation(has_the_old_jobs, old_store),
    "retention": Operation(each_job_has_its_files, old_jobs, only_the_young_are_left),
    "stopping": Operation(has_that_work, done=some_work, stop=True),
    "a backup": Operation(has_a_backup_or_none, old_jobs, command=("backup", "{}/backup.db")),
    "a repair": Operation(has_the_jobs_of_the_log, old_jobs_and_a_log, command=("check", "--repair")),
    "a checkpoint": Operation(has_the_large_jobs, long_log, wakes_the_log, slow=True),
    "an upload": Operation(whole_or_not_at_all, done=upload),
    "a resumable upload": Operation(continues_where_it_was, done=resumable_upload),
}
CONFIG = '[pipelines.none]\ncommand = ["true"]\n'


class CrashTest:
    """Run an operation, interrupt it, and check the next daemon."""

    def __init__(self, place: Path, fork_server: ForkServer, operation: Operation) -> None:
        self._place = place
        self._fork_server = fork_server
        self._operation = operation
        self._config = place / "progressd.toml"
        self._config.write_text(CONFIG)

    async def count(self) -> int:
        """Return how many changes the operation makes to the disk."""
        power = await self._power(0)
        async with self._begin(power) as daemon:
            before = await self._do(daemon, power, 0)
            return power.control["recorded"] - before

    async def cut_off(self, after: int, chance: random.Random) -> None:
        """Run the operation, cut the power after so many changes, and check the next daemon."""
        power = await self._power(chance.random())
        async with self._begin(power) as daemon:
            try:
                await self._do(daemon, power, after)
            except (httpx.TransportError, AssertionError):  # the daemon has died
                assert await daemon.ended() == -signal.SIGKILL
            daemon.kill()
            await daemon.ended()
        power.cut()
        async with (
            self._fork_server.daemon(power.state_dir, power.plug_in(), self._config) as daemon,
            client_of(await daemon.listening()) as client,
        ):
            await self._operation.check(client, power.state_dir)

    async def _power(self, luck: float) -> Power:
        for left_over in self._place.glob("disk-*"):
            shutil.rmtree(left_over)
        for left_over in [*self._place.glob("log-*"), *self._place.glob("answered")]:
            left_over.unlink()
        power = Power(self._place, random.Random(luck))
        await self._operation.prepare(power.state_dir)
        return power

    def _begin(self, power: Power) -> AbstractAsyncContextManager[ForkedDaemon]:
        if not self._operation.command:
            return self._fork_server.daemon(power.state_dir, power.plug_in(), self._config)
        arguments = [argument.format(power.state_dir) for argument in self._operation.command]
        return self._fork_server.run([*arguments, "--state-dir", str(power.state_dir)], power.plug_in())

    async def _do(self, daemon: ForkedDaemon, power: Power, die_after: int) -> int:
        """Return the number of changes before the operation."""
        if not self._operation.stop:
            power.control["die_after"] = die_after
        if self._operation.command:
            assert await daemon.ended() == 0
            return 0
        async with client_of(await daemon.listening()) as client:
            await self._operation.done(client, power.state_dir)
        if not self._operation.stop:
            return 0
        before = power.control["recorded"]
        power.control["die_after"] = die_after
        daemon.kill(signal.SIGTERM)
        await daemon.ended()
        return before


async def run(fork_server: ForkServer, directory: Path, name: str, seed: int, most: int | None) -> None:
    """Interrupt the operation at every point, or at `most` random ones."""
    chance = random.Random(seed)
    crash_test = CrashTest(directory, fork_server, OPERATIONS[name])
    count = await crash_test.count()
    assert count > 0
    points = range(1, count + 1)
    for after in points if most is None else sorted(chance.sample(points, min(most, count))):
        print(f"{name}: cut off after {after} of {count}")
        with trio.fail_after(30):
            await crash_test.cut_off(after, chance)


@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if not operation.slow])
async def test_a_power_cut_at_some_points(fork_server: ForkServer, tmp_path: Path, name: str, seed: int) -> None:
    await run(fork_server, tmp_path, name, seed, SOME)


@pytest.mark.torture
@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_power_cut_at_every_point(fork_server: ForkServer, tmp_path: Path, name: str, seed: int) -> None:
    await run(fork_server, tmp_path, name, seed, 100 if OPERATIONS[name].slow else None)
