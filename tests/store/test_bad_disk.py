"""A really full disk, and a damaged file: errors are reported and nothing is lost."""

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio_websocket
from progressd.auth.api_keys import Key, Scope, add_key
from progressd.auth.watch_tokens import secret_from
from progressd.core.errors import CorruptRecord, SettingsError, StoreFailed, StoreFull
from progressd.core.messages import JobStatus
from progressd.store.base import Change, Filter
from progressd.store.offline import backup
from progressd.store.sqlite import SQLiteStore
from support.cli import program
from support.daemon import completed, progress, registered, running_daemon
from support.growth import fill
from support.http_client import FORM_TYPE, client_of, file_part, form
from support.samples import NOW, created, job, job_id
from support.scarcity import SmallDisk, flip, small_disk
from support.waiting import PATIENCE, eventually

MANY = 2000
INDEX_BYTES = 32 * 1024  # of SQLite's -shm file, which every store needs


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


async def test_a_full_disk_rejects_changes_and_recovers(disk: SmallDisk) -> None:
    async with running_daemon(disk.path) as daemon, client_of(daemon) as client, daemon.watch() as watcher:
        large = registered(job_id(1), options={"text": "x" * 30_000})  # its start needs more room than a new job
        assert (await daemon.report(large))[0]["ok"]
        disk.fill()
        kept, refused = [], []
        for number in range(2, MANY):  # small jobs, so that not even a small change fits afterwards
            answer = await client.post("/api/jobs", json={"id": job_id(number)})
            (kept if answer.status_code == 201 else refused).append((number, answer))
            if len(refused) == 3:
                break
        assert [answer.status_code for _, answer in refused] == [507, 507, 507]
        assert refused[0][1].json()["error"] == "cannot write to the database: the disk is full"
        assert "Retry-After" in refused[0][1].headers
        health = (await client.get("/api/health")).json()
        assert (health["status"], health["error"]) == ("failing", "cannot write to the database: the disk is full")
        [answer] = await daemon.report(progress(job_id(1), 1))  # starts the job, so it must be stored
        assert answer["error"] == "cannot write to the database: the disk is full"
        headers = {"Host": daemon.address, **FORM_TYPE}
        upload = await client.post("/api/convert", content=form(file_part()), headers=headers)
        assert upload.status_code == 507
        assert (await client.get("/api/jobs")).json()["total"] == 1 + len(kept)
        failing = {"status": "failing", "error": "cannot write to the database: the disk is full"}
        async with daemon.watch() as late:
            assert (await late.receive())["data"] == failing
        disk.make_room()
        with trio.fail_after(PATIENCE):
            while (await client.get("/api/health")).json()["status"] != "healthy":  # noqa: ASYNC110, nothing tells
                await trio.sleep(0.05)
        assert [answer["ok"] for answer in await daemon.report(progress(job_id(1), 1), completed(job_id(1)))] == [
            True
        ] * 2
        for number, _ in kept:
            assert (await client.get(f"/api/jobs/{job_id(number)}")).status_code == 200
        for number, _ in refused:
            assert (await client.get(f"/api/jobs/{job_id(number)}")).status_code == 404
        seen = await watcher.receive_until("completed")
        assert [message["data"] for message in seen if message["type"] == "server_status"] == [
            failing,
            {"status": "healthy"},
        ]
        created_ones = [message["job_id"] for message in seen if message["type"] == "job_created"]
        assert created_ones == [job_id(1), *(job_id(number) for number, _ in kept)]
    with closing(SQLiteStore.open(disk.path / "state" / "progressd.db")) as store:
        _, total = await store.list_jobs(Filter(), 0, 0)
        assert total == 1 + len(kept)


async def test_a_full_disk_is_reported_at_start(disk: SmallDisk) -> None:
    async with running_daemon(disk.path) as daemon:
        assert (await daemon.report(registered(job_id(1))))[0]["ok"]
    disk.fill(but_for=INDEX_BYTES)
    async with running_daemon(disk.path) as daemon, client_of(daemon) as client:
        await eventually(lambda: daemon.daemon.health.failure)
        health = (await client.get("/api/health")).json()
        assert (health["status"], health["error"]) == ("failing", "cannot write to the database: the disk is full")
        assert (await client.post("/api/jobs")).status_code == 507
        disk.make_room()
        await eventually(lambda: daemon.daemon.health.failure is None)
        assert (await client.get("/api/health")).json()["status"] == "healthy"
        assert (await client.post("/api/jobs")).status_code == 201


async def test_a_rejected_commit_on_a_full_disk_changes_nothing(disk: SmallDisk) -> None:
    path = disk.path / "store.db"
    text = "x" * 3000
    with closing(SQLiteStore.open(path)) as store:
        disk.fill()

        async def fill_up() -> int:
            for number in range(1, MANY):
                try:
                    await store.commit([job(number, options={"text": text})], [Change(number, created(job_id(number)))])
                except StoreFull:
                    return number - 1
            raise AssertionError("the disk never was full")

        kept = await fill_up()
        assert [found.created_offset for found in await store.unfinished()] == list(range(1, kept + 1))
        disk.make_room()
        await store.commit([job(MANY)], [Change(MANY, created(job_id(MANY)))])
        assert len(await store.unfinished()) == kept + 1
    with closing(SQLiteStore.open(path)) as store:
        assert len(await store.changes(0, MANY, MANY)) == kept + 1


