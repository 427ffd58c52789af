"""Check, repair and export of a state directory."""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio
from progressd.admin import maintenance
from progressd.admin.maintenance import RepairAction
from progressd.core.batch import BatchStatus, JobBatch
from progressd.core.errors import CorruptRecord, SettingsError, StoreDamaged
from progressd.core.messages import JobStatus
from progressd.files.job_files import ORPHAN_MIN_AGE
from progressd.files.state_dir import own_state_dir
from progressd.store.base import Change, Filter
from progressd.store.sqlite import SQLiteStore
from support.cli import run
from support.daemon import RunningDaemon, completed, progress, registered
from support.growth import fill
from support.http_client import client_of
from support.samples import ID, NOW, created, job, job_id
from support.scarcity import flip

CONVERTED = job(1, JobStatus.COMPLETED, pipeline="pdf", completed_at=NOW, labels={"by": "eve"}, offset=4)
WAITING = job(2, pipeline="pdf", offset=5)
REPORTED = job(3, JobStatus.PROCESSING, offset=6)


JOBS = (CONVERTED, WAITING, REPORTED)


async def write(path: Path) -> None:
    with closing(SQLiteStore.open(path)) as store:
        await store.reserve(100)
        await store.commit(JOBS, [Change(one.created_offset, created(one.id)) for one in JOBS])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Three jobs with all their files, and nothing wrong."""
    trio.run(write, tmp_path / "progressd.db")
    for one, name in ((CONVERTED, "input"), (CONVERTED, "output"), (WAITING, "input")):
        (tmp_path / "jobs" / one.id).mkdir(parents=True, exist_ok=True)
        (tmp_path / "jobs" / one.id / name).touch()
    return tmp_path


def change(state: Path, statement: str) -> None:
    with closing(sqlite3.connect(state / "progressd.db", isolation_level=None)) as db:
        db.executescript(statement)


def problems(state: Path) -> list[tuple[str, bool]]:
    return [(found.sentence, found.remedy is not RepairAction.NONE) for found in maintenance.check(state)]


def test_a_good_state_directory_has_no_problems(state: Path) -> None:
    assert problems(state) == []
    result = run("check", "--state-dir", state)
    assert (result.exit_code, result.stdout) == (0, "")


LABELS = "index of labels does not match"
COUNTS = "counts of jobs do not match"
TEXTS = "the texts for searches do not match the jobs"


def damage_index(state: Path) -> None:
    """Write a row while SQLite does not know of the index."""
    change(state, "CREATE TABLE kept AS SELECT * FROM sqlite_schema WHERE name = 'jobs_by_progress'")
    change(state, "PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = 'jobs_by_progress'")
    change(state, "UPDATE jobs SET body = json_set(body, '$.progress_offset', 5)")
    change(state, "PRAGMA writable_schema = ON; INSERT INTO sqlite_schema SELECT * FROM kept")
    change(state, "DROP TABLE kept")


def age(path: Path) -> None:
    path.mkdir(parents=True)
    os.utime(path, (time.time() - ORPHAN_MIN_AGE - 60,) * 2)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda state: change(state, "DELETE FROM labels"), LABELS),
        (lambda state: change(state, "UPDATE labels SET value = 'adam'"), LABELS),
        (lambda state: change(state, "UPDATE counts SET jobs = jobs + 1 WHERE list = 'all'"), COUNTS),
        (lambda state: change(state, "INSERT INTO counts VALUES ('kind', 'x', 'failed', 7, 1)"), COUNTS),
        (lambda state: change(state, "UPDATE texts SET text = 'another'"), TEXTS),
        (lambda state: change(state, "UPDATE meta SET value = 4 WHERE key = 'reserved'"), "but 6 is used"),
        (lambda state: age(state / "jobs" / job_id(77)), "belongs to no job"),
        (damage_index, "missing from index jobs_by_progress"),
    ],
    ids=["labels", "another label", "counts", "a count too many", "texts", "offsets", "files", "an index"],
)
async def test_problems_are_found_and_repaired(state: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(state)
    found = problems(state)
    assert found
    assert any(said in sentence for sentence, _ in found)
    assert all(repairable for _, repairable in found)
    assert problems(state) == found  # looking changes nothing
    looked = run("check", "--state-dir", state)
    assert (looked.exit_code, looked.stdout.count(": --repair ")) == (1, len(found))
    repaired = run("check", "--state-dir", state, "--repair")
    assert (repaired.exit_code, repaired.stdout.count(": repaired")) == (0, len(found))
    assert problems(state) == []
    with closing(SQLiteStore.open(state / "progressd.db")) as store:
        jobs, _ = await store.list_jobs(Filter(), 10, 0)
        assert [one.id for one in jobs] == [job_id(3), job_id(2), job_id(1)]
        jobs, total = await store.list_jobs(Filter(labels=(("by", "eve"),)), 10, 0)
        assert ([one.id for one in jobs], total) == ([CONVERTED.id], 1)
        assert store.first_offset > 6


async def test_lost_offsets_make_a_new_store_id(state: Path) -> None:
    """Progress may have been sent with offsets that were never stored."""
    path = state / "progressd.db"
    batch = JobBatch(id=job_id(50), status=BatchStatus.QUEUED, created_at=NOW, created_offset=40, offset=41)
    with closing(SQLiteStore.open(path)) as store:
        before = store.id
        await store.commit([], [], [batch])
    change(state, "UPDATE meta SET value = 20 WHERE key = 'reserved'")
    assert [sentence for sentence, _ in problems(state)] == ["offsets below 20 are reserved, but 41 is used"]
    assert run("check", "--state-dir", state, "--repair").exit_code == 0
    with closing(SQLiteStore.open(path)) as store:
        assert store.first_offset == 42
        assert store.id != before


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: change(state, "DELETE FROM labels; DELETE FROM counts WHERE list LIKE 'label%'"),
        lambda state: (change(state, "UPDATE counts SET jobs = 7"), damage_index(state)),
    ],
    ids=["labels and their counts", "an index and counts"],
)
def test_hidden_problems_are_repaired(state: Path, damage: Callable[[Path], object]) -> None:
    damage(state)
    before = len(problems(state))
    result = run("check", "--state-dir", state, "--repair")
    assert result.exit_code == 0
    assert result.stdout.count(": repaired") >= before
    assert problems(state) == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda state: (state / "jobs" / CONVERTED.id / "output").unlink(),
            f"job {CONVERTED.id} is completed, but there is no",
        ),
        (
            lambda state: (state / "jobs" / WAITING.id / "input").unlink(),
            f"job {WAITING.id} is queued, but there is no",
        ),
    ],
    ids=["a result", "an input"],
)
def test_missing_files_cannot_be_repaired(state: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(state)
    [(sentence, repairable)] = problems(state)
    assert said in sentence
    assert not repairable
    result = run("check", "--state-dir", state, "--repair")
    assert (result.exit_code, result.stdout) == (1, f"{sentence}: cannot be repaired\n")


def test_a_job_deleted_meanwhile_is_no_problem(state: Path) -> None:
    (state / "jobs" / CONVERTED.id / "output").unlink()
    found = maintenance.check(state)
    assert CONVERTED.id in next(found).sentence  # all jobs have been read by now, and not yet looked at
    change(state, f"DELETE FROM jobs WHERE id = '{WAITING.id}'")
    shutil.rmtree(state / "jobs" / WAITING.id)
    assert list(found) == []


def test_new_and_foreign_files_are_kept(state: Path) -> None:
    (state / "jobs" / job_id(77)).mkdir()
    age(state / "jobs" / "lost+found")
    assert problems(state) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: change(
            state, f"UPDATE jobs SET body = json_remove(body, '$.created_at') WHERE id = '{WAITING.id}'"
        ),
        lambda state: flip(state / "progressd.db", f'{WAITING.id}","kind":'.encode()),
        lambda state: flip(
            state / "progressd.db", f'{WAITING.id}","kind":"job","status":"queued","created_at":"2'.encode()
        ),
        lambda state: flip(
            state / "progressd.db", f'{WAITING.id}","kind":"job","status":"queued","created_at":"2'.encode(), 0x80
        ),
    ],
    ids=["a job", "a bracket", "a time", "no UTF-8"],
)
def test_files_of_an_unreadable_job_are_kept(state: Path, damage: Callable[[Path], None]) -> None:
    damage(state)
    os.utime(state / "jobs" / WAITING.id, (1000, 1000))
    before = (state / "progressd.db").read_bytes()
    [(sentence, _)] = problems(state)
    assert "cannot be read" in sentence or "malformed JSON" in sentence
    result = run("check", "--state-dir", state, "--repair")
    files = f"{state}/jobs/{WAITING.id} belongs to no job"
    lines = result.stdout.splitlines()
    assert [line for line in lines if "more may be lost" not in line] == [
        f"{sentence}: repaired",
        f"everything readable is in a new database; the damaged one is {state}/progressd.db.damaged1",
        f"job or batch {WAITING.id}, from offset {WAITING.created_offset} on, cannot be read and is lost",
        f"{files}: kept, since its job may be lost; another --repair deletes it",
    ]
    assert result.exit_code == 1
    assert (state / "progressd.db.damaged1").read_bytes() == before
    assert problems(state) == [(files, True)]


def broken_batch(state: Path) -> None:
    batch = JobBatch(id=job_id(50), status=BatchStatus.QUEUED, created_at=NOW, created_offset=40, offset=41)
    with closing(SQLiteStore.open(state / "progressd.db")) as store:
        trio.run(store.commit, [], [], [batch])
    flip(state / "progressd.db", b'%s","status":"queued","created_at":"2' % batch.id.encode())


@pytest.mark.parametrize(
    ("damage", "said", "lost"),
    [
        (
            lambda state: flip(state / "progressd.db", b'"job_created","job_id":"%s","d' % REPORTED.id.encode()),
            "change 3 cannot be read",
            f"job {REPORTED.id}: 1 of its changes cannot be read and are lost",
        ),
        (
            lambda state: change(state, f"UPDATE changes SET body = replace(body, '{WAITING.id}', '{job_id(9)}')"),
            "change 2 cannot be read: its key and its document differ",
            f"job {WAITING.id}: 1 of its changes cannot be read and are lost",
        ),
        (broken_batch, f"batch {job_id(50)} cannot be read", f"job or batch {job_id(50)}, from offset 40 on,"),
        (
            lambda state: change(state, f"DELETE FROM jobs WHERE id = '{WAITING.id}'"),
            "1 changes belong to jobs that do not exist",
            f"job or batch {WAITING.id}, from offset 2 on, cannot be read and is lost",
        ),
    ],
    ids=["a change", "a change of another job", "a batch", "a change without a job"],
)
def test_unreadable_records_are_named(state: Path, damage: Callable[[Path], object], said: str, lost: str) -> None:
    damage(state)
    [(sentence, _)] = problems(state)
    assert said in sentence
    result = run("check", "--state-dir", state, "--repair")
    assert result.exit_code == 1
    assert lost in result.stdout
    assert (state / "progressd.db.damaged1").exists()
    assert "the database" not in " ".join(sentence for sentence, _ in problems(state))
    SQLiteStore.open(state / "progressd.db").close()


async def test_a_job_under_another_offset_is_repaired(state: Path) -> None:
    change(state, f"UPDATE jobs SET created_offset = 40 WHERE id = '{WAITING.id}'")
    differs = pytest.raises(CorruptRecord, match="its key and its document differ")
    with closing(SQLiteStore.open(state / "progressd.db")) as store, differs:
        await store.unfinished()
    [(sentence, _)] = problems(state)
    assert f"job {WAITING.id} cannot be read" in sentence
    assert run("check", "--state-dir", state, "--repair").exit_code == 0
    assert problems(state) == []
    with closing(SQLiteStore.open(state / "progressd.db")) as store:
        assert await store.unfinished() == [WAITING, REPORTED]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE meta SET key = 'reserwed' WHERE key = 'reserved'",
        "UPDATE meta SET key = 'store_ie' WHERE key = 'store_id'",
        "UPDATE meta SET value = 1 << 60 WHERE key = 'reserved'",
        "UPDATE meta SET value = -4 WHERE key = 'reserved'",
        "UPDATE meta SET value = 'much' WHERE key = 'oldest_cursor'",
        "UPDATE meta SET value = 'A name' WHERE key = 'store_id'",
    ],
)
def test_invalid_metadata_is_recovered(state: Path, statement: str) -> None:
    path = state / "progressd.db"
    with closing(SQLiteStore.open(path)) as store:
        before = store.id
    change(state, statement)
    with pytest.raises(StoreDamaged, match=r"value \w+ cannot be read: .* `progressd check --repair"):
        SQLiteStore.open(path)
    assert problems(state)[0][0].startswith("the database is damaged: value ")
    assert run("check", "--state-dir", state, "--repair").exit_code == 0
    assert problems(state) == []
    with closing(SQLiteStore.open(path)) as store:
        assert store.id != before
        assert store.first_offset > 6


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sqlite_schema SET sql = replace(sql, 'count(*)', 'count(0)') WHERE name = 'counted'",
        "UPDATE sqlite_schema SET name = 'cnunts', tbl_name = 'cnunts', sql = replace(sql, 'counts', 'cnunts')"
        " WHERE name = 'counts'",
    ],
)
def test_a_damaged_schema_is_recovered(state: Path, statement: str) -> None:
    change(state, f"PRAGMA writable_schema = ON; {statement}")
    assert problems(state)
    run("check", "--state-dir", state, "--repair")
    assert problems(state) == []
    assert len(list(maintenance.export(state, set(JobStatus)))) == len(JOBS)


def test_a_file_that_is_no_database_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "progressd.db"
    path.write_bytes(b"Dear diary, " * 10_000)
    before = path.read_bytes()
    result = run("check", "--state-dir", tmp_path, "--repair")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: cannot repair {path}: no job in it can be read (sqlite3: ")
    assert path.read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"lock", "progressd.db"}


def test_a_running_daemon_prevents_a_repair(state: Path) -> None:
    change(state, "UPDATE counts SET jobs = 2")
    with own_state_dir(state):
        assert len(problems(state)) == 1
        with pytest.raises(SettingsError, match="another progressd uses the state directory"):
            list(maintenance.repair(state))
    assert len(problems(state)) == 1


def test_a_missing_database_is_an_error(tmp_path: Path) -> None:
    for command in (["check"], ["jobs", "export"], ["backup", tmp_path / "copy"]):
        result = run(*command, "--state-dir", tmp_path)
        assert result.exit_code == 1
        assert result.stderr == f"Error: there is no database {tmp_path}/progressd.db\n"
        assert list(tmp_path.iterdir()) == []


async def test_an_export_equals_the_rest_api(daemon: RunningDaemon) -> None:
    ids = [ID, job_id(2), job_id(3)]
    await daemon.report(*(registered(name, labels={"by": "eve"}) for name in ids), progress(ID, 1), completed(ID))
    state = daemon.settings.state_dir
    result = run("jobs", "export", "--state-dir", state)
    assert result.exit_code == 0
    async with client_of(daemon) as client:
        shown = (await client.get("/api/jobs")).json()["jobs"]
    assert [json.loads(line) for line in result.stdout.splitlines()] == shown[::-1]
    only = run("jobs", "export", "--status", "queued", "--status", "failed", "--state-dir", state)
    assert [json.loads(line)["id"] for line in only.stdout.splitlines()] == ids[1:]
    assert problems(state) == []


def test_a_large_export_has_each_job_once(tmp_path: Path) -> None:
    fill(tmp_path / "progressd.db", 2500)
    exported = maintenance.export(tmp_path, set(JobStatus))
    assert [one.id for one in exported] == [job_id(number) for number in range(1, 2501)]
