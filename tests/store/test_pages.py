"""The file read page by page holds the same as SQLite says, and whatever is in it, reading it ends."""

import sqlite3
from collections import Counter
from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st
from progressd.store.pages import Pages, Record

ROWID = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-300, 300))
TEXT = st.one_of(st.text(max_size=30), st.integers(0, 20_000).map("x".__mul__))
ROWS = st.dictionaries(ROWID, st.tuples(TEXT, st.one_of(st.none(), ROWID)), max_size=40)


def written(rows: dict[int, tuple[str, int | None]], deleted: set[int]) -> bytes:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute("CREATE TABLE one (id INTEGER PRIMARY KEY, name TEXT, number INTEGER)")
        db.execute("CREATE INDEX by_name ON one (name)")
        db.executemany("INSERT INTO one VALUES (?, ?, ?)", [(rowid, *values) for rowid, values in rows.items()])
        db.executemany("DELETE FROM one WHERE id = ?", [(rowid,) for rowid in deleted])
        return db.serialize()


@given(ROWS, st.data())
def test_every_row_and_every_entry_of_an_index_is_found_and_none_that_was_deleted(
    rows: dict[int, tuple[str, int | None]], data: st.DataObject
) -> None:
    deleted = data.draw(st.sets(st.sampled_from(sorted(rows)))) if rows else set[int]()
    content = written(rows, deleted)
    left = {rowid: values for rowid, values in rows.items() if rowid not in deleted}
    expected = Counter(Record(rowid, (None, name.encode(), number)) for rowid, (name, number) in left.items())
    expected.update(Record(None, (name.encode(), rowid)) for rowid, (name, _) in left.items())
    pages = Pages(content)
    found = Counter(pages.records())
    assert pages.unreadable() == 0
    assert found - Counter(one for one in found if b"CREATE" in str(one).encode()) == expected


@given(ROWS, st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=600))))
def test_whatever_the_file_holds_reading_it_ends(
    rows: dict[int, tuple[str, int | None]], noise: list[tuple[float, bytes]]
) -> None:
    content = bytearray(written(rows, set()))
    for where, what in noise:
        at = int(where * len(content))
        content[at : at + len(what)] = what[: len(content) - at]
    for _ in Pages(bytes(content)).records():
        pass


@given(st.binary(max_size=5000))
def test_what_is_no_database_has_no_end_of_surprises_but_reading_it_ends(content: bytes) -> None:
    for _ in Pages(content).records():
        pass
