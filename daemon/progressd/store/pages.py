"""The SQLite file read page by page, without SQLite: records that are whole, also where the way to them is destroyed.

Of the file format (https://www.sqlite.org/fileformat2.html) it takes what our files have: b-tree pages with
their cells, overflow pages, and the list of free pages, whose rows have been deleted. Nothing in the file is trusted.
"""

import mmap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple, TypeAlias

MAGIC: Final = b"SQLite format 3\0"
SIZE: Final = 4096  # bytes of a page: the header's word is not needed, since our files have no other
LONGEST: Final = 64 * 2**20  # bytes of a record: a job is hardly longer than a line of its producer, a MiB
TABLE_LEAF, TABLE_INTERIOR, INDEX_LEAF, INDEX_INTERIOR = 13, 5, 10, 2
INTERIOR: Final = (TABLE_INTERIOR, INDEX_INTERIOR)
KINDS: Final = (TABLE_LEAF, INDEX_LEAF, *INTERIOR)
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
    """The pages of a file, whose content may be an mmap, and those that have `replaced` some of them."""

    def __init__(self, content: bytes | mmap.mmap, replaced: Mapping[int, bytes] | None = None) -> None:
        self._content = content
        self._replaced = replaced or {}
        self._count = max(len(content) // SIZE, *self._replaced) if self._replaced else len(content) // SIZE
        self._free = self._free_pages()
        self._whole = set[int]()

    def records(self) -> Iterator[Record]:
        """All that are whole; the same one may come several times where the list of free pages is destroyed."""
        for number in range(1, self._count + 1):
            if number not in self._free:
                yield from self._records_of(number)

    def unreadable(self) -> int:
        """How many pages are missing or not whole, once `records` has come to its end."""
        header = self._header()
        valid = header.startswith(MAGIC) and header[24:28] == header[92:96]  # SQLite's own mark of a count that holds
        said = int.from_bytes(header[28:32], "big") if valid else 0
        return max(said, self._count) - len(self._whole | self._free)

    def _page(self, number: int) -> bytes:
        if not 1 <= number <= self._count:
            raise _Broken
        if number in self._replaced:
            return self._replaced[number]
        return self._content[(number - 1) * SIZE : number * SIZE].ljust(SIZE, b"\0")

    def _header(self) -> bytes:
        return (self._replaced.get(1) or self._content)[:100]

    def _free_pages(self) -> set[int]:
        """Those on the list of free pages; none where it makes no sense, or has one that another page needs."""
        try:
            free = self._listed()
        except _Broken:
            return set()
        for number in range(1, self._count + 1):
            if number not in free:
                with suppress(_Broken):
                    if self._children(number) & free:
                        return set()
        return free

    def _listed(self) -> set[int]:
        header, free = self._header(), list[int]()
        trunk = int.from_bytes(header[32:36], "big")
        while trunk:
            page = self._page(trunk)
            leaves = int.from_bytes(page[4:8], "big")
            if leaves > SIZE // 4 - 2 or len(free) > self._count:
                raise _Broken
            free += trunk, *(int.from_bytes(page[8 + 4 * leaf : 12 + 4 * leaf], "big") for leaf in range(leaves))
            trunk = int.from_bytes(page[:4], "big")
        count = int.from_bytes(header[36:40], "big")
        if not len(free) == len(set(free)) == count or not all(1 < number <= self._count for number in free):
            raise _Broken
        return set(free)

    def _children(self, number: int) -> set[int]:
        """The pages that one needs: those below it, or the roots that the schema names. Raises _Broken."""
        page = self._page(number)
        start = 100 if number == 1 else 0
        if page[start] in INTERIOR:
            children = {int.from_bytes(page[at : at + 4], "big") for at in (start + 8, *_cells(page, start))}
            if not all(1 < child <= self._count for child in children):
                raise _Broken
            return children
        roots = set[int]()
        for at in _cells(page, start) if number == 1 and page[start] == TABLE_LEAF else ():
            with suppress(_Broken):
                match self._record(page, TABLE_LEAF, at)[0]:
                    case Record(_, (_, _, _, int(root), *_)):
                        roots.add(root)
        return roots

    def _records_of(self, number: int) -> Iterator[Record]:
        page = self._page(number)
        start = 100 if number == 1 else 0
        kind = page[start]
        if kind not in KINDS:
            return
        whole, used, overflows = True, 0, list[int]()
        for at in _cells(page, start):
            try:
                record, end, pages = self._cell(page, kind, at)
            except _Broken:
                whole = False
                continue
            used += max(4, end - at)
            overflows += pages
            if record is not None:
                yield record
        with suppress(_Broken):
            self._children(number)
            if whole and used == _room(page, start):
                self._whole.update((number, *overflows))

    def _cell(self, page: bytes, kind: int, at: int) -> tuple[Record | None, int, list[int]]:
        """What is in a cell, where it ends, and the pages it goes on in."""
        if kind == TABLE_INTERIOR:
            return None, _varint(page, at + 4)[1], []
        return self._record(page, kind, at + 4 if kind == INDEX_INTERIOR else at)

    def _record(self, page: bytes, kind: int, at: int) -> tuple[Record, int, list[int]]:
        length, at = _varint(page, at)
        rowid = None
        if kind == TABLE_LEAF:
            rowid, at = _varint(page, at)
            rowid -= 2**64 if rowid >= 2**63 else 0
        payload, end, pages = self._payload(page, kind, at, length)
        return Record(rowid, _values(payload)), end, pages

    def _payload(self, page: bytes, kind: int, at: int, length: int) -> tuple[bytes, int, list[int]]:
        if length > LONGEST:
            raise _Broken
        most = SIZE - 35 if kind == TABLE_LEAF else (SIZE - 12) * 64 // 255 - 23
        if length <= most:
            return page[at : at + length], at + length, []
        least = (SIZE - 12) * 32 // 255 - 23
        local = least + (length - least) % (SIZE - 4)
        local = local if local <= most else least
        payload, pages = bytearray(page[at : at + local]), list[int]()
        following = page[at + local : at + local + 4]
        while len(payload) < length:
            pages.append(int.from_bytes(following, "big"))
            overflow = self._page(pages[-1])
            following = overflow[:4]
            payload += overflow[4 : 4 + length - len(payload)]
        return bytes(payload), at + local + 4, pages


def _cells(page: bytes, start: int) -> list[int]:
    """Where the cells of a page begin."""
    pointers = start + (12 if page[start] in INTERIOR else 8)
    count = min(int.from_bytes(page[start + 3 : start + 5], "big"), (SIZE - pointers) // 2)
    return [int.from_bytes(page[at : at + 2], "big") for at in range(pointers, pointers + 2 * count, 2)]


def _room(page: bytes, start: int) -> int:
    """How many bytes the cells of a page take, by its own words: all behind the first, but for gaps. Raises _Broken."""
    room = SIZE - (int.from_bytes(page[start + 5 : start + 7], "big") or 65536) - page[start + 7]
    gap = int.from_bytes(page[start + 1 : start + 3], "big")
    while gap:
        following, size = int.from_bytes(page[gap : gap + 2], "big"), int.from_bytes(page[gap + 2 : gap + 4], "big")
        if gap + size > SIZE or 0 < following <= gap:
            raise _Broken
        gap, room = following, room - size
    return room


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
