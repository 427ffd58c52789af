"""The REST API as function calls: submit, look up, list, cancel, try again; it waits for each answer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import msgspec

from progressd.client.endpoint import job_path
from progressd.client.errors import ClientError
from progressd.client.http import HTTPClient
from progressd.client.multipart import UnreadableFile, Upload
from progressd.client.pending import Event, EventAnswer
from progressd.core.json import UNDECODABLE

ANSWER_TIMEOUT: Final = 60.0  # seconds
CONNECT_TIMEOUT: Final = 10.0  # seconds
MAX_ANSWERS: Final = 1 << 20  # bytes of the answers to a few events

T = TypeVar("T")

_encode_lines = msgspec.json.Encoder().encode_lines
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_decode_answers = msgspec.json.Decoder(EventAnswer).decode_lines


class RestClient:
    """One daemon. Every call raises NoDaemon, Refused or another ClientError. Not for several threads at once.

    `key`: where the daemon asks for one. `timeout`: the seconds to wait for a sign of the daemon; a long upload may
    take longer. `connect_timeout`: the seconds to connect, no longer than `timeout`. Raises BadUrl, BadKey.
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
        """Connect now instead of with the first call. Raises NoDaemon."""
        self._http.connect()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def submit(
        self, path: Path, options: Mapping[str, object], pipeline: str | None = None, labels: Mapping[str, str] = {}
    ) -> str:
        """Upload a file, in pieces, for the daemon to run; the id of the job. Raises OSError when it cannot be read.

        `options` may have a `priority`: low, normal or high.
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
        """One job, as the API gives it."""
        return self._call("GET", job_path(job_id))

    def jobs(self, *, limit: int = 50, **filters: str | None) -> list[dict[str, Any]]:
        """The newest jobs, as the API gives them; `filters`: status, kind and label=NAME=VALUE, unless None."""
        given = {name: value for name, value in filters.items() if value is not None}
        query = urlencode({"limit": limit, **given}, errors="replace")
        jobs: list[dict[str, Any]] = self._call("GET", f"/api/jobs?{query}")["jobs"]
        return jobs

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; the job as it is now."""
        return self._call("DELETE", job_path(job_id))

    def purge(self, job_id: str) -> dict[str, Any]:
        """Delete a finished job and its files; the job as it was."""
        return self._call("DELETE", f"{job_path(job_id)}?purge=true")

    def retry(self, job_id: str) -> str:
        """Have a job that failed or was cancelled run again; the id of the new job."""
        return str(self._call("POST", f"{job_path(job_id)}/retry")["job_id"])

    def register(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Register a job to report on; the job as it is, should there be one with this id."""
        return self._post("/api/jobs", job)

    def report(self, job_id: str, event: Mapping[str, Any]) -> None:
        """Report an event of a job."""
        self._post(f"{job_path(job_id)}/events", event)

    def exchange(self, events: Sequence[Event]) -> list[EventAnswer]:
        """Report events, and wait until they are durable; the answer to each."""
        headers = {"Content-Type": "application/x-ndjson"}
        body = self._http.request("POST", "/api/events", _encode_lines(events), headers, MAX_ANSWERS)
        answers = self._decoded(_decode_answers, body)
        if len(answers) != len(events):
            raise ClientError(f"{self.url} answered {len(answers)} events instead of {len(events)}")
        return answers

    def _post(self, path: str, what: Mapping[str, Any]) -> dict[str, Any]:
        return self._call("POST", path, msgspec.json.encode(what), {"Content-Type": "application/json"})

    def _call(
        self, method: str, path: str, body: bytes | Iterable[bytes] | None = None, headers: Mapping[str, str] = {}
    ) -> dict[str, Any]:
        return self._decoded(_decode_object, self._http.request(method, path, body, headers))

    def _decoded(self, decode: Callable[[bytes], T], body: bytes) -> T:
        try:
            return decode(body)
        except UNDECODABLE:
            raise ClientError(f"what answers at {self.url} is not progressd: it sent no JSON") from None
