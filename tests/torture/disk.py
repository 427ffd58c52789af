"""A daemon's environment: a disk that can fail, a clock that can jump, and power that can be cut.

`disk.c`, preloaded into the daemon, records changes and syncs. A file keeps what was written before its last sync, and
a directory keeps its names at its last sync. Each later write may be kept, lost, or torn into sectors, independently of
others. Later changes of a directory are kept in order, up to some point.
"""

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from mmap import mmap
from pathlib import Path
from typing import NamedTuple, TypeAlias

MARK = b"\x93torture"
HEAD = struct.Struct("<8scQQI")  # mark, kind, inode, offset, length of the data
SOURCE = Path(__file__).with_name("disk.c")


def build_shim(directory: Path) -> Path:
    """Compile the library to preload."""
    library = directory / "disk.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-o", library, SOURCE], check=True)
    return library


class Record(NamedTuple):
    """A change, or a sync (S: file, Y: directory, F: failed sync of a file)."""

    what: str
    inode: int
    offset: int
    data: bytes


def read_log(log: bytes) -> Iterator[Record]:
    """Parse the records. A kill may truncate one, and children of the daemon may write after it."""
    at = log.find(MARK)
    while 0 <= at <= len(log) - HEAD.size:
        _, what, inode, offset, length = HEAD.unpack_from(log, at)
        at += HEAD.size
        end = at + length
        if log[end : end + len(MARK)] not in (MARK, b""):
            end = log.find(MARK, at)
        whole = end == at + length
        if whole or what == b"W":
            yield Record(what.decode(), inode, offset, log[at:end])
        at = end


