"""The model of a disk: its content after a power cut, and the records of disk.c."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from torture.disk import HEAD, MARK, Disk, Fate, File, Record, read_log


class AllLost(Fate):
    def __init__(self) -> None:
        super().__init__(random.Random(1))
        self._all_lost = True


def packed(what: bytes, data: bytes, inode: int = 1, offset: int = 0) -> bytes:
    return HEAD.pack(MARK, what, inode, offset, len(data)) + data


def test_a_truncated_record_is_read_in_part() -> None:
    first, cut_off, last = packed(b"S", b""), packed(b"W", b"long enough")[:-4], packed(b"U", b"/a")
    assert list(read_log(first + cut_off + last)) == [
        Record("S", 1, 0, b""),
        Record("W", 1, 0, b"long en"),
        Record("U", 1, 0, b"/a"),
    ]
    assert list(read_log(first + packed(b"C", b"/path")[:-1] + last)) == [
        Record("S", 1, 0, b""),
        Record("U", 1, 0, b"/a"),
    ]
    assert list(read_log(first + last[:10])) == [Record("S", 1, 0, b"")]


PROGRAM = """
import os, shutil, sys
from pathlib import Path
root = Path(sys.argv[1])
def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
(root / "kept").mkdir()
sync(root)
with open(root / "kept/synced", "wb", buffering=0) as file:
    file.write(b"first, ")
    os.pwrite(file.fileno(), b"then", 7)
    os.fsync(file.fileno())
    os.pwrite(file.fileno(), b"LOST!", 0)
(root / "kept/empty").write_bytes(b"never synced itself")
os.link(root / "kept/synced", root / "kept/linked")
os.rename(root / "kept/empty", root / "kept/renamed")
sync(root / "kept")
(root / "kept/nameless").write_bytes(b"of no name")
sync(root / "kept/nameless")
(root / "kept/synced").unlink()
(root / "lost").mkdir()
(root / "lost/file").write_bytes(b"x")
sync(root / "lost/file")
sync(root / "lost")
os.ftruncate(os.open(root / "kept/renamed", os.O_WRONLY), 5)
shutil.rmtree(root / "lost")
"""


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def disk(tmp_path: Path, disk_shim: Path) -> Disk:
    """A disk on which the program has run."""
    root, log = tmp_path / "disk", tmp_path / "log"
    root.mkdir()
    disk = Disk(root)
    environment = {"LD_PRELOAD": str(disk_shim), "TORTURE_DISK": str(root), "TORTURE_LOG": str(log)}
    subprocess.run([sys.executable, "-c", PROGRAM, str(root)], env=environment, check=True)
    disk.replay(read_log(log.read_bytes()))
    return disk


def test_synced_data_survives(tmp_path: Path, disk: Disk) -> None:
    disk.after_cut(tmp_path / "after", AllLost())
    assert tree(tmp_path / "after") == {
        "kept/synced": b"first, then",
        "kept/linked": b"first, then",
        "kept/renamed": b"",
    }


def test_unsynced_data_may_survive(tmp_path: Path, disk: Disk) -> None:
    seen = set()
    for number in range(60):
        disk.after_cut(tmp_path / f"after-{number}", Fate(random.Random(number)))
        found = tree(tmp_path / f"after-{number}")
        assert found.get("kept/linked") in (b"first, then", b"LOST!, then")
        assert found["kept/renamed"] in (b"", b"never", b"never synced itself", bytes(5))
        seen |= set(found.items())
    assert ("kept/linked", b"LOST!, then") in seen
    assert ("kept/renamed", b"never") in seen
    assert "lost/file" in {name for name, _ in seen}


def test_a_failed_sync_is_never_made_up() -> None:
    file = File(b"old")
    file.pending.append((0, b"lost"))
    file.fail()
    file.pending.append((4, b"kept"))
    file.sync()
    assert file.after_cut(AllLost()) == b"old\0kept"
    seen = {file.after_cut(Fate(random.Random(number))) for number in range(20)}
    assert seen >= {b"old\0kept", b"lostkept"}
