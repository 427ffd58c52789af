"""The REST API as function calls that block until the daemon responds."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar
from urllib.parse import urlencode

import msgspec

from progressd.client.endpoint import job_path
from progressd.client.errors import ClientError
from progressd.client.http import HTTPClient
from progressd.client.pending import Event, EventAnswer
from progressd.core.json import UNDECODABLE

ANSWER_TIMEOUT: Final = 60.0  # seconds
CONNECT_TIMEOUT: Final = 10.0  # seconds
MAX_ANSWERS: Final = 1 << 20  # maximum bytes of the answers to a batch of events
CHUNK_SIZE: Final = 65536  # bytes read from a file at once
# Characters that a field name may not contain (WHATWG HTML, "Multipart form data").
_ESCAPED: Final = {ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"}

T = TypeVar("T")

_encode_lines = msgspec.json.Encoder().encode_lines
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_decode_answers = msgspec.json.Decoder(EventAnswer).decode_lines


class RestClient:
    """Call the REST API of one daemon. Every call raises ConnectError, APIError or another ClientError.

    `key`: for a daemon that requires one. `timeout`: the seconds to wait for each part of a response; a long upload may
    take longer. `connect_timeout`: the seconds to connect, at most `timeout`. Raises InvalidURL, InvalidKey. The client
    is not thread-safe.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = ANSWER_TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self._http = HTTPClient(url, key, timeout, connect_timeout)
        self.url = self._http.url
        self.key = key

    def __enter__(self) -> "RestClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Connect now instead of with the first call. Raises ConnectError."""
        self._http.connect()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def submit(
        self, path: Path, options: Mapping[str, object], pipeline: str | None = None, labels: Mapping[str, str] = {}
    ) -> str:
        """Upload a file for a pipeline and return the id of the job. Raises OSError if the file cannot be read.

        `options` may contain a `priority`: low, normal or high.
        """
        fields = {
            name: msgspec.json.encode(given).decode()
            for name, given in (("options", options), ("labels", labels))
            if given
        }
        with path.open("rb") as file:
            upload = Upload(fields, file, path.name)
            query = f"?{urlencode({'pipeline': pipeline}, errors='replace')}" if pipeline else ""
            try:
                return str(self._call("POST", f"/api/convert{query}", upload, upload.headers)["job_id"])
            except UnreadableFile as error:
                raise error.reason from None

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job."""
        return self._call("GET", job_path(job_id))

    def jobs(self, *, limit: int = 50, **filters: str | Sequence[str] | None) -> list[dict[str, Any]]:
        """Return the newest jobs. `filters`: parameters of GET /api/jobs, such as status; empty ones do not filter."""
        given = {name: value for name, value in filters.items() if value}
        query = urlencode({"limit": limit, **given}, doseq=True, errors="replace")
        jobs: list[dict[str, Any]] = self.page(f"/api/jobs?{query}")["jobs"]
        return jobs

    def page(self, path: str) -> dict[str, Any]:
        """Return a page of a list; `path` with its query."""
        return self._call("GET", path)

    def log(self, job_id: str, query: str = "") -> bytes:
        """Return the log of a job as text."""
        return self._http.request("GET", f"{job_path(job_id)}/log{query}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job and return it."""
        return self._call("DELETE", job_path(job_id))

    def purge(self, job_id: str) -> dict[str, Any]:
        """Delete a finished job and its files, and return the deleted job."""
        return self._call("DELETE", f"{job_path(job_id)}?purge=true")

    def retry(self, job_id: str) -> str:
        """Run a failed or cancelled job again and return the id of the new job."""
        return str(self._call("POST", f"{job_path(job_id)}/retry")["job_id"])

    def register(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Register a job and return it. An existing job with this id is not changed."""
        return self._post("/api/jobs", job)

    def report(self, job_id: str, event: Mapping[str, Any]) -> None:
        """Report an event of a job."""
        self._post(f"{job_path(job_id)}/events", event)

    def exchange(self, events: Sequence[Event]) -> list[EventAnswer]:
        """Report events, wait until they are durable, and return the answer to each."""
        headers = {"Content-Type": "application/x-ndjson"}
        body = self._http.request("POST", "/api/events", _encode_lines(events), headers, MAX_ANSWERS)
        answers = self._decoded(_decode_answers, body)
        if len(answers) != len(events):
            raise ClientError(f"{self.url} answered {len(answers)} events instead of {len(events)}")
        return answers

    def _post(self, path: str, data: Mapping[str, Any]) -> dict[str, Any]:
        return self._call("POST", path, msgspec.json.encode(data), {"Content-Type": "application/json"})

    def _call(
        self, method: str, path: str, body: bytes | Iterable[bytes] | None = None, headers: Mapping[str, str] = {}
    ) -> dict[str, Any]:
        return self._decoded(_decode_object, self._http.request(method, path, body, headers))

    def _decoded(self, decode: Callable[[bytes], T], body: bytes) -> T:
        try:
            return decode(body)
        except UNDECODABLE:
            raise ClientError(f"{self.url} is not progressd: it sent no JSON") from None


class UnreadableFile(Exception):
    """Reading the file failed with `reason`. Raised as an OSError, it would look like a broken connection."""

    def __init__(self, reason: OSError) -> None:
        self.reason = reason


class Upload:
    """A multipart/form-data body (RFC 7578): form fields, then a file. Its bytes can be iterated over once.

    The file is read while it is sent. Raises OSError if the file has no length, such as a pipe.
    """

    def __init__(self, fields: Mapping[str, str], file: BinaryIO, name: str) -> None:
        boundary = os.urandom(16).hex()
        disposition = f'--{boundary}\r\nContent-Disposition: form-data; name="'
        head = "".join(f'{disposition}{field}"\r\n\r\n{value}\r\n' for field, value in fields.items())
        head += f'{disposition}file"; filename="{name.translate(_ESCAPED)}"\r\n'
        head += "Content-Type: application/octet-stream\r\n\r\n"
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self._head = head.encode("utf-8", "replace")
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self.headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(self._head) + self._size + len(self._tail)),
        }

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        remaining = self._size  # if the file grows during the upload, the added bytes are not sent
        while remaining:
            try:
                chunk = self._file.read(min(remaining, CHUNK_SIZE))
            except OSError as error:
                raise UnreadableFile(error) from None
            if not chunk:
                raise ClientError(f"{self._file.name} became shorter during the upload")
            remaining -= len(chunk)
            yield chunk
        yield self._tail
