"""Files that commands of root create in the state directory of another user."""

import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from progressd.cli.main import main
from progressd.core.errors import SettingsError
from progressd.files.state_dir import own_state_dir
from progressd.store.sqlite import SQLiteStore
from progressd.system.fs import new_file, user
from support.growth import fill

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


@pytest.fixture
def state() -> Iterator[Path]:
    """A state directory of another user, with a store, in a directory that all users can access."""
    path = Path(tempfile.mkdtemp())
    fill(path / "progressd.db", 20)
    for one in (path, *path.iterdir()):
        os.chown(one, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


@contextmanager
def another_user() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def run(*arguments: object, exit_code: int = 0) -> None:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output


def test_files_of_root_belong_to_the_owner(state: Path) -> None:
    database = state / "progressd.db"
    database.chmod(0o640)
    with closing(sqlite3.connect(database)) as db:
        db.execute(
            "UPDATE jobs SET body = json_remove(body, '$.created_at') WHERE rowid = (SELECT max(rowid) FROM jobs)"
        )
        db.commit()
    run("check", "--repair", "--state-dir", state, exit_code=1)
    run("backup", "--state-dir", state, state / "copy.db")
    run("keys", "add", "ci", "--state-dir", state)
    run("token", "--state-dir", state, exit_code=0)
    made = {one.name: one.stat() for one in state.iterdir()}
    assert made.keys() >= {"progressd.db", "progressd.db.damaged1", "copy.db", "keys.json", "token-secret", "lock"}
    assert {name for name, one in made.items() if (one.st_uid, one.st_gid) != (NOBODY, NOBODY)} == set()
    assert stat.S_IMODE(made["progressd.db"].st_mode) == 0o640, "it has the mode of the old one"
    assert stat.S_IMODE(made["copy.db"].st_mode) == 0o600
    with another_user(), own_state_dir(state), closing(SQLiteStore.open(database)):
        pass


def test_a_new_store_of_root_belongs_to_the_owner(state: Path) -> None:
    (state / "progressd.db").unlink()
    with closing(SQLiteStore.open(state / "progressd.db")):
        assert {one.stat().st_uid for one in state.iterdir()} == {NOBODY}


def test_an_error_names_the_owner_of_the_store(state: Path) -> None:
    database = state / "progressd.db"
    database.chmod(0o600)
    os.chown(database, 0, 0)
    whose = f"belongs to root, mode 0600; this process runs as {user(NOBODY)}"
    with another_user(), pytest.raises(SettingsError) as refused:
        SQLiteStore.open(database)
    assert (
        str(refused.value) == f"cannot open the database {database}: unable to open database file ({database} {whose})"
    )
    os.close(new_file(state / "lock", like=database))
    with another_user(), pytest.raises(SettingsError) as refused, own_state_dir(state):
        pass
    assert str(refused.value) == f"cannot use the state directory {state}: {state / 'lock'} {whose}"
