"""The batches: unfinished batches in memory, finished batches from the store. Only ingest changes them."""

from collections.abc import Collection, Mapping

from msgspec import UNSET
from msgspec.structs import replace

from progressd.broadcast.envelope import Envelope
from progressd.core.batch import JobBatch, batch_messages
from progressd.core.cursor import Cursor
from progressd.core.errors import NotFound
from progressd.store.base import Store


def placed_messages(batch: JobBatch, store_id: str) -> list[Envelope]:
    """Return the messages about the current state of the batch, with their offsets."""
    messages = batch_messages(batch)
    offsets = range(batch.offset - len(messages) + 1, batch.offset + 1)
    return [
        Envelope(offset, replace(message, cursor=str(Cursor(store_id, offset)), time=batch.moved_at or UNSET))
        for offset, message in zip(offsets, messages, strict=True)
    ]


class Batches:
    """The current batches by id."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unfinished: dict[str, JobBatch] = {}

    async def load(self) -> None:
        """Read the unfinished batches from the store."""
        self._unfinished = {batch.id: batch for batch in await self._store.unfinished_batches()}

    def unfinished(self, batch_id: str) -> JobBatch | None:
        """Return the batch; None if it has finished or does not exist."""
        return self._unfinished.get(batch_id)

    async def find(self, batch_id: str) -> JobBatch | None:
        """Return the batch; None if it does not exist."""
        return (await self.find_all([batch_id])).get(batch_id)

    async def find_all(self, ids: Collection[str]) -> Mapping[str, JobBatch]:
        """Return the batches that exist, with at most one query."""
        found = {batch_id: batch for batch_id in ids if (batch := self._unfinished.get(batch_id)) is not None}
        missing = [batch_id for batch_id in ids if batch_id not in found]
        return {**found, **await self._store.batches(missing)} if missing else found

    async def get(self, batch_id: str) -> JobBatch:
        """Return the batch. Raises NotFound."""
        batch = await self.find(batch_id)
        if batch is None:
            raise NotFound(f"no batch {batch_id}")
        return batch

    def keep(self, batch: JobBatch) -> None:
        """Store the current state of a batch."""
        if batch.status.finished:
            self._unfinished.pop(batch.id, None)
        else:
            self._unfinished[batch.id] = batch
