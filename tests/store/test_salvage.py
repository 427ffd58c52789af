"""What comes out of a file with pages that a disk has destroyed: all that is readable, and word of all that is not."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from progressd import upkeep
from progressd.core.errors import SettingsError
from progressd.store.base import Change, Filter
from progressd.store.salvage import salvage
from progressd.store.sqlite import SQLiteStore
from samples import created, job, job_id
from scarcity import small_disk
from store.growth import fill

from daemon import registered, running_daemon

PAGE = 4096
MISSING = "%d pages are missing or unreadable; what only they named is not listed"
JOBS = 500


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with some jobs, of whose pages some are free; to be copied."""
    path = tmp_path_factory.mktemp("whole") / "progressd.db"
    fill(path, JOBS + 100)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM changes WHERE offset >= ?", (5 * JOBS + 5,))
        db.execute("DELETE FROM labels WHERE created_offset > ?", (5 * JOBS,))
        db.execute("DELETE FROM jobs WHERE created_offset > ?", (5 * JOBS,))
        db.execute("DELETE FROM counts")
        db.execute("INSERT INTO counts SELECT * FROM counted")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert db.execute("PRAGMA freelist_count").fetchone()[0] > 10
    return path


def rows(path: Path, table: str) -> dict[int, str]:
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute(f"SELECT {'offset' if table == 'changes' else 'created_offset'}, body FROM {table}"))


def pages_of(path: Path, name: str) -> list[int]:
    """The pages of a table or index, its root first."""
    with closing(sqlite3.connect(path)) as db:
        [root] = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
    content = path.read_bytes()
    page = content[(root - 1) * PAGE : root * PAGE]
    cells = [int.from_bytes(page[12 + 2 * cell :][:2], "big") for cell in range(int.from_bytes(page[3:5], "big"))]
    return [root, *(int.from_bytes(page[at : at + 4], "big") for at in cells), int.from_bytes(page[8:12], "big")]


def destroy(path: Path, *pages: int, seed: int = 1) -> None:
    random = Random(seed)
    with path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(random.randbytes(PAGE))


def repaired(state: Path) -> list[str]:
    """What is said to be lost."""
    said = [sentence for sentence, _ in upkeep.repair(state)]
    assert list(upkeep.check(state)) == []
    return [sentence for sentence in said if "is lost" in sentence or "only they named" in sentence]


@pytest.mark.parametrize(
    "pages",
    [
        lambda path: [1],
        lambda path: pages_of(path, "jobs")[:1],
        lambda path: pages_of(path, "changes_by_job"),
        lambda path: [pages_of(path, name)[0] for name in ("jobs", "changes", "labels", "counts", "meta")],
    ],
    ids=["the schema", "the root of the jobs", "an index", "many roots"],
)
def test_where_only_the_way_to_the_rows_is_destroyed_nothing_is_lost(
    whole: Path, tmp_path: Path, pages: Callable[[Path], list[int]]
) -> None:
    path = Path(shutil.copy(whole, tmp_path))
    destroy(path, *pages(path))
    before = path.read_bytes()
    kept = salvage(path)
    assert kept is not None
    assert kept.kept.read_bytes() == before
    assert list(upkeep.check(tmp_path)) == []
    for table in ("jobs", "changes"):
        found = rows(path, table)
        assert {place: found.get(place) for place in rows(whole, table)} == rows(whole, table)
    if pages(whole) != [1]:  # which says which pages are free: without it, deleted jobs come back
        assert (kept.lost, len(found)) == ([MISSING % len(pages(whole))], 4 * JOBS)


