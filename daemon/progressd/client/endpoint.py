"""The address of a daemon and the key for it."""

from base64 import b64encode
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from progressd.client.errors import InvalidKey, InvalidURL

DEFAULT_URL: Final = "http://127.0.0.1:8080"


def checked_url(url: str) -> str:
    """The address without a slash at its end. Raises InvalidURL unless it is one of HTTP or HTTPS, without a query."""
    try:
        parts = urlsplit(url)
        port_is_possible = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_possible = urlsplit(""), False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_possible or parts.query:
        raise InvalidURL(f"{url!r} is not the address of a daemon: expected one such as {DEFAULT_URL}")
    return urlunsplit(parts._replace(path=parts.path.rstrip("/"), fragment=""))


def job_path(job_id: str) -> str:
    """The path of a job in the REST API."""
    return f"/api/jobs/{quote(job_id, safe='', errors='replace')}"


def stream_url(url: str, job_id: str | None, since: str | None) -> str:
    """The WebSocket with the messages of one job, or of all, newer than a cursor. Raises InvalidURL."""
    parts = urlsplit(checked_url(url))
    path = f"{parts.path}/ws/jobs" + (f"/{quote(job_id, safe='', errors='replace')}" if job_id is not None else "")
    query = urlencode({"since": since}) if since is not None else ""
    return urlunsplit(("wss" if parts.scheme == "https" else "ws", parts.netloc, path, query, ""))


def no_daemon(url: str, *, reached: bool = False) -> str:
    """The sentence for when nothing answers; `reached`: a daemon has answered there before."""
    return f"no daemon answers at {url}{'' if reached else '; start one with: progressd serve'}"


def credentials(key: str | None) -> dict[str, str]:
    """The headers that carry the key, if there is one (RFC 6750 §2.1). Raises InvalidKey."""
    return {} if key is None else {"Authorization": f"Bearer {_checked(key, 'the key')}"}


def basic(username: str, password: str) -> dict[str, str]:
    """Return the header that carries a user name and a password (RFC 7617 §2)."""
    return {"Authorization": f"Basic {b64encode(f'{username}:{password}'.encode()).decode()}"}


def read_key(path: Path) -> str:
    """The key that a file has, and nothing else but white space around it. Raises InvalidKey."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidKey(f"{path} has no key in it, but something else") from None
    except OSError as error:
        raise InvalidKey(f"the key in {path} cannot be read: {error.strerror}") from None
    return _checked(text.strip(), f"the key in {path}")


def _checked(key: str, what: str) -> str:
    """The key, if it can stand in a header: what cannot would be named in an error of the library that sends it."""
    if not key:
        raise InvalidKey(f"{what} is empty")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidKey(f"{what} is none: there are spaces or other characters in it that no key has")
    return key
