"""How producers hand in what they report, whoever takes it."""

from typing import Protocol, TypeAlias

from progressd.core.errors import ProgressdError
from progressd.core.events import Event
from progressd.core.job import Job
from progressd.system.pass_limiter import PassLimiter

Outcome: TypeAlias = Job | ProgressdError


class EventSink(Protocol):
    """Where producers hand in what they report."""

    store_id: str
    turns: PassLimiter  # of the clients that send events over HTTP and WebSockets; weights are in bytes

    async def submit(self, *events: Event) -> list[Outcome]:
        """Hand in events, in order, and wait until they are durable and published.

        For each, the job as it is then, or the error that refused it. Raises Unavailable when the daemon is stopping.
        """

    async def submit_one(self, event: Event) -> Job:
        """Hand in one event; the job as it is then. Raises what refused it."""
        [outcome] = await self.submit(event)
        if isinstance(outcome, ProgressdError):
            raise outcome
        return outcome
