"""What `check --repair` promises of a file that a disk has changed somewhere, be it by a bit or by pages."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from progressd import upkeep
from progressd.core.batch import BatchStatus, JobBatch
from progressd.store.base import Change
from progressd.store.pages import SIZE, Pages, Record
from progressd.store.sqlite import SQLiteStore
from samples import NOW, created, job, job_id
from store.growth import fill

OF_A_KIND: Final = range(60, 72)  # bytes of the header that say of which program and version the file is
MORE: Final = "what only they named is not listed"


class Before:
    """A store as it was, the same some writes earlier, and its rows by table and offset."""

    def __init__(self, path: Path, earlier: bytes) -> None:
        self.content = path.read_bytes()
        self.earlier = earlier
        self.rows = rows_of(path)
        with closing(SQLiteStore.open(path)) as store:
            self.store_id, self.first_offset = store.id, store.first_offset


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Before:
    path = tmp_path_factory.mktemp("before") / "progressd.db"
    fill(path, 90)

    async def write() -> bytes:
        batch = JobBatch(id=job_id(1000), status=BatchStatus.QUEUED, created_at=NOW, created_offset=500, offset=500)
        with closing(SQLiteStore.open(path)) as store:
            while await store.delete([job_id(number) for number in range(40, 80)]):
                pass
            await store.commit([job(501), job(502)], [Change(501, created(job_id(501)))], [batch])
        earlier = path.read_bytes()
        with closing(SQLiteStore.open(path)) as store:
            await store.commit([job(503)], [Change(503, created(job_id(503))), Change(504, created(job_id(502)))])
            await store.reserve(505)
        return earlier

    earlier = trio.run(write)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA freelist_count").fetchone()[0] > 3
    return Before(path, earlier)


def rows_of(path: Path) -> dict[tuple[str, int], bytes]:
    with closing(sqlite3.connect(path)) as db:
        return {
            (table, offset): body
            for table, key in (("jobs", "created_offset"), ("changes", "offset"), ("batches", "created_offset"))
            for offset, body in db.execute(f"SELECT {key}, CAST(body AS BLOB) FROM {table}")
        }


def flipped(before: Before, random: Random) -> bytearray:
    content = bytearray(before.content)
    for _ in range(random.choice([1, 1, 1, 5, 20])):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return content


def with_other_page(before: Before, random: Random) -> bytearray:
    content = bytearray(before.content)
    page = random.randrange(len(content) // SIZE) * SIZE
    content[page : page + SIZE] = random.choice(
        [bytes(SIZE), random.randbytes(SIZE), before.earlier[page : page + SIZE].ljust(SIZE, b"\0")]
    )
    return content


def swapped(before: Before, random: Random) -> bytearray:
    content = bytearray(before.content)
    one, other = (random.randrange(len(content) // SIZE) * SIZE for _ in range(2))
    content[one : one + SIZE], content[other : other + SIZE] = (
        content[other : other + SIZE],
        content[one : one + SIZE],
    )
    return content


def with_other_head(before: Before, random: Random) -> bytearray:
    content = bytearray(before.content)
    page = random.choice([0, random.randrange(len(content) // SIZE)])
    content[page * SIZE + random.randrange(12 if page else 110)] ^= random.randrange(1, 256)
    return content


def cut(before: Before, random: Random) -> bytearray:
    return bytearray(before.content[: random.randrange(len(before.content) // 2, len(before.content))])


def untouched_rows(before: Before, content: bytes) -> list[tuple[str, int]]:
    """Those on pages that are still there as they were, wherever but in the place of a free one."""
    whole, found = Pages(before.content), list[tuple[str, int]]()
    pages = {bytes(content[at : at + SIZE]) for at in range(0, len(content), SIZE) if at // SIZE + 1 not in whole._free}
    for number in range(1, len(before.content) // SIZE + 1):
        if number not in whole._free and before.content[(number - 1) * SIZE : number * SIZE] in pages:
            for record in whole._records_of(number):
                match record:
                    case Record(int(place), (None, bytes(), bytes(body))):
                        found += [key for key, row in before.rows.items() if key[1] == place and row == body]
    return found


@pytest.mark.parametrize("spoil", [flipped, with_other_page, swapped, with_other_head, cut])
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32))
@example(seed=32)
def test_what_is_readable_is_there_what_is_lost_is_said_and_the_damaged_file_is_kept(
    before: Before,
    tmp_path_factory: pytest.TempPathFactory,
    spoil: Callable[[Before, Random], bytearray],
    seed: int,
) -> None:
    content = spoil(before, Random(seed))
    content[OF_A_KIND.start : OF_A_KIND.stop] = before.content[OF_A_KIND.start : OF_A_KIND.stop]
    state = tmp_path_factory.mktemp("state")
    path = state / "progressd.db"
    path.write_bytes(content)
    sentences = [sentence for sentence, _ in upkeep.repair(state)]
    said = " ".join(sentences)
    after = rows_of(path)
    lost = before.rows.keys() - after.keys()
    kept = [key for key in untouched_rows(before, content) if key[0] != "changes" or owner(before, key) in after]
    assert {key: after.get(key) for key in kept} == {key: before.rows[key] for key in kept}
    assert MORE in said or [key for key in lost if not named(before, key, said)] == []
    if "is the damaged one" in said:
        assert (state / "progressd.db.damaged1").read_bytes() == content
    else:
        assert lost == set()
    repaired = path.read_bytes()
    assert {sentence for sentence, _ in upkeep.repair(state)} <= set(sentences)
    assert path.read_bytes() == repaired
    trio.run(require_open, path, before)
    shutil.rmtree(state)


def owner(before: Before, change: tuple[str, int]) -> tuple[str, int]:
    """The job of a change."""
    of_it = job_id_of(before.rows[change])
    return next(key for key, row in before.rows.items() if key[0] == "jobs" and job_id_of(row) == of_it)


def job_id_of(row: bytes) -> str:
    return row[row.index(job_id(0)[:-12].encode()) :][: len(job_id(0))].decode()


def named(before: Before, key: tuple[str, int], said: str) -> bool:
    """Whether it is said that a row is lost; with a job its changes are."""
    of_it = job_id_of(before.rows[key])
    return f"{of_it}, from offset" in said or f"the change at offset {key[1]} of job {of_it} " in said


async def require_open(path: Path, before: Before) -> None:
    """A daemon finds all it needs, and gives no offset twice under the same name."""
    with closing(SQLiteStore.open(path)) as store:
        assert store.id != before.store_id or store.first_offset >= before.first_offset
        await store.unfinished()
        await store.unfinished_batches()
        await store.changes_of_unfinished(10**6)
        offset = store.first_offset
        await store.commit([job(900, created_offset=offset)], [Change(offset, created(job_id(900)))])
        assert store.unreadable is None
