"""A repair keeps all that SQLite's recovery reads, and lists what is lost."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from progressd.admin import maintenance
from progressd.core.batch import BatchStatus, JobBatch
from progressd.core.errors import SettingsError
from progressd.core.eta import KeyedRun, Run
from progressd.core.progress import Step
from progressd.store.base import Change, Filter
from progressd.store.recovery import COLUMNS, LEFT_OUT, recover
from progressd.store.sqlite import SQLiteStore
from support.daemon import registered, running_daemon
from support.growth import fill
from support.samples import NOW, created, job, job_id
from support.scarcity import small_disk

PAGE = 4096
MORE = "pages of the database are damaged: more may be lost than is listed"
JOBS = 200
BATCH = JobBatch(
    id=job_id(10_000), status=BatchStatus.QUEUED, created_at=NOW, created_offset=5 * JOBS + 50, offset=5 * JOBS + 50
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with some jobs, a batch and free pages; tests copy it."""
    path = tmp_path_factory.mktemp("whole") / "progressd.db"
    fill(path, JOBS + 100)
    with closing(SQLiteStore.open(path)) as store:

        async def delete() -> None:
            while await store.delete([job_id(number) for number in range(JOBS + 1, JOBS + 101)]):
                pass
            await store.commit([], [], [BATCH])

        trio.run(delete)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        assert db.execute("PRAGMA freelist_count").fetchone()[0] > 10
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path))


def rows(path: Path, table: str) -> dict[int, str]:
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute(f"SELECT {'offset' if table == 'changes' else 'created_offset'}, body FROM {table}"))


def pages_of(path: Path, name: str) -> list[int]:
    """Return the pages of a table or index, its root first."""
    with closing(sqlite3.connect(path)) as db:
        found = db.execute("SELECT pageno FROM dbstat WHERE name = ? ORDER BY path", (name,)).fetchall()
    return [page for (page,) in found]


def destroy(path: Path, *pages: int, seed: int = 1) -> None:
    random = Random(seed)
    with path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(random.randbytes(PAGE))


def repaired(state: Path) -> list[str]:
    """Return the reported losses."""
    said = [sentence for sentence, _ in maintenance.repair(state)]
    assert list(maintenance.check(state)) == []
    return [sentence for sentence in said if sentence == MORE or sentence.endswith(" lost")]


@pytest.mark.parametrize(
    "pages",
    [
        lambda path: pages_of(path, "jobs")[:1],
        lambda path: pages_of(path, "changes_by_job"),
        lambda path: [pages_of(path, name)[0] for name in ("jobs", "changes", "labels", "counts", "meta", "batches")],
    ],
    ids=["the root of the jobs", "an index", "many roots"],
)
def test_damaged_inner_pages_lose_nothing(whole: Path, path: Path, pages: Callable[[Path], list[int]]) -> None:
    destroyed = pages(path)
    destroy(path, *destroyed)
    before = path.read_bytes()
    assert repaired(path.parent) == [MORE]
    assert path.with_name("progressd.db.damaged1").read_bytes() == before
    for table in ("jobs", "changes", "batches"):
        if table != "batches" or len(destroyed) < 6:  # its only page
            assert rows(path, table) == rows(whole, table)


async def test_timelines_are_kept(path: Path) -> None:
    steps = (Step("Read", NOW, NOW), Step("Write", NOW))
    with closing(SQLiteStore.open(path)) as store:
        [first, second] = (await store.jobs([job_id(1), job_id(2)])).values()
        await store.commit([replace(first, steps=steps), replace(second, steps=steps)], [])
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE timelines SET body = 'x' WHERE created_offset = ?", (second.created_offset,))
        db.commit()
    destroy(path, *pages_of(path, "changes_by_job"))
    assert await trio.to_thread.run_sync(repaired, path.parent) == [MORE]
    with closing(SQLiteStore.open(path)) as store:
        found = await store.jobs([first.id, second.id])
    assert (found[first.id].steps, found[second.id].steps) == (steps, ())


