"""Signals during backup and repair, as from timeout(1) or a closed terminal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from progressd.cli.commands.maintenance import exit_on_signals
from support.growth import fill
from support.waiting import PATIENCE

INTERRUPTED = """
import os, signal, sys, sqlite3
from progressd.cli.main import main

where, number = sys.argv.pop(1), int(sys.argv.pop(1))

class Interrupted(sqlite3.Connection):
    def execute(self, statement, *values):
        if where in statement:
            tell()
        return super().execute(statement, *values)

    def backup(self, target, *, pages, progress):
        def told(*of):
            if where == "backup":
                tell()
            progress(*of)
        super().backup(target, pages=pages, progress=told)

    def set_progress_handler(self, look, steps):
        def told():
            if where == "check":
                tell()
            return look()
        super().set_progress_handler(told, steps)

def tell():
    print(sorted(os.listdir(os.environ["PLACE"])), flush=True)
    try:
        signal.raise_signal(number)
    finally:
        signal.raise_signal(number)  # as timeout(1) does

connect = sqlite3.connect
sqlite3.connect = lambda *args, **named: connect(*args, **named, factory=Interrupted)
main()
"""


def interrupted(where: str, number: int, place: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command that receives the signal twice at such a statement, and lists `place` there."""
    command = [sys.executable, "-c", INTERRUPTED, where, str(int(number)), *arguments]
    environ = {**os.environ, "PLACE": str(place)}
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environ)


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("journal_mode = OFF", signal.SIGTERM),
        ("backup", signal.SIGHUP),
        ("backup", signal.SIGINT),
        ("UPDATE meta", signal.SIGTERM),
        ("integrity_check", signal.SIGTERM),
        ("check", signal.SIGINT),
    ],
)
def test_an_interrupted_backup_leaves_nothing(tmp_path: Path, where: str, number: signal.Signals) -> None:
    state, place = tmp_path / "state", tmp_path / "place"
    state.mkdir()
    place.mkdir()
    fill(state / "progressd.db", 500)
    ended = interrupted(where, number, place, "backup", "--state-dir", state, place / "copy")
    assert ".part'" in ended.stdout
    assert ended.returncode == 128 + number, ended.stderr
    assert "Traceback" not in ended.stderr
    assert os.listdir(place) == []


def test_an_interrupted_repair_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "progressd.db"
    fill(path, 2000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    ended = interrupted("SELECT NOT EXISTS", signal.SIGTERM, tmp_path, "check", "--repair", "--state-dir", tmp_path)
    assert "'progressd.db.part', 'progressd.db.part-journal'" in ended.stdout
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert path.read_bytes() == content
    assert not [name for name in os.listdir(tmp_path) if ".part" in name or ".damaged" in name]


@exit_on_signals()
def in_order(*numbers: int) -> None:
    for number in numbers:
        signal.raise_signal(number)


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup(1)
    try:
        with pytest.raises(SystemExit, match="143"):
            in_order(signal.SIGHUP, signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
