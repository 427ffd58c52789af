"""The REST API as function calls: submit, look up, list, cancel, try again; it waits for each answer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import msgspec

from progressd import __version__
from progressd.client import tls
from progressd.client.address import checked_url, job_path, no_daemon
from progressd.client.backlog import Answer, Event
from progressd.client.credentials import credentials
from progressd.client.errors import ClientError, NoAnswer, NoDaemon, Refused
from progressd.core.decoding import UNDECODABLE

ANSWER_TIMEOUT: Final = 60.0  # seconds
CONNECT_TIMEOUT: Final = 10.0  # seconds

T = TypeVar("T")

_encode_lines = msgspec.json.Encoder().encode_lines
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_decode_answers = msgspec.json.Decoder(Answer).decode_lines


class RestClient:
    """One daemon. Every call raises NoDaemon, Refused or another ClientError. Not for several threads at once.

    `key`: where the daemon asks for one. `timeout`: the seconds to wait for a sign of the daemon; a long upload may
    take longer. Raises BadUrl, BadKey.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout: float = ANSWER_TIMEOUT) -> None:
        self.url = checked_url(url)
        self.key = key
        self._timeout = timeout
        self._reached = False  # somebody has answered
        # no proxy from the environment, or a daemon on this very host would be asked for through one
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
            trust_env=False,
            verify=tls.context(),
            headers={"User-Agent": f"progressd/{__version__}", **credentials(key)},
        )

    def __enter__(self) -> "RestClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave; no call is possible any more."""
        self._http.close()

    def submit(
        self, path: Path, options: Mapping[str, object], pipeline: str | None = None, labels: Mapping[str, str] = {}
    ) -> str:
        """Upload a file, in pieces, for the daemon to run; the id of the job. Raises OSError when it cannot be read.

        `options` may have a `priority`: low, normal or high.
        """
        with path.open("rb") as file:
            answer = self._call(
                "POST",
                "/api/convert",
                params={"pipeline": pipeline} if pipeline else None,
                files={"file": (path.name, file, "application/octet-stream")},
                data={
                    name: msgspec.json.encode(given).decode()
                    for name, given in (("options", options), ("labels", labels))
                    if given
                },
            )
        return str(answer["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """One job, as the API gives it."""
        return self._call("GET", job_path(job_id))

    def jobs(self, *, limit: int = 50, **filters: str | None) -> list[dict[str, Any]]:
        """The newest jobs, as the API gives them; `filters`: status, kind and label=NAME=VALUE, unless None."""
        query = {"limit": limit, **{name: value for name, value in filters.items() if value is not None}}
        jobs: list[dict[str, Any]] = self._call("GET", "/api/jobs", params=query)["jobs"]
        return jobs

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; the job as it is now."""
        return self._call("DELETE", job_path(job_id))

    def purge(self, job_id: str) -> dict[str, Any]:
        """Delete a finished job and its files; the job as it was."""
        return self._call("DELETE", job_path(job_id), params={"purge": "true"})

    def retry(self, job_id: str) -> str:
        """Have a job that failed or was cancelled run again; the id of the new job."""
        return str(self._call("POST", f"{job_path(job_id)}/retry")["job_id"])

    def register(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Register a job to report on; the job as it is, should there be one with this id."""
        return self._call("POST", "/api/jobs", json=job)

    def report(self, job_id: str, event: Mapping[str, Any]) -> None:
        """Report an event of a job."""
        self._call("POST", f"{job_path(job_id)}/events", json=event)

    def exchange(self, events: Sequence[Event]) -> list[Answer]:
        """Report events, and wait until they are durable; the answer to each."""
        headers = {"Content-Type": "application/x-ndjson"}
        body = self._request("POST", "/api/events", content=_encode_lines(events), headers=headers)
        answers = self._decoded(_decode_answers, body)
        if len(answers) != len(events):
            raise ClientError(f"{self.url} answered {len(answers)} events instead of {len(events)}")
        return answers

    def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        return self._decoded(_decode_object, self._request(method, path, **request))

    def _decoded(self, decode: Callable[[bytes], T], body: bytes) -> T:
        try:
            return decode(body)
        except UNDECODABLE:
            raise ClientError(f"what answers at {self.url} is not progressd: it sent no JSON") from None

    def _request(self, method: str, path: str, **request: Any) -> bytes:
        try:
            response = self._http.request(method, f"{self.url}{path}", **request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NoDaemon(tls.complaint(error, self.url) or no_daemon(self.url, reached=self._reached)) from None
        except httpx.TimeoutException:
            raise NoAnswer(f"{self.url} gave no answer within {self._timeout:g} seconds") from None
        except httpx.TransportError as error:
            if not self._reached and (misplaced := tls.misplaced(self.url)):
                raise NoDaemon(misplaced) from None
            raise NoAnswer(f"the connection to {self.url} broke: {error}") from None
        self._reached = True
        if not response.is_success:
            raise Refused.answered(
                response.status_code, response.content, response.headers.get("Retry-After"), self.url
            )
        return response.content
