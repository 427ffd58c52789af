"""The frames of the write-ahead log read without SQLite: which are whole, also behind one that is not.

SQLite reads the log up to the first frame that a disk has changed, and takes that for its end, as it has to: a power
cut leaves such a frame too, in the last commit. All others are synced before the next.
Of the format see https://www.sqlite.org/walformat.html.
"""

import struct
from collections.abc import Sequence
from contextlib import suppress
from itertools import dropwhile
from pathlib import Path
from typing import Final, NamedTuple

from progressd.store.pages import SIZE

HEADER: Final = 32  # bytes
ORDERS: Final = {b"\x37\x7f\x06\x82": "<", b"\x37\x7f\x06\x83": ">"}  # of bytes in what is summed up, by the mark
HEAD: Final = 24  # bytes before the page of a frame


class Frame(NamedTuple):
    """A page in the log."""

    page: int
    content: bytes
    whole: bool
    ends: bool  # it is the last one of a commit


def frames(log: bytes) -> list[Frame]:
    """Up to the last commit that has its end; a damaged head of the log comes as one more."""
    if len(log) < HEADER + HEAD + SIZE:
        return []
    order, salt, found = ORDERS.get(log[:4], "="), log[16:24], list[Frame]()
    if _checksum(log[:24], (0, 0), order) != _pair(log[24:HEADER]):
        salt = log[HEADER + 8 : HEADER + 16]
        found.append(Frame(0, b"", whole=False, ends=True))
    for at in range(HEADER, len(log) - HEAD - SIZE + 1, HEAD + SIZE):
        head, content = log[at : at + HEAD], log[at + HEAD : at + HEAD + SIZE]
        before = _pair(log[at - SIZE - 8 : at - SIZE] if at > HEADER else log[24:HEADER])
        of_now = head[8:16] == salt
        whole = of_now and _checksum(head[:8] + content, before, order) == _pair(head[16:])
        found.append(Frame(int.from_bytes(head[:4], "big"), content, whole, of_now and head[4:8] != bytes(4)))
    while found and not (found[-1].whole and found[-1].ends):
        found.pop()
    return found


def commits_cut_off(path: Path) -> int:
    """How many ends of commits are in the log of a database that SQLite does not read when it opens it.

    One only may be what a power cut has left of a commit that nobody was told of yet; more are lost. A log that another
    process writes is read until it holds still as far as what is found in it.
    """
    while True:
        log = log_of(path)
        found = frames(log)
        cut_off = sum(frame.ends and frame.whole for frame in dropwhile(lambda frame: frame.whole, found))
        reach = HEADER + len(found) * (HEAD + SIZE)
        if not cut_off or log_of(path)[:reach] == log[:reach]:
            return cut_off


def log_of(path: Path) -> bytes:
    """The log of a database, which unlike its other files may be read beside SQLite.

    A process that closes any descriptor of the database or of its -shm gives up all locks that it has on that file, and
    with them SQLite's (https://www.sqlite.org/howtocorrupt.html, 2.2); on the log there are none.
    """
    path = path.resolve()  # beside a link SQLite has none
    with suppress(FileNotFoundError):
        return path.with_name(path.name + "-wal").read_bytes()
    return b""


def _pair(content: bytes) -> tuple[int, int]:
    first, second = struct.unpack(">II", content)
    return first, second


def _checksum(content: bytes, before: Sequence[int], order: str) -> tuple[int, int]:
    first, second = before
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = first + one + second & 0xFFFFFFFF
        second = second + other + first & 0xFFFFFFFF
    return first, second
