"""Who asks, and the one function that decides what they may do."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final

from msgspec import Struct

from progressd.core.errors import NotFound, OutOfScope, Unauthorized
from progressd.core.job import Job, has_labels
from progressd.core.messages import ALL_JOBS, batch_topic, job_topic


class Scope(StrEnum):
    """What one may do: look on; submit, report and cancel; all of it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


class Identity(Struct, frozen=True, kw_only=True):
    """Who asks. Bound to `labels`, one has only to do with the jobs that have all of them; `topic`: only with that."""

    name: str | None = None  # of the key
    scopes: frozenset[Scope] = frozenset()
    labels: Mapping[str, str] = {}
    topic: str | None = None
    expires_at: datetime | None = None
    key: str = ""  # the hash of the key, as which it may be revoked
    token: str = ""  # the hash of the watch token

    @property
    def bound(self) -> bool:
        """Whether there may be jobs that it has nothing to do with."""
        return bool(self.labels) or not self.may_watch_all

    @property
    def may_watch_all(self) -> bool:
        """Return whether it may watch more than one topic."""
        return self.topic in (None, ALL_JOBS)

    def may_see(self, job: Job) -> bool:
        """Return whether the job exists for this identity."""
        topics = (None, ALL_JOBS, job_topic(job.id), batch_topic(job.batch_id or ""))
        return self.topic in topics and has_labels(job.labels, self.labels)


EVERYBODY: Final = Identity(scopes=frozenset(Scope))
"""Whoever comes without a key where none is required."""

NOBODY: Final = Identity()
"""Whoever comes without a key where one is required."""


def require(who: Identity, action: Scope, job: Job | None = None) -> None:
    """Whether `who` may do something of the kind `action`, to that job if it is about one.

    Raises Unauthorized, OutOfScope, or NotFound for a job that is none of theirs: as for one that does not exist.
    """
    if not who.scopes:
        raise Unauthorized("this takes a key: send it as Authorization: Bearer KEY, or as X-API-Key")
    if action not in who.scopes and Scope.ADMIN not in who.scopes:
        raise OutOfScope(f"this takes the scope {action}, and this key has {', '.join(sorted(who.scopes))}")
    if job is not None and not who.may_see(job):
        raise NotFound(f"no job {job.id}")
