"""The schema of the SQLite file, the check that a file is a store, and the migrations from every older version.

A file of another program, of a newer progressd, or a damaged file is rejected and not changed.
"""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from progressd.core.errors import SettingsError
from progressd.store.errors import UnreadableRow

APPLICATION_ID: Final = 0x70726F67  # "prog", at byte 68 of the file, for `file` and other programs

NEW_ID: Final = "lower(hex(randomblob(4)))"  # SQL expression for a new store id
STORE_ID: Final = re.compile("[0-9a-f]{8}")
MAX_OFFSET: Final = 2**53  # reached after 285 years at a million offsets a second
TABLES: Final = {
    *("meta", "jobs", "changes", "labels", "counts", "batches", "deletions", "timelines", "runs"),
    *("texts", "search", "unindexed", "removed"),
}

# Triggers maintain the labels and counts of a job; its kind and its labels never change.
COUNT: Final = """
    INSERT INTO counts
        SELECT list, value, {row}.status, {row}.created_offset >> 16, {change} FROM (
            SELECT 'all' AS list, '' AS value UNION ALL SELECT 'kind', {row}.kind
            UNION ALL SELECT 'label:' || key, value FROM json_each({row}.body, '$.labels')
        ) WHERE TRUE ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs;
"""
ADD: Final = (
    COUNT.format(row="NEW", change=1)
    + """
    INSERT INTO labels SELECT key, value, NEW.status, NEW.created_offset FROM json_each(NEW.body, '$.labels');
"""
)
REMOVE: Final = (
    COUNT.format(row="OLD", change=-1)
    + """
    DELETE FROM labels WHERE (key, value) IN (SELECT key, value FROM json_each(OLD.body, '$.labels'))
        AND status = OLD.status AND created_offset = OLD.created_offset;
"""
)

MAX_SEARCHED_ERROR: Final = 1000  # characters of an error that searches find

# The text of a job for searches, one value a line. The first line is the name that people see.
TEXT: Final = f"""
    coalesce({{row}}.body ->> 'name' || char(10), '') || coalesce({{row}}.body ->> 'input_filename' || char(10), '')
    || {{row}}.kind || char(10)
    || coalesce((SELECT group_concat(value, char(10)) FROM json_each({{row}}.body, '$.labels')) || char(10), '')
    || substr({{row}}.id, 1, 8)
    || coalesce(char(10) || substr({{row}}.body ->> 'error', 1, {MAX_SEARCHED_ERROR}), '')
"""

# SQL that empties the index for searches. The daemon builds it again.
REINDEX: Final = """
    INSERT INTO search (search) VALUES ('delete-all');
    DELETE FROM removed;
    INSERT OR IGNORE INTO unindexed
        SELECT created_offset FROM jobs WHERE status IN ('completed', 'failed', 'cancelled')
"""

