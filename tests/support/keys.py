"""API keys for tests, and their headers."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from progressd.auth.api_keys import Key, Scope, add_key, hashed, new_secret, revoke_key

SECRET: Final = re.compile(r"pgd_[\w-]{43}|eyJ[\w-]+\.eyJ[\w-]+\.[\w-]{43}")
"""A key or a watch token. A daemon must not log either."""


def add(path: Path, name: str, *scopes: str, expires: float | None = None, **labels: str) -> str:
    """Add a key to a keys file, and return it. `expires` is in seconds from now."""
    secret, now = new_secret(), datetime.now(UTC)
    end = None if expires is None else now + timedelta(seconds=expires)
    given = [Scope(scope) for scope in scopes or ("read",)]
    add_key(path, Key(name=name, hash=hashed(secret), scopes=given, created_at=now, expires_at=end, labels=labels))
    return secret


def bearer(secret: str) -> dict[str, str]:
    """Return the header with this key."""
    return {"Authorization": f"Bearer {secret}"}


def revoke(path: Path, name: str) -> None:
    """Delete a key."""
    revoke_key(path, name)
