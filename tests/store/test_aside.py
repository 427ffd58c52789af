"""A repair that is cut off, between any two changes of names and in any way: no job that the log has is lost."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trio
from progressd import upkeep
from progressd.core.errors import SettingsError
from progressd.store.aside import put_back
from progressd.store.base import Change
from progressd.store.salvage import salvage
from progressd.store.sqlite import SQLiteStore
from samples import created, job, job_id
from store.growth import fill
from structlog.testing import capture_logs

LOGGED = range(1000, 1010)  # jobs that are only in the log
PAGE = 4096

# For each change of names that a repair makes: two processes that repair a copy, and are cut off before that change,
# which the interpreter tells of. Prints how each pair has ended; the last one was not cut off.
CUT_OFF = """
import errno, os, shutil, signal, sys
from itertools import count
from pathlib import Path
from progressd import upkeep

damaged, place, how = sys.argv[1:]

def repair(state, countdown):
    def hook(event, arguments):
        nonlocal countdown
        if event in ("os.rename", "os.link", "os.remove") and os.fspath(arguments[0]).startswith(state):
            countdown -= 1
            if countdown == 0:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise SystemExit(143) if how == "end" else OSError(errno.EIO, "the disk fails")

    sys.addaudithook(hook)
    status = 1
    try:
        for _ in upkeep.repair(Path(state)):
            pass
        status = 0
    except SystemExit as end:
        status = end.code
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


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory as a kill has left it, whose disk then has destroyed a page of jobs; to be copied."""
    state = tmp_path_factory.mktemp("damaged")
    path = tmp_path_factory.mktemp("alive") / "progressd.db"
    fill(path, 100)
    page = page_of_jobs(path)

    with closing(SQLiteStore.open(path)) as store:
        for number in LOGGED:
            trio.run(store.commit, [job(number)], [Change(number, created(job_id(number)))])
        for ending in ("", "-wal"):
            shutil.copy(f"{path}{ending}", state)
    with (state / path.name).open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(b"\xff" * PAGE)
    return state


def page_of_jobs(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        [page] = db.execute("SELECT pageno FROM dbstat WHERE name = 'jobs' AND pagetype = 'leaf' LIMIT 1").fetchone()
    return int(page)


def content(path: Path) -> tuple[bytes, bytes]:
    """Of a database and its log."""
    return path.read_bytes(), path.with_name(path.name + "-wal").read_bytes()


def logged(state: Path) -> set[str]:
    """The jobs that were only in the log and that a daemon has."""
    with closing(SQLiteStore.open(state / "progressd.db")) as store:
        return set(trio.run(store.known, [job_id(number) for number in LOGGED]))


def require_begun(state: Path) -> None:
    """The next daemon has all jobs, and does not write to what is kept."""
    assert logged(state) == {job_id(number) for number in LOGGED}
    assert not any(path.samefile(state / "progressd.db") for path in state.glob("*.damaged*"))


def require_repaired(state: Path, before: Path) -> None:
    """The next repair has all jobs, and keeps the database as it was, once."""
    list(upkeep.repair(state))
    names = [path for path in state.glob("*.damaged*") if not path.name.endswith("-wal")]
    assert [content(path) for path in names] == [content(before / "progressd.db")]
    require_begun(state)


@pytest.mark.parametrize(("how", "status"), [("kill", -signal.SIGKILL), ("end", 143), ("fail", 1)])
def test_wherever_it_is_cut_off_the_next_start_or_repair_has_all_jobs_of_the_log(
    damaged: Path, tmp_path: Path, how: str, status: int
) -> None:
    command = [sys.executable, "-c", CUT_OFF, damaged, tmp_path, how]
    ended = [int(line) for line in subprocess.check_output(command).split()]
    assert ended == [status] * (len(ended) - 1) + [0]
    assert len(ended) > 4
    for number in range(1, len(ended) + 1):
        state = tmp_path / f"begun-{number}"
        if how != "kill" and not (state / "progressd.db.damaged1").exists():
            assert content(state / "progressd.db") == content(damaged / "progressd.db")
        require_begun(state)
        require_repaired(tmp_path / f"repaired-{number}", damaged)


@pytest.fixture
def cut_off(damaged: Path, tmp_path: Path) -> Path:
    """A state directory without its log, which a repair has put aside."""
    state = Path(shutil.copytree(damaged, tmp_path / "state"))
    os.link(state / "progressd.db", state / "progressd.db.damaged1")
    (state / "progressd.db-wal").rename(state / "progressd.db.damaged1-wal")
    return state


def test_who_only_reads_is_told_and_changes_nothing(cut_off: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in cut_off.iterdir()}
    assert [found.sentence for found in upkeep.check(cut_off)] == ["a repair of the database was cut off"]
    for read in (lambda: list(upkeep.export(cut_off, set())), lambda: upkeep.backup(cut_off, tmp_path / "backup")):
        with pytest.raises(SettingsError, match=r"was cut off: start the daemon, or `progressd check --repair"):
            read()
    assert {path.name: path.read_bytes() for path in cut_off.iterdir()} == before


def test_the_log_is_put_back_also_where_a_reader_has_left_an_empty_one(cut_off: Path) -> None:
    with closing(sqlite3.connect(f"file:{cut_off}/progressd.db?mode=ro", uri=True)) as db:
        db.execute("SELECT * FROM meta").fetchall()
    assert (cut_off / "progressd.db-wal").exists()
    with capture_logs() as logs:
        require_begun(cut_off)
    assert [line["event"] for line in logs] == ["a repair of the store was cut off: all that it had put aside is back"]


def test_a_log_that_belongs_to_another_file_is_never_put_back(damaged: Path, tmp_path: Path) -> None:
    """Such as that of a damaged database that somebody has deleted."""
    state = Path(shutil.copytree(damaged, tmp_path / "state"))
    (state / "progressd.db.damaged1-wal").write_bytes(b"of another")
    kept = salvage(state / "progressd.db")
    assert kept is not None
    assert kept.kept.name == "progressd.db.damaged2"
    assert content(kept.kept) == content(damaged / "progressd.db")
    assert put_back(state / "progressd.db") is False


def test_a_database_elsewhere_that_a_link_names_is_repaired_there(damaged: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(damaged, tmp_path / "elsewhere"))
    state = tmp_path / "state"
    state.mkdir()
    (state / "progressd.db").symlink_to(elsewhere / "progressd.db")
    assert any(str(elsewhere / "progressd.db.damaged1") in sentence for sentence, _ in upkeep.repair(state))
    assert logged(state) == {job_id(number) for number in LOGGED}
    assert (state / "progressd.db").is_symlink()