async def test_earlier_runs_are_kept(path: Path) -> None:
    runs = [KeyedRun("tar", Run(("tar",), float(number), 10, ())) for number in (1, 2)]
    with closing(SQLiteStore.open(path)) as store:
        await store.commit((), (), (), runs)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE runs SET body = 'x' WHERE id = 2")
        db.commit()
    destroy(path, *pages_of(path, "changes_by_job"))
    assert await trio.to_thread.run_sync(repaired, path.parent) == [MORE]
    with closing(SQLiteStore.open(path)) as store:
        assert await store.runs() == runs[:1]


async def test_earlier_runs_are_kept_if_their_table_is_unknown(path: Path) -> None:
    runs = [KeyedRun("tar", Run(("tar",), float(number), 10, ())) for number in range(1, 500)]
    with closing(SQLiteStore.open(path)) as store:
        await store.commit((), (), (), [one._replace(key=str(number)) for number, one in enumerate(runs)])
    destroy(path, pages_of(path, "runs")[0])
    assert await trio.to_thread.run_sync(repaired, path.parent) == [MORE]
    with closing(SQLiteStore.open(path)) as store:
        assert [one.run for one in await store.runs()] == [one.run for one in runs]


def test_recovery_knows_the_columns_of_all_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        tables = [name for name in tables if not name.startswith("search_")]  # the parts of the index for searches
        columns = {table: tuple(row[1] for row in db.execute(f"PRAGMA table_info({table})")) for table in tables}
    assert {table: names for table, names in columns.items() if table not in LEFT_OUT} == COLUMNS