class Fate:
    """Decide at random what happens to unsynced data."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._all_lost = chance.random() < 0.3
        self._sector = chance.choice([512, 4096])

    def of_write(self, offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Return the parts of a write that reached the disk."""
        luck = 0.0 if self._all_lost else self._chance.random()
        if luck < 0.3:
            return
        if luck < 0.6:
            yield offset, data
            return
        end = offset + len(data)
        while offset < end:
            size = min(end, (offset // self._sector + 1) * self._sector) - offset
            if self._chance.random() < 0.5:
                yield offset, data[:size]
            offset, data = offset + size, data[size:]

    def of_names(self, count: int) -> int:
        """Return how many changes of a directory reached the disk."""
        return 0 if self._all_lost else self._chance.randint(0, count)


FileChange: TypeAlias = tuple[int, bytes | None]


class File:
    """Synced content, and later writes: (offset, data), or (length, None) for a truncation.

    A later sync does not cover data whose sync failed: Linux may have dropped it.
    """

    def __init__(self, content: bytes = b"") -> None:
        self.synced = bytearray(content)
        self.pending: list[FileChange] = []
        self._doubtful: list[tuple[list[FileChange], list[FileChange]]] = []

    def sync(self) -> None:
        if self._doubtful:
            self._doubtful[-1][1].extend(self.pending)
        else:
            _write(self.synced, self.pending)
        self.pending = []

    def fail(self) -> None:
        """Record a failed sync."""
        self._doubtful.append((self.pending, []))
        self.pending = []

    def after_cut(self, fate: Fate) -> bytes:
        content = self.synced.copy()
        for unsure, synced in [*self._doubtful, (self.pending, [])]:
            kept: list[FileChange] = []
            for offset, data in unsure:
                if data is not None:
                    kept += fate.of_write(offset, data)
                elif fate.of_names(1):
                    kept.append((offset, None))
            _write(content, [*kept, *synced])
        return bytes(content)


def _write(content: bytearray, changes: Iterable[FileChange]) -> None:
    for offset, data in changes:
        if data is None:
            del content[offset:]
        end = offset + len(data or b"")
        content.extend(bytes(max(0, end - len(content))))
        content[offset:end] = data or b""


class Directory:
    """Current names, synced names, and the changes between. A rename within the directory is one change."""

    def __init__(self) -> None:
        self.names: dict[str, Node] = {}
        self.synced: dict[str, Node] = {}
        self.pending: list[dict[str, Node | None]] = []

    def change(self, change: "dict[str, Node | None]") -> None:
        self.pending.append(change)
        _renamed(self.names, change)

    def sync(self) -> None:
        self.synced = dict(self.names)
        self.pending = []

    def after_cut(self, fate: Fate) -> "dict[str, Node]":
        names = dict(self.synced)
        for change in self.pending[: fate.of_names(len(self.pending))]:
            _renamed(names, change)
        return names


Node: TypeAlias = File | Directory


def _renamed(names: dict[str, Node], change: dict[str, Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """All files below a directory. `ignoring` disables syncs: "S" of files, "Y" of directories."""

    def __init__(self, root: Path, ignoring: str = "") -> None:
        self.root = root
        self._ignoring = ignoring
        self._inodes: dict[int, File] = {}
        self._tree = self._scan(root)

    def _scan(self, path: Path) -> Directory:
        directory = Directory()
        for child in path.iterdir():
            if child.is_dir():
                directory.names[child.name] = self._scan(child)
            elif child.is_file():
                status = child.stat()
                file = self._inodes.setdefault(status.st_ino, File(child.read_bytes()))
                directory.names[child.name] = file
        directory.sync()
        return directory

    def replay(self, records: Iterator[Record]) -> None:
        """Apply the recorded changes."""
        for record in records:
            if record.what not in self._ignoring:
                self._replay(record)

    def _replay(self, record: Record) -> None:
        what, inode, offset, data = record
        match what:
            case "W":
                self._inodes[inode].pending.append((offset, data))
            case "T":
                self._inodes[inode].pending.append((offset, None))
            case "S":
                self._inodes[inode].sync()
            case "F":
                self._inodes[inode].fail()
            case "Y":
                self._directory(data.decode()).sync()
            case "C":
                self._inodes[inode] = File()
                self._add(data.decode(), self._inodes[inode])
            case "L":
                self._add(data.decode(), self._inodes[inode])
            case "M":
                self._add(data.decode(), Directory())
            case "U" | "D":
                directory, name = self._place(data.decode())
                directory.change({name: None})
            case "R":
                self._rename(*data.decode().split("\0"))
            case _:
                raise AssertionError(f"unknown record {what!r}")

    def _rename(self, old: str, new: str) -> None:
        (source, old_name), (target, new_name) = self._place(old), self._place(new)
        node = source.names[old_name]
        if source is target:
            source.change({new_name: node, old_name: None})
        else:
            target.change({new_name: node})
            source.change({old_name: None})

    def _add(self, path: str, node: Node) -> None:
        directory, name = self._place(path)
        directory.change({name: node})

    def _place(self, path: str) -> tuple[Directory, str]:
        parent, name = os.path.split(os.path.normpath(path))
        return self._directory(parent), name

    def _directory(self, path: str) -> Directory:
        node: Node = self._tree
        for part in Path(path).relative_to(self.root).parts:
            assert isinstance(node, Directory)
            node = node.names[part]
        assert isinstance(node, Directory)
        return node

    def after_cut(self, target: Path, fate: Fate) -> None:
        """Write a possible state after a power cut to `target`."""
        contents = cache(lambda file: file.after_cut(fate))
        _build(self._tree, target, fate, contents, {})


def _build(
    directory: Directory, target: Path, fate: Fate, contents: Callable[[File], bytes], built: dict[File, Path]
) -> None:
    target.mkdir()
    for name, node in directory.after_cut(fate).items():
        if isinstance(node, Directory):
            _build(node, target / name, fate, contents, built)
        elif node in built:
            (target / name).hardlink_to(built[node])
        else:
            (target / name).write_bytes(contents(node))
            built[node] = target / name


CONTROL = ("write_errno", "sync_errno", "open_errno", "clock_shift", "failed", "recorded", "die_after", "log_errno")


class Control:
    """Shared memory with numbers for the preloaded library."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8 * len(CONTROL)))
        with path.open("r+b") as file:
            self._values = mmap(file.fileno(), 0)

    def __getitem__(self, name: str) -> int:
        at = 8 * CONTROL.index(name)
        return int.from_bytes(self._values[at : at + 8], "little", signed=True)

    def __setitem__(self, name: str, value: int) -> None:
        at = 8 * CONTROL.index(name)
        self._values[at : at + 8] = value.to_bytes(8, "little", signed=True)

    def clear(self) -> None:
        """Reset all faults."""
        for name in CONTROL:
            self[name] = 0


class Power:
    """The environment of one daemon after another: call `plug_in` before the start, and `cut` after the end.

    Without `chance`, written data stays, as after a kill. Otherwise unsynced data may be lost, and `state_dir` moves to
    a new disk at each cut. `ignoring`: see `Disk`.
    """

    def __init__(self, place: Path, chance: random.Random | None = None, ignoring: str = "") -> None:
        self.control = Control(place / "control")
        self._place = place
        self._chance = chance
        self._ignoring = ignoring
        self._number = 0
        self._root.mkdir()

    @property
    def state_dir(self) -> Path:
        """Return the state directory, which the first daemon creates."""
        return self._root / "state"

    @property
    def _root(self) -> Path:
        return self._place / f"disk-{self._number}"

    @property
    def _log(self) -> Path:
        return self._place / f"log-{self._number}" if self._chance else Path(os.devnull)

    def plug_in(self) -> dict[str, str]:
        """Return the environment variables of the daemon."""
        if self._chance:
            self._disk = Disk(self._root, self._ignoring)
        return {
            "TORTURE_DISK": str(self._root),
            "TORTURE_LOG": str(self._log),
            "TORTURE_CONTROL": str(self._place / "control"),
        }

    def cut(self) -> None:
        """Cut the power, and reset all faults."""
        self.control.clear()
        if self._chance is None:
            return
        self._disk.replay(read_log(self._log.read_bytes() if self._log.exists() else b""))
        shutil.rmtree(self._root, ignore_errors=True)  # children of the daemon may still write here
        self._log.unlink(missing_ok=True)
        self._number += 1
        self._disk.after_cut(self._root, Fate(self._chance))
