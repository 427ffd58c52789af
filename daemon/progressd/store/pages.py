"""The SQLite file read page by page, without SQLite: records that are whole, also where the way to them is destroyed.

Of the file format (https://www.sqlite.org/fileformat2.html) it takes what our files have: b-tree pages with
their cells, overflow pages, and the list of free pages, whose rows have been deleted. Nothing in the file is trusted.
"""

import mmap
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

MAGIC: Final = b"SQLite format 3\0"
DEFAULT_SIZE: Final = 4096  # bytes of a page, where the header does not say
LONGEST: Final = 64 * 2**20  # bytes of a record: a job is hardly longer than a line of its producer, a MiB
TABLE_LEAF, INDEX_LEAF, INDEX_INTERIOR = 13, 10, 2
INTEGER_BYTES: Final = (0, 1, 2, 3, 4, 6, 8)  # by serial type
FLOAT, ZERO, ONE = 7, 8, 9

Value: TypeAlias = int | bytes | None  # text is bytes: it may have been changed


class Record(NamedTuple):
    """A row of a table, or an entry of an index, whose `rowid` is None."""

    rowid: int | None
    values: tuple[Value, ...]


class _Broken(Exception):
    """What is read makes no sense."""


class Pages:
    """The pages of a file, whose content may be an mmap."""

    def __init__(self, content: bytes | mmap.mmap) -> None:
        self._content = content
        header = content[:100]
        size = int.from_bytes(header[16:18], "big")
        size = 65536 if size == 1 else size
        readable = header.startswith(MAGIC) and size >= 512 and size.bit_count() == 1
        self._size = size if readable else DEFAULT_SIZE
        self._count = len(content) // self._size
        self._free = self._free_pages() if readable else set[int]()

    def records(self) -> Iterator[Record]:
        """All that are whole; the same one may come several times where the list of free pages is destroyed."""
        for number in range(1, self._count + 1):
            if number not in self._free:
                yield from self._records_of(number)

    def _page(self, number: int) -> bytes:
        if not 1 <= number <= self._count:
            raise _Broken
        return self._content[(number - 1) * self._size : number * self._size]

    def _free_pages(self) -> set[int]:
        trunk, free = int.from_bytes(self._content[32:36], "big"), set[int]()
        while 1 < trunk <= self._count and trunk not in free:
            page = self._page(trunk)
            free.add(trunk)
            leaves = min(int.from_bytes(page[4:8], "big"), self._size // 4 - 2)
            free.update(int.from_bytes(page[8 + 4 * leaf : 12 + 4 * leaf], "big") for leaf in range(leaves))
            trunk = int.from_bytes(page[:4], "big")
        return free - {1}

    def _records_of(self, number: int) -> Iterator[Record]:
        page = self._page(number)
        start = 100 if number == 1 else 0
        kind = page[start]
        if kind not in (TABLE_LEAF, INDEX_LEAF, INDEX_INTERIOR):
            return
        pointers = start + (12 if kind == INDEX_INTERIOR else 8)
        count = min(int.from_bytes(page[start + 3 : start + 5], "big"), (self._size - pointers) // 2)
        for cell in range(count):
            at = int.from_bytes(page[pointers + 2 * cell : pointers + 2 * cell + 2], "big")
            try:
                yield self._record(page, kind, at + 4 if kind == INDEX_INTERIOR else at)
            except _Broken:
                continue

    def _record(self, page: bytes, kind: int, at: int) -> Record:
        length, at = _varint(page, at)
        rowid = None
        if kind == TABLE_LEAF:
            rowid, at = _varint(page, at)
            rowid -= 2**64 if rowid >= 2**63 else 0
        return Record(rowid, _values(self._payload(page, kind, at, length)))

    def _payload(self, page: bytes, kind: int, at: int, length: int) -> bytes:
        if length > LONGEST:
            raise _Broken
        most = self._size - 35 if kind == TABLE_LEAF else (self._size - 12) * 64 // 255 - 23
        if length <= most:
            return page[at : at + length]
        least = (self._size - 12) * 32 // 255 - 23
        local = least + (length - least) % (self._size - 4)
        local = local if local <= most else least
        payload = bytearray(page[at : at + local])
        following = page[at + local : at + local + 4]
        while len(payload) < length:
            overflow = self._page(int.from_bytes(following, "big"))
            following = overflow[:4]
            payload += overflow[4 : 4 + length - len(payload)]
        return bytes(payload)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where it ends."""
    number = 0
    for place in range(9):
        if at + place >= len(content):
            raise _Broken
        byte = content[at + place]
        if place == 8:
            return number << 8 | byte, at + 9
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number, at + place + 1
    raise AssertionError


def _values(payload: bytes) -> tuple[Value, ...]:
    end, at = _varint(payload, 0)
    types = list[int]()
    while at < end:
        kind, at = _varint(payload, at)
        types.append(kind)
    values = list[Value]()
    for kind in types:
        size = 8 if kind == FLOAT else (kind - 12) // 2 if kind >= 12 else INTEGER_BYTES[kind] if kind < 7 else 0
        content, at = payload[at : at + size], at + size
        if kind in (ZERO, ONE):
            values.append(kind - ZERO)
        elif 0 < kind < 7:
            values.append(int.from_bytes(content, "big", signed=True))
        else:
            values.append(content if kind >= 12 else None)  # there are no floats in what is looked for
    if at != len(payload):
        raise _Broken
    return tuple(values)
