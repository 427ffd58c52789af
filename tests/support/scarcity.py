"""Faults of the host: no descriptors, a full disk, a flipped bit."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Let the process open nothing within this block."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    opened = []
    try:
        with contextlib.suppress(OSError):
            while True:
                opened.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class SmallDisk:
    """A file system of 24 MiB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, *, but_for: int = 0) -> None:
        """Fill the disk; leave `but_for` bytes."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (2**20, 4096):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue
            file.truncate(file.tell() - but_for)

    def make_room(self) -> None:
        self._ballast.unlink()


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[SmallDisk]:
    """Mount a small file system at this path, or skip the test."""
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "progressd-test", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", path], check=True)


def flip(path: Path, where: bytes, bit: int = 0x40) -> None:
    """Flip a bit of the last byte of `where` in a closed file. SQLite does not detect it.

    0x80 makes the byte invalid UTF-8.
    """
    content = path.read_bytes()
    assert where in content
    path.write_bytes(content.replace(where, where[:-1] + bytes([where[-1] ^ bit])))
