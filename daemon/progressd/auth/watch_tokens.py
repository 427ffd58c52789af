"""Watch tokens: JWTs (RFC 7519) that let their holder watch one topic for a short time.

They are for clients that cannot send a header: a browser's WebSocket, EventSource or link.
"""

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import jwt

from progressd.core.errors import SettingsError, TokenExpired, Unauthorized
from progressd.system.fs import new_file, read_regular, sync

ALGORITHM: Final = "HS256"
AUDIENCE: Final = "progressd:watch"
SECRET_BYTES: Final = 32


class TokenClaims(NamedTuple):
    """The content of a valid token: the topic, the expiry, and the name and hash of the key that made it, if any.

    `logs`: whether the token allows reading logs.
    """

    topic: str
    expires_at: datetime
    name: str
    key: str
    logs: bool = False


def secret_from(path: Path) -> str:
    """Return the secret in a file. Create the file if it does not exist. Raises SettingsError."""
    try:
        if not path.exists():
            _create(path)
        text = read_regular(path).decode("ascii").strip()
    except OSError as error:
        raise SettingsError(f"cannot use the token secret in {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    if len(text) < SECRET_BYTES:
        raise SettingsError(f"the token secret in {path} is damaged: delete the file to create a new one")
    return text


def _create(path: Path) -> None:
    """Create the file atomically, even against another process or a power failure."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(new_file(new), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(new, path)
    except FileExistsError:
        pass
    finally:
        new.unlink(missing_ok=True)
    sync(path.parent)


def new_token(
    secret: str, topic: str, expires_at: datetime, name: str = "", key: str = "", *, logs: bool = False
) -> str:
    """Return a signed token for a topic; `name` and `key`: of the key that makes it. `logs`: allow reading logs."""
    claims = {"aud": AUDIENCE, "sub": topic, "iat": datetime.now(UTC), "exp": expires_at, "name": name, "key": key}
    return jwt.encode({**claims, "logs": True} if logs else claims, secret, ALGORITHM)


def read_token(secret: str, token: str) -> TokenClaims:
    """Return a token's claims. Raises TokenExpired, or Unauthorized for an invalid token."""
    try:
        required = ["aud", "sub", "exp", "name", "key"]
        claims = jwt.decode(token, secret, [ALGORITHM], audience=AUDIENCE, options={"require": required})
    except jwt.ExpiredSignatureError:
        raise TokenExpired("the token has expired") from None
    except (jwt.InvalidTokenError, RecursionError, UnicodeEncodeError):  # a header nested too deeply, or not UTF-8
        raise Unauthorized("invalid token") from None
    end = datetime.fromtimestamp(claims["exp"], UTC)
    return TokenClaims(claims["sub"], end, claims["name"], claims["key"], claims.get("logs") is True)
