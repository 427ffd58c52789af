"""HTTP requests to one daemon, over one connection that is opened when it is needed."""

import encodings.idna  # noqa: F401, looking up a host imports it, and see way_to_daemon
import select
from collections.abc import Iterable, Mapping
from contextlib import closing
from http.client import (
    BadStatusLine,
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    IncompleteRead,
    RemoteDisconnected,
)
from http.client import InvalidURL as MalformedURL
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from progressd import __version__
from progressd.client import tls
from progressd.client.endpoint import basic, checked_url, credentials, no_daemon
from progressd.client.errors import APIError, ClientError, ConnectError, InvalidURL, ResponseTimeout

MAX_BODY: Final = 256 << 20  # bytes of an answer


class HTTPClient:
    """Send requests to the daemon at `url`. Not for several threads at once.

    `key`: for a daemon that requires one. `timeout`: seconds to wait for each part of an answer. `connect_timeout`:
    seconds to connect to one address of the host. Raises InvalidURL, InvalidKey.
    """

    def __init__(self, url: str, key: str | None, timeout: float, connect_timeout: float) -> None:
        parts = urlsplit(checked_url(url))
        self.url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self._path = parts.path
        self._timeout = timeout
        self._answered = False
        self._idle = False  # between two requests
        # An answer is not compressed: the client asks for none of the encodings.
        self._headers = {"User-Agent": f"progressd/{__version__}", "Accept-Encoding": "identity", **credentials(key)}
        if key is None and parts.username is not None:  # for a proxy in front of the daemon
            self._headers |= basic(unquote(parts.username), unquote(parts.password or ""))
        wait = min(timeout, connect_timeout)
        try:
            self._http = (
                HTTPConnection(parts.hostname or "", parts.port, timeout=wait)
                if parts.scheme == "http"
                else HTTPSConnection(parts.hostname or "", parts.port, timeout=wait, context=tls.context())
            )
        except MalformedURL as error:
            raise InvalidURL(f"{url!r} is not the address of a daemon: {error}") from None

    def close(self) -> None:
        """Close the connection; another request opens a new one."""
        self._http.close()

    def connect(self) -> None:
        """Connect, unless that is so already. Raises ConnectError."""
        if self._http.sock is not None and not (self._idle and _readable(self._http)):
            return
        self.close()  # the daemon has closed it, such as for having been idle
        self._idle = False
        try:
            self._http.connect()
            self._http.sock.settimeout(self._timeout)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label of the host name is too long
            self.close()
            raise ConnectError(tls.complaint(error, self.url) or no_daemon(self.url, reached=self._answered)) from None

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] = {},
        max_body: int = MAX_BODY,
    ) -> bytes:
        """Return the body of the answer. Raises ConnectError, ResponseTimeout, APIError or another ClientError.

        Args:
            body: Its headers name its length, unless it is `bytes`.
            max_body: The bytes that the answer may have.
        """
        self.connect()
        self._idle = False
        try:
            with closing(self._exchange(method, f"{self._path}{path}", body, {**self._headers, **headers})) as response:
                answer = response.read(max_body + 1)
                if len(answer) > max_body:
                    sent = f"it sent more than {max_body} bytes"
                    raise ClientError(f"what answers at {self.url} is not progressd: {sent}")
                if response.length:
                    raise IncompleteRead(answer, response.length)
            self._idle = True
        except TimeoutError:
            raise ResponseTimeout(f"{self.url} gave no answer within {self._timeout:g} seconds") from None
        except (OSError, HTTPException) as error:
            raise self._broken(error) from None
        finally:
            if not self._idle:
                self.close()
        if not 200 <= response.status < 300:
            refused = APIError.answered(response.status, answer, response.headers.get("Retry-After"), self.url)
            self._answered = self._answered or bool(refused.code)
            raise refused
        self._answered = True
        return answer

    def _exchange(
        self, method: str, target: str, body: bytes | Iterable[bytes] | None, headers: Mapping[str, str]
    ) -> HTTPResponse:
        # A daemon that rejects a request may answer and close before it has read the body.
        try:
            self._http.request(method, target, body, headers)
        except TimeoutError:
            raise
        except OSError:
            pass
        return self._http.getresponse()

    def _broken(self, error: Exception) -> ClientError:
        if isinstance(error, BadStatusLine) and not isinstance(error, RemoteDisconnected):
            return ClientError(f"what answers at {self.url} is not progressd: it speaks no HTTP (TLS needs https://)")
        return ResponseTimeout(f"the connection to {self.url} broke: {error}")


def _readable(http: HTTPConnection) -> bool:
    """Return whether there is something to read, which between two requests is the end of the connection."""
    poll = select.poll()
    poll.register(http.sock, select.POLLIN)
    return bool(poll.poll(0))
