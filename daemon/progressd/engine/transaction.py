"""Accept or reject each event. A state change goes into the draft of the next entry; progress gets an offset at once.

Nothing is durable or visible yet.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple

from msgspec import UNSET
from msgspec.structs import replace

from progressd.broadcast.envelope import Envelope
from progressd.commit_log.base import Entry, Part, Placement
from progressd.core.errors import CorruptRecord, NotFound, ProgressdError, StoreFailed
from progressd.core.eta import Forecasts
from progressd.core.events import BatchCancelEvent, Event, RegisterEvent, SubmitEvent, checked_job_id
from progressd.core.job import Applied, Job, MaySee, apply
from progressd.core.messages import (
    Cursor,
    JobMessage,
    JobStatus,
    PagePreview,
    PagePreviewData,
    Progress,
    StatusChange,
    cursor_text,
)
from progressd.engine.commands import Outcome, Submitted
from progressd.engine.offsets import Offsets
from progressd.engine.registry import Registry

NO_MEMORY: Final = "the daemon has no memory left for this"
MAX_LIVE_MESSAGES: Final = 2  # upper bound of messages per event without a state change, as when a stalled job moves


class Step(NamedTuple):
    """An event in a draft. `outcome`: still without offsets. `messages`: the number of messages up to this event."""

    event: Submitted
    outcome: Outcome
    messages: int


class Draft:
    """The next entry of the commit log. Events are added until it is appended."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}  # changed jobs, in their state after the events
        self.steps: list[Step] = []
        self._parts: dict[str, Part] = {}  # without the final jobs
        self._messages: list[JobMessage] = []

    def add(self, before: Job | None, event: Event, applied: Applied, now: datetime) -> None:
        """Add the change of a job. `before`: the job before the event, None for a new job."""
        job = applied.job
        part = self._parts.get(job.id)
        if part is None:
            part = Part(0 if before is None else before.offset, job)
            if isinstance(event, SubmitEvent) and event.batch_name:
                part = replace(part, batch_name=event.batch_name)
        if isinstance(event, BatchCancelEvent):
            part = replace(part, cancelled_with_batch=True)
        messages = [replace(message, time=now, batch_id=job.batch_id or UNSET) for message in applied.messages]
        self._parts[job.id] = part
        self.jobs[job.id] = job
        self._messages += messages

    def step(self, event: Submitted, outcome: Outcome) -> None:
        """Add an event about a job of this draft, to answer it once the entry was applied."""
        self.steps.append(Step(event, outcome, len(self._messages)))

    def entry(self, forecasts: Forecasts) -> Entry:
        """Return the entry."""
        parts = [
            replace(part, job=job, run=forecasts.run_of(job) if job.status.finished else None)
            for part, job in zip(self._parts.values(), self.jobs.values(), strict=True)
        ]
        return Entry(parts, self._messages)

    def outcomes(self, entry: Entry, placement: Placement) -> list[tuple[Submitted, Outcome]]:
        """Return the outcome of each event whose part was valid, with the offsets of the job at that time."""
        positions = dict[str, Positions]()
        found, done = list[tuple[Submitted, Outcome]](), 0
        for event, outcome, count in self.steps:
            for place in range(done, count):
                message = entry.messages[place]
                positions.setdefault(message.job_id, Positions()).add(message, placement.offsets[place])
            done = count
            if event[2].job_id.lower() in placement.void:
                continue
            if isinstance(outcome, Job):
                final = self.jobs[outcome.id] is outcome
                outcome = placement.jobs[outcome.id] if final else positions[outcome.id].in_job(outcome)
            found.append((event, outcome))
        return found

    def void_events(self, placement: Placement) -> list[Submitted]:
        """Return the events whose parts were void. They must be decided again."""
        if not placement.void:
            return []
        return [step.event for step in self.steps if step.event[2].job_id.lower() in placement.void]