def test_a_backup_without_disk_space_leaves_nothing(disk: SmallDisk, tmp_path: Path) -> None:
    fill(tmp_path / "store.db", 500)
    disk.fill()
    target = disk.path / "copy.db"
    with pytest.raises(SettingsError, match=f"cannot write {target}: .*(full|No space left)"):
        backup(tmp_path / "store.db", target)
    assert [file.name for file in disk.path.iterdir()] == ["ballast"]
    disk.make_room()
    assert backup(tmp_path / "store.db", target) == target.stat().st_size


def serve(state_dir: Path) -> subprocess.CompletedProcess[str]:
    return program("serve", "--port", "0", "--state-dir", state_dir)


def test_a_start_on_a_full_disk_fails_clearly(disk: SmallDisk) -> None:
    disk.fill()
    ended = serve(disk.path / "state")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("Error: cannot ")
    assert "Traceback" not in ended.stderr


def damage(path: Path, table: str) -> None:
    """Overwrite the pages of a table except its root, like a failing disk."""
    content = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as db:
        [root] = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    page = content[(root - 1) * 4096 : root * 4096]
    cells = int.from_bytes(page[3:5], "big")
    for cell in range(cells):
        at = int.from_bytes(page[12 + 2 * cell : 14 + 2 * cell], "big")
        child = int.from_bytes(page[at : at + 4], "big")
        content[(child - 1) * 4096 : child * 4096] = os.urandom(4096)
    path.write_bytes(content)


