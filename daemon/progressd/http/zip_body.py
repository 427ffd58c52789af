"""A ZIP file that is generated while it is sent, so that it needs neither a temporary file nor memory."""

import zipfile
from collections.abc import Generator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio
from quart.wrappers.response import ResponseBody

CHUNK: Final = 256 * 1024  # bytes that are read and sent at a time
LARGE: Final = 1 << 30  # bytes from which a file is announced as ZIP64: deflate may make it slightly larger
FORBIDDEN: Final = str.maketrans(dict.fromkeys('\\/:*?"<>|', "_"))  # in file names of some systems


class ZipMember(NamedTuple):
    """A file to add."""

    name: str
    path: Path
    time: datetime


class _Output:
    """What zipfile has written and the client has not received. Without `tell`, zipfile never seeks."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: zipfile requires this method."""

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        self.size = 0
        return data


class ZipBody(ResponseBody):
    """The body of a response with a ZIP file. A failed read ends it with an error, so the connection is aborted."""

    def __init__(self, members: Sequence[ZipMember]) -> None:
        self._pieces = zip_pieces(members)

    async def __aenter__(self) -> "ZipBody":
        return self

    async def __aexit__(self, *error: object) -> None:
        self._pieces.close()

    def __aiter__(self) -> "ZipBody":
        return self

    async def __anext__(self) -> bytes:
        piece = await trio.to_thread.run_sync(next, self._pieces, b"")
        if not piece:
            raise StopAsyncIteration
        return piece


def zip_pieces(members: Sequence[ZipMember]) -> Generator[bytes]:
    """Yield the pieces of a ZIP file. Blocks. Raises OSError.

    The files are in the format of deflate, but not compressed: results usually are, and some programs cannot read a
    stream of files in the format without compression.
    """
    output = _Output()
    target: Any = output
    with zipfile.ZipFile(target, "w") as archive:
        for member in members:
            info = zipfile.ZipInfo(member.name, max(member.time.timetuple()[:6], (1980, 1, 1, 0, 0, 0)))
            info.compress_type = zipfile.ZIP_DEFLATED
            info._compresslevel = 0  # type: ignore[attr-defined]  # public only from Python 3.13 on
            info.external_attr = 0o644 << 16
            large = member.path.stat().st_size >= LARGE
            with member.path.open("rb") as source, archive.open(info, "w", force_zip64=large) as file:
                while data := source.read(CHUNK):
                    file.write(data)
                    if output.size >= CHUNK:
                        yield output.take()
    yield output.take()


def unique_names(names: Sequence[str]) -> list[str]:
    """Return names that no system rejects or considers equal: a second `a.pdf` becomes `a (2).pdf`."""
    taken, found = set[str](), list[str]()
    for name in names:
        name = name.translate(FORBIDDEN) if name.strip(".") else "result"
        path, number, one = Path(name), 1, name
        while one.casefold() in taken:
            number += 1
            one = f"{path.stem} ({number}){path.suffix}"
        taken.add(one.casefold())
        found.append(one)
    return found