class Positions:
    """The offsets of one job, while its messages receive theirs."""

    __slots__ = ("_created", "_newest", "_progress", "_progress_at")

    def __init__(self) -> None:
        self._created = self._newest = 0
        self._progress: int | None = None  # None: as before
        self._progress_at: datetime | None = None

    def add(self, message: JobMessage, offset: int) -> None:
        """Record the offset of the next message. Previews do not count."""
        if isinstance(message, PagePreview):
            return
        self._created = self._created or offset
        self._newest = offset
        if isinstance(message, Progress):
            self._progress, self._progress_at = offset, message.time or None
        elif isinstance(message, StatusChange) and message.data.new_status is JobStatus.QUEUED:
            self._progress, self._progress_at = 0, None  # the progress was that of the earlier attempt

    def in_job(self, job: Job) -> Job:
        """Return the job with its offsets."""
        created = job.created_offset or self._created
        if self._progress is None:
            return replace(job, offset=self._newest, created_offset=created)
        return replace(
            job,
            offset=self._newest,
            created_offset=created,
            progress_offset=self._progress,
            progress_at=self._progress_at,
        )


class Transaction:
    """The events that are decided in one pass. `stored`: the jobs of these events that are not in memory."""

    def __init__(
        self,
        registry: Registry,
        stored: Mapping[str, Job | CorruptRecord],
        draft: Draft,
        offsets: Offsets,
        store_id: str,
        now: datetime,
        forecasts: Forecasts,
        *,
        hide_cursors: bool,
    ) -> None:
        """`hide_cursors`: send progress without cursors, as a change before it may become visible later."""
        self._registry = registry
        self._stored = stored
        self._draft = draft
        self._offsets = offsets
        self._store_id = store_id
        self._now = now
        self._forecasts = forecasts
        self._hide_cursors = hide_cursors
        self.jobs: dict[str, Job] = {}  # jobs with new progress
        self.messages: dict[str, list[Envelope]] = {}  # their messages, by job
        self.published: list[Envelope] = []  # all messages, in order
        self.previews: list[tuple[str, PagePreviewData]] = []  # with the ids of their jobs

    def decide(self, event: Event, may_see: MaySee) -> Outcome:
        """Return the job after the event, or the error that rejects the event: NotFound for an invisible job.

        Visibility is checked here, because an earlier event of the transaction may create the job. The outcome of an
        event about a job of the draft has no offsets yet.
        """
        job: Job | CorruptRecord | None = self._known(event.job_id)
        try:
            if job is None:
                event = replace(event, job_id=checked_job_id(event.job_id))
                job = self._known(event.job_id) or self._stored.get(event.job_id)
            if isinstance(job, CorruptRecord):
                return job
            if job is not None and not may_see(job):
                raise NotFound(f"no job {job.id}")
            if job is None and isinstance(event, RegisterEvent) and self._is_own(event.cursor):
                raise NotFound(f"no job {event.job_id}")
            applied = apply(job, event, self._now, self._forecasts.eta)
            if not applied.messages:
                return applied.job
            if applied.durable or event.job_id in self._draft.jobs:
                self._draft.add(job, event, applied, self._now)
                return applied.job
            return self._place(applied)
        except ProgressdError as error:
            return error
        except MemoryError:
            return StoreFailed(NO_MEMORY)

    def _is_own(self, cursor: str) -> bool:
        """Return whether the cursor is from this store. Raises InvalidInput if the string is not a cursor."""
        return cursor != "" and Cursor.parse(cursor).store == self._store_id

    def _known(self, job_id: str) -> Job | None:
        return self._draft.jobs.get(job_id) or self.jobs.get(job_id) or self._registry.known(job_id)

    def _place(self, applied: Applied) -> Job:
        """Assign offsets to progress and previews, and store the offset of progress in the job."""
        job = applied.job
        for message in applied.messages:
            offset = self._offsets.next
            self._offsets.next += 1
            cursor = UNSET if self._hide_cursors else cursor_text(self._store_id, offset)
            placed = replace(message, cursor=cursor, time=self._now, batch_id=job.batch_id or UNSET)
            envelope = Envelope(offset, placed, job.labels)
            self.published.append(envelope)
            if isinstance(placed, PagePreview):  # previews are never stored
                self.previews.append((job.id, placed.data))
                continue
            messages = self.messages.get(job.id)
            if messages is None:
                self.messages[job.id] = [envelope]
            else:
                messages.append(envelope)
            job = replace(job, offset=offset, progress_offset=offset, progress_at=self._now)
            self.jobs[job.id] = job
        return job
