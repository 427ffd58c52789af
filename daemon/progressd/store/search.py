"""Search the texts of jobs: the words of a query as SQL, and the index of trigrams.

The index knows which finished jobs contain three given characters in a row, and SQLite compares their texts with the
words. The texts of unfinished jobs, and of jobs that have just finished, are compared without the index. A job is added
to the index once, after its end, because its text changes only at the end.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Final, NamedTuple

from progressd.store.schema import REINDEX

INDEX_BATCH: Final = 500  # jobs in a transaction
TRIGRAM: Final = 3  # characters
MAX_TRIGRAMS: Final = 16  # whose frequency is estimated, in 0.1 ms each
UNINDEXED: Final = 1000  # finished jobs that are compared at once
UNFINISHED: Final = 15_000  # unfinished jobs that are compared at once
FEW: Final = 2000  # jobs with a trigram that may be combined with others
MAX_COMBINED: Final = 3
SIMILAR: Final = 4  # factor between the frequencies of combined trigrams
SAMPLE: Final = 64  # jobs with a trigram, from which its frequency is estimated
_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{0,27}", re.IGNORECASE | re.ASCII)
_ID_PART: Final = 8  # characters of the id in the text of a job


class Words(NamedTuple):
    """A condition for the offset of a job, with its values, and trigrams that its text must contain."""

    condition: str
    values: tuple[str, ...]
    trigrams: tuple[str, ...]


def words_in_sql(words: Sequence[str], offset: str) -> Words:
    """Return the words of a query as SQL. All must occur. `offset`: the expression for the offset of a job."""
    conditions, values, trigrams = list[str](), list[str](), dict[str, None]()
    for word in words:
        if word.isascii() or word.lower() == word.upper():
            condition, pattern = "text LIKE ? ESCAPE '\\'", f"%{_escaped(word)}%"
        else:  # LIKE ignores the case of ASCII letters only
            condition, pattern = "text GLOB ?", f"*{''.join(map(_in_any_case, word))}*"
        values.append(pattern)
        looked_up = word
        if _ID.fullmatch(word):
            condition = (
                f"({condition} OR (SELECT id FROM jobs WHERE jobs.created_offset = texts.created_offset) LIKE ?)"
            )
            values.append(f"{word}%")
            looked_up = word[:_ID_PART]
        conditions.append(condition)
        starts = range(len(looked_up) - TRIGRAM + 1)
        trigrams.update(dict.fromkeys(looked_up[start : start + TRIGRAM] for start in starts))
    where = f"EXISTS (SELECT 1 FROM texts WHERE texts.created_offset = {offset} AND {' AND '.join(conditions)})"
    return Words(where, tuple(values), tuple(trigrams))


def _escaped(word: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", word)


def _in_any_case(letter: str) -> str:
    """Return the pattern of GLOB for a character in any case."""
    cases = "".join(dict.fromkeys(case for case in (letter, letter.lower(), letter.upper()) if len(case) == 1))
    return f"[{cases}]" if len(cases) > 1 or letter in "*?[" else letter


class Lookup(NamedTuple):
    """A query for the index; "" for all jobs. `few`: whether few jobs match, or are not in the index."""

    query: str = ""
    few: bool = False


def rarest(db: sqlite3.Connection, trigrams: Sequence[str]) -> Lookup:
    """Return a query for the index with the rarest of the trigrams.

    Frequent trigrams would only make it slower. A query for two that rarely meet reads the index beyond its range, so
    only rare ones are combined. For a single trigram, SQLite reads only the range.
    """
    if not trigrams:
        return Lookup()
    [newest] = db.execute("SELECT max(created_offset) FROM jobs").fetchone()
    spans = dict[str, int]()  # the offsets among which there are SAMPLE jobs with a trigram
    for one in trigrams[:: -(-len(trigrams) // MAX_TRIGRAMS)]:
        quoted = '"' + one.replace('"', '""') + '"'
        query = "SELECT rowid FROM search WHERE search MATCH ? ORDER BY rowid DESC LIMIT 1 OFFSET ?"
        found = db.execute(query, (quoted, SAMPLE)).fetchone()
        if found is None:
            return Lookup(quoted, _nearly_all_indexed(db))
        spans[quoted] = max(newest - found[0], 1)
    rare = sorted(spans, key=spans.__getitem__, reverse=True)
    if newest * SAMPLE / spans[rare[0]] > FEW:
        return Lookup(rare[0])
    similar = (one for one in rare[:MAX_COMBINED] if spans[one] * SIMILAR >= spans[rare[0]])
    return Lookup(" AND ".join(similar), _nearly_all_indexed(db))


def _nearly_all_indexed(db: sqlite3.Connection) -> bool:
    query = f"SELECT count(*) FROM (SELECT 1 FROM unindexed LIMIT {UNINDEXED + 1})"
    [unindexed] = db.execute(query).fetchone()
    unfinished = "SELECT sum(jobs) FROM counts WHERE list = 'all' AND value = '' AND status IN ('queued', 'processing')"
    [waiting] = db.execute(unfinished).fetchone()
    return unindexed <= UNINDEXED and (waiting or 0) <= UNFINISHED


def index(db: sqlite3.Connection, seconds: float) -> bool:
    """Bring the index up to date, for about `seconds`. Return whether there is more to do.

    Call this in a transaction.
    """
    deadline = perf_counter() + seconds
    for number, (offset, text) in enumerate(_waiting(db, "unindexed JOIN texts USING (created_offset)")):
        db.execute("INSERT INTO search (rowid, text) VALUES (?, ?)", (offset, text))
        db.execute("DELETE FROM unindexed WHERE created_offset = ?", (offset,))
        if number == INDEX_BATCH or perf_counter() > deadline:
            return True
    for number, (offset, text) in enumerate(_waiting(db, "removed")):
        db.execute("INSERT INTO search (search, rowid, text) VALUES ('delete', ?, ?)", (offset, text))
        db.execute("DELETE FROM removed WHERE created_offset = ?", (offset,))
        if number == INDEX_BATCH or perf_counter() > deadline:
            return True
    return False


def empty(db: sqlite3.Connection) -> bool:
    """Empty a damaged index, so that `index` builds it again. Return True: there is more to do."""
    for statement in REINDEX.split(";"):
        db.execute(statement)
    return True


def _waiting(db: sqlite3.Connection, rows: str) -> Iterator[tuple[int, str]]:
    query = f"SELECT created_offset, text FROM {rows} ORDER BY created_offset DESC LIMIT ?"
    return iter(db.execute(query, (INDEX_BATCH + 1,)).fetchall())
