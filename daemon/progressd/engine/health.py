"""The health of the store, as ingest and the follower see it."""

import structlog
from prometheus_client import Histogram

from progressd.core.errors import StoreFailed
from progressd.system.condition import Condition

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
        self._changed = Condition()

    def failed(self, failure: StoreFailed) -> None:
        """Record that the store rejected a change."""
        self._set(failure)

    def recovered(self) -> None:
        """Record that the store accepted a change."""
        if self.failure is not None:
            log.info("the database accepts changes again")
            self._set(None)

    async def wait_changed(self, known: StoreFailed | None) -> StoreFailed | None:
        """Return the failure, or None, once it differs from `known`."""
        await self._changed.wait_for(lambda: str(self.failure) != str(known))
        return self.failure

    def _set(self, failure: StoreFailed | None) -> None:
        self.failure = failure
        self._changed.notify()
