"""HTTP requests to one daemon, over one connection that opens on demand; and the TLS context of all clients."""

import encodings.idna  # noqa: F401, name resolution imports it, and the reporter's thread must not import
import select
import ssl
from collections.abc import Iterable, Iterator, Mapping
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
from urllib.parse import urlsplit, urlunsplit

from progressd.client.endpoint import checked_url, no_daemon, request_headers
from progressd.client.errors import APIError, ClientError, ConnectError, InvalidURL, ResponseTimeout

MAX_BODY: Final = 256 << 20  # bytes of a response
NO_ISSUER: Final = frozenset({18, 19, 20, 21})  # OpenSSL's X509_V_ERR_… for a certificate without a trusted issuer
NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING"})


class HTTPClient:
    """Send requests to the daemon at `url`. It is not thread-safe.

    `key`: for a daemon that requires one. `timeout`: seconds to wait for each part of a response. `connect_timeout`:
    seconds to connect to one address of the host. Raises InvalidURL, InvalidKey.
    """

    def __init__(self, url: str, key: str | None, timeout: float, connect_timeout: float) -> None:
        parts = urlsplit(checked_url(url))
        self.url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self._path = parts.path
        self._timeout = timeout
        self._reached = False  # a daemon has answered
        self._idle = False  # between two requests
        self._headers = {"Accept-Encoding": "identity", **request_headers(url, key)}
        connect_timeout = min(timeout, connect_timeout)
        try:
            self._http = (
                HTTPConnection(parts.hostname or "", parts.port, timeout=connect_timeout)
                if parts.scheme == "http"
                else HTTPSConnection(parts.hostname or "", parts.port, timeout=connect_timeout, context=tls_context())
            )
        except MalformedURL as error:
            raise InvalidURL(f"{url!r} is not the address of a daemon: {error}") from None

    def close(self) -> None:
        """Close the connection. The next request opens a new one."""
        self._http.close()

    def connect(self) -> None:
        """Connect, unless the connection is open. Raises ConnectError."""
        if self._http.sock is not None and not (self._idle and _readable(self._http)):
            return
        self.close()  # the daemon may have closed it because it was idle
        self._idle = False
        try:
            self._http.connect()
            self._http.sock.settimeout(self._timeout)
        except (OSError, UnicodeError) as error:  # UnicodeError: the host name has a label that is too long
            self.close()
            raise ConnectError(tls_error(error, self.url) or no_daemon(self.url, reached=self._reached)) from None

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] = {},
        max_body: int = MAX_BODY,
    ) -> bytes:
        """Return the body of the response. Raises ConnectError, ResponseTimeout, APIError or another ClientError.

        Args:
            body: The body of the request. Unless it is `bytes`, `headers` contain its length.
            max_body: The size limit of the response, in bytes.
        """
        self.connect()
        self._idle = False
        try:
            with closing(self._exchange(method, f"{self._path}{path}", body, {**self._headers, **headers})) as response:
                answer = response.read(max_body + 1)
                if len(answer) > max_body:
                    raise ClientError(f"{self.url} is not progressd: it sent more than {max_body} bytes")
                if response.length:
                    raise IncompleteRead(answer, response.length)
            self._idle = True
        except TimeoutError:
            raise ResponseTimeout(f"{self.url} did not answer within {self._timeout:g} seconds") from None
        except (OSError, HTTPException) as error:
            raise self._error_of(error) from None
        finally:
            if not self._idle:
                self.close()
        if not 200 <= response.status < 300:
            refused = APIError.from_response(response.status, answer, response.headers.get("Retry-After"), self.url)
            self._reached = self._reached or bool(refused.code)
            raise refused
        self._reached = True
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

    def _error_of(self, error: Exception) -> ClientError:
        if isinstance(error, BadStatusLine) and not isinstance(error, RemoteDisconnected):
            return ClientError(f"{self.url} is not progressd: it does not speak HTTP (TLS needs https://)")
        return ResponseTimeout(f"the connection to {self.url} broke: {error}")


def _readable(http: HTTPConnection) -> bool:
    """Return whether the socket is readable. Between two requests, this means that the daemon closed it."""
    poll = select.poll()
    poll.register(http.sock, select.POLLIN)
    return bool(poll.poll(0))


def tls_context() -> ssl.SSLContext:
    """Return a context that trusts the system's certificates, or the ones in SSL_CERT_FILE and SSL_CERT_DIR."""
    return ssl.create_default_context()


def tls_error(error: BaseException, url: str) -> str | None:
    """Return the message for a TLS error of a connection to `url`; None for any other error."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            hint = (
                " (set SSL_CERT_FILE=FILE to trust the certificate in a file)" if cause.verify_code in NO_ISSUER else ""
            )
            return f"the certificate of {url} is not trusted: {cause.verify_message.rstrip('.')}{hint}"
        if isinstance(cause, ssl.SSLError) and cause.reason in NO_TLS:
            return f"{url} does not speak TLS: use http://{urlsplit(url).netloc}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS with {url} failed: {(cause.reason or 'the connection broke').replace('_', ' ').lower()}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
