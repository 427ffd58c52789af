"""Ingest: the only writer. It queues events and requests, accepts or rejects each, appends the changes to the commit
log, and answers the producers, in order.

Events and requests that are queued during a commit form the next transaction. A transaction is committed once, and only
if the state of a job changed. Watchers and producers learn of a change only after it is durable. The queue is bounded:
when it is full, producers wait.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol, TypeAlias

import structlog
import trio
from prometheus_client import Histogram

from progressd.broadcast.broadcaster import Broadcaster
from progressd.broadcast.envelope import Envelope
from progressd.core.batch import JobBatch
from progressd.core.errors import CorruptRecord, NotFound, ProgressdError, StoreFailed, Unavailable
from progressd.core.eta import Forecasts
from progressd.core.events import Event, LeaseEvent, LogEvent, SubmitEvent
from progressd.core.job import Job, MaySee, sees_all
from progressd.core.messages import Completed, JobCreated, StatusChange
from progressd.engine.commit_log import CommitLog
from progressd.engine.leases import LeaseTimer
from progressd.engine.previews import Previews
from progressd.engine.registry import Batches, Registry
from progressd.engine.transaction import MAX_MESSAGES, Transaction
from progressd.files.job_logs import JobLogs, record_of
from progressd.net.request import AT_ROOT, BasePath
from progressd.store.base import Change, Deletion, Store
from progressd.system.event_loop_limiter import EventLoopLimiter
from progressd.system.log import log_change

QUEUE_CAPACITY: Final = 64  # commands; a command contains all events that a producer had ready
PASS_BYTES: Final = 16384  # bytes of events read in one pass of the event loop; if all are blank lines, this takes 2 ms
MAX_EVENTS: Final = 1000  # events processed in one transaction, in about 10 ms
STEP: Final = 25  # jobs or log lines per pass of the event loop; 25 finished jobs with 64 KiB of options take 10 ms

log = structlog.get_logger(__name__)

Outcome: TypeAlias = Job | ProgressdError


def utc_now() -> datetime:
    """Return the time of events."""
    return datetime.now(UTC)


class EventSink(Protocol):
    """The interface through which producers submit events."""

    store_id: str
    limiter: EventLoopLimiter  # for fairness between clients that send over HTTP and WebSockets; weights are in bytes

    async def submit(self, *events: Event) -> list[Outcome]:
        """Submit events, in order, and wait until they are durable and published.

        Return, for each event, the job after it, or the error that rejected it. Raises Unavailable if the daemon is
        stopping.
        """

    async def submit_all(self, *events: Event) -> list[Job]:
        """Submit events, and return the job after each event. Raises the error of the first rejected event."""
        return list(map(_job_of, await self.submit(*events)))

    async def submit_one(self, event: Event) -> Job:
        """Submit one event and return the job after it. Raises the error that rejected it."""
        return _job_of(*await self.submit(event))


class _Answered:
    """A command in the queue, whose sender waits for the outcomes."""

    __slots__ = ("_answered", "_outcomes")

    def __init__(self) -> None:
        self._outcomes: list[Outcome] = []
        self._answered = trio.Event()

    def answer(self, outcomes: list[Outcome]) -> None:
        """Set the outcomes, and end the wait for them."""
        self._outcomes = outcomes
        self._answered.set()

    async def outcomes(self) -> list[Outcome]:
        """Wait for the outcomes."""
        await self._answered.wait()
        return self._outcomes


class Submit(_Answered):
    """Apply the events of one producer. Jobs that the producer may not see do not exist for it."""

    __slots__ = ("events", "may_see")

    def __init__(self, events: Sequence[Event], may_see: MaySee) -> None:
        super().__init__()
        self.events = events
        self.may_see = may_see


class Delete(_Answered):
    """Delete a finished job."""

    __slots__ = ("job",)

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job


class Barrier(_Answered):
    """A command without effect. Its empty outcomes arrive after those of all earlier commands."""

    __slots__ = ()


Command: TypeAlias = Submit | Delete | Barrier


class Counters:
    """Counters since the start. `jobs`, `batches`: the number that entered each status. `pages`: of completed jobs."""

    def __init__(self) -> None:
        self.events = 0  # number of accepted events
        self.rejected = 0  # number of rejected events
        self.jobs: Counter[str] = Counter()
        self.batches: Counter[str] = Counter()
        self.pages = 0
        self.processed = 0  # number of completed jobs
        self.processing_seconds = 0.0  # total duration of completed jobs
        self.processing = Histogram(
            "superbook_processing_seconds",
            "How long completed jobs took.",
            registry=None,
            buckets=(0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
        )

    @property
    def mean_processing_seconds(self) -> float:
        """Return the mean duration of completed jobs; 0 if there are none."""
        return self.processing_seconds / self.processed if self.processed else 0.0

    def count(self, changes: Iterable[Change], batches: Iterable[JobBatch]) -> None:
        """Count committed changes. `batches`: the batches with a new status."""
        for change in changes:
            match change.message:
                case JobCreated(data=created):
                    self.jobs[created.status] += 1
                case StatusChange(data=changed):
                    self.jobs[changed.new_status] += 1
                case Completed(data=result):
                    self.pages += result.page_count or 0
                    self.processed += 1
                    self.processing_seconds += result.elapsed_seconds
                    self.processing.observe(result.elapsed_seconds)
        self.batches.update(batch.status for batch in batches)


class Follower:
    """Apply the changes that are durable: update the jobs in memory, publish the messages, and count."""

    def __init__(
        self,
        registry: Registry,
        batches: Batches,
        broadcaster: Broadcaster,
        leases: LeaseTimer,
        forecasts: Forecasts,
        counters: Counters,
        previews: Previews,
    ) -> None:
        self._previews = previews
        self._registry = registry
        self._batches = batches
        self._broadcaster = broadcaster
        self._leases = leases
        self._forecasts = forecasts
        self._counters = counters

    async def apply(self, transaction: Transaction) -> None:
        """Update the jobs in memory, and publish the messages in order. Waits while the channel of a topic is full."""
        for number, job in enumerate(transaction.jobs.values(), 1):
            self._registry.keep(job, transaction.messages[job.id])
            if transaction.changes and number % STEP == 0:  # progress alone is cheap to keep
                await trio.lowlevel.checkpoint()  # let other tasks run
        if transaction.changes:
            self._counters.count(transaction.changes, transaction.batches_with_new_status())
            jobs = transaction.jobs.values()
            if finished := [job for job in jobs if job.status.finished]:
                self._forecasts.finish(finished, transaction.runs)
            if leased := [job for job in jobs if job.lease_seconds is not None]:
                self._leases.begin(leased, trio.current_time())
        for batch in transaction.batches.values():
            self._batches.keep(batch)
        if transaction.previews:
            self._previews.keep(transaction.previews)
        for envelope in transaction.published:
            await self._broadcaster.publish(envelope)
        for number, change in enumerate(transaction.changes, 1):
            log_change(change.message)
            if number % STEP == 0:
                await trio.lowlevel.checkpoint()

    async def delete(self, job: Job, deletion: Deletion) -> None:
        """Forget a job, and notify its watchers."""
        self._registry.forget([job.id], deletion.offset)
        self._previews.forget(job.id)
        await self._broadcaster.publish(Envelope(deletion.offset, deletion.message, job.labels))
        log.info("job deleted", job_id=job.id)


class Ingest(EventSink):
    """The only writer. Producers and clients call `submit` and `delete`; the task `run` processes the commands."""

    def __init__(
        self,
        commit_log: CommitLog,
        store: Store,
        registry: Registry,
        batches: Batches,
        broadcaster: Broadcaster,
        job_logs: JobLogs,
        forecasts: Forecasts | None = None,
        base: BasePath = AT_ROOT,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.store_id = store.id
        self.limiter = EventLoopLimiter(PASS_BYTES)
        self.counters = Counters()
        self.previews = Previews()
        self.health = commit_log.health
        self._store = store
        self._registry = registry
        self._batches = batches
        self._job_logs = job_logs
        self._base = base
        self._commit_log = commit_log
        self._leases = LeaseTimer(registry)
        self._forecasts = forecasts or Forecasts()
        self._now = now
        self._follower = Follower(
            registry, batches, broadcaster, self._leases, self._forecasts, self.counters, self.previews
        )
        self._send, self._receive = trio.open_memory_channel[Command](QUEUE_CAPACITY)

    async def submit(self, *events: Event, may_see: MaySee = sees_all) -> list[Outcome]:
        """See EventSink. Events for jobs that the producer may not see are rejected like events for unknown jobs."""
        if not events:
            await trio.lowlevel.checkpoint()
            return []
        if LogEvent in map(type, events):
            return await self._submit_with_logs(events, may_see)
        self._note_arrival(events, may_see)
        return await self._queue(Submit(events, may_see))

    async def _submit_with_logs(self, events: Sequence[Event], may_see: MaySee) -> list[Outcome]:
        """Apply the other events first, because they may register the job. Then write the lines to the logs."""
        others = iter(await self.submit(*[one for one in events if not isinstance(one, LogEvent)], may_see=may_see))
        lines = [one for one in events if isinstance(one, LogEvent)]
        self._note_arrival(lines, may_see)
        by_job = dict[str, list[LogEvent]]()
        for one in lines:
            by_job.setdefault(one.job_id.lower(), []).append(one)
        outcomes = {job_id: await self._log_lines(job_id, some, may_see) for job_id, some in by_job.items()}
        return [outcomes[one.job_id.lower()] if isinstance(one, LogEvent) else next(others) for one in events]

    async def _log_lines(self, job_id: str, events: Sequence[LogEvent], may_see: MaySee) -> Outcome:
        """Write lines to the log of one job. Finished jobs accept them, because lines may arrive after the end."""
        opened = self._job_logs.open(job_id)  # before the job is looked up, so a deletion after that is noticed
        try:
            job = self._registry.known(job_id) or (await self._registry.find([job_id])).get(job_id)
            if job is None or not may_see(job):
                return NotFound(f"no job {job_id}")
            await self._job_logs.append(job_id, [record_of(event.data) for event in events], opened)
        except ProgressdError as error:
            return error
        return job

    async def delete(self, job: Job) -> Job:
        """Delete a finished job but not its files, and notify its watchers. Raises NotFound, StoreFailed."""
        return _job_of(*await self._queue(Delete(job)))

    @property
    def queued(self) -> int:
        """The number of commands in the queue."""
        return self._receive.statistics().current_buffer_used

    async def probe(self) -> None:
        """Wait until all commands in the queue are processed and the store commits. Raises StoreFailed, Unavailable."""
        await self._queue(Barrier())
        await self._store.commit((), ())

    async def run(self) -> None:
        """Process commands until cancelled.

        Then process the queued commands, and write unsaved progress. The leases of unfinished jobs start with this
        task.
        """
        self._leases.begin(self._registry.unfinished.values(), trio.current_time())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._commit_log.run)
            nursery.start_soon(self._leases.run, self.submit)
            try:
                with trio.CancelScope(shield=True):
                    await self._try_to_reserve()
                async for first in self._receive:
                    with trio.CancelScope(shield=True):
                        await self._process(self._with_queued(first))
            finally:
                last = self._with_queued(Barrier(), most=math.inf)
                self._receive.close()  # otherwise a command queued after the last transaction would wait forever
                with trio.CancelScope(shield=True):
                    await self._process(last)
                    await self._commit_log.flush()

    async def _try_to_reserve(self) -> None:
        """Reserve an offset, so that a store that rejects changes is detected as soon as the daemon runs."""
        try:
            await self._commit_log.reserve(1)
        except StoreFailed as error:
            self._commit_log.failed(error)

    async def _queue(self, command: Command) -> list[Outcome]:
        try:
            await self._send.send(command)
        except trio.BrokenResourceError:
            raise Unavailable("the daemon is stopping") from None
        return await command.outcomes()

    def _with_queued(self, first: Command, most: float = MAX_EVENTS) -> list[Command]:
        commands, count = [first], _count(first)
        try:
            while count < most:
                commands.append(self._receive.receive_nowait())
                count += _count(commands[-1])
        except trio.WouldBlock:
            pass
        return commands

    async def _process(self, commands: Sequence[Command]) -> None:
        submits = [command for command in commands if isinstance(command, Submit)]
        events = [(event, submit.may_see) for submit in submits for event in submit.events]
        try:
            outcomes = await self._decide(events)
        except StoreFailed as error:
            outcomes = [error] * len(events)
            log.error("events rejected", events=len(outcomes), error=str(error))
            self._commit_log.failed(error)
        decided = iter(outcomes)
        for command in commands:
            match command:
                case Submit():
                    command.answer([next(decided) for _ in command.events])
                case Delete():
                    command.answer([await self._delete(command.job)])
                case Barrier():
                    command.answer([])

    async def _decide(self, events: Sequence[tuple[Event, MaySee]]) -> list[Outcome]:
        """Process all events in one transaction, append it to the log, and apply its changes. Raises StoreFailed."""
        try:
            transaction, outcomes = await self._transaction(events)
        except MemoryError as error:
            raise StoreFailed("the daemon has no memory left for this") from error
        await self._commit_log.append(transaction)
        rejected = sum([isinstance(outcome, ProgressdError) for outcome in outcomes])
        self.counters.rejected += rejected
        self.counters.events += len(outcomes) - rejected
        await self._follower.apply(transaction)
        return outcomes

    async def _transaction(self, events: Sequence[tuple[Event, MaySee]]) -> tuple[Transaction, list[Outcome]]:
        """Accept or reject events. Their changes are not visible yet. Raises StoreFailed, MemoryError."""
        stored = await self._jobs_not_in_memory(event for event, _ in events)
        finished = await self._finished_batches(event for event, _ in events)
        offset = await self._commit_log.reserve(MAX_MESSAGES * len(events))
        transaction = Transaction(
            self._registry,
            self._batches,
            stored,
            self.store_id,
            offset,
            self._now(),
            self._base,
            self._forecasts,
            finished,
        )
        outcomes = [transaction.decide(event, may_see) for event, may_see in events]
        transaction.place_batches()
        return transaction, outcomes

    async def _delete(self, job: Job) -> Outcome:
        try:
            deletion = await self._commit_log.delete(job)
        except StoreFailed as error:
            if not isinstance(error, CorruptRecord):
                self._commit_log.failed(error)
            return error
        if deletion is None:
            return NotFound(f"no job {job.id}")
        await self._follower.delete(job, deletion)
        return job

    async def _finished_batches(self, events: Iterable[Event]) -> Mapping[str, JobBatch]:
        """Return the finished batches to which a job is added, as when the files of a batch arrive one by one."""
        ids = {event.batch_id for event in events if type(event) is SubmitEvent and event.batch_id is not None}
        ids = {id_ for id_ in ids if self._batches.unfinished(id_) is None}
        return await self._batches.find_all(ids) if ids else {}

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

    def _note_arrival(self, events: Iterable[Event], may_see: MaySee) -> None:
        """Renew leases when events arrive, not when they are processed: a slow store must not fail jobs."""
        if not (last_heard := self._registry.last_heard):
            return
        now = trio.current_time()
        for event in events:
            job_id = event.job_id.lower()
            if (
                job_id in last_heard
                and not isinstance(event, LeaseEvent)
                and may_see(self._registry.unfinished[job_id])
            ):
                last_heard[job_id] = now


def _count(command: Command) -> int:
    return len(command.events) if isinstance(command, Submit) else 0


def _job_of(outcome: Outcome) -> Job:
    if isinstance(outcome, ProgressdError):
        raise outcome
    return outcome
