"""The address and key of a daemon, and the delay between two connection attempts."""

from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlencode, urlsplit, urlunsplit

from progressd import __version__
from progressd.client.errors import InvalidKey, InvalidURL

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEFAULT_URL: Final = "http://127.0.0.1:8080"
MIN_DELAY: Final = 0.5  # seconds
MAX_DELAY: Final = 30.0  # seconds
MAX_LOCAL_DELAY: Final = 2.0  # seconds, for a daemon on the same machine


def checked_url(url: str) -> str:
    """Return the URL without a trailing slash. Raises InvalidURL unless it is HTTP or HTTPS, without a query."""
    try:
        parts = urlsplit(url)
        valid_port = parts.port is None or parts.port > 0
    except ValueError:
        parts, valid_port = urlsplit(""), False
    if parts.scheme not in ("http", "https") or not parts.hostname or not valid_port or parts.query:
        raise InvalidURL(f"{url!r} is not the address of a daemon: use a URL such as {DEFAULT_URL}")
    return urlunsplit(parts._replace(path=parts.path.rstrip("/"), fragment=""))


def on_this_machine(url: str) -> bool:
    """Return whether the URL is on a loopback address. `url`: "" for a Unix socket."""
    host = urlsplit(url).hostname or ""
    return host in ("", "localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdecimal())


def job_path(job_id: str) -> str:
    """Return the path of a job in the REST API."""
    return f"/api/jobs/{_quoted(job_id)}"


def stream_url(url: str, job_id: str | None, query: "Mapping[str, str]", *, log: bool = False) -> str:
    """Return the WebSocket URL of one job, of its log, or of all jobs. Raises InvalidURL."""
    parts = urlsplit(checked_url(url))
    path = f"{parts.path}/ws/jobs" + (f"/{_quoted(job_id)}" if job_id is not None else "") + ("/log" if log else "")
    return urlunsplit(("wss" if parts.scheme == "https" else "ws", parts.netloc, path, urlencode(query), ""))


def no_daemon(url: str, *, reached: bool = False) -> str:
    """Return the error for a connection that failed; `reached`: a daemon has answered at this URL before."""
    return f"no daemon answers at {url}{'' if reached else '; start one with: progressd serve'}"


def request_headers(url: str, key: str | None) -> dict[str, str]:
    """Return the headers of a request: the key (RFC 6750 §2.1), or the user name and password in the URL.

    A proxy in front of the daemon may require a user name and password (RFC 7617 §2). Raises InvalidKey.
    """
    headers = {"User-Agent": f"progressd/{__version__}"}
    parts = urlsplit(url)
    if key is not None:
        headers["Authorization"] = f"Bearer {_checked_key(key, 'the key')}"
    elif parts.username is not None:
        from base64 import b64encode

        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {b64encode(user.encode()).decode()}"
    return headers


def read_key(path: "Path") -> str:
    """Return the key in a file, without surrounding white space. Raises InvalidKey."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidKey(f"{path} does not contain a key") from None
    except OSError as error:
        raise InvalidKey(f"cannot read the key in {path}: {error.strerror}") from None
    return _checked_key(text.strip(), f"the key in {path}")


def backoff(failures: int, max_delay: float = MAX_DELAY) -> float:
    """Return the seconds to wait after `failures` failures in a row, randomized so that clients spread out."""
    import random

    delay = min(max_delay, MIN_DELAY * 2 ** min(failures, 16))
    return random.uniform(delay / 2, delay)  # noqa: S311, not a secret


def _quoted(job_id: str) -> str:
    return quote(job_id, safe="", errors="replace")


def _checked_key(key: str, name: str) -> str:
    """Return the key if it is valid in a header. Check it here, because the HTTP library's error would contain it."""
    if not key:
        raise InvalidKey(f"{name} is empty")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidKey(f"{name} is invalid: it contains spaces or other characters that a key cannot have")
    return key
