"""The follower: applies durable changes to the state in memory, and publishes them in order."""

from typing import Final

import structlog
import trio

from progressd.broadcast.broadcaster import Broadcaster
from progressd.broadcast.envelope import Envelope
from progressd.core.job import Job
from progressd.engine.batches import Batches
from progressd.engine.counters import Counters
from progressd.engine.leases import LeaseTimer
from progressd.engine.registry import Registry
from progressd.engine.transaction import Transaction
from progressd.store.base import Deletion
from progressd.system.log import log_change

STEP: Final = 25  # jobs or log lines per pass of the event loop; 25 finished jobs with 64 KiB of options take 10 ms

log = structlog.get_logger(__name__)


class Follower:
    """The only writer of the registry, the batches and the leases."""

    def __init__(
        self,
        registry: Registry,
        batches: Batches,
        leases: LeaseTimer,
        broadcaster: Broadcaster,
        counters: Counters,
    ) -> None:
        self._registry = registry
        self._batches = batches
        self._leases = leases
        self._broadcaster = broadcaster
        self._counters = counters

    async def apply(self, transaction: Transaction) -> None:
        """Make the changes of a transaction visible. Waits while the channel of a topic is full."""
        if transaction.changes:
            self._counters.count(transaction.changes, transaction.batches_with_new_status())
        self._leases.keep(transaction.jobs.values())
        for number, job in enumerate(transaction.jobs.values(), 1):
            self._registry.keep(job, transaction.messages[job.id])
            if number % STEP == 0:
                await trio.lowlevel.checkpoint()  # let other tasks run
        for batch in transaction.batches.values():
            self._batches.keep(batch)
        for envelope in transaction.published:
            await self._broadcaster.publish(envelope)
        for number, change in enumerate(transaction.changes, 1):
            log_change(change.message)
            if number % STEP == 0:
                await trio.lowlevel.checkpoint()

    async def apply_deletion(self, job: Job, deletion: Deletion) -> None:
        """Make the deletion of a job visible."""
        self._registry.forget([job.id], deletion.offset)
        await self._broadcaster.publish(Envelope(deletion.offset, deletion.message, job.labels))
        log.info("job deleted", job_id=job.id)
