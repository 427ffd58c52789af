"""The one writer: takes the events of all producers, applies, commits, publishes, answers, in that order.

Whatever has been queued meanwhile makes up a batch. It is committed once, and only if a job's state changed in it;
nobody, watcher or producer, hears of a change before it is durable. The queue is bounded: a full one slows the
producers.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

import structlog
import trio

from progressd.broadcast.broadcaster import Broadcaster
from progressd.broadcast.envelope import Envelope
from progressd.core.cursor import Cursor
from progressd.core.errors import CorruptRecord, NotFound, ProgressdError, StoreFailed, Unavailable
from progressd.core.events import Event, LeaseEvent, LeaseExpiredEvent
from progressd.core.job import Job, MaySee, sees_all
from progressd.core.leases import Leases
from progressd.engine.batches import Batches
from progressd.engine.counters import Counters
from progressd.engine.registry import Registry
from progressd.engine.submitting import EventSink, Outcome
from progressd.engine.transaction import MAX_MESSAGES, Transaction, deletion_message
from progressd.net.base_path import AT_ROOT, BasePath
from progressd.store.base import Deletion, Store
from progressd.system.log import log_change
from progressd.system.pass_limiter import PassLimiter

QUEUE_CAPACITY: Final = 64  # entries; one holds all events that a producer had ready
TURN_BYTES: Final = 16384  # of events that are read in one pass of the event loop; blank lines take 2 ms
MAX_BATCH: Final = 1000  # events decided in one go, about 10 ms
STEP: Final = 25  # jobs and log lines in one pass of the event loop; jobs that end with 64 KiB of options take 10 ms
RESERVE_AHEAD: Final = 100_000  # offsets promised to the store at a time; a restart skips what is left of them
WRITE_BEHIND_INTERVAL: Final = (
    0.9  # seconds until the newest progress is written, so that it is never more than 1 s late
)

log = structlog.get_logger(__name__)


class Command:
    """Events of one producer, or a job to delete, and what comes of it. Neither: decided once all before it are."""

    __slots__ = ("decided", "deleted", "events", "may_see", "outcomes")

    def __init__(self, events: Sequence[Event] = (), may_see: MaySee = sees_all, deleted: Job | None = None) -> None:
        self.events = events
        self.may_see = may_see
        self.deleted = deleted
        self.outcomes: list[Outcome] = []
        self.decided = trio.Event()


class Ingest(EventSink):
    """`submit` is for producers; `run` is the task behind it."""

    def __init__(
        self, store: Store, registry: Registry, batches: Batches, broadcaster: Broadcaster, base: BasePath = AT_ROOT
    ) -> None:
        self.store_id = store.id
        self.turns = PassLimiter(TURN_BYTES)
        self.counters = Counters()
        self._store = store
        self._registry = registry
        self._batches = batches
        self._broadcaster = broadcaster
        self._base = base
        self._next_offset = self._reserved = store.first_offset
        self._unsaved: dict[str, Job] = {}  # jobs whose newest progress is not in the store yet
        self._moved = trio.Event()
        self.failing: StoreFailed | None = None  # what the store has said last, while it keeps nothing
        self._turned = trio.Event()
        self._leases = Leases()
        self._until_look = trio.CancelScope()
        self._send, self._receive = trio.open_memory_channel[Command](QUEUE_CAPACITY)

    async def submit(self, *events: Event, may_see: MaySee = sees_all) -> list[Outcome]:
        """See EventSink. What is about a job that is not seen is refused like what is about none."""
        if not events:
            await trio.lowlevel.checkpoint()
            return []
        return await self._decided(Command(events, may_see))

    async def delete(self, job: Job) -> Job:
        """Delete a finished job, and tell those who watch; its files are left. Raises NotFound, StoreFailed."""
        [outcome] = await self._decided(Command(deleted=job))
        if isinstance(outcome, ProgressdError):
            raise outcome
        return outcome

    @property
    def queued(self) -> int:
        """Entries that wait to be decided."""
        return self._receive.statistics().current_buffer_used

    async def probe(self) -> None:
        """Come back once what was queued is decided, and the store commits. Raises StoreFailed, Unavailable."""
        await self._decided(Command())
        await self._store.commit((), ())

    async def run(self) -> None:
        """Take events until cancelled; a batch that was begun is finished, and what is unsaved is written.

        The leases of the jobs there are begin now.
        """
        for job in self._registry.unfinished.values():
            self._leases.keep(job, trio.current_time())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_behind)
            nursery.start_soon(self._watch_leases)
            try:
                with trio.CancelScope(shield=True):
                    await self._reserve_the_first()
                async for first in self._receive:
                    with trio.CancelScope(shield=True):
                        await self._take(self._with_queued(first))
            finally:
                last = self._with_queued(Command(), most=math.inf)
                self._receive.close()  # before anyone can queue up behind the last batch and never be answered
                with trio.CancelScope(shield=True):
                    await self._take(last)
                    await self._write_unsaved()

    async def _decided(self, entry: Command) -> list[Outcome]:
        self._hear(entry)
        try:
            await self._send.send(entry)
        except trio.BrokenResourceError:
            raise Unavailable("the daemon is stopping") from None
        await entry.decided.wait()
        return entry.outcomes

    def _with_queued(self, first: Command, most: float = MAX_BATCH) -> list[Command]:
        entries, count = [first], len(first.events)
        try:
            while count < most:
                entries.append(self._receive.receive_nowait())
                count += len(entries[-1].events)
        except trio.WouldBlock:
            pass
        return entries

    async def _take(self, entries: list[Command]) -> None:
        try:
            outcomes = iter(await self._decide(entries))
        except StoreFailed as error:
            count = sum([len(entry.events) for entry in entries])
            log.error("events refused", events=count, error=str(error))
            outcomes = iter([error] * count)
            self._turn(error)
        for entry in entries:
            entry.outcomes = [next(outcomes) for _ in entry.events]
            if entry.deleted is not None:
                entry.outcomes.append(await self._delete(entry.deleted))
            entry.decided.set()

    async def _delete(self, job: Job) -> Outcome:
        try:
            await self._reserve(1)
            offset, self._next_offset = self._next_offset, self._next_offset + 1
            message = deletion_message(job, Cursor(self.store_id, offset), datetime.now(UTC))
            now = (await self._store.jobs([job.id])).get(job.id)
            same = now is not None and now.created_offset == job.created_offset  # and no later one with its id
            gone = await self._store.delete([job.id], Deletion(offset, message)) if same else []
        except StoreFailed as error:
            if not isinstance(error, CorruptRecord):
                self._turn(error)
            return error
        if not gone:
            return NotFound(f"no job {job.id}")
        self._registry.forget(gone, offset)
        await self._broadcaster.publish(Envelope(offset, message, job.labels))
        log.info("job deleted", job_id=job.id)
        return job

    async def _decide(self, entries: Sequence[Command]) -> list[Outcome]:
        """Apply, commit, publish. Raises StoreFailed, and then nothing has been published."""
        try:
            draft, outcomes = await self._draft(entries)
        except MemoryError as error:
            raise StoreFailed("the daemon has no memory left for this") from error
        self._next_offset = draft.offset  # also when it fails: no offset is given twice
        refused = sum([isinstance(outcome, ProgressdError) for outcome in outcomes])
        if draft.changes:
            await self._commit(draft)
            self.counters.count(draft.changes, draft.turned_batches())
        else:
            if self._registry.undecided_from is not None:
                draft.hide_cursors()
            if draft.jobs:
                self._unsaved.update(draft.jobs)
                self._moved.set()
        self.counters.refused += refused
        self.counters.events += len(outcomes) - refused
        silence_begins = trio.current_time()
        for number, job in enumerate(draft.jobs.values(), 1):
            self._registry.keep(job, draft.messages[job.id])
            self._leases.keep(job, silence_begins)
            if number % STEP == 0:
                await trio.lowlevel.checkpoint()  # let other tasks run between two parts
        self._until_look.deadline = min(self._until_look.deadline, self._leases.next_look)
        for of_jobs in draft.of_jobs.values():
            self._batches.keep(of_jobs)
        for published in draft.published:
            await self._broadcaster.publish(published)
        for number, change in enumerate(draft.changes, 1):
            log_change(change.message)
            if number % STEP == 0:
                await trio.lowlevel.checkpoint()
        return outcomes

    async def _draft(self, entries: Sequence[Command]) -> tuple[Transaction, list[Outcome]]:
        """Apply events to a draft; nothing of it shows yet. Raises StoreFailed, MemoryError."""
        events = [(event, entry.may_see) for entry in entries for event in entry.events]
        stored = await self._jobs_not_in_memory(event for event, _ in events)
        await self._reserve(MAX_MESSAGES * len(events))
        now, first = datetime.now(UTC), self._next_offset
        draft = Transaction(self._registry, self._batches, stored, self.store_id, first, now, self._base)
        outcomes = [draft.decide(event, may_see) for event, may_see in events]
        draft.place_counts()
        return draft, outcomes

    async def _commit(self, draft: Transaction | None = None) -> None:
        """Write a draft, and the newest progress of all jobs with it; commits are in the order of the calls."""
        unsaved, self._unsaved = self._unsaved, {}
        undecided_from = self._registry.undecided_from
        try:
            if draft is not None:
                with self.counters.commits.time():
                    await self._store.commit({**unsaved, **draft.jobs}.values(), draft.changes, draft.of_jobs.values())
            elif unsaved:
                await self._store.commit(unsaved.values(), ())
            elif self.failing is not None:
                await self._reserve_up_to(self._reserved + 1)  # to see whether that goes: what is there is not written
        except StoreFailed as error:
            if draft is not None and error.undecided and undecided_from is None:
                self._registry.undecided_from = draft.changes[0].offset
            newest = {job_id: job for job_id in unsaved if (job := self._registry.unfinished.get(job_id)) is not None}
            self._unsaved = {**newest, **self._unsaved}
            raise
        if draft is not None:
            for job_id in draft.jobs:  # an older commit, of its progress alone, may have failed meanwhile
                self._unsaved.pop(job_id, None)
        if self._registry.undecided_from == undecided_from:  # else it is of a commit that came after this one
            self._registry.undecided_from = None
        self._turn(None)

    async def _jobs_not_in_memory(self, events: Iterable[Event]) -> dict[str, Job | CorruptRecord]:
        missing = {event.job_id.lower() for event in events if self._registry.known(event.job_id) is None}
        found = dict[str, Job | CorruptRecord]()
        while missing:
            try:
                return {**found, **await self._store.jobs(missing)}
            except CorruptRecord as error:
                missing.remove(error.row_id)
                found[error.row_id] = error
        return found

    async def _reserve(self, count: int) -> None:
        if self._next_offset + count > self._reserved:
            await self._reserve_up_to(self._next_offset + count + RESERVE_AHEAD)

    async def _reserve_the_first(self) -> None:
        """Before anybody needs them, so that a store that keeps nothing is known as soon as the daemon runs."""
        try:
            await self._reserve(1)
        except StoreFailed as error:
            self._turn(error)

    async def _reserve_up_to(self, reserved: int) -> None:
        await self._store.reserve(reserved)
        self._reserved = max(self._reserved, reserved)  # the two who call this may do so at the same time

    def _hear(self, entry: Command) -> None:
        """Note the producers that its events come from.

        As they come in, before they are decided: so what says that one is silent stands before its next event or is
        not said, also where the store is slow.
        """
        if self._leases:
            now = trio.current_time()
            for event in entry.events:
                job = self._registry.known(event.job_id) or self._registry.known(event.job_id.lower())
                if job is not None and entry.may_see(job) and not isinstance(event, LeaseEvent):
                    self._leases.heard(job.id, now)

    async def _watch_leases(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._leases.next_look) as self._until_look:
                await trio.sleep_forever()
            events = self._leases.silent(trio.current_time())
            for event in events:
                log.info("producer is silent", job_id=event.job_id, lost=isinstance(event, LeaseExpiredEvent))
            await self.submit(*events)

    async def turned(self, told: StoreFailed | None) -> StoreFailed | None:
        """What the store says while it keeps nothing, None while it does, once that is another thing than `told`."""
        while str(self.failing) == str(told):
            await self._turned.wait()
        return self.failing

    def _turn(self, failing: StoreFailed | None) -> None:
        if str(failing) != str(self.failing):
            self._turned.set()
            self._turned = trio.Event()
            if failing is None:
                log.info("the store takes events again")
        if failing is not None:
            self._moved.set()  # try again, also when nobody else does
        self.failing = failing

    async def _write_behind(self) -> None:
        while True:
            await self._moved.wait()
            await trio.sleep(WRITE_BEHIND_INTERVAL)
            self._moved = trio.Event()
            with trio.CancelScope(shield=True):
                await self._write_unsaved()

    async def _write_unsaved(self) -> None:
        """Write the newest progress, while events go on being decided: with 100 a second one of them would wait."""
        try:
            await self._commit()
        except StoreFailed as error:
            log.error("cannot write progress for now", error=str(error))
            self._turn(error)
