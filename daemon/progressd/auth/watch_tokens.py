"""Watch tokens: for a short while, whoever holds one may look at one topic. They are JWTs (RFC 7519), signed here.

They are for what cannot send a header: a browser's WebSocket, its EventSource and its links.
"""

import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import jwt

from progressd.auth.identity import Identity
from progressd.core.errors import SettingsError, TokenExpired, Unauthorized
from progressd.system.fs import new_file, read_regular

ALGORITHM: Final = "HS256"
AUDIENCE: Final = "progressd:watch"
BYTES: Final = 32  # of the secret


class TokenClaims(NamedTuple):
    """What a good token says: the topic, until when, and the name and hash of the key it was made with, if any."""

    topic: str
    expires_at: datetime
    name: str
    key: str


def secret_from(path: Path) -> str:
    """The secret in a file, which is made where there is none. Raises SettingsError."""
    try:
        if not path.exists():
            _make(path)
        text = read_regular(path).decode("ascii").strip()
    except OSError as error:
        raise SettingsError(f"the secret of tokens in {path} cannot be used: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    if len(text) < BYTES:
        raise SettingsError(f"the secret of tokens in {path} is damaged: delete the file, and another one is made")
    return text


def _make(path: Path) -> None:
    """Whole or not at all, also when another process is at it, and after a power cut."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(new_file(new), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(new, path)
    except FileExistsError:
        pass
    finally:
        new.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def new_token(secret: str, topic: str, expires_at: datetime, who: Identity) -> str:
    """A token for a topic, made by `who`."""
    claims = {
        "aud": AUDIENCE,
        "sub": topic,
        "iat": datetime.now(UTC),
        "exp": expires_at,
        "name": who.name or "",
        "key": who.key,
    }
    return jwt.encode(claims, secret, ALGORITHM)


def read_token(secret: str, token: str) -> TokenClaims:
    """What a token says. Raises TokenExpired, or Unauthorized for one that is not from here."""
    try:
        required = ["aud", "sub", "exp", "name", "key"]
        claims = jwt.decode(token, secret, [ALGORITHM], audience=AUDIENCE, options={"require": required})
    except jwt.ExpiredSignatureError:
        raise TokenExpired("the token has expired") from None
    except (jwt.InvalidTokenError, RecursionError, UnicodeEncodeError):  # of a header nested too deeply; of no text
        raise Unauthorized("this token is not good here") from None
    return TokenClaims(claims["sub"], datetime.fromtimestamp(claims["exp"], UTC), claims["name"], claims["key"])


def lifetime_of(who: Identity, seconds: float) -> datetime:
    """The end of a token: after so many seconds, and not after its maker's."""
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
    return end if who.expires_at is None else min(end, who.expires_at)
