"""Multipart forms with files, which are written to disk as they arrive (RFC 7578)."""

import logging
from collections.abc import Collection
from functools import partial
from typing import Any, Final, Protocol, cast

import trio
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser
from quart.wrappers.request import Request
from werkzeug.http import parse_options_header

from progressd.config.settings import Limits
from progressd.core.errors import InvalidInput, TooLarge, readable_size
from progressd.files.job_files import Upload
from progressd.http.body import BodyChunks

OVERHEAD: Final = 1024 * 1024  # bytes of a form besides its files and fields
MAX_HEADER: Final = 4096  # bytes of a part's header
FROM_FILES: Final = ("options", "labels")  # fields that may be sent as a file, as with `curl -F options=@o.json`
DISPOSITION: Final = b"content-disposition"
EVENTS: Final = ("header_field", "header_value", "header_end", "headers_finished", "part_data", "part_end", "end")

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings reach the client as an error


class FormSink(Protocol):
    """Receive the files of a form, one after the other."""

    async def begin(self, filename: str) -> Upload:
        """Begin a file."""

    async def whole(self) -> None:
        """Finish the file. It is complete."""


def form_body(request: Request, limits: Limits, max_files: int) -> BodyChunks:
    """Return the body of a request with a form. Raises InvalidInput, TooLarge."""
    if request.mimetype != "multipart/form-data" or not request.mimetype_params.get("boundary"):
        raise InvalidInput("the body is not a form: send it as multipart/form-data, with a boundary")
    max_bytes = max_files * limits.max_upload_bytes + limits.max_form_fields * limits.max_form_field_bytes + OVERHEAD
    if (request.content_length or 0) > max_bytes:
        files = "the file is" if max_files == 1 else "the files together are"
        raise TooLarge(f"{files} larger than {readable_size(max_files * limits.max_upload_bytes)}, the limit")
    return BodyChunks(request, limits, max_bytes)


async def receive_form(
    request: Request, body: BodyChunks, sink: FormSink, file_fields: Collection[str], limits: Limits, max_files: int
) -> dict[str, str]:
    """Pass the files to `sink`. Return the remaining fields. Raises InvalidInput, TooLarge, RequestTimeout."""
    try:
        reader = FormReader(request.mimetype_params["boundary"], sink, file_fields, limits, max_files)
        async for piece in body:
            await reader.feed(piece)
        if not reader.ended:
            raise ValueError("cut off")
    except ValueError:
        raise InvalidInput("the form is malformed or was cut off: send it again") from None
    if not reader.files:
        raise InvalidInput(f"the form has no file: send one in the field {next(iter(file_fields))}")
    return {name: value.decode(errors="replace") for name, value in reader.fields.items()}


def printable_name(filename: str) -> str:
    """Return a file's name for an error: at most 60 characters, all printable."""
    return "".join(letter if letter.isprintable() else "_" for letter in filename[:60])


def _note(events: list[tuple[str, bytes]], event: str, data: bytes = b"", start: int = 0, end: int = 0) -> None:
    """Keep an event of the parser. A method of the reader would be a reference cycle."""
    events.append((event, data[start:end]))


class FormReader:
    """Read the parts of a form from the chunks of a body."""

    def __init__(
        self, boundary: str, sink: FormSink, file_fields: Collection[str], limits: Limits, max_files: int
    ) -> None:
        """Raise ValueError for an overlong boundary."""
        self.ended = False
        self.files = 0
        self.fields: dict[str, bytes] = {}
        self._sink = sink
        self._file_fields = file_fields
        self._limits = limits
        self._max_files = max_files
        self._parts = 0
        self._header, self._disposition = b"", b""
        self._field: str | None = None  # the field name of the current part; None for a file
        self._file: Upload | None = None  # the current part; None for a field
        self._filename = ""
        self._size = 0  # bytes of that file
        self._events = list[tuple[str, bytes]]()  # parser events of the current chunk
        callbacks = {f"on_{event}": partial(_note, self._events, event) for event in EVENTS}
        self._parser = MultipartParser(boundary.encode(), cast(Any, callbacks), max_header_size=MAX_HEADER)

    async def feed(self, piece: bytes) -> None:
        """Read the next chunk of the body. Raises ValueError if it is malformed, InvalidInput, TooLarge."""
        self._events.clear()
        try:
            self._parser.write(piece)
        except MultipartParseError as error:
            if "exceeded" not in str(error):
                raise
            size = readable_size(MAX_HEADER)
            raise TooLarge(f"a part of the form has more than 8 headers, or one larger than {size}") from error
        for event, data in self._events:
            match event:
                case "header_field" | "header_value":
                    self._header += data
                case "header_end":
                    if self._header.lower().startswith(DISPOSITION):
                        self._disposition = self._header[len(DISPOSITION) :]
                    self._header = b""
                case "headers_finished":
                    await self._begin_part()
                    await trio.lowlevel.checkpoint()  # one chunk may have many parts
                case "part_data":
                    await self._add(data)
                case "part_end" if self._file is not None:
                    await self._sink.whole()
                case "end":
                    self.ended = True

    async def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > self._limits.max_form_fields + self._max_files:
            raise TooLarge("the form has too many fields besides the file")
        _, parameters = parse_options_header(self._disposition.decode())
        name, filename = parameters.get("name", ""), parameters.get("filename")
        self._disposition = b""
        self._file = self._field = None
        if filename and name in self._file_fields:
            self.files += 1
            if self.files > self._max_files == 1:
                raise InvalidInput("the form has several files: send only one here, or all of them to /api/batch")
            if self.files > self._max_files:
                raise TooLarge(f"the batch has too many files: send at most {self._max_files} together")
            self._filename, self._size = filename, 0
            self._file = await self._sink.begin(filename)
        elif filename is None or name in FROM_FILES:
            self._field = name

    async def _add(self, data: bytes) -> None:
        if self._file is not None:
            self._size += len(data)
            if self._size > (limit := self._limits.max_upload_bytes):
                raise TooLarge(f"{printable_name(self._filename)} is larger than {readable_size(limit)}, the limit")
            await self._file.write(data)
        elif self._field is not None:
            value = self.fields.get(self._field, b"") + data
            if len(value) > (limit := self._limits.max_form_field_bytes):
                raise TooLarge(f"the field {self._field[:60]!r} is larger than {readable_size(limit)}")
            self.fields[self._field] = value
