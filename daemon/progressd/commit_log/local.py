"""The log of a single daemon: an appended entry is applied at once, and the store makes it durable."""

from collections.abc import Awaitable, Callable, Sequence

from progressd.commit_log.base import Entry, Placement


class LocalLog:
    """A log without a server. `apply`: the method of the follower."""

    def __init__(self, apply: Callable[[Sequence[Entry]], Awaitable[list[Placement]]]) -> None:
        self._apply = apply

    async def append(self, entry: Entry) -> Placement:
        """See Log."""
        [placement] = await self._apply([entry])
        return placement
