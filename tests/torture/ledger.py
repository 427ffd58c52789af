"""The ledger: what a daemon has promised, kept outside of it, and whether the next daemon keeps it.

Whoever talks to the daemon writes down here what was answered and what was seen, before anything else happens; what was
sent and not answered may have become true or not. After each start the books are compared. It does no I/O; a promise
that was broken is an AssertionError that names the job and the offset.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torture.outage import Outage
from torture.uploads import Uploads

CHANGES = ("job_created", "status_change", "completed", "error")
TERMINAL = {"completed": "completed", "error": "failed", "cancelled": "cancelled"}  # an end, and the status it makes
MAY_FOLLOW = {
    None: {"queued"},
    "queued": {"processing", "failed", "cancelled"},
    "processing": {"completed", "failed", "cancelled"},
}
MAY_FOLLOW_IN_RUNNER = {  # where nobody cancels anything
    None: {"queued"},
    "queued": {"processing"},
    "processing": {"completed", "failed", "queued"},  # queued: again, after a crash
}
RUN = "copy"  # the kind of the jobs that the runner works on
ATTEMPTS = 3  # the default of runner.max_attempts
FRESH = 1.0  # seconds of progress that a crash may cost


class Kill(NamedTuple):
    """The last thing that happened to a daemon; seconds."""

    at: float  # a moment before it; never, where the daemon has come to its end by itself
    starved: float = 0.0  # how long the machine had let it wait for a processor until then, which is not its fault


@dataclass
class Story:
    """A job that producers report on: created, so many steps, an end. Positions count its events from 1."""

    id: str
    steps: int
    end: str
    sent: int = 0
    answered: int = 0
    refused: bool = False  # an end, since another had come before it
    ended_as: str | None = None  # the end that was answered
    ends: set[str] = field(default_factory=set)  # those that were sent
    answered_at: dict[int, float] = field(default_factory=dict)  # of progress: step -> seconds
    kept: int = 0  # the step that a daemon had when it started

    @property
    def last(self) -> int:
        """The position of the end."""
        return self.steps + 2

    @property
    def over(self) -> bool:
        """Nothing more has to be said about it."""
        return self.answered == self.last


class Ledger:
    """The books of one state directory."""

    def __init__(self) -> None:
        self.stories: dict[str, Story] = {}
        self.finished: dict[str, Mapping[str, Any]] = {}  # jobs as they were when they had ended
        self.abandoned: set[str] = set()  # jobs with a lease of which nobody says any more
        self.audited = 0  # the offset up to which the books have been compared
        self.store: str | None = None
        self.newest = 0  # offset that anybody was told
        self.outages: list[Outage] = []  # since the books were compared
        self.counted: Counter[str] = Counter()
        self.uploads = Uploads(self.counted)
        self._messages: dict[int, Mapping[str, Any]] = {}  # everything anybody was sent, by offset
        self._answers: dict[int, tuple[str, str]] = {}  # offset -> job and end, as producers were answered
        self._statuses: dict[str, str] = {}  # as the audited changes leave the jobs
        self._told: dict[str, str] = {}  # the message that came after the end
        self._kinds: dict[str, str] = {}
        self._starts: dict[str, list[int]] = {}  # offsets at which a job became processing
        self._excused: set[str] = set()  # jobs of the runner that may have failed, since the disk did

    def offset(self, cursor: str) -> int:
        """The offset of a cursor; all are of one store."""
        store, _, offset = cursor.partition("-")
        assert self.store in (None, store), f"a cursor of the store {store}, which was {self.store}"
        self.store = store
        self.newest = max(self.newest, int(offset))
        return int(offset)

    def disk_fails(self, now: float) -> None:
        """From now on (seconds)."""
        self.outages.append(Outage(now, self.newest))

    def disk_works(self, sent: float, cursor: str) -> None:
        """Something has been taken that was sent then (seconds), after the disk was mended."""
        self.outages[-1].over, self.outages[-1].upto = sent, self.offset(cursor)

    def excuses_refusal(self, sent: float) -> bool:
        """Whether the disk failed at that time (seconds), or later."""
        return any(outage.excuses_refusal(sent) for outage in self.outages)

    def settled(self) -> None:
        """All has been compared: what was excused is known, and nothing more will be."""
        self.outages.clear()

    def saw(self, message: Mapping[str, Any]) -> int:
        """Somebody has been sent this; its offset. An offset is never given twice."""
        offset = self.offset(message["cursor"])
        known = self._messages.setdefault(offset, message)
        same = all(known[key] == message[key] for key in ("type", "job_id")) and _said(known) == _said(message)
        assert same, f"the offset {offset} was given twice: {known} and {message}"
        self.counted["messages seen"] += known is message
        return offset

    def saw_without_cursor(self, message: Mapping[str, Any]) -> None:
        """Where it is open whether a change is kept, nobody is told how to go on from behind it."""
        assert message["type"] == "progress", f"{message} has no cursor"
        assert self.outages, f"{message} has no cursor, and no disk failed"
        self.counted["messages without a cursor"] += 1

    def sent(self, story: Story, position: int, end: str | None = None) -> None:
        """An event is on its way."""
        story.sent = max(story.sent, position)
        if end is not None:
            story.ends.add(end)

    def answered(self, story: Story, position: int, cursor: str, now: float, end: str | None = None) -> None:
        """An event was acknowledged at `now` (seconds)."""
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
        """All state changes after `audited`, as the daemon tells them now."""
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
        """The state machine, from the outside: one end, and nothing after it but the word that goes with it."""
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
            assert TERMINAL[type_] == old, f"job {job_id} is {old} and is told {type_} at {offset}"
            assert job_id not in self._told, f"job {job_id} has two ends: {self._told[job_id]} and {type_}"
            self._told[job_id] = type_

    def _judge(self, job_id: str, sentence: str, offset: int) -> None:
        """A job of the runner has failed: after too many attempts, or since the disk did, but for no other reason."""
        starts = self._starts.get(job_id, [])
        if sentence == "interrupted":
            assert len(starts) >= ATTEMPTS, f"job {job_id} was interrupted at attempt {len(starts)}"
        elif job_id not in self._excused:
            started = starts[-1] if starts else 0
            excused = any(outage.excuses_failure(started, offset) for outage in self.outages)
            assert excused, f"job {job_id} failed at {offset}, and no disk did: {sentence}"
            self._excused.add(job_id)

    def start_over(self) -> None:
        """Compare all changes again, from the first one on."""
        self.audited = 0
        self._statuses.clear()
        self._told.clear()
        self._starts.clear()

    def missed(self, after: int, upto: int, seen: set[int]) -> list[Mapping[str, Any]]:
        """The state changes with after < offset ≤ upto that are not among the seen, of those that were compared."""
        return [
            message
            for offset, message in self._messages.items()
            if after < offset <= min(upto, self.audited) and message["type"] in CHANGES and offset not in seen
        ]

    def compare_story(self, story: Story, job: Mapping[str, Any] | None, kill: Kill) -> None:
        """A producer's job as it is now, None where there is none. What is true from now on is the daemon's word."""
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
        self.counted["steps lost to a crash"] += max(0, max(story.answered_at, default=0) - step)
        story.answered = story.sent = story.last if first == story.last else max(first, step + 1)
        story.answered_at = {}
        story.kept = step
        self.counted["jobs compared"] += 1

    def _compare_step(self, story: Story, status: str, step: int, kill: Kill) -> None:
        """The newest progress of a job: the first and the last are as durable as what they belong to."""
        # While the disk fails, an end that was refused may still show after a kill, without what was told behind it.
        ended = status in TERMINAL.values() and (story.ended_as is not None or not self.outages)
        safe = [step for step, at in story.answered_at.items() if ended or self._written(at, kill)]
        owed = max([story.kept, *safe])
        assert step >= owed, f"job {story.id} is {status} and back at step {step}, and {owed} was to be kept"
        assert step > 0 or status == "queued", f"job {story.id} is {status} without the progress that started it"
        assert step <= min(story.sent - 1, story.steps), f"job {story.id}: step {step} was never sent"

    def _written(self, at: float, kill: Kill) -> bool:
        """Whether progress that was answered then (seconds) had to be on the disk before a kill."""
        within = FRESH + kill.starved
        for outage in self.outages:
            at = outage.could_be_written(at, within)
        return at + within < kill.at

    def compare_job(self, job: Mapping[str, Any]) -> None:
        """Any job: it is what its changes made it, and once finished it stays as it was."""
        job_id, status = job["id"], job["status"]
        told = self._statuses.get(job_id)
        assert told not in TERMINAL.values() or told == status, f"job {job_id} was told {told}, and it is {status}"
        if status not in TERMINAL.values():
            return
        known = self.finished.setdefault(job_id, job)
        assert known == job, f"the finished job {job_id} has changed: {known} and {job}"
        self.counted["finished jobs compared"] += known is not job

    def compare_all(self, job_ids: set[str]) -> None:
        """Every job that there was is among these; call it when all changes have been compared."""
        gone = self._statuses.keys() - job_ids
        assert not gone, f"the jobs {sorted(gone)[:3]} are gone ({len(gone)} in all)"

    def compare_abandoned(self, job: Mapping[str, Any]) -> None:
        """A job whose producer has gone for good, once all have ended."""
        said = job["status"], job["error"]
        assert said == ("failed", "producer lost"), f"job {job['id']} lost its producer, and is {said}"
        self.counted["lost producers compared"] += 1

    def status(self, job_id: str) -> str | None:
        """As the compared changes leave it."""
        return self._statuses.get(job_id)


def _said(message: Mapping[str, Any]) -> dict[str, Any]:
    """The data, but for what the end of the job takes back of its last progress: that the producer was silent."""
    return {key: value for key, value in message["data"].items() if key != "stalled"}