MIGRATIONS: Final = (
    f"""
    CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    INSERT INTO meta VALUES ('store_id', {NEW_ID}), ('reserved', 1), ('oldest_cursor', 0);

    CREATE TABLE jobs (
        created_offset INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        body TEXT NOT NULL,
        status TEXT AS (body ->> 'status'),
        kind TEXT AS (body ->> 'kind'),
        completed_at TEXT AS (body ->> 'completed_at'),
        progress_offset INTEGER AS (body ->> 'progress_offset')
    );
    CREATE INDEX jobs_by_status ON jobs (status, created_offset);
    CREATE INDEX jobs_by_kind ON jobs (kind, created_offset);
    CREATE INDEX jobs_by_end ON jobs (completed_at) WHERE completed_at IS NOT NULL;
    CREATE INDEX jobs_by_progress ON jobs (progress_offset) WHERE progress_offset IS NOT NULL;

    CREATE TABLE changes (offset INTEGER PRIMARY KEY, job_id TEXT NOT NULL, body TEXT NOT NULL);
    CREATE INDEX changes_by_job ON changes (job_id, offset);
    """,
    f"PRAGMA application_id = {APPLICATION_ID};",
    """
    DROP INDEX jobs_by_status;
    DROP INDEX jobs_by_kind;
    CREATE INDEX jobs_by_status ON jobs (status); -- and thus by created_offset within, as every index
    CREATE INDEX jobs_by_kind ON jobs (kind, status);

    CREATE TABLE labels (
        key TEXT, value TEXT, status TEXT, created_offset INTEGER, PRIMARY KEY (key, value, status, created_offset)
    ) WITHOUT ROWID;
    CREATE VIEW labelled AS
        SELECT label.key, label.value, status, created_offset FROM jobs, json_each(body, '$.labels') AS label;
    INSERT INTO labels SELECT * FROM labelled ORDER BY key, value, status, created_offset;

    CREATE TABLE counts (
        list TEXT, value TEXT, status TEXT, block INTEGER, jobs INTEGER NOT NULL,
        PRIMARY KEY (list, value, block, status)
    ) WITHOUT ROWID;
    CREATE VIEW counted AS
        SELECT 'all' AS list, '' AS value, status, created_offset >> 16 AS block, count(*) AS jobs
            FROM jobs GROUP BY status, created_offset >> 16
        UNION ALL
        SELECT 'kind', kind, status, created_offset >> 16, count(*)
            FROM jobs GROUP BY kind, status, created_offset >> 16
        UNION ALL
        SELECT 'label:' || key, value, status, created_offset >> 16, count(*)
            FROM labels GROUP BY key, value, status, created_offset >> 16;
    INSERT INTO counts SELECT * FROM counted;
    """,
    """
    ALTER TABLE jobs ADD COLUMN batch_id TEXT AS (body ->> 'batch_id');
    CREATE INDEX jobs_by_batch ON jobs (batch_id, created_offset) WHERE batch_id IS NOT NULL;

    CREATE TABLE batches (
        created_offset INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        body TEXT NOT NULL,
        status TEXT AS (body ->> 'status')
    );
    CREATE INDEX batches_by_status ON batches (status);
    """,
    """
    ALTER TABLE jobs ADD COLUMN offset INTEGER AS (coalesce(body ->> 'offset', 0)); -- of a finished job, its end's
    DROP INDEX jobs_by_end;
    CREATE INDEX jobs_by_end ON jobs (offset, completed_at) WHERE completed_at IS NOT NULL;
    """,
    f"""
    DROP INDEX jobs_by_end;
    CREATE INDEX jobs_by_end ON jobs (completed_at) WHERE completed_at IS NOT NULL;
    DELETE FROM meta WHERE key IN ('time', 'marks');

    CREATE TRIGGER job_added AFTER INSERT ON jobs BEGIN {ADD} END;
    CREATE TRIGGER job_moved AFTER UPDATE ON jobs WHEN NEW.status <> OLD.status BEGIN {REMOVE} {ADD} END;
    CREATE TRIGGER job_removed AFTER DELETE ON jobs BEGIN {REMOVE} END;
    CREATE TRIGGER count_emptied AFTER UPDATE ON counts WHEN NEW.jobs = 0 BEGIN
        DELETE FROM counts
        WHERE list = NEW.list AND value = NEW.value AND block = NEW.block AND status = NEW.status;
    END;

    CREATE TABLE deletions (offset INTEGER PRIMARY KEY, body TEXT NOT NULL);
    """,
    """
    CREATE TABLE timelines (created_offset INTEGER PRIMARY KEY, body TEXT NOT NULL); -- of jobs; lists do not read them
    CREATE TRIGGER timeline_removed AFTER DELETE ON jobs BEGIN
        DELETE FROM timelines WHERE created_offset = OLD.created_offset;
    END;
    """,
    """
    CREATE TABLE runs (id INTEGER PRIMARY KEY, key TEXT NOT NULL, body TEXT NOT NULL); -- of completed jobs
    CREATE INDEX runs_by_key ON runs (key);
    """,
    f"""
    CREATE TABLE texts (created_offset INTEGER PRIMARY KEY, text TEXT NOT NULL); -- of jobs, for searches
    CREATE VIEW searched AS SELECT created_offset, {TEXT.format(row="jobs")} AS text FROM jobs;
    INSERT INTO texts SELECT * FROM searched;

    -- The index of the texts of finished jobs. Inserting a text takes as long as inserting a job, so it happens later.
    CREATE VIRTUAL TABLE search USING fts5(text, content='', tokenize='trigram', detail='none', columnsize=0);
    CREATE TABLE unindexed (created_offset INTEGER PRIMARY KEY); -- finished jobs whose texts are not yet in the index
    CREATE TABLE removed (created_offset INTEGER PRIMARY KEY, text TEXT NOT NULL); -- deleted, but still in the index
    INSERT INTO unindexed SELECT created_offset FROM jobs WHERE status IN ('completed', 'failed', 'cancelled');

    DROP TRIGGER job_added;
    DROP TRIGGER job_moved;
    DROP TRIGGER job_removed;
    CREATE TRIGGER job_added AFTER INSERT ON jobs BEGIN
        {ADD}
        INSERT INTO texts VALUES (NEW.created_offset, {TEXT.format(row="NEW")});
        INSERT INTO unindexed SELECT NEW.created_offset WHERE NEW.status NOT IN ('queued', 'processing');
    END;
    CREATE TRIGGER job_moved AFTER UPDATE ON jobs WHEN NEW.status <> OLD.status BEGIN
        {REMOVE} {ADD}
        UPDATE texts SET text = {TEXT.format(row="NEW")}
            WHERE created_offset = NEW.created_offset AND NEW.body ->> 'error' IS NOT NULL;
        INSERT OR IGNORE INTO unindexed SELECT NEW.created_offset WHERE NEW.status NOT IN ('queued', 'processing');
    END;
    CREATE TRIGGER job_removed AFTER DELETE ON jobs BEGIN
        {REMOVE}
        INSERT INTO removed SELECT created_offset, text FROM texts WHERE created_offset = OLD.created_offset
            AND OLD.status NOT IN ('queued', 'processing')
            AND NOT EXISTS (SELECT 1 FROM unindexed WHERE created_offset = OLD.created_offset);
        DELETE FROM texts WHERE created_offset = OLD.created_offset;
        DELETE FROM unindexed WHERE created_offset = OLD.created_offset;
    END;
    CREATE INDEX jobs_by_finish ON jobs (status, offset) WHERE completed_at IS NOT NULL;
    """,
)


