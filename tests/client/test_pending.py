"""The pending of one job against the daemon's own state machine, over a connection that breaks."""

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.client.pending import MAX_UNKNOWN, Event, EventAnswer, PendingEvents
from progressd.core.errors import NotFound, ProgressdError, StoreFailed
from progressd.core.events import ProducerEvent, RegisterEvent
from progressd.core.job import Job, apply
from progressd.core.messages import JobStatus
from support.samples import ID, NOW
from support.waiting import PATIENCE


class Daemon:
    """Applies events like the real one."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.ends = 0
        self.store = "cd06f405"

    def restore(self) -> None:
        """Restore a backup that is older than all jobs."""
        self.jobs.clear()
        self.store = "5f2e10aa"

    def take(self, event: Event, *, full: bool = False) -> EventAnswer:
        try:
            if full:
                raise StoreFailed("the disk is full")
            known: ProducerEvent = msgspec.convert(event, type=ProducerEvent)
            job = self.jobs.get(known.job_id)
            if not job and isinstance(known, RegisterEvent) and known.cursor.startswith(self.store):
                raise NotFound(f"no job {known.job_id}")
            applied = apply(job, known, NOW)
        except ProgressdError as error:
            return EventAnswer(ok=False, error=str(error), status=error.status)
        self.ends += applied.job.status.finished and not (job and job.status.finished)
        self.jobs[applied.job.id] = applied.job
        return EventAnswer(ok=True, cursor=f"{self.store}-7")


def step(number: int) -> dict[str, object]:
    return {"current_step": number, "total_steps": 9, "step_name": f"Step {number}"}


def begun() -> PendingEvents:
    pending = PendingEvents(ID, {"kind": "scan"})
    pending.set_progress(step(0))
    return pending


def exchange(pending: PendingEvents, daemon: Daemon) -> str:
    batch = pending.batch()
    return pending.acknowledge(batch, [daemon.take(event) for event in batch])


def test_the_remaining_time_counts_down() -> None:
    pending, daemon = begun(), Daemon()
    pending.expect_end(time.monotonic() + 1000)
    _, reported = pending.batch()
    exchange(pending, daemon)
    [again] = pending.renewal()
    assert 1000 - PATIENCE < again["data"]["eta_seconds"] <= reported["data"]["eta_seconds"] <= 1000
    assert not pending.waiting
    pending.expect_end(time.monotonic())
    [late] = pending.renewal()
    assert late["data"] == {**step(0), "eta_seconds": 0}


ENDS = [
    ("completed", {"page_count": 3}, JobStatus.COMPLETED),
    ("error", {"message": "no paper"}, JobStatus.FAILED),
    ("status_change", {"new_status": "cancelled"}, JobStatus.CANCELLED),
]
fates = st.lists(st.sampled_from(["arrives", "never arrives", "answer lost", "disk full"]), max_size=20)


@given(st.lists(st.one_of(st.integers(0, 9), st.none())), fates, st.sampled_from(ENDS))
def test_the_end_is_applied_once(
    moves: list[int | None], fates: list[str], end: tuple[str, dict[str, object], JobStatus]
) -> None:
    pending, daemon = begun(), Daemon()
    type_, data, status = end
    errors = []

    def tell() -> None:
        fate = fates.pop() if fates else "arrives"
        batch = pending.batch()
        if fate == "never arrives":
            return
        answers = [daemon.take(event, full=fate == "disk full") for event in batch]
        if fate != "answer lost":
            errors.append(pending.acknowledge(batch, answers))

    newest = 0
    for move in moves:
        if move is None:
            tell()
        else:
            newest = move
            pending.set_progress(step(move))
    pending.end(type_, data)
    while not pending.over:
        tell()
    job = daemon.jobs[ID]
    assert (job.status, daemon.ends, job.progress.current_step) == (status, 1, newest)
    assert not any(errors)
    assert not pending.cancelled


def test_only_the_newest_progress_waits() -> None:
    pending = begun()
    for number in range(1000):
        pending.set_progress(step(number))
    assert [event["type"] for event in pending.batch()] == ["job_created", "progress"]
    assert pending.batch()[-1]["data"] == step(999)


def test_progress_during_a_request_is_sent_later() -> None:
    pending, daemon = begun(), Daemon()
    batch = pending.batch()
    pending.set_progress(step(5))
    pending.acknowledge(batch, [daemon.take(event) for event in batch])
    assert [event["data"] for event in pending.batch()] == [step(5)]


def test_accepted_events_are_not_sent_again() -> None:
    pending, daemon = begun(), Daemon()
    created, moved = pending.batch()
    pending.acknowledge([created, moved], [daemon.take(created), daemon.take(moved, full=True)])
    assert pending.batch() == [moved]


def cancel(daemon: Daemon) -> None:
    assert daemon.take({"type": "status_change", "job_id": ID, "data": {"new_status": "cancelled"}}).ok


def test_a_silent_job_asks_whether_it_was_cancelled() -> None:
    pending, daemon = begun(), Daemon()
    exchange(pending, daemon)
    before = daemon.jobs[ID]
    assert exchange(pending, daemon) == ""
    assert daemon.jobs[ID] is before
    assert (pending.waiting, pending.over) == (False, False)
    cancel(daemon)
    assert exchange(pending, daemon) == ""
    assert (pending.cancelled, pending.over) == (True, True)


def test_rejected_progress_asks_for_a_cancellation() -> None:
    pending, daemon = begun(), Daemon()
    exchange(pending, daemon)
    cancel(daemon)
    pending.set_progress(step(1))
    pending.end("completed", {})
    assert [exchange(pending, daemon), exchange(pending, daemon)] == ["", ""]
    assert (pending.cancelled, pending.over) == (True, True)


def test_a_job_that_has_ended_is_an_error() -> None:
    pending, daemon = begun(), Daemon()
    exchange(pending, daemon)
    daemon.take({"type": "error", "job_id": ID, "data": {"message": "producer lost"}})
    pending.set_progress(step(1))
    assert exchange(pending, daemon) == ""
    assert exchange(pending, daemon) == f"job {ID} is already failed and accepts no progress"
    assert (pending.cancelled, pending.over) == (False, True)


def test_a_deleted_job_is_not_registered_again() -> None:
    pending, daemon = begun(), Daemon()
    exchange(pending, daemon)
    daemon.jobs.clear()
    pending.set_progress(step(1))
    assert exchange(pending, daemon) == ""
    assert exchange(pending, daemon) == f"no job {ID}; the job is not reported any more"
    assert (pending.over, daemon.jobs) == (True, {})


@pytest.mark.parametrize("end", [None, *ENDS])
@pytest.mark.parametrize("silent", [True, False])
def test_a_restored_daemon_receives_the_whole_job(
    silent: bool, end: tuple[str, dict[str, object], JobStatus] | None
) -> None:
    pending, daemon = begun(), Daemon()
    pending.set_progress(step(4))
    exchange(pending, daemon)
    daemon.restore()
    if not silent:
        pending.set_progress(step(5))
    if end is not None:
        pending.end(*end[:2])
    assert [exchange(pending, daemon), exchange(pending, daemon)] == ["", ""]
    job = daemon.jobs[ID]
    status = JobStatus.PROCESSING if end is None else end[2]
    assert (job.kind, job.status, job.progress.current_step) == ("scan", status, 4 if silent else 5)
    assert (pending.waiting, pending.over) == (False, end is not None)


def test_a_foreign_program_registers_its_job() -> None:
    pending, daemon = PendingEvents(ID, None), Daemon()
    registration: Event = {"type": "job_created", "job_id": ID, "data": {}}
    daemon.take(registration)
    pending.set_progress(step(3))
    exchange(pending, daemon)
    daemon.restore()
    assert {exchange(pending, daemon) for _ in range(MAX_UNKNOWN)} == {""}
    assert (pending.waiting, daemon.jobs) == (True, {})
    daemon.take(registration)
    assert exchange(pending, daemon) == ""
    assert (pending.waiting, daemon.jobs[ID].progress.current_step) == (False, 3)
    daemon.restore()
    told = [exchange(pending, daemon) for _ in range(MAX_UNKNOWN + 1)]
    assert told[-1] == f"no job {ID}; the job is not reported any more"
    assert pending.over


def test_a_rejected_registration_ends_the_reports() -> None:
    pending = PendingEvents(ID, {"kind": ""})
    [refused] = batch = pending.batch()
    assert pending.acknowledge(batch, [EventAnswer(ok=False, error="not an event: …", status=400)]) == "not an event: …"
    assert (refused["type"], pending.over) == ("job_created", True)


def test_rejected_options_are_dropped() -> None:
    pending, daemon = PendingEvents(ID, {"kind": "scan", "total_steps": 9, "options": {"text": "x" * 70_000}}), Daemon()
    pending.set_progress(step(3))
    pending.end("completed", {})
    assert exchange(pending, daemon) == "the options are larger than 64 KiB"
    assert exchange(pending, daemon) == ""
    job = daemon.jobs[ID]
    assert (job.kind, job.progress.current_step, job.status, pending.over) == ("scan", 3, JobStatus.COMPLETED, True)


def test_a_rejected_result_is_dropped() -> None:
    pending, daemon = begun(), Daemon()
    pending.end("completed", {"output_path": "/home/me/result.pdf"})
    assert exchange(pending, daemon).endswith("is not a URL: it has to begin with https:// or http://")
    assert exchange(pending, daemon) == ""
    assert (pending.over, daemon.jobs[ID].status) == (True, JobStatus.COMPLETED)


def test_the_job_of_another_program_is_not_ended() -> None:
    pending, daemon = PendingEvents(ID, None), Daemon()
    daemon.take({"type": "job_created", "job_id": ID, "data": {}})
    pending.set_progress(step(3))
    pending.end(None, {})
    assert not pending.over
    assert exchange(pending, daemon) == ""
    assert (pending.over, daemon.jobs[ID].status) == (True, JobStatus.PROCESSING)
    assert daemon.jobs[ID].progress.current_step == 3


def test_the_last_progress_renews_the_lease() -> None:
    pending, daemon = begun(), Daemon()
    exchange(pending, daemon)
    [renewal] = pending.renewal()
    assert (renewal["type"], renewal["data"]) == ("progress", step(0))
    pending.set_progress(step(1))
    assert [event["data"] for event in pending.renewal()] == [step(1)]
