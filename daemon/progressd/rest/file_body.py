"""A file as the body of a response, whole or a part of it (RFC 9110 §14)."""

import trio
from quart_trio.wrappers.response import TrioFileBody, TrioResponse
from werkzeug.exceptions import RequestedRangeNotSatisfiable


class FileBody(TrioFileBody):
    """Quart-Trio's own ends a part only where the client says, also behind the end, and knows no `bytes=-7`."""

    buffer_size = 64 * 1024  # bytes read at once, in a thread: with 8 KiB a download takes four times as long

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
