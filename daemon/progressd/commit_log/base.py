"""The entries of the commit log, and the protocol of a log.

An entry contains the state changes that one daemon has decided. It becomes valid when the follower applies it. Only
then do its messages have offsets, and watchers and producers learn of them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from progressd.core.eta import KeyedRun
from progressd.core.job import Job
from progressd.core.messages import JobMessage


class Part(Struct, frozen=True, array_like=True):
    """A changed job of an entry. `expected`: the job's offset when the change was decided; 0 for a new job.

    If the job has another offset when the entry is applied, the part is void. `run`: the record of a completed job.
    """

    expected: int
    job: Job
    batch_name: str = ""
    cancelled_with_batch: bool = False
    run: KeyedRun | None = None


class Entry(Struct, frozen=True, array_like=True):
    """State changes that were decided together. `messages` are those of all jobs, in order, without cursors."""

    parts: list[Part]
    messages: list[JobMessage]


class Placement(NamedTuple):
    """The result of applying an entry: the offset of each message, the changed jobs, and the ids of void parts."""

    offsets: Sequence[int]
    jobs: Mapping[str, Job]
    void: frozenset[str] = frozenset()


class Log(Protocol):
    """A log of entries."""

    async def append(self, entry: Entry) -> Placement:
        """Append an entry, and return once it was applied. Raises StoreFailed; then it will not be applied."""
