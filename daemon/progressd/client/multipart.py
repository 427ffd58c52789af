"""The body of an upload, multipart/form-data (RFC 7578), with a file that is read while it is sent."""

import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Final

from progressd.client.errors import ClientError

CHUNK: Final = 65536  # bytes
# The WHATWG's HTML standard, "Multipart form data": what a name may not have in it.
_ESCAPED: Final = {ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"}


class UnreadableFile(Exception):
    """The file cannot be read to its end. `reason`: the error, to be told from one of the connection."""

    def __init__(self, reason: OSError) -> None:
        self.reason = reason


class Upload:
    """The fields of a form, and then a file that is called `name`; iterate over it once for the bytes.

    Raises OSError where the file has no length, such as a pipe.
    """

    def __init__(self, fields: Mapping[str, str], file: BinaryIO, name: str) -> None:
        boundary = os.urandom(16).hex()
        disposition = f'--{boundary}\r\nContent-Disposition: form-data; name="'
        before = "".join(f'{disposition}{field}"\r\n\r\n{value}\r\n' for field, value in fields.items())
        before += f'{disposition}file"; filename="{name.translate(_ESCAPED)}"\r\n'
        before += "Content-Type: application/octet-stream\r\n\r\n"
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self._before = before.encode("utf-8", "replace")
        self._after = f"\r\n--{boundary}--\r\n".encode()
        self.headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(self._before) + self._size + len(self._after)),
        }

    def __iter__(self) -> Iterator[bytes]:
        yield self._before
        left = self._size  # a file that grows meanwhile is sent as it was
        while left:
            try:
                chunk = self._file.read(min(left, CHUNK))
            except OSError as error:
                raise UnreadableFile(error) from None
            if not chunk:
                raise ClientError(f"{self._file.name} has become shorter while it was sent")
            left -= len(chunk)
            yield chunk
        yield self._after