def test_lost_rows_are_named(whole: Path, path: Path) -> None:
    destroy(path, pages_of(path, "jobs")[3], pages_of(path, "changes")[5])
    lost = repaired(path.parent)
    assert lost.pop() == MORE
    jobs, changes = rows(path, "jobs"), rows(path, "changes")
    assert JOBS - 20 < len(jobs) < JOBS
    assert jobs.items() <= rows(whole, "jobs").items()
    assert changes.items() <= rows(whole, "changes").items()
    gone = [at for at in rows(whole, "changes").keys() - changes.keys() if at - at % 5 in jobs]
    of_changes = [
        f"job {job_id(number)}: {len([at for at in gone if at // 5 == number])} of its changes cannot be read and are"
        for number in {at // 5 for at in gone}
    ]
    of_jobs = [
        f"job or batch {job_id(at // 5)}, from offset {at} on, cannot be read and is"
        for at in rows(whole, "jobs").keys() - jobs.keys()
    ]
    assert of_changes
    assert {one.removesuffix(" lost") for one in lost} == {*of_jobs, *of_changes}


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32), share=st.floats(0, 0.3))
def test_recovery_of_any_damage_gives_a_valid_store(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, share: float
) -> None:
    state = tmp_path_factory.mktemp("state")
    path, random = Path(shutil.copy(whole, state)), Random(seed)
    count = path.stat().st_size // PAGE
    bad = [page for page in range(2, count + 1) if random.random() < share]
    destroy(path, *bad, seed=seed)
    damaged = bool(list(maintenance.check(state)))
    lost = " ".join(repaired(state))
    jobs, before = rows(path, "jobs"), rows(whole, "jobs")
    assert damaged or jobs == before
    assert jobs.items() <= before.items()
    assert jobs == before or MORE in lost
    if not {*pages_of(whole, "sqlite_schema"), *pages_of(whole, "sqlite_autoindex_jobs_1")}.intersection(bad):
        assert [at for at in before.keys() - jobs.keys() if job_id(at // 5) not in lost] == []
    shutil.rmtree(state)


def flipped(before: bytes, random: Random) -> bytearray:
    content = bytearray(before)
    for _ in range(random.choice([1, 1, 1, 5, 20])):
        content[random.randrange(100, len(content))] ^= 1 << random.randrange(8)
    return content


def swapped(before: bytes, random: Random) -> bytearray:
    content = bytearray(before)
    one, other = (random.randrange(1, len(content) // PAGE) * PAGE for _ in range(2))
    content[one : one + PAGE], content[other : other + PAGE] = content[other : other + PAGE], content[one : one + PAGE]
    return content


def cut(before: bytes, random: Random) -> bytearray:
    return bytearray(before[: random.randrange(len(before) // 2, len(before))])


@pytest.mark.parametrize("spoil", [flipped, swapped, cut])
@settings(max_examples=4)
@given(seed=st.integers(0, 2**32))
@example(seed=282)
@example(seed=56)
@example(seed=157)
def test_a_second_repair_finds_nothing(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, spoil: Callable[[bytes, Random], bytearray], seed: int
) -> None:
    state = tmp_path_factory.mktemp("state")
    path, content = state / "progressd.db", spoil(whole.read_bytes(), Random(seed))
    path.write_bytes(content)
    try:
        said = " ".join(sentence for sentence, _ in maintenance.repair(state))
    except SettingsError as error:  # such as after damage to the schema
        said = str(error)
    if "no job in it can be read" in said:
        assert path.read_bytes() == content
        return
    kept = " ".join(rows(path, "jobs").values())  # not by offset: damage in a body may give its job another one
    lost = {at for at in rows(whole, "jobs") if job_id(at // 5) not in kept}
    assert "may be lost" in said or [at for at in lost if job_id(at // 5) not in said] == []
    if "the damaged one is" in said:
        assert (state / "progressd.db.damaged1").read_bytes() == content
    else:
        assert lost == set()
    assert list(maintenance.repair(state)) == []
    trio.run(require_open, path)
    shutil.rmtree(state)


async def require_open(path: Path) -> None:
    """Check that a daemon can use the store."""
    with closing(SQLiteStore.open(path)) as store:
        await store.unfinished()
        await store.unfinished_batches()
        await store.changes_of_unfinished(10**6)
        offset = store.first_offset
        await store.commit([job(900, created_offset=offset)], [Change(offset, created(job_id(900)))])
        assert store.unreadable is None


def test_a_job_in_a_lost_write_is_named(tmp_path: Path) -> None:
    """SQLite itself could rebuild the indexes from the older page, and the loss would go unnoticed."""
    path = tmp_path / "progressd.db"
    fill(path, 20)
    older = path.read_bytes()
    with closing(SQLiteStore.open(path)) as store:
        new = job(1000, created_offset=1000)
        trio.run(store.commit, [new], [Change(1000, created(new.id))])
    content = path.read_bytes()
    page = pages_of(path, "jobs")[-1]
    at = slice((page - 1) * PAGE, page * PAGE)
    assert content[at] != older[at]
    path.write_bytes(content[: at.start] + older[at] + content[at.stop :])
    result = tmp_path / "jobs" / new.id / "output"
    result.parent.mkdir(parents=True)
    result.touch()
    os.utime(result.parent, (1000, 1000))
    said = list(maintenance.repair(tmp_path))
    assert (f"job or batch {new.id}, from offset 1000 on, cannot be read and is lost", False) in said
    assert result.exists()
    assert (tmp_path / "progressd.db.damaged1").exists()


def test_a_database_without_its_first_page_is_not_changed(path: Path) -> None:
    destroy(path, 1)
    before = path.read_bytes()
    with pytest.raises(
        SettingsError, match=r"no job in it can be read \(sqlite3: .*not a database.*\): restore a backup"
    ):
        list(maintenance.repair(path.parent))
    assert path.read_bytes() == before
    assert {one.name for one in path.parent.iterdir()} == {"lock", "progressd.db"}


def killed(path: Path, target: Path) -> Path:
    """Return a copy of the store after a kill, with ten jobs in its log."""
    with closing(SQLiteStore.open(path)) as store:
        for number in range(9000, 9010):
            trio.run(store.commit, [job(number)], [Change(number, created(job_id(number)))])
        target.mkdir()
        for name in ("progressd.db", "progressd.db-wal"):
            shutil.copy(path.with_name(name), target)
    return target / "progressd.db"


async def test_a_daemon_continues_with_recovered_jobs(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    path = Path(shutil.copy(whole, tmp_path / "state"))
    with closing(sqlite3.connect(path)) as db:
        [before] = db.execute("SELECT value FROM meta WHERE key = 'store_id'").fetchone()
    destroy(path, *pages_of(path, "jobs")[:3])
    repaired(path.parent)
    async with running_daemon(tmp_path) as daemon:
        assert (await daemon.report(registered(job_id(1000))))[0]["ok"]
        found, total = await daemon.daemon.store.list_jobs(Filter(), 1, 0)
        assert (found[0].id, total) == (job_id(1000), len(rows(path, "jobs")))
        assert daemon.daemon.store.id != before  # old cursors are invalid


def test_a_second_repair_keeps_another_file(path: Path) -> None:
    for number in (1, 2):
        destroy(path, pages_of(path, "jobs")[2])
        assert recover(path).kept == path.with_name(f"progressd.db.damaged{number}")
    names = {entry.name for entry in path.parent.iterdir()}
    assert names == {"progressd.db", "progressd.db.damaged1", "progressd.db.damaged2"}


def test_without_disk_space_the_damaged_file_stays(whole: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = Path(shutil.copy(whole, disk.path))
        destroy(path, pages_of(path, "jobs")[2])
        before = path.read_bytes()
        disk.fill()
        with pytest.raises(SettingsError, match="full"):
            recover(path)
        assert path.read_bytes() == before
        assert not [entry for entry in disk.path.iterdir() if entry.suffix in (".part", ".damaged1")]


def test_a_missing_shell_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    destroy(path, pages_of(path, "jobs")[2])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SettingsError, match=r"sqlite3 is not installed \(sudo apt install sqlite3\)"):
        list(maintenance.repair(path.parent))


def test_a_log_in_use_is_not_deleted(path: Path, tmp_path: Path) -> None:
    path = killed(path, tmp_path / "killed")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.execute("SELECT * FROM meta").fetchall()
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("INSERT INTO meta VALUES ('more', 1)")
        with pytest.raises(
            SettingsError, match=r"another program is using progressd.db-wal \(stop that program first\)"
        ):
            recover(path)


# Interrupted repairs

# For each change of names that a repair makes: two processes that repair a copy, and are killed before that change,
# which an audit hook reports. Prints how each pair has ended; the last one was not killed.
INTERRUPTED = """
import errno, os, shutil, signal, sys
from itertools import count
from pathlib import Path
from progressd.admin import maintenance as upkeep

damaged, place, how = sys.argv[1:]

def repair(state, countdown):
    def hook(event, arguments):
        nonlocal countdown
        if event in ("os.rename", "os.link", "os.remove") and os.fspath(arguments[0]).startswith(state):
            countdown -= 1
            if countdown == 0:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.EIO, "the disk fails")

    sys.addaudithook(hook)
    status = 1
    try:
        for _ in upkeep.repair(Path(state)):
            pass
        status = 0
    finally:
        os._exit(status)

for number in count(1):
    for then in ("begun", "repaired"):
        state = shutil.copytree(damaged, f"{place}/{then}-{number}")
        if not (pid := os.fork()):
            repair(state, number)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(status)
    if status == 0:
        break
"""


@pytest.fixture
def damaged(path: Path, tmp_path: Path) -> Path:
    """Return a state directory after a kill, with a damaged page of jobs."""
    page = pages_of(path, "jobs")[2]
    path = killed(path, tmp_path / "damaged")
    destroy(path, page)
    return path.parent


def logged(state: Path) -> int:
    """Return how many jobs from the log a daemon has."""
    with closing(SQLiteStore.open(state / "progressd.db")) as store:
        return len(trio.run(store.known, [job_id(number) for number in range(9000, 9010)]))


@pytest.mark.parametrize(("how", "status"), [("kill", -signal.SIGKILL), ("fail", 1)])
def test_an_interrupted_repair_loses_nothing(damaged: Path, tmp_path: Path, how: str, status: int) -> None:
    command = [sys.executable, "-c", INTERRUPTED, damaged, tmp_path, how]
    ended = [int(line) for line in subprocess.check_output(command).split()]
    assert ended == [status] * (len(ended) - 1) + [0]
    assert len(ended) > 3
    for number in range(1, len(ended) + 1):
        assert logged(tmp_path / f"begun-{number}") == 10
        state = tmp_path / f"repaired-{number}"
        list(maintenance.repair(state))
        assert logged(state) == 10
        assert list(maintenance.check(state)) == []
        [kept] = state.glob("*.damaged*")
        assert not kept.samefile(state / "progressd.db")


def test_a_repair_follows_links(damaged: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "progressd.db").symlink_to(damaged / "progressd.db")
    assert any(str(damaged / "progressd.db.damaged1") in sentence for sentence, _ in maintenance.repair(state))
    assert logged(state) == 10
    assert (state / "progressd.db").is_symlink()
