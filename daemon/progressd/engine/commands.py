"""The commands in the queue of ingest. Their senders wait for the outcomes."""

from collections.abc import Sequence
from typing import Final, TypeAlias

import trio

from progressd.core.errors import ProgressdError
from progressd.core.events import Event
from progressd.core.job import Job, MaySee

Outcome: TypeAlias = Job | ProgressdError

_UNDECIDED: Final = ProgressdError("undecided")


class _Answered:
    """A command in the queue. `outcomes` are complete when `answer` is called."""

    __slots__ = ("_answered", "outcomes")

    def __init__(self, count: int) -> None:
        self.outcomes: list[Outcome] = [_UNDECIDED] * count
        self._answered = trio.Event()

    def answer(self) -> None:
        """End the wait for the outcomes."""
        self._answered.set()

    async def answered(self) -> list[Outcome]:
        """Wait for the outcomes."""
        await self._answered.wait()
        return self.outcomes


class Submit(_Answered):
    """Apply the events of one producer. Jobs that the producer may not see do not exist for it.

    `undecided`: the number of events without an outcome.
    """

    __slots__ = ("events", "may_see", "undecided")

    def __init__(self, events: Sequence[Event], may_see: MaySee) -> None:
        super().__init__(len(events))
        self.events = events
        self.may_see = may_see
        self.undecided = len(events)

    def decide(self, index: int, outcome: Outcome) -> None:
        """Set the outcome of one event."""
        self.outcomes[index] = outcome
        self.undecided -= 1


class Delete(_Answered):
    """Delete a finished job."""

    __slots__ = ("job",)

    def __init__(self, job: Job) -> None:
        super().__init__(1)
        self.job = job


class Barrier(_Answered):
    """A command without effect. It is answered when ingest takes it from the queue."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(0)


Command: TypeAlias = Submit | Delete | Barrier
Submitted: TypeAlias = tuple[Submit, int, Event]
"""An event, with its command and its place in it."""
