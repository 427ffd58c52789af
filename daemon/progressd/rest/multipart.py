"""A multipart form with files, which go to disk as they arrive (RFC 7578)."""

import re
from collections.abc import Collection
from typing import Final, Protocol

import trio
from quart.wrappers.request import Request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import (
    BLANK_LINE_RE,
    Data,
    Epilogue,
    Event,
    Field,
    File,
    MultipartDecoder,
    NeedData,
    State,
)

from progressd.config.settings import Limits
from progressd.core.errors import InvalidInput, TooLarge
from progressd.core.sizes import readable_size
from progressd.rest.body import Pieces

OVERHEAD: Final = 1024 * 1024  # bytes beside files and fields; also what the decoder may hold undecided
HEAD_MOST: Final = 4096  # bytes of the head of a part, of which a file name takes a few hundred
PADDING_MOST: Final = 1000  # bytes of spaces behind a boundary

_UNDECIDED = re.compile(rb"-|[ \t]*\r?")  # behind a boundary, where the piece ends


class WholeBoundaries:
    """Cuts the pieces of a body so that none ends behind a boundary, before it shows whether that is the last one.

    Else Werkzeug (seen with 3.1.9) takes half of the line break before it for content.
    """

    def __init__(self, boundary: bytes) -> None:
        self._mark = b"--" + boundary
        self.held = b""  # what comes next

    def cut(self, piece: bytes) -> bytes:
        """What goes on, of this piece and of what was held back before."""
        data, end = self.held + piece, len(self.held) + len(piece)
        at = data.rfind(self._mark, max(0, end - len(self._mark) - PADDING_MOST))
        if at >= 0 and _UNDECIDED.fullmatch(data, at + len(self._mark)):
            end = max(0, at - 2)  # before the line break
        self.held = data[end:]
        return data[:end]


class _Decoder(MultipartDecoder):
    """Werkzeug's parses the head of a part in one go, which takes 1 ms a KiB, in which nobody else is served."""

    def next_event(self) -> Event:
        """Raises TooLarge for such a head, before it has come whole."""
        long = self.state is State.PART and len(self.buffer) > HEAD_MOST
        if long and BLANK_LINE_RE.search(self.buffer, 0, HEAD_MOST) is None:
            raise TooLarge(f"the head of a part of the form is longer than {readable_size(HEAD_MOST)}")
        return super().next_event()


class Sink(Protocol):
    """Where one file goes. `size`: bytes that have come."""

    @property
    def size(self) -> int: ...

    async def write(self, data: bytes) -> None:
        """Append."""


class Inbox(Protocol):
    """Where files go, one after the other."""

    async def begin(self, filename: str) -> Sink:
        """A file comes."""

    async def whole(self) -> None:
        """It has come."""


async def receive_form(
    request: Request, inbox: Inbox, file_fields: Collection[str], limits: Limits, files_most: int = 1
) -> dict[str, str]:
    """Hand the files of some fields to `inbox`, none of them too large; returns the other fields.

    Raises InvalidInput for what is not such a form, TooLarge, or Stalled.
    """
    boundary = request.mimetype_params.get("boundary")
    if request.mimetype != "multipart/form-data" or not boundary:
        raise InvalidInput("the body is not a form: send it as multipart/form-data, with a boundary")
    decoder = _Decoder(boundary.encode(), OVERHEAD, max_parts=limits.max_form_fields + files_most)
    reader = _Reader(decoder, inbox, file_fields, limits, files_most)
    boundaries = WholeBoundaries(boundary.encode())
    most = files_most * limits.max_upload_bytes + limits.max_form_fields * limits.max_form_field_bytes + OVERHEAD
    if (request.content_length or 0) > most:
        what = "the file is" if files_most == 1 else "the files together are"
        size = readable_size(files_most * limits.max_upload_bytes)
        raise TooLarge(f"{what} larger than {size}, the most this server accepts")
    try:
        async for piece in Pieces(request, limits, most):
            await reader.feed(boundaries.cut(piece))
        await reader.feed(boundaries.held)
        await reader.feed(None)
    except (ValueError, UnicodeDecodeError):
        raise InvalidInput("the form is malformed or was cut off: send it again") from None
    except RequestEntityTooLarge:
        raise TooLarge("the form has too many fields beside the file, or too large ones") from None
    if not reader.files:
        raise InvalidInput(f"the form has no file: send one in the field {next(iter(file_fields))}")
    return {name: value.decode(errors="replace") for name, value in reader.fields.items()}


def printable_name(filename: str) -> str:
    """Return a file's name for a sentence: at most 60 characters, none of which changes how the rest is shown."""
    return "".join(letter if letter.isprintable() else "_" for letter in filename[:60])


class _Reader:
    """Takes the parts as they come."""

    def __init__(
        self, decoder: MultipartDecoder, inbox: Inbox, file_fields: Collection[str], limits: Limits, files_most: int
    ) -> None:
        self.files = 0
        self.fields: dict[str, bytes] = {}
        self._decoder = decoder
        self._inbox = inbox
        self._file_fields = file_fields
        self._limits = limits
        self._files_most = files_most
        self._upload: Sink | None = None  # where the part goes that is a file
        self._filename = ""  # of the newest file
        self._field: str | None = None  # the name of the part that is none

    async def feed(self, piece: bytes | None) -> None:
        """Take the next piece of the body, None at its end."""
        self._decoder.receive_data(piece)
        while not isinstance(event := self._decoder.next_event(), NeedData | Epilogue):
            match event:
                case File() if event.filename and event.name in self._file_fields:
                    self._upload = await self._begin(event.filename)
                case Field() | File(name="options" | "labels"):  # also from a file, as `curl -F options=@o.json`
                    self._field = event.name
                case File():  # of another field; or what a browser sends where no file was chosen
                    self._upload = self._field = None
                case Data() if self._upload is not None:
                    await self._write(self._upload, event.data)
                    if not event.more_data:
                        self._upload = None
                        await self._inbox.whole()
                case Data() if self._field is not None:
                    self._keep(self._field, event.data)
                    if not event.more_data:
                        self._field = None
            await trio.lowlevel.checkpoint()  # one piece may have several heads

    async def _begin(self, filename: str) -> Sink:
        self.files += 1
        if self.files > self._files_most:
            if self._files_most == 1:
                raise InvalidInput("the form has several files: send one here, or all of them to /api/batch")
            raise TooLarge(f"the batch has too many files: send at most {self._files_most} together")
        self._filename = filename
        return await self._inbox.begin(filename)

    async def _write(self, upload: Sink, data: bytes) -> None:
        most = self._limits.max_upload_bytes
        if upload.size + len(data) > most:
            name = printable_name(self._filename)
            raise TooLarge(f"{name} is larger than {readable_size(most)}, the most this server accepts")
        await upload.write(data)

    def _keep(self, name: str, data: bytes) -> None:
        value = self.fields.get(name, b"") + data
        if len(value) > (most := self._limits.max_form_field_bytes):
            raise TooLarge(f"the field {name[:60]!r} is larger than {readable_size(most)}")
        self.fields[name] = value