def inspect(path: Path) -> int:
    """Return the schema version of the file; 0 if there is no file. Only reads. Raises SettingsError, sqlite3.Error."""
    if not path.exists() or path.stat().st_size == 0:
        wal = path.resolve().with_name(path.resolve().name + "-wal")
        if wal.exists() and wal.stat().st_size:  # SQLite would delete it
            raise SettingsError(
                f"the database {path} is empty or missing, but its WAL {wal} is not: restore a backup of the database"
            )
        return 0
    try:
        application, version, names = _read(path, "ro")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname != "SQLITE_READONLY_ROLLBACK":
            raise
        # A killed writer left a transaction, which is rolled back when the file is opened for writing.
        application, version, names = _read(path, "rw")
    if application == APPLICATION_ID and version == len(MIGRATIONS) and (missing := TABLES - names):
        raise UnreadableRow("schema", version, f"it has no {', '.join(sorted(missing))}")
    empty = application == version == 0 and not names
    unnamed = application == 0 and version == 1 and names >= {"meta", "jobs", "changes", "jobs_by_end"}
    if not (empty or unnamed or (application == APPLICATION_ID and version)):
        raise SettingsError(f"{path} is the database of another program; it was not changed: use another --state-dir")
    if version > len(MIGRATIONS):
        raise SettingsError(
            f"the database {path} has schema version {version}, and this progressd supports versions up to"
            f" {len(MIGRATIONS)}; it was not changed: start a newer progressd, or use another --state-dir"
        )
    return int(version)


def _read(path: Path, mode: str) -> tuple[int, int, set[str]]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)) as db:
        [application] = db.execute("PRAGMA application_id").fetchone()
        [version] = db.execute("PRAGMA user_version").fetchone()
        return (
            application,
            version,
            {name for [name] in db.execute("SELECT name FROM sqlite_schema")},
        )


class StoreMeta(NamedTuple):
    """The id of a store, its first unassigned offset, and the smallest offset from which clients can resume."""

    store_id: str
    reserved: int
    oldest_cursor: int


def read_meta(db: sqlite3.Connection) -> StoreMeta:
    """Return the values in the table meta. Raises sqlite3.DatabaseError if a value is missing or invalid."""
    name, reserved, oldest = (_value(db, key) for key in ("store_id", "reserved", "oldest_cursor"))
    if not (isinstance(name, str) and STORE_ID.fullmatch(name)):
        raise UnreadableRow("value", "store_id", f"{name!r} is invalid")
    if not (isinstance(reserved, int) and 0 < reserved < MAX_OFFSET):
        raise UnreadableRow("value", "reserved", f"{reserved!r} is invalid")
    if not (isinstance(oldest, int) and 0 <= oldest < MAX_OFFSET):
        raise UnreadableRow("value", "oldest_cursor", f"{oldest!r} is invalid")
    return StoreMeta(name, reserved, oldest)


def _value(db: sqlite3.Connection, key: str) -> object:
    [value] = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone() or (None,)
    return value


def require_search(db: sqlite3.Connection) -> None:
    """Check that SQLite has the index for searches. Raises SettingsError."""
    try:
        db.execute("CREATE VIRTUAL TABLE temp.probe USING fts5(text, tokenize='trigram')")
        db.execute("DROP TABLE temp.probe")
    except sqlite3.DatabaseError as error:
        raise SettingsError(
            f"cannot open a database: SQLite {sqlite3.sqlite_version} of this Python has no FTS5 index of trigrams"
            f" ({error}): use a Python whose SQLite is 3.38 or newer and has FTS5, such as Debian's"
        ) from error


def migrate(db: sqlite3.Connection, version: int) -> None:
    """Migrate the file to the newest version, in one transaction. Raises sqlite3.Error; then nothing has changed."""
    steps = ";".join(MIGRATIONS[version:])
    db.executescript(f"BEGIN IMMEDIATE; {steps}; PRAGMA user_version = {len(MIGRATIONS)}; COMMIT;")


def old_copy(path: Path, version: int) -> Path:
    """Return the path of the copy that is created before a migration."""
    return path.with_name(f"{path.name}.v{version}")
