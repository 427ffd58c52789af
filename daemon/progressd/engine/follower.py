"""The follower: puts what the log has made durable into memory, and publishes it in order."""

import structlog

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
        """Show what a transaction has changed; waits while a topic's channel is full."""
        if transaction.changes:
            self._counters.count(transaction.changes, transaction.batches_with_new_status())
        for job in transaction.jobs.values():
            self._registry.keep(job, transaction.messages[job.id])
        self._leases.keep(transaction.jobs.values())
        for batch in transaction.batches.values():
            self._batches.keep(batch)
        for envelope in transaction.published:
            await self._broadcaster.publish(envelope)
        for change in transaction.changes:
            log_change(change.message)

    async def apply_deletion(self, job: Job, deletion: Deletion) -> None:
        """Show that a job was deleted."""
        self._registry.forget([job.id], deletion.offset)
        await self._broadcaster.publish(Envelope(deletion.offset, deletion.message, job.labels))
        log.info("job deleted", job_id=job.id)
