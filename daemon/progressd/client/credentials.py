"""The key to a daemon that asks for one: from a file, checked, and as the header of a request; never in an error."""

from base64 import b64encode
from pathlib import Path

from progressd.client.errors import BadKey


def credentials(key: str | None) -> dict[str, str]:
    """The headers that carry the key, if there is one (RFC 6750 §2.1). Raises BadKey."""
    return {} if key is None else {"Authorization": f"Bearer {_checked(key, 'the key')}"}


def basic(username: str, password: str) -> dict[str, str]:
    """Return the header that carries a user name and a password (RFC 7617 §2)."""
    return {"Authorization": f"Basic {b64encode(f'{username}:{password}'.encode()).decode()}"}


def read_key(path: Path) -> str:
    """The key that a file has, and nothing else but white space around it. Raises BadKey."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadKey(f"{path} has no key in it, but something else") from None
    except OSError as error:
        raise BadKey(f"the key in {path} cannot be read: {error.strerror}") from None
    return _checked(text.strip(), f"the key in {path}")


def _checked(key: str, what: str) -> str:
    """The key, if it can stand in a header: what cannot would be named in an error of the library that sends it."""
    if not key:
        raise BadKey(f"{what} is empty")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise BadKey(f"{what} is none: there are spaces or other characters in it that no key has")
    return key
