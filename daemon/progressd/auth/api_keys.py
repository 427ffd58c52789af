"""API keys. A JSON file stores their hashes and scopes, never the keys themselves.

A key has 256 random bits, so a plain SHA-256 is enough: a slow hash is only needed for passwords.
"""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from progressd.core.errors import InvalidInput, SettingsError
from progressd.core.json import UNDECODABLE, reason_of
from progressd.system.fs import new_file, read_regular

PREFIX: Final = "pgd_"  # people and secret scanners recognize a key by it

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]


class Scope(StrEnum):
    """A permission: `read` jobs; `write` (submit, report and cancel); `admin`, both."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


class Key(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The stored part of a key. Times are UTC."""

    name: Name
    hash: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[list[Scope], Meta(min_length=1)]
    created_at: datetime
    expires_at: datetime | None = None
    labels: dict[str, str] = {}


class _File(Struct, frozen=True):
    keys: list[Key] = []


_decode = msgspec.json.Decoder(_File).decode


def new_secret() -> str:
    """Return a new key in plain text."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(secret: str) -> str:
    """Return the hash of a key or token."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def read_keys(path: Path) -> list[Key]:
    """Return the keys in a file, or no keys if it does not exist. Raises SettingsError."""
    try:
        return _decode(read_regular(path)).keys
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SettingsError(f"cannot read the keys in {path}: {error.strerror}") from None
    except UNDECODABLE as error:
        raise SettingsError(f"the key file {path} is damaged: {reason_of(error)}") from None


def add_key(path: Path, key: Key) -> None:
    """Add a key. Raises InvalidInput if the name is taken, SettingsError."""
    with _changing(path) as keys:
        if key.name in keys:
            raise InvalidInput(f"the key {key.name} already exists: revoke it first, or choose another name")
        keys[key.name] = key


def revoke_key(path: Path, name: str) -> None:
    """Delete a key. Raises InvalidInput if there is no key of this name, SettingsError."""
    with _changing(path) as keys:
        if keys.pop(name, None) is None:
            raise InvalidInput(f"there is no key {name}")


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, Key]]:
    """Lock the file and yield its keys by name. Write them back at the end, all or nothing."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SettingsError(f"cannot use the directory {path.parent}: {error.strerror}") from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        keys = {key.name: key for key in read_keys(path)}
        yield keys
        _write(path, keys)
        os.fsync(directory)  # a power failure must not restore a revoked key
    except OSError as error:
        raise SettingsError(f"cannot write the keys to {path}: {error.strerror}") from None
    finally:
        os.close(directory)


def _write(path: Path, keys: Mapping[str, Key]) -> None:
    new = path.with_name(f"{path.name}.new")
    text = msgspec.json.format(msgspec.json.encode(_File(list(keys.values()))))
    new.unlink(missing_ok=True)
    try:
        with open(new_file(new, path if path.exists() else None), "wb") as file:
            file.write(text + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