async def test_a_damaged_page_stops_all_writes(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    fill(path, 500)
    damage(path, "jobs")
    before = path.read_bytes()
    with closing(SQLiteStore.open(path)) as store:
        await store.commit([job(10_000)], [])  # the damage is not known yet
        with pytest.raises(StoreFailed, match="the database is damaged: stop the daemon and run progressd check"):
            await store.list_jobs(Filter(), 10, 400)
        with pytest.raises(StoreFailed, match="is damaged"):
            await store.commit([job(10_001)], [])
        with pytest.raises(StoreFailed, match="is damaged"):
            await store.reserve(10**6)
        assert await store.unfinished() == [job(10_000)]
    assert path.stat().st_size >= len(before)


async def test_a_damaged_store_still_serves_reads(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    fill(state / "progressd.db", 500)
    damage(state / "progressd.db", "jobs")
    async with running_daemon(tmp_path) as daemon, client_of(daemon) as client:
        assert (await daemon.report(registered(job_id(1000))))[0]["ok"]
        refused = await client.get("/api/jobs", params={"offset": 400})
        assert refused.status_code == 503
        assert str(tmp_path) not in refused.text
        health = (await client.get("/api/health")).json()
        assert health["status"] == "failing"
        assert "run progressd check" in health["error"]
        assert (await client.get("/api/health/ready")).status_code == 503
        [answer] = await daemon.report(progress(job_id(1000), 1))
        assert "run progressd check" in answer["error"]
        assert (await client.get(f"/api/jobs/{job_id(1000)}")).json()["status"] == "queued"


# Unreadable jobs


FINISHED = [
    job(
        number,
        JobStatus.COMPLETED,
        completed_at=NOW,
        offset=number + 1,
        progress_offset=number,
        labels={"n": str(number)},
    )
    for number in (10, 20, 30)
]
BROKEN = [
    (b'%s","kind":' % job_id(20).encode(), 0x40),
    (b'%s","kind":"job","status":"completed","c' % job_id(20).encode(), 0x40),
    (b'%s","kind":"j' % job_id(20).encode(), 0x80),
]
IDS = ["no JSON", "no job", "no UTF-8"]


@pytest.mark.parametrize(("where", "bit"), BROKEN, ids=IDS)
async def test_one_unreadable_job_does_not_affect_others(tmp_path: Path, where: bytes, bit: int) -> None:
    path, broken = tmp_path / "store.db", FINISHED[1]
    with closing(SQLiteStore.open(path)) as store:
        await store.reserve(100)
        await store.commit(FINISHED, [Change(one.created_offset, created(one.id)) for one in FINISHED])
    flip(path, where, bit)
    with closing(SQLiteStore.open(path)) as store:
        with pytest.raises(
            CorruptRecord, match=f"job {broken.id} cannot be read: .* run progressd check --repair"
        ) as raised:
            await store.jobs([one.id for one in FINISHED])
        assert (raised.value.status, raised.value.row_id, store.unreadable) == (500, broken.id, raised.value)
        assert await store.known([job_id(1), *(one.id for one in FINISHED)]) == {one.id for one in FINISHED}
        others = [FINISHED[2], FINISHED[0]]
        assert await store.list_jobs(Filter(), 10, 0) == (others, 3)
        assert await store.list_jobs(Filter(kind="job"), 10, 0) == (others, 3)
        assert await store.moved(0, 100, 100) == others[::-1]
        assert await store.last_seen() == NOW
        await store.commit([job(40)], [Change(40, created(job_id(40)))])
        deleted = list[str]()
        while step := await store.delete([one.id for one in others]):  # in batches of a few milliseconds
            deleted += step
        assert deleted == [one.id for one in others[::-1]]
        assert await store.delete_finished(NOW + timedelta(days=30), 10) == []
        assert store.damage is None


@pytest.mark.parametrize(("where", "bit"), BROKEN, ids=IDS)
async def test_retention_skips_unreadable_jobs(tmp_path: Path, where: bytes, bit: int) -> None:
    path = tmp_path / "store.db"
    with closing(SQLiteStore.open(path)) as store:
        await store.commit(FINISHED, [])
    flip(path, where, bit)
    flip(path, where.replace(job_id(20).encode(), job_id(10).encode()), bit)
    with closing(SQLiteStore.open(path)) as store:
        assert await store.delete_finished(NOW + timedelta(days=30), 1) == [FINISHED[2].id]
        assert await store.delete_finished(NOW + timedelta(days=30), 1) == []


async def test_an_unreadable_change_is_skipped_or_raised(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(SQLiteStore.open(path)) as store:
        await store.commit(FINISHED, [Change(one.created_offset, created(one.id)) for one in FINISHED])
    flip(path, b'"job_id":"%s","data":' % FINISHED[1].id.encode())
    with closing(SQLiteStore.open(path)) as store:
        assert [change.offset for change in await store.changes(0, 100, 2)] == [10, 30]
        assert store.unreadable is not None
        assert len(await store.changes(0, 100, 2, FINISHED[0].id)) == 1
        with pytest.raises(CorruptRecord, match="change 20 cannot be read"):
            await store.changes(0, 100, 2, FINISHED[1].id)


@pytest.mark.parametrize("bit", [0x40, 0x80])
async def test_a_daemon_serves_jobs_beside_an_unreadable_one(tmp_path: Path, bit: int) -> None:
    path = tmp_path / "state" / "progressd.db"
    path.parent.mkdir()
    bad, good = (
        job(number, JobStatus.COMPLETED, completed_at=datetime.now(UTC), offset=number + 1) for number in (30, 10)
    )
    with closing(SQLiteStore.open(path)) as store:
        await store.reserve(100)
        await store.commit([good, bad], [])  # the bad one is the newest, which retention reads
    flip(path, b'%s","kind":"j' % bad.id.encode() if bit == 0x80 else b'%s","kind":' % bad.id.encode(), bit)
    async with running_daemon(tmp_path) as daemon, client_of(daemon) as client:
        answers = await daemon.report(
            progress(bad.id, 1), registered(job_id(2)), progress(good.id, 1), registered(bad.id)
        )
        assert [answer["ok"] for answer in answers] == [False, True, False, False]
        for answer in (answers[0], answers[3]):
            assert f"job {bad.id} cannot be read" in answer["error"]
        for method, url in (("GET", ""), ("DELETE", ""), ("GET", "/download"), ("POST", "/retry"), ("GET", "/events")):
            refused = await client.request(method, f"/api/jobs/{bad.id}{url}")
            assert (refused.status_code, "cannot be read" in refused.json()["error"]) == (500, True)
        with pytest.raises(trio_websocket.HandshakeError):
            async with daemon.watch(f"/ws/jobs/{bad.id}"):
                pass
        assert [one["id"] for one in (await client.get("/api/jobs")).json()["jobs"]] == [job_id(2), good.id]
        assert (await client.get(f"/api/jobs/{good.id}")).status_code == 200
        health = (await client.get("/api/health")).json()
        assert (health["status"], f"job {bad.id} cannot be read" in health["error"]) == ("degraded", True)
        assert (await client.get("/api/health/ready")).status_code == 200


async def test_an_unreadable_unfinished_job_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "progressd.db"
    with closing(SQLiteStore.open(path)) as store:
        await store.commit([job(1)], [])
    flip(path, b'"created_at":"20')
    refused = await trio.to_thread.run_sync(serve, tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    last = refused.stderr.splitlines()[-1]
    assert last.startswith(f"Error: cannot open the database {path}: job {job_id(1)} cannot be read")
    assert last.endswith(f"; `progressd check --repair --state-dir {tmp_path}` recovers the readable data")
    assert "Traceback" not in refused.stderr


def test_a_first_start_succeeds_after_a_full_disk(disk: SmallDisk) -> None:
    disk.fill()
    with pytest.raises(SettingsError):
        SQLiteStore.open(disk.path / "progressd.db")
    with pytest.raises(SettingsError, match="cannot write the keys"):
        add_key(disk.path / "keys.json", Key(name="ci", hash="0" * 64, scopes=[Scope.READ], created_at=NOW))
    with pytest.raises(SettingsError, match="cannot use the token secret"):
        secret_from(disk.path / "token-secret")
    assert {one.name for one in disk.path.iterdir()} <= {"ballast", "progressd.db"}
    disk.make_room()
    SQLiteStore.open(disk.path / "progressd.db").close()
