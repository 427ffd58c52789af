"""Keys for a daemon under test, and the headers that carry them."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from progressd.auth.api_keys import Key, add_key, hashed, new_secret, revoke_key
from progressd.auth.identity import Scope

SECRET: Final = re.compile(r"pgd_[\w-]{43}|eyJ[\w-]+\.eyJ[\w-]+\.[\w-]{43}")
"""A key, or a watch token: neither may be in what a daemon logs."""


def add(path: Path, name: str, *scopes: str, expires: float | None = None, **labels: str) -> str:
    """Write a key to a file of keys; `expires` in so many seconds. The key."""
    secret, now = new_secret(), datetime.now(UTC)
    end = None if expires is None else now + timedelta(seconds=expires)
    given = [Scope(scope) for scope in scopes or ("read",)]
    add_key(path, Key(name=name, hash=hashed(secret), scopes=given, created_at=now, expires_at=end, labels=labels))
    return secret


def bearer(secret: str) -> dict[str, str]:
    """The header of a request with this key."""
    return {"Authorization": f"Bearer {secret}"}


def revoke(path: Path, name: str) -> None:
    """Delete a key."""
    revoke_key(path, name)