def test_what_is_on_a_page_that_is_destroyed_is_lost_by_name_and_nothing_else_is(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole, tmp_path))
    destroy(path, pages_of(path, "jobs")[3], pages_of(path, "changes")[5])
    lost = repaired(tmp_path)
    assert lost.pop() == MISSING % 2
    jobs, changes = rows(path, "jobs"), rows(path, "changes")
    assert JOBS - 20 < len(jobs) < JOBS
    assert jobs.items() <= rows(whole, "jobs").items()
    assert changes.items() <= rows(whole, "changes").items()
    of_jobs = [f"job {job_id(at // 5)}, from offset {at} on," for at in rows(whole, "jobs").keys() - jobs.keys()]
    of_changes = [
        f"the change at offset {at} of job {job_id(at // 5)}"
        for at in rows(whole, "changes").keys() - changes.keys()
        if at - at % 5 in jobs
    ]
    assert of_changes
    said = {one.removesuffix(" cannot be read and is lost").replace("job or batch", "job") for one in lost}
    assert said == {*of_jobs, *of_changes}


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), share=st.floats(0, 0.3))
def test_whatever_is_destroyed_what_is_left_is_a_store_without_fault_and_no_job_goes_unsaid(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, share: float
) -> None:
    state = tmp_path_factory.mktemp("state")
    path, random = Path(shutil.copy(whole, state)), Random(seed)
    count = path.stat().st_size // PAGE
    bad = [page for page in range(2, count + 1) if random.random() < share]
    destroy(path, *bad, seed=seed)
    damaged = bool(list(upkeep.check(state)))
    lost = " ".join(repaired(state))
    jobs, before = rows(path, "jobs"), rows(whole, "jobs")
    assert damaged or jobs == before
    assert jobs.items() <= before.items()
    names = {*pages_of(whole, "sqlite_autoindex_jobs_1"), *pages_of(whole, "changes_by_job")}
    assert not jobs.keys() ^ before.keys() or MISSING[3:] in lost
    if not names.intersection(bad):
        assert [at for at in before.keys() - jobs.keys() if job_id(at // 5) not in lost] == []
    shutil.rmtree(state)


def test_a_write_that_the_disk_has_lost_takes_no_job_unsaid(tmp_path: Path) -> None:
    """SQLite itself could make the indexes fit the older page, and nothing would tell of what is gone."""
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
    said = list(upkeep.repair(tmp_path))
    assert (f"job {new.id}, from offset 1000 on, cannot be read and is lost", False) in said
    assert result.exists()
    assert (tmp_path / "progressd.db.damaged1").exists()


@pytest.mark.parametrize(
    ("where", "what"),
    [(16, b"\2\0"), (0, b"?" * 16), (16, b"\0\0" + b"?" * 20)],
    ids=["the size of pages", "the mark", "much of it"],
)
def test_the_header_is_not_needed_for_anything(whole: Path, tmp_path: Path, where: int, what: bytes) -> None:
    path = Path(shutil.copy(whole, tmp_path))
    with path.open("r+b") as file:
        file.seek(where)
        file.write(what)
    assert [one for one in repaired(tmp_path) if "is lost" in one] == []
    assert rows(path, "jobs") == rows(whole, "jobs")


@pytest.mark.parametrize(("at", "number"), [(4, 1023), (4, 3), (8, 10**6), (8, 0)], ids=["leaves", "fewer", "far", "0"])
def test_a_list_of_free_pages_that_makes_no_sense_takes_no_page(
    whole: Path, tmp_path: Path, at: int, number: int
) -> None:
    path = Path(shutil.copy(whole, tmp_path))
    trunk = int.from_bytes(path.read_bytes()[32:36], "big")
    with path.open("r+b") as file:
        file.seek((trunk - 1) * PAGE + at)
        file.write(number.to_bytes(4, "big"))
    salvage(path)
    assert rows(whole, "jobs").items() <= rows(path, "jobs").items()


def test_a_page_that_is_in_use_is_not_free_whatever_the_list_says(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole, tmp_path))
    trunk = int.from_bytes(path.read_bytes()[32:36], "big")
    with path.open("r+b") as file:
        file.seek((trunk - 1) * PAGE + 8)
        file.write(pages_of(path, "jobs")[3].to_bytes(4, "big"))
    assert [one for one in repaired(tmp_path) if "is lost" in one] == []
    assert rows(whole, "jobs").items() <= rows(path, "jobs").items()


async def test_what_a_kill_has_left_in_the_log_is_saved_as_well(whole: Path, tmp_path: Path) -> None:
    alive = Path(shutil.copy(whole, tmp_path))
    (killed := tmp_path / "killed").mkdir()
    with closing(SQLiteStore.open(alive)) as store:
        await store.commit([job(9000)], [Change(9000, created(job_id(9000)))])
        for name in ("progressd.db", "progressd.db-wal"):
            shutil.copy(tmp_path / name, killed)
    path = killed / "progressd.db"
    destroy(path, pages_of(whole, "jobs")[2])
    lost = repaired(killed)
    assert lost
    with closing(SQLiteStore.open(path)) as store:
        assert (await store.unfinished()) == [job(9000)]
        assert len(await store.changes(8999, 9000, 10)) == 1


SPOILT = pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["missing", "empty"])


