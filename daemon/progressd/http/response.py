"""Responses with a file: ranges, and the name under which a browser saves it."""

import unicodedata
from urllib.parse import quote

import trio
from quart.wrappers import Request, Response
from quart_trio.wrappers.response import TrioFileBody, TrioResponse
from werkzeug.exceptions import RequestedRangeNotSatisfiable


class FileBody(TrioFileBody):
    """A file body that supports suffix ranges (`bytes=-7`) and ranges past the end. Quart-Trio's body does not."""

    buffer_size = 64 * 1024  # bytes per read, in a thread: with 8 KiB a download takes four times as long

    async def require_opens(self) -> None:
        """Open the file now, and raise its OSError while the status can still change."""
        await trio.to_thread.run_sync(lambda: open(self.file_path, "rb").close())

    async def __aenter__(self) -> "FileBody":
        self.file = await trio.open_file(self.file_path, mode="rb")
        self.file.wrapped.seek(self.begin)  # not in a thread: if that is cancelled, the file stays open
        return self

    async def make_conditional(self, begin: int, end: int | None, max_partial_size: int | None = None) -> int:
        """Select a range; a negative `begin` counts from the end. Returns the size of the whole file."""
        self.begin, self.end = range_within(self.size, begin, end)
        return self.size

    def leave_out(self) -> None:
        """Send nothing, for HEAD."""
        self.end = self.begin


def range_within(size: int, begin: int, end: int | None) -> tuple[int, int]:
    """Return a range within a body; a negative `begin` counts from the end. Raises RequestedRangeNotSatisfiable."""
    begin = max(0, size + begin) if begin < 0 else begin
    end = size if end is None else min(end, size)
    if begin >= end:
        raise RequestedRangeNotSatisfiable(size)
    return begin, end


class FileResponse(TrioResponse):
    """A response of `send_file`."""

    file_body_class = FileBody

    async def make_conditional(
        self, request: Request, accept_ranges: bool | str = False, complete_length: int | None = None
    ) -> Response:
        """Apply a range. Ignore invalid or multiple ranges, and those not on GET (§14.2). Quart would return 416."""
        range_ = request.range if request.method == "GET" else None
        if range_ is None or range_.units != "bytes" or len(range_.ranges) != 1:
            complete_length = None  # makes Quart ignore the range
        return await super().make_conditional(request, accept_ranges, complete_length)


def attachment(name: str) -> str:
    """Return the Content-Disposition of a file with a printable name (RFC 6266).

    A name that old clients misread gets an ASCII fallback.
    """
    base = (letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"\\%/' else "_" for letter in base)
    header = f'attachment; filename="{plain}"'
    return header if plain == name else f"{header}; filename*=UTF-8''{quote(name, safe='!#$&+^`|')}"
