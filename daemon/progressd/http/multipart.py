"""A multipart form with files, which go to disk as they arrive (RFC 7578)."""

import logging
from collections.abc import Collection
from functools import partial
from hashlib import sha256
from typing import Final, Protocol

import trio
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser
from quart.wrappers.request import Request
from werkzeug.http import parse_options_header

from progressd.config.settings import Limits
from progressd.core.errors import InvalidInput, TooLarge
from progressd.core.sizes import readable_size
from progressd.http.body import BodyChunks

OVERHEAD: Final = 1024 * 1024  # bytes beside files and fields
DISPOSITION: Final = b"content-disposition"
HEADER_MOST: Final = 4096  # bytes of a header of a part, of which a file name takes a few hundred

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the client is told what is wrong with its form


class FileSink(Protocol):
    """Where one file goes."""

    async def write(self, data: bytes) -> None:
        """Append."""


class FormSink(Protocol):
    """Where files go, one after the other."""

    async def begin(self, filename: str) -> FileSink:
        """A file comes."""

    async def whole(self) -> None:
        """It has come."""


async def receive_form(
    request: Request, inbox: FormSink | None, file_fields: Collection[str], limits: Limits, files_most: int = 1
) -> tuple[dict[str, str], str]:
    """Hand the files of some fields to `inbox`, if any, and return the other fields and a digest of all parts.

    The digest is the same for the same parts in the same order, whatever boundary the client draws.
    Raises InvalidInput for what is not such a form, TooLarge, or Stalled.
    """
    boundary = request.mimetype_params.get("boundary")
    if request.mimetype != "multipart/form-data" or not boundary:
        raise InvalidInput("the body is not a form: send it as multipart/form-data, with a boundary")
    most = files_most * limits.max_upload_bytes + limits.max_form_fields * limits.max_form_field_bytes + OVERHEAD
    if (request.content_length or 0) > most:
        what = "the file is" if files_most == 1 else "the files together are"
        size = readable_size(files_most * limits.max_upload_bytes)
        raise TooLarge(f"{what} larger than {size}, the most this server accepts")
    try:
        reader = Reader(boundary, inbox, file_fields, limits, files_most)
        async for piece in BodyChunks(request, limits, most):
            await reader.feed(piece)
        if not reader.ended:
            raise ValueError("cut off")
    except ValueError:
        raise InvalidInput("the form is malformed or was cut off: send it again") from None
    if not reader.files:
        raise InvalidInput(f"the form has no file: send one in the field {next(iter(file_fields))}")
    return {name: value.decode(errors="replace") for name, value in reader.fields.items()}, reader.digest.hexdigest()


def printable_name(filename: str) -> str:
    """Return a file's name for a sentence: at most 60 characters, none of which changes how the rest is shown."""
    return "".join(letter if letter.isprintable() else "_" for letter in filename[:60])


def _note(found: list[tuple[str, bytes]], what: str, data: bytes = b"", start: int = 0, end: int = 0) -> None:
    """Keep what the parser finds. No method of the reader: that would be a reference cycle."""
    found.append((what, data[start:end]))


class Reader:
    """Takes the pieces of a form as they come."""

    def __init__(
        self, boundary: str, inbox: FormSink | None, file_fields: Collection[str], limits: Limits, files_most: int
    ) -> None:
        """Raises ValueError for a boundary that is too long."""
        self.ended = False
        self.files = 0
        self.fields: dict[str, bytes] = {}
        self.digest = sha256()
        self._inbox = inbox
        self._file_fields = file_fields
        self._limits = limits
        self._files_most = files_most
        self._parts = 0
        self._header, self._disposition = b"", b""
        self._filename: str | None = None  # of the part that is a file
        self._size = 0  # bytes of it
        self._upload: FileSink | None = None  # where it goes
        self._field: str | None = None  # the name of the part that is none
        self._found = list[tuple[str, bytes]]()  # in the piece
        self._parser = MultipartParser(
            boundary.encode(),
            {
                "on_header_field": partial(_note, self._found, "header"),
                "on_header_value": partial(_note, self._found, "header"),
                "on_header_end": partial(_note, self._found, "header end"),
                "on_headers_finished": partial(_note, self._found, "headers end"),
                "on_part_data": partial(_note, self._found, "data"),
                "on_part_end": partial(_note, self._found, "part end"),
                "on_end": partial(_note, self._found, "end"),
            },
            max_header_size=HEADER_MOST,
        )

    async def feed(self, piece: bytes) -> None:
        """Take the next piece of the body. Raises ValueError where it is malformed, InvalidInput, TooLarge."""
        self._found.clear()
        try:
            self._parser.write(piece)
        except MultipartParseError as error:
            if "exceeded" not in str(error):
                raise
            size = readable_size(HEADER_MOST)
            raise TooLarge(f"a part of the form has more than 8 headers, or one larger than {size}") from error
        for what, data in self._found:
            match what:
                case "header":  # its name and its value, without what is between
                    self._header += data
                case "header end":
                    if self._header.lower().startswith(DISPOSITION):
                        self._disposition = self._header[len(DISPOSITION) :]
                    self._header = b""
                case "headers end":
                    await self._begin()
                    await trio.lowlevel.checkpoint()  # one piece may have several heads
                case "data":
                    self.digest.update(data)
                    if self._filename is not None:
                        await self._write(self._filename, data)
                    elif self._field is not None:
                        self._keep(self._field, data)
                case "part end" if self._inbox is not None and self._upload is not None:
                    await self._inbox.whole()
                case "end":
                    self.ended = True

    async def _begin(self) -> None:
        self._parts += 1
        if self._parts > self._limits.max_form_fields + self._files_most:
            raise TooLarge("the form has too many fields beside the file")
        _, given = parse_options_header(self._disposition.decode())
        name, filename = given.get("name", ""), given.get("filename")
        self._disposition = b""
        self.digest.update(repr((name, filename)).encode())
        self._filename = self._upload = self._field = None
        if filename and name in self._file_fields:
            await self._begin_file(filename)
        elif filename is None or name in ("options", "labels"):  # also from a file, as `curl -F options=@o.json`
            self._field = name

    async def _begin_file(self, filename: str) -> None:
        self.files += 1
        if self.files > self._files_most:
            if self._files_most == 1:
                raise InvalidInput("the form has several files: send one here, or all of them to /api/batch")
            raise TooLarge(f"the batch has too many files: send at most {self._files_most} together")
        self._filename, self._size = filename, 0
        if self._inbox is not None:
            self._upload = await self._inbox.begin(filename)

    async def _write(self, filename: str, data: bytes) -> None:
        self._size += len(data)
        if self._size > (most := self._limits.max_upload_bytes):
            name = printable_name(filename)
            raise TooLarge(f"{name} is larger than {readable_size(most)}, the most this server accepts")
        if self._upload is not None:
            await self._upload.write(data)

    def _keep(self, name: str, data: bytes) -> None:
        value = self.fields.get(name, b"") + data
        if len(value) > (most := self._limits.max_form_field_bytes):
            raise TooLarge(f"the field {name[:60]!r} is larger than {readable_size(most)}")
        self.fields[name] = value