def killed_with_a_log(path: Path, target: Path) -> Path:
    """A copy of the store as a kill leaves it, with ten jobs in its log."""
    with closing(SQLiteStore.open(path)) as store:
        for number in range(9000, 9010):
            trio.run(store.commit, [job(number)], [Change(number, created(job_id(number)))])
        target.mkdir()
        for name in ("progressd.db", "progressd.db-wal"):
            shutil.copy(path.with_name(name), target)
    return target / "progressd.db"


@SPOILT
def test_of_a_database_that_is_gone_a_log_that_has_all_of_it_saves_all(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    path = killed_with_a_log(tmp_path / "progressd.db", tmp_path / "killed")
    log = path.with_name("progressd.db-wal").read_bytes()
    spoil(path)
    assert repaired(path.parent) == []
    assert rows(path, "jobs").keys() == rows(path, "changes").keys() == set(range(9000, 9010))
    assert path.with_name("progressd.db.damaged1-wal").read_bytes() == log


@SPOILT
def test_of_a_database_that_is_gone_what_is_in_its_log_is_saved_and_the_rest_is_said_to_be_lost(
    whole: Path, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    path = killed_with_a_log(Path(shutil.copy(whole, tmp_path)), tmp_path / "killed")
    spoil(path)
    *lost, more = repaired(path.parent)
    assert MISSING[3:] in more
    assert rows(path, "jobs").keys() >= set(range(9000, 9010))
    assert len(lost) > 10


@SPOILT
def test_of_a_database_that_is_gone_a_log_without_a_job_saves_nothing_and_stays(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    origin = tmp_path / "origin"
    with closing(SQLiteStore.open(tmp_path / "progressd.db")):
        shutil.copytree(tmp_path, origin, ignore=shutil.ignore_patterns("origin"))
    path = origin / "progressd.db"
    log = path.with_name("progressd.db-wal").read_bytes()
    spoil(path)
    [(sentence, mended)] = upkeep.repair(origin)
    assert "is empty or gone" in sentence
    assert sentence.endswith("nothing mends this")
    assert not mended
    assert path.with_name("progressd.db-wal").read_bytes() == log


async def test_a_daemon_goes_on_with_what_was_saved(whole: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    path = Path(shutil.copy(whole, state))
    destroy(path, *pages_of(path, "jobs")[:3])
    with closing(sqlite3.connect(whole)) as db:
        [before] = db.execute("SELECT value FROM meta WHERE key = 'store_id'").fetchone()
    repaired(state)
    async with running_daemon(tmp_path) as daemon:
        assert (await daemon.report(registered(job_id(1000))))[0]["ok"]
        found, total = await daemon.daemon.store.list_jobs(Filter(), 1, 0)
        assert (found[0].id, total) == (job_id(1000), len(rows(path, "jobs")))
        assert daemon.daemon.store.id != before  # no cursor from before means anything here


def test_a_second_repair_keeps_another_file(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole, tmp_path))
    for number in (1, 2):
        destroy(path, pages_of(path, "jobs")[2])
        kept = salvage(path)
        assert kept is not None
        assert kept.kept == tmp_path / f"progressd.db.damaged{number}"
    assert {entry.name for entry in tmp_path.iterdir()} == {
        "progressd.db",
        "progressd.db.damaged1",
        "progressd.db.damaged2",
    }


def test_without_room_for_a_new_file_the_damaged_one_stays_as_it_is(whole: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = Path(shutil.copy(whole, disk.path))
        destroy(path, pages_of(path, "jobs")[2])
        before = path.read_bytes()
        disk.fill()
        with pytest.raises(SettingsError, match="full"):
            salvage(path)
        assert path.read_bytes() == before
        assert not [entry for entry in disk.path.iterdir() if entry.suffix in (".part", ".damaged1")]
