"""A file as the body of a response, whole or a part of it (RFC 9110 §14)."""

import unicodedata
from urllib.parse import quote

import trio
from quart.wrappers import Request, Response
from quart_trio.wrappers.response import TrioFileBody, TrioResponse
from werkzeug.exceptions import RequestedRangeNotSatisfiable


class FileBody(TrioFileBody):
    """Quart-Trio's own ends a part only where the client says, also behind the end, and knows no `bytes=-7`."""

    buffer_size = 64 * 1024  # bytes read at once, in a thread: with 8 KiB a download takes four times as long

    async def require_opens(self) -> None:
        """Raise the OSError that sending the file would meet when it is too late to tell the client."""
        await trio.to_thread.run_sync(lambda: open(self.file_path, "rb").close())

    async def __aenter__(self) -> "FileBody":
        self.file = await trio.open_file(self.file_path, mode="rb")
        self.file.wrapped.seek(self.begin)  # not in a thread: cancelled there, the file would stay open
        return self

    async def make_conditional(self, begin: int, end: int | None, max_partial_size: int | None = None) -> int:
        """Only from `begin` up to `end`; a negative `begin` counts from the end. The size of the whole file."""
        self.begin = max(0, self.size + begin) if begin < 0 else begin
        self.end = self.size if end is None else min(end, self.size)
        if self.begin >= self.end:
            raise RequestedRangeNotSatisfiable(self.size)
        return self.size

    def leave_out(self) -> None:
        """Send nothing: the answer to HEAD."""
        self.end = self.begin


class FileResponse(TrioResponse):
    """What `send_file` makes."""

    file_body_class = FileBody

    async def make_conditional(
        self, request: Request, accept_ranges: bool | str = False, complete_length: int | None = None
    ) -> Response:
        """The whole file too where the range is of an unknown unit, makes no sense, is several, or not for GET (§14.2).

        Quart answers nearly all of these with 416.
        """
        asked = request.range if request.method == "GET" else None
        if asked is None or asked.units != "bytes" or len(asked.ranges) != 1:
            complete_length = None  # without it, Quart looks at no range
        return await super().make_conditional(request, accept_ranges, complete_length)


def attachment(name: str) -> str:
    """The Content-Disposition of a file to save under a printable name (RFC 6266).

    Beside a name that is not plain ASCII, or that has what clients unquote differently, stands one for old clients.
    """
    base = (letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"\\%/' else "_" for letter in base)
    header = f'attachment; filename="{plain}"'
    return header if plain == name else f"{header}; filename*=UTF-8''{quote(name, safe='!#$&+^`|')}"
