"""The ledger: what a daemon has acknowledged and delivered, to compare it with the next daemon.

Clients record each answer and each message at once. What was sent without an answer may have been stored or not. After
each start the ledger is compared with the daemon. It does no I/O. A difference is an AssertionError with the job and
the offset.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

CHANGES = ("job_created", "status_change", "completed", "error")
TERMINAL = {"completed": "completed", "error": "failed", "cancelled": "cancelled"}  # the end of a job, and its status
MAY_FOLLOW = {
    None: {"queued"},
    "queued": {"processing", "failed", "cancelled"},
    "processing": {"completed", "failed", "cancelled"},
}
MAY_FOLLOW_IN_RUNNER = {  # no client cancels these
    None: {"queued"},
    "queued": {"processing"},
    "processing": {"completed", "failed", "queued"},  # queued: requeued after a crash
}
RUN = "copy"  # the kind of the runner's jobs
ATTEMPTS = 3  # the default of runner.max_attempts
FRESH = 1.0  # seconds of progress that a crash may lose


class Kill(NamedTuple):
    """A kill of a daemon, in seconds."""

    at: float  # just before it; infinite after a clean end
    starved: float = 0.0  # how long the daemon had waited for a processor


@dataclass
class Story:
    """A job of producers: its creation, steps and end. Positions count its events from 1."""

    id: str
    steps: int
    end: str
    sent: int = 0
    answered: int = 0
    ended_as: str | None = None  # the acknowledged end
    ends: set[str] = field(default_factory=set)  # all ends that were sent
    answered_at: dict[int, float] = field(default_factory=dict)  # step -> seconds
    kept: int = 0  # the step at the last start

    @property
    def last(self) -> int:
        """Return the position of the end."""
        return self.steps + 2

    @property
    def over(self) -> bool:
        """Return whether its end was acknowledged."""
        return self.answered == self.last


@dataclass
class Outage:
    """Times in seconds. It ends when a later event is accepted."""

    began: float  # just before the first failure
    after: int  # the newest delivered offset at that time
    over: float = math.inf  # when the accepted event was sent
    upto: float = math.inf  # its offset

    def excuses_rejection(self, sent: float) -> bool:
        """Return whether an event sent then may be rejected."""
        return sent < self.over

    def excuses_failure(self, started: int, ended: int) -> bool:
        """Return whether a job with these offsets ran during the outage."""
        return ended > self.after and started < self.upto

    def could_be_written(self, at: float, within: float) -> float:
        """Return when progress acknowledged then could be written, given `within` seconds."""
        return at if at + within <= self.began else max(at, self.over)


class Uploads:
    """The part of the ledger for uploads. The name identifies a file."""

    def __init__(self, counted: Counter[str]) -> None:
        self.counted = counted
        self.inputs: dict[str, bytes] = {}  # content by name
        self.accepted: dict[str, str] = {}  # accepted with 202: job -> file
        self.unanswered: list[str] = []  # to be repeated with their key
        self.batches: dict[tuple[str, ...], str | None] = {}  # files -> batch id
        self.made: dict[str, str] = {}  # all jobs of the runner: job -> file
        self._tried: Counter[str] = Counter()  # number of requests
        self._definite: Counter[str] = Counter()  # number of final rejections
        self._rejected: set[str] = set()  # rejected, and not accepted since

    def sent(self, name: str) -> None:
        """Record a request, perhaps repeated."""
        self._tried[name] += 1
        self.counted["rejected uploads sent again"] += name in self._rejected

    def rejected(self, name: str, full: bool) -> None:
        """Record a rejection. With `full`, the disk is full, so this request makes no job."""
        self._rejected.add(name)
        self._definite[name] += full
        self.counted["uploads rejected"] += 1

    def answered(self, name: str, job_id: str) -> None:
        """Record an accepted upload. Repeated requests with its key have the same job."""
        self.counted["uploads answered"] += 1
        self.accepted[job_id] = name
        self._rejected.discard(name)
        jobs = [made for made, of in self.accepted.items() if of == name]
        assert jobs == [job_id], f"the upload {name} has become the jobs {jobs}"

    def batch_answered(self, names: tuple[str, ...], batch_id: str) -> None:
        """Record an accepted batch. Repeated requests have the same batch."""
        known, self.batches[names] = self.batches[names], batch_id
        assert known in (None, batch_id), f"the batch {names} has become the batches {known} and {batch_id}"
        self._rejected.difference_update(names)

    def compare(self, job_id: str, name: str, content: bytes | None) -> None:
        """Compare the input of a job, None if it is missing."""
        others = [other for other, of in self.made.items() if of == name and other != job_id]
        assert not others, f"the upload {name} has become the jobs {[*others, job_id]}"
        assert self._tried[name] > self._definite[name], f"the upload {name} was rejected, and has become job {job_id}"
        self.made[job_id] = name
        assert content is not None, f"the input {name} of job {job_id} is gone"
        assert content == self.inputs[name], f"the input {name} of job {job_id} is not what was uploaded"

    def compare_accepted(self) -> None:
        """Check that every accepted upload has its job, after all changes were compared."""
        for job_id, name in self.accepted.items():
            assert self.made.get(job_id) == name, f"the upload {name} was answered {job_id}, and it is gone"

    def compare_batches(self) -> None:
        """Check that batches are atomic, after all uploads were compared."""
        there = set(self.made.values())
        for names, batch_id in self.batches.items():
            made = [name for name in names if name in there]
            assert len(made) == len(names) or not made, f"of the batch {names} only {made} have become jobs"
            assert made or batch_id is None, f"the batch {batch_id} was answered, and it is gone"


class Ledger:
    """The ledger of one state directory."""

    def __init__(self) -> None:
        self.stories: dict[str, Story] = {}
        self.finished: dict[str, Mapping[str, Any]] = {}  # jobs as they ended
        self.abandoned: set[str] = set()  # jobs with a lease and without a producer
        self.audited = 0  # the offset up to which changes were compared
        self.store: str | None = None
        self.newest = 0  # offset that was delivered
        self.outages: list[Outage] = []  # since the last comparison
        self.counted: Counter[str] = Counter()
        self.uploads = Uploads(self.counted)
        self._messages: dict[int, Mapping[str, Any]] = {}  # all delivered messages, by offset
        self._answers: dict[int, tuple[str, str]] = {}  # offset -> job and acknowledged end
        self._statuses: dict[str, str] = {}  # after the audited changes
        self._final: dict[str, str] = {}  # the final message
        self._kinds: dict[str, str] = {}
        self._starts: dict[str, list[int]] = {}  # offsets of the starts of a job
        self._excused: set[str] = set()  # jobs of the runner that failed with the disk

    def offset(self, cursor: str) -> int:
        """Return the offset of a cursor. All cursors have the same store."""
        store, _, offset = cursor.partition("-")
        assert self.store in (None, store), f"a cursor of the store {store}, which was {self.store}"
        self.store = store
        self.newest = max(self.newest, int(offset))
        return int(offset)

    def disk_fails(self, now: float) -> None:
        """Record that the disk fails from now on (seconds)."""
        self.outages.append(Outage(now, self.newest))

    def disk_works(self, sent: float, cursor: str) -> None:
        """Record an event that was sent and accepted after the outage (seconds)."""
        self.outages[-1].over, self.outages[-1].upto = sent, self.offset(cursor)

    def excuses_rejection(self, sent: float) -> bool:
        """Return whether the disk failed at that time (seconds), or later."""
        return any(outage.excuses_rejection(sent) for outage in self.outages)

    def settled(self) -> None:
        """Forget the outages after the comparison."""
        self.outages.clear()

    def saw(self, message: Mapping[str, Any]) -> int:
        """Record a delivered message, and return its offset, which must be unique."""
        offset = self.offset(message["cursor"])
        known = self._messages.setdefault(offset, message)
        same = all(known[key] == message[key] for key in ("type", "job_id")) and _said(known) == _said(message)
        assert same, f"the offset {offset} was given twice: {known} and {message}"
        self.counted["messages seen"] += known is message
        return offset

    def saw_without_cursor(self, message: Mapping[str, Any]) -> None:
        """Record a message without a cursor: it follows a change whose commit is undecided."""
        assert message["type"] == "progress", f"{message} has no cursor"
        assert self.outages, f"{message} has no cursor, and no disk failed"

    def sent(self, story: Story, position: int, end: str | None = None) -> None:
        """Record an event that is being sent."""
        story.sent = max(story.sent, position)
        if end is not None:
            story.ends.add(end)

    def answered(self, story: Story, position: int, cursor: str, now: float, end: str | None = None) -> None:
        """Record an event that was acknowledged at `now` (seconds)."""
        self.counted["events answered"] += 1
        offset = self.offset(cursor)
        story.answered = max(story.answered, position)
        if end is not None:
            assert story.ended_as in (None, end), f"job {story.id} was ended twice: {story.ended_as} and {end}"
            story.ended_as = end
            self._answers[offset] = story.id, end
        elif position > 1:
            story.answered_at[position - 1] = now

    def compare_changes(self, replayed: Iterable[Mapping[str, Any]]) -> None:
        """Compare the state changes after `audited` with the daemon's."""
        before, there = self.audited, set[int]()
        for message in replayed:
            assert message["type"] != "resync", "a cursor of this store was not known"
            offset = self.saw(message)
            if message["type"] in CHANGES:
                assert offset > self.audited, f"the offset {offset} came after {self.audited}"
                self.audited = offset
                there.add(offset)
                self._follow(message, offset)
        for offset, message in self._messages.items():
            if before < offset <= self.audited and message["type"] in CHANGES:
                assert offset in there, f"a watcher has seen {message}, and it is gone"
        for offset, (job_id, end) in self._answers.items():
            if before < offset <= self.audited:
                said = self._messages.get(offset, {})
                assert said.get("job_id") == job_id, f"job {job_id}: {end} was answered {offset}, and it is gone"
        self.counted["changes compared"] += len(there)

    def _follow(self, message: Mapping[str, Any], offset: int) -> None:
        """Check the state machine: a job ends once, and only its final message follows."""
        job_id, type_ = message["job_id"], message["type"]
        old = self._statuses.get(job_id)
        if type_ in ("job_created", "status_change"):
            new = "queued" if type_ == "job_created" else message["data"]["new_status"]
            if type_ == "job_created":
                self._kinds[job_id] = message["data"]["kind"]
            may_follow = MAY_FOLLOW_IN_RUNNER if self._kinds.get(job_id) == RUN else MAY_FOLLOW
            assert new in may_follow.get(old, ()), f"job {job_id} was {old} and is {new} at {offset}"
            assert type_ == "job_created" or message["data"]["old_status"] == old, f"{message} after {old}"
            self._statuses[job_id] = new
            if new == "processing":
                self._starts.setdefault(job_id, []).append(offset)
        else:
            if type_ == "error" and self._kinds[job_id] == RUN:
                self._judge(job_id, message["data"]["message"], offset)
            assert TERMINAL[type_] == old, f"job {job_id} is {old} and has the message {type_} at {offset}"
            assert job_id not in self._final, f"job {job_id} has two ends: {self._final[job_id]} and {type_}"
            self._final[job_id] = type_

    def _judge(self, job_id: str, sentence: str, offset: int) -> None:
        """Check that a failed job of the runner had too many attempts or a failing disk."""
        starts = self._starts.get(job_id, [])
        if sentence == "interrupted":
            assert len(starts) >= ATTEMPTS, f"job {job_id} was interrupted at attempt {len(starts)}"
        elif job_id not in self._excused:
            started = starts[-1] if starts else 0
            excused = any(outage.excuses_failure(started, offset) for outage in self.outages)
            assert excused, f"job {job_id} failed at {offset}, and no disk did: {sentence}"
            self._excused.add(job_id)

    def start_over(self) -> None:
        """Restart the comparison from the first change."""
        self.audited = 0
        self._statuses.clear()
        self._final.clear()
        self._starts.clear()

    def missed(self, after: int, upto: int, seen: set[int]) -> list[Mapping[str, Any]]:
        """Return the compared state changes with after < offset ≤ upto that are not in `seen`."""
        return [
            message
            for offset, message in self._messages.items()
            if after < offset <= min(upto, self.audited) and message["type"] in CHANGES and offset not in seen
        ]

    def compare_story(self, story: Story, job: Mapping[str, Any] | None, kill: Kill) -> None:
        """Compare a producer's job, None if it is unknown. Continue from the daemon's state."""
        if job is None:
            assert story.answered == 0, f"job {story.id} was answered, and it is gone"
            story.sent = 0
            return
        status, step = job["status"], job["progress"]["current_step"]
        first, last = {"queued": (1, 1), "processing": (2, story.last - 1)}.get(status, (story.last, story.last))
        assert story.answered <= last, f"job {story.id}: event {story.answered} was answered, and it is {status}"
        assert story.sent >= first, f"job {story.id}: only {story.sent} events were sent, and it is {status}"
        if first == story.last:
            assert status in {TERMINAL[end] for end in story.ends}, f"job {story.id} is {status}, not {story.ends}"
            assert story.ended_as is None or TERMINAL[story.ended_as] == status, (
                f"job {story.id} was answered {story.ended_as}, and it is {status}"
            )
        self._compare_step(story, status, step, kill)
        story.answered = story.sent = story.last if first == story.last else max(first, step + 1)
        story.answered_at = {}
        story.kept = step
        self.counted["jobs compared"] += 1

    def _compare_step(self, story: Story, status: str, step: int, kill: Kill) -> None:
        """Check the newest progress. The first and the last are as durable as the start and the end."""
        # While the disk fails, a rejected end may still appear after a kill, without the progress before it.
        ended = status in TERMINAL.values() and (story.ended_as is not None or not self.outages)
        safe = [step for step, at in story.answered_at.items() if ended or self._written(at, kill)]
        owed = max([story.kept, *safe])
        assert step >= owed, f"job {story.id} is {status} and back at step {step}, and {owed} was to be kept"
        assert step > 0 or status == "queued", f"job {story.id} is {status} without the progress that started it"
        assert step <= min(story.sent - 1, story.steps), f"job {story.id}: step {step} was never sent"

    def _written(self, at: float, kill: Kill) -> bool:
        """Return whether progress that was acknowledged then (seconds) must survive a kill."""
        within = FRESH + kill.starved
        for outage in self.outages:
            at = outage.could_be_written(at, within)
        return at + within < kill.at

    def compare_job(self, job: Mapping[str, Any]) -> None:
        """Compare a job with its changes. A finished job never changes."""
        job_id, status = job["id"], job["status"]
        old = self._statuses.get(job_id)
        assert old not in TERMINAL.values() or old == status, f"job {job_id} was {old}, and it is {status}"
        if status not in TERMINAL.values():
            return
        known = self.finished.setdefault(job_id, job)
        assert known == job, f"the finished job {job_id} has changed: {known} and {job}"

    def compare_all(self, job_ids: set[str]) -> None:
        """Check that no job is missing, after all changes were compared."""
        gone = self._statuses.keys() - job_ids
        assert not gone, f"the jobs {sorted(gone)[:3]} are gone ({len(gone)} in all)"

    def compare_abandoned(self, job: Mapping[str, Any]) -> None:
        """Check that a job without a producer has failed, at the end."""
        said = job["status"], job["error"]
        assert said == ("failed", "producer lost"), f"job {job['id']} lost its producer, and is {said}"

    def status(self, job_id: str) -> str | None:
        """Return the status after the compared changes."""
        return self._statuses.get(job_id)


def _said(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data without `stalled`, which the end of a job resets."""
    return {key: value for key, value in message["data"].items() if key != "stalled"}
