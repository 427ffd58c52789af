"""The health of the store: whether it accepts changes, the duration of commits, and undecided offsets."""

import structlog
import trio
from prometheus_client import Histogram

from progressd.core.errors import StoreFailed

log = structlog.get_logger(__name__)


class StoreHealth:
    """The health of the store. `failure`: its last error; None while it accepts changes."""

    def __init__(self) -> None:
        self.failure: StoreFailed | None = None
        self.undecided_from: int | None = None  # first offset whose commit may or may not be on the disk
        self.commit_durations = Histogram(
            "progressd_store_commit_duration_seconds",
            "How long the store took to make a batch of events durable.",
            registry=None,
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
        )
        self._changed = trio.Event()

    def failed(self, failure: StoreFailed) -> None:
        """Record that the store rejected a change."""
        self._set(failure)

    def recovered(self) -> None:
        """Record that the store accepted a change."""
        if self.failure is not None:
            log.info("the store accepts changes again")
            self._set(None)

    def commit_undecided(self, offset: int) -> None:
        """Record that the first change of a failed commit, and all later ones, may or may not be on the disk."""
        if self.undecided_from is None:
            self.undecided_from = offset

    def commits_decided(self) -> None:
        """Record that a later commit succeeded, so that no commit is undecided."""
        self.undecided_from = None

    async def wait_changed(self, known: StoreFailed | None) -> StoreFailed | None:
        """Return the failure, or None, once it differs from `known`."""
        while str(self.failure) == str(known):
            await self._changed.wait()
        return self.failure

    def _set(self, failure: StoreFailed | None) -> None:
        changed = str(failure) != str(self.failure)
        self.failure = failure
        if changed:
            self._changed.set()
            self._changed = trio.Event()
