"""Ingest: the only writer. It queues events and requests, accepts or rejects each, appends the changes to the commit
log, and answers the producers.

State changes that arrive while an entry is appended form the next entry. Watchers and producers learn of a change only
after it is durable. Progress is published at once, unless its job is in an entry. Events of a job keep their order. The
queue is bounded: when it is full, producers wait.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog
import trio

from progressd.commit_log.base import Log
from progressd.core.errors import CorruptRecord, NotFound, ProgressdError, StoreFailed, Unavailable
from progressd.core.events import Event, LeaseEvent, LogEvent
from progressd.core.job import Job, MaySee, sees_all
from progressd.engine.commands import Barrier, Command, Delete, Outcome, Submit, Submitted
from progressd.engine.follower import Follower
from progressd.engine.registry import Registry
from progressd.engine.transaction import NO_MEMORY, Draft, Transaction
from progressd.files.job_logs import JobLogs, record_of
from progressd.store.base import Store
from progressd.system.condition import Condition
from progressd.system.event_loop_limiter import EventLoopLimiter

QUEUE_CAPACITY: Final = 64  # commands; a command contains all events that a producer had ready
PASS_BYTES: Final = 16384  # bytes of events read in one pass of the event loop; if all are blank lines, this takes 2 ms
MAX_EVENTS: Final = 1000  # events processed in one transaction, in about 10 ms

log = structlog.get_logger(__name__)


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


class Ingest(EventSink):
    """The only writer. Producers and clients call `submit` and `delete`; the task `run` processes the commands."""

    def __init__(
        self,
        commit_log: Log,
        follower: Follower,
        store: Store,
        registry: Registry,
        job_logs: JobLogs,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.store_id = store.id
        self.limiter = EventLoopLimiter(PASS_BYTES)
        self.counters = follower.counters
        self.previews = follower.previews
        self.health = follower.health
        self._store = store
        self._registry = registry
        self._job_logs = job_logs
        self._commit_log = commit_log
        self._follower = follower
        self._now = now
        self._send, self._receive = trio.open_memory_channel[Command](QUEUE_CAPACITY)
        self._draft = Draft()  # the next entry
        self._deletes: list[Delete] = []
        self._in_flight: Collection[str] = ()  # the jobs of the entry or deletion that is being appended
        self._held: list[Submitted] = []  # events about these jobs
        self._due = trio.Event()  # set if there is something to append
        self._appending = trio.CancelScope(shield=True)
        self._appended = Condition()
        self._released = 0  # entries and deletions that were appended or rejected

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
        """Wait until the queued commands are decided, a waiting entry was applied, and the store commits.

        Raises StoreFailed, Unavailable.
        """
        await self._queue(Barrier())
        if self._waiting:
            released = self._released
            await self._appended.wait_for(lambda: self._released > released or self._appending.cancel_called)
        await self._store.commit((), ())

    async def run(self) -> None:
        """Process commands until cancelled.

        Then process the queued commands, and write unsaved progress. The leases of unfinished jobs start with this
        task.
        """
        follower = self._follower
        follower.leases.begin(self._registry.unfinished.values(), trio.current_time())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.run)
            nursery.start_soon(follower.leases.run, self.submit)
            nursery.start_soon(self._append_all)
            try:
                with trio.CancelScope(shield=True):
                    await follower.reserve()
                async for first in self._receive:
                    with trio.CancelScope(shield=True):
                        await self._process(self._with_queued(first))
                        if self._waiting >= MAX_EVENTS:
                            await self._until_at_most(MAX_EVENTS - 1)
            finally:
                last = self._with_queued(Barrier(), most=math.inf)
                self._receive.close()  # otherwise a command queued after the last transaction would wait forever
                with trio.CancelScope(shield=True):
                    await self._process(last)
                    await self._until_at_most(0)
                    await follower.flush()
                self._appending.cancel()

    async def _queue(self, command: Command) -> list[Outcome]:
        try:
            await self._send.send(command)
        except trio.BrokenResourceError:
            raise Unavailable("the daemon is stopping") from None
        return await command.answered()

    def _with_queued(self, first: Command, most: float = MAX_EVENTS) -> list[Command]:
        commands, count = [first], _count(first)
        try:
            while count < most:
                commands.append(self._receive.receive_nowait())
                count += _count(commands[-1])
        except trio.WouldBlock:
            pass
        return commands

    @property
    def _waiting(self) -> int:
        """The number of events and deletions that wait for an entry."""
        return len(self._draft.steps) + len(self._held) + len(self._deletes) + len(self._in_flight)

    async def _until_at_most(self, waiting: int) -> None:
        await self._appended.wait_for(lambda: self._waiting <= waiting or self._appending.cancel_called)

    async def _process(self, commands: Sequence[Command]) -> None:
        submits = [command for command in commands if isinstance(command, Submit)]
        events = [(submit, index, event) for submit in submits for index, event in enumerate(submit.events)]
        try:
            stored = await self._take_turn(events)
        except StoreFailed as error:
            self._fail(events, error)
        else:
            try:
                await self._decide(events, stored)
            finally:
                self._follower.turn.release()
        for command in commands:
            match command:
                case Delete():
                    self._deletes.append(command)
                    self._due.set()
                case Barrier():
                    command.answer()

    async def _decide(self, events: Sequence[Submitted], stored: Mapping[str, Job | CorruptRecord]) -> None:
        """Accept or reject events, and publish progress. The caller has the turn of the follower."""
        follower = self._follower
        draft = self._draft
        transaction = Transaction(
            self._registry,
            stored,
            draft,
            follower.offsets,
            self.store_id,
            self._now(),
            follower.forecasts,
            hide_cursors=follower.health.undecided_from is not None,
        )
        rejected = undecided = 0
        for submitted in events:
            submit, index, event = submitted
            if self._in_flight and event.job_id.lower() in self._in_flight:
                self._held.append(submitted)
                undecided += 1
                continue
            outcome = transaction.decide(event, submit.may_see)
            if draft.jobs and event.job_id.lower() in draft.jobs:
                draft.step(submitted, outcome)
                undecided += 1
            else:
                submit.decide(index, outcome)
                rejected += isinstance(outcome, ProgressdError)
        self.counters.rejected += rejected
        self.counters.events += len(events) - undecided - rejected
        if transaction.published:
            await follower.publish_progress(transaction)
        if draft.steps:
            self._due.set()
        _answer({submit for submit, _, _ in events})

    async def _append_all(self) -> None:
        """Append drafts to the commit log, and delete jobs, one after the other, until cancelled."""
        try:
            with self._appending:
                while True:
                    await self._due.wait()
                    self._due = trio.Event()
                    while self._draft.steps or self._deletes:
                        if self._draft.steps:
                            await self._append()
                        if self._deletes:
                            await self._delete(self._deletes.pop(0))
        finally:
            self._appending.cancel()  # so that after an error, `run` does not wait
            self._appended.notify()

    async def _append(self) -> None:
        draft, self._draft = self._draft, Draft()
        self._in_flight = draft.jobs.keys()
        try:
            entry = draft.entry(self._follower.forecasts)
        except MemoryError:
            await self._reject(draft, StoreFailed(NO_MEMORY))
            return
        try:
            placement = await self._commit_log.append(entry)
        except StoreFailed as error:
            await self._reject(draft, error)
        else:
            self._held[:0] = draft.void_events(placement)
            await self._release(draft.outcomes(entry, placement))

    async def _reject(self, draft: Draft, error: StoreFailed) -> None:
        log.error("events rejected", events=len(draft.steps), error=str(error))
        self._follower.failed(error)
        await self._release([(step.event, error) for step in draft.steps])

    async def _delete(self, command: Delete) -> None:
        self._in_flight = (command.job.id,)
        try:
            await self._follower.delete(command.job)
            command.outcomes = [command.job]
        except (NotFound, StoreFailed) as error:
            if isinstance(error, StoreFailed) and not isinstance(error, CorruptRecord):
                self._follower.failed(error)
            command.outcomes = [error]
        command.answer()
        await self._release([])

    async def _release(self, decided: Sequence[tuple[Submitted, Outcome]]) -> None:
        """Answer the events of an entry, and decide the events about its jobs that arrived meanwhile."""
        held = self._held  # may grow until this task has the turn
        try:
            stored = await self._take_turn(held)
        except StoreFailed as error:
            self._end_flight(decided)
            self._fail(held, error)
        else:
            try:
                self._end_flight(decided)
                await self._decide(held, stored)
            finally:
                self._follower.turn.release()
        self._released += 1
        self._appended.notify()

    def _end_flight(self, decided: Sequence[tuple[Submitted, Outcome]]) -> None:
        self._in_flight, self._held = (), []
        rejected = 0
        for (submit, index, _), outcome in decided:
            submit.decide(index, outcome)
            rejected += isinstance(outcome, ProgressdError)
        self.counters.rejected += rejected
        self.counters.events += len(decided) - rejected
        _answer({submit for (submit, _, _), _ in decided})

    def _fail(self, events: Sequence[Submitted], error: StoreFailed) -> None:
        """Reject events, because the store failed."""
        log.error("events rejected", events=len(events), error=str(error))
        self._follower.failed(error)
        for submit, index, _ in events:
            submit.decide(index, error)
        _answer({submit for submit, _, _ in events})

    async def _take_turn(self, events: Sequence[Submitted]) -> Mapping[str, Job | CorruptRecord]:
        """Take the turn of the follower, and return the jobs of the events that are not in memory. Raises StoreFailed.

        Finished jobs may leave the memory, and events may be added, while this task waits.
        """
        stored = dict[str, Job | CorruptRecord]()
        read = set[str]()
        await self._follower.take_turn(events)
        while missing := self._not_in_memory(events) - read:
            self._follower.turn.release()
            read |= missing
            stored |= await self._stored_jobs(missing)
            await self._follower.take_turn(events)
        return stored

    def _not_in_memory(self, events: Iterable[Submitted]) -> set[str]:
        return {event.job_id.lower() for _, _, event in events if self._registry.known(event.job_id) is None}

    async def _stored_jobs(self, ids: Iterable[str]) -> dict[str, Job | CorruptRecord]:
        missing = set(ids)
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


def _answer(submits: Iterable[Submit]) -> None:
    for submit in submits:
        if not submit.undecided:
            submit.answer()


def _count(command: Command) -> int:
    return len(command.events) if isinstance(command, Submit) else 0


def _job_of(outcome: Outcome) -> Job:
    if isinstance(outcome, ProgressdError):
        raise outcome
    return outcome
