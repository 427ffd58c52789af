"""A multipart form with one file, which goes to disk as it arrives (RFC 7578)."""

from typing import Final, NamedTuple

from quart.wrappers.request import Request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from progressd.core.errors import InvalidInput, TooLarge
from progressd.files import Upload
from progressd.rest.body import Pieces

FIELD_MOST: Final = 65536  # bytes of a field that is not the file
OVERHEAD: Final = 1024 * 1024  # bytes beside the file; also what the decoder may hold undecided
PARTS_MOST: Final = 20


class Form(NamedTuple):
    """What came beside the content of the file."""

    filename: str
    fields: dict[str, str]


async def receive_form(request: Request, upload: Upload, file_field: str, most: int) -> Form:
    """Write the file of `file_field` to `upload`, at most `most` bytes of it; returns the rest.

    Raises InvalidInput for what is not such a form, TooLarge, or Stalled.
    """
    boundary = request.mimetype_params.get("boundary")
    if request.mimetype != "multipart/form-data" or not boundary:
        raise InvalidInput("expected a multipart/form-data body")
    reader = _Reader(MultipartDecoder(boundary.encode(), OVERHEAD, max_parts=PARTS_MOST), upload, file_field, most)
    try:
        async for piece in Pieces(request, most + OVERHEAD):
            await reader.feed(piece)
        await reader.feed(None)
    except (ValueError, UnicodeDecodeError):
        raise InvalidInput("the multipart body is malformed, or was cut off") from None
    except RequestEntityTooLarge:
        raise TooLarge("the form has too many or too large fields beside the file") from None
    if reader.filename is None:
        raise InvalidInput(f"the form has no file in the field {file_field!r}")
    return Form(reader.filename, {name: value.decode(errors="replace") for name, value in reader.fields.items()})


class _Reader:
    """Takes the parts as they come."""

    def __init__(self, decoder: MultipartDecoder, upload: Upload, file_field: str, most: int) -> None:
        self.filename: str | None = None
        self.fields: dict[str, bytes] = {}
        self._decoder = decoder
        self._upload = upload
        self._file_field = file_field
        self._most = most
        self._part: Field | File | None = None

    async def feed(self, piece: bytes | None) -> None:
        """Take the next piece of the body, None at its end."""
        self._decoder.receive_data(piece)
        while not isinstance(event := self._decoder.next_event(), NeedData | Epilogue):
            match event:
                case File(filename=""):  # what a browser sends where no file was chosen
                    self._part = None
                case File(name=self._file_field):
                    if self.filename is not None:
                        raise InvalidInput("one file at a time: the form has several")
                    self.filename = event.filename
                    self._part = event
                case Field() | File():
                    self._part = event
                case Data():
                    await self._take(event.data)

    async def _take(self, data: bytes) -> None:
        part = self._part
        if isinstance(part, File) and part.name == self._file_field:
            if self._upload.size + len(data) > self._most:
                raise TooLarge(f"the file has more than the {self._most} bytes that are allowed")
            await self._upload.write(data)
        elif isinstance(part, Field):
            value = self.fields.get(part.name, b"") + data
            if len(value) > FIELD_MOST:
                raise TooLarge(f"the field {part.name[:60]!r} has more than the {FIELD_MOST} bytes that are allowed")
            self.fields[part.name] = value
