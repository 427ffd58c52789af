"""The identity of a client, and the one function that authorizes it."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from msgspec import Struct

from progressd.core.errors import OutOfScope, Unauthorized
from progressd.core.job import Job, has_labels
from progressd.core.messages import ALL_JOBS, batch_topic, job_topic


class Scope(StrEnum):
    """A right: read jobs; submit, report and cancel them; or all rights."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


class Identity(Struct, frozen=True, kw_only=True):
    """An identity. With `labels`, it sees only jobs that have all of them; with `topic`, only that topic."""

    name: str | None = None  # name of the key
    scopes: frozenset[Scope] = frozenset()
    labels: Mapping[str, str] = {}
    topic: str | None = None
    expires_at: datetime | None = None
    key: str = ""  # the key's hash
    token: str = ""  # the watch token's hash

    @property
    def bound(self) -> bool:
        """Return whether some jobs may be hidden from this identity."""
        return bool(self.labels) or not self.may_watch_all

    @property
    def may_watch_all(self) -> bool:
        """Return whether it may watch more than one topic."""
        return self.topic in (None, ALL_JOBS)

    def may_see(self, job: Job) -> bool:
        """Return whether the job exists for this identity."""
        topics = (None, ALL_JOBS, job_topic(job.id), batch_topic(job.batch_id or ""))
        return self.topic in topics and has_labels(job.labels, self.labels)


UNRESTRICTED: Final = Identity(scopes=frozenset(Scope))
"""A client without a key, where the daemon requires none."""

ANONYMOUS: Final = Identity()
"""A client without a key, where the daemon requires one."""


class Client(NamedTuple):
    """The sender of a request or receiver of a stream: its own address, even behind proxies, and its identity."""

    address: str
    identity: Identity
    publishes: bool = False


def require(identity: Identity, action: Scope) -> None:
    """Check that an identity has the right `action`. Raises Unauthorized, OutOfScope."""
    if not identity.scopes:
        raise Unauthorized("a key is required: send it as Authorization: Bearer KEY, or as X-API-Key")
    if action not in identity.scopes and Scope.ADMIN not in identity.scopes:
        scopes = ", ".join(sorted(identity.scopes))
        raise OutOfScope(f"the scope {action} is required: this key has {scopes}")
