"""What is told of a job whatever becomes of the connection; the daemon's own state machine decides at the other end."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.client.pending import UNKNOWN_MOST, Event, EventAnswer, PendingEvents
from progressd.core.errors import NotFound, ProgressdError, StoreFailed
from progressd.core.events import ProducerEvent, RegisterEvent
from progressd.core.job import Job, apply
from progressd.core.status import JobStatus
from support.samples import ID, NOW


class Daemon:
    """Takes events as the real one does, over a connection that can break on either way."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.ends = 0
        self.store = "cd06f405"

    def restore(self) -> None:
        """Put a backup in place that is older than all jobs."""
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
    backlog = PendingEvents(ID, {"kind": "scan"})
    backlog.move(step(0))
    return backlog


def exchange(backlog: PendingEvents, daemon: Daemon) -> str:
    batch = backlog.batch()
    return backlog.answered(batch, [daemon.take(event) for event in batch])


ENDS = [
    ("completed", {"page_count": 3}, JobStatus.COMPLETED),
    ("error", {"message": "no paper"}, JobStatus.FAILED),
    ("status_change", {"new_status": "cancelled"}, JobStatus.CANCELLED),
]
fates = st.lists(st.sampled_from(["arrives", "never arrives", "answer lost", "disk full"]), max_size=20)


@given(st.lists(st.one_of(st.integers(0, 9), st.none())), fates, st.sampled_from(ENDS))
def test_the_end_is_told_once_whatever_the_connection_does(
    moves: list[int | None], fates: list[str], end: tuple[str, dict[str, object], JobStatus]
) -> None:
    backlog, daemon = begun(), Daemon()
    type_, data, status = end
    complaints = []

    def tell() -> None:
        fate = fates.pop() if fates else "arrives"
        batch = backlog.batch()
        if fate == "never arrives":
            return
        answers = [daemon.take(event, full=fate == "disk full") for event in batch]
        if fate != "answer lost":
            complaints.append(backlog.answered(batch, answers))

    newest = 0
    for move in moves:
        if move is None:
            tell()
        else:
            newest = move
            backlog.move(step(move))
    backlog.end(type_, data)
    while not backlog.over:
        tell()
    job = daemon.jobs[ID]
    assert (job.status, daemon.ends, job.progress.current_step) == (status, 1, newest)
    assert not any(complaints)
    assert not backlog.cancelled


def test_only_the_newest_progress_waits() -> None:
    backlog = begun()
    for number in range(1000):
        backlog.move(step(number))
    assert [event["type"] for event in backlog.batch()] == ["job_created", "progress"]
    assert backlog.batch()[-1]["data"] == step(999)


def test_progress_that_comes_while_another_is_on_its_way_is_not_taken_for_told() -> None:
    backlog, daemon = begun(), Daemon()
    batch = backlog.batch()
    backlog.move(step(5))
    backlog.answered(batch, [daemon.take(event) for event in batch])
    assert [event["data"] for event in backlog.batch()] == [step(5)]


def test_what_was_taken_before_the_disk_was_full_is_not_told_again() -> None:
    backlog, daemon = begun(), Daemon()
    created, moved = backlog.batch()
    backlog.answered([created, moved], [daemon.take(created), daemon.take(moved, full=True)])
    assert backlog.batch() == [moved]


def cancel(daemon: Daemon) -> None:
    assert daemon.take({"type": "status_change", "job_id": ID, "data": {"new_status": "cancelled"}}).ok


def test_a_silent_job_hears_that_it_was_cancelled_and_changes_nothing_by_asking() -> None:
    backlog, daemon = begun(), Daemon()
    exchange(backlog, daemon)
    before = daemon.jobs[ID]
    assert exchange(backlog, daemon) == ""
    assert daemon.jobs[ID] is before
    assert (backlog.waiting, backlog.over) == (False, False)
    cancel(daemon)
    assert exchange(backlog, daemon) == ""
    assert (backlog.cancelled, backlog.over) == (True, True)


def test_progress_that_comes_too_late_asks_whether_the_job_was_cancelled() -> None:
    backlog, daemon = begun(), Daemon()
    exchange(backlog, daemon)
    cancel(daemon)
    backlog.move(step(1))
    backlog.end("completed", {})
    assert [exchange(backlog, daemon), exchange(backlog, daemon)] == ["", ""]
    assert (backlog.cancelled, backlog.over) == (True, True)


def test_a_job_that_somebody_else_has_ended_is_reported_on_no_more_and_that_is_said() -> None:
    backlog, daemon = begun(), Daemon()
    exchange(backlog, daemon)
    daemon.take({"type": "error", "job_id": ID, "data": {"message": "producer lost"}})
    backlog.move(step(1))
    assert exchange(backlog, daemon) == ""
    assert exchange(backlog, daemon) == f"job {ID} is already failed: progress comes too late"
    assert (backlog.cancelled, backlog.over) == (False, True)


def test_a_job_that_was_deleted_does_not_come_back() -> None:
    backlog, daemon = begun(), Daemon()
    exchange(backlog, daemon)
    daemon.jobs.clear()
    backlog.move(step(1))
    assert exchange(backlog, daemon) == ""
    assert exchange(backlog, daemon) == f"no job {ID} any more: nothing of it is reported from here on"
    assert (backlog.over, daemon.jobs) == (True, {})


@pytest.mark.parametrize("silent", [True, False])
def test_a_daemon_that_was_restored_is_told_all_of_the_job(silent: bool) -> None:
    backlog, daemon = begun(), Daemon()
    backlog.move(step(4))
    exchange(backlog, daemon)
    daemon.restore()
    if not silent:
        backlog.move(step(5))
    assert [exchange(backlog, daemon), exchange(backlog, daemon)] == ["", ""]
    job = daemon.jobs[ID]
    assert (job.kind, job.status, job.progress.current_step) == ("scan", JobStatus.PROCESSING, 4 if silent else 5)
    assert not backlog.waiting


@pytest.mark.parametrize(("type_", "data", "status"), ENDS)
def test_a_daemon_that_was_restored_before_the_end_is_told_all_of_the_job(
    type_: str, data: dict[str, object], status: JobStatus
) -> None:
    backlog, daemon = begun(), Daemon()
    exchange(backlog, daemon)
    daemon.restore()
    backlog.end(type_, data)
    assert [exchange(backlog, daemon), exchange(backlog, daemon)] == ["", ""]
    assert (backlog.over, daemon.jobs[ID].status, daemon.jobs[ID].kind) == (True, status, "scan")


def test_a_restored_daemon_is_told_of_the_job_of_somebody_else_once_it_knows_that_again() -> None:
    backlog, daemon = PendingEvents(ID, None), Daemon()
    registration: Event = {"type": "job_created", "job_id": ID, "data": {}}
    daemon.take(registration)
    backlog.move(step(3))
    exchange(backlog, daemon)
    daemon.restore()
    assert {exchange(backlog, daemon) for _ in range(UNKNOWN_MOST)} == {""}
    assert (backlog.waiting, daemon.jobs) == (True, {})
    daemon.take(registration)
    assert exchange(backlog, daemon) == ""
    assert (backlog.waiting, daemon.jobs[ID].progress.current_step) == (False, 3)
    daemon.restore()
    told = [exchange(backlog, daemon) for _ in range(UNKNOWN_MOST + 1)]
    assert told[-1] == f"no job {ID} any more: nothing of it is reported from here on"
    assert backlog.over


def test_a_registration_that_is_refused_ends_it() -> None:
    backlog = PendingEvents(ID, {"kind": ""})
    [refused] = batch = backlog.batch()
    assert backlog.answered(batch, [EventAnswer(ok=False, error="not an event: …", status=400)]) == "not an event: …"
    assert (refused["type"], backlog.over) == ("job_created", True)


def test_options_that_are_refused_do_not_keep_a_job_from_being_seen() -> None:
    backlog, daemon = PendingEvents(ID, {"kind": "scan", "total_steps": 9, "options": {"text": "x" * 70_000}}), Daemon()
    backlog.move(step(3))
    backlog.end("completed", {})
    assert exchange(backlog, daemon) == "the options are larger than 64 KiB"
    assert exchange(backlog, daemon) == ""
    job = daemon.jobs[ID]
    assert (job.kind, job.progress.current_step, job.status, backlog.over) == ("scan", 3, JobStatus.COMPLETED, True)


def test_a_result_that_is_refused_does_not_keep_a_job_from_its_end() -> None:
    backlog, daemon = begun(), Daemon()
    backlog.end("completed", {"output_path": "/home/me/result.pdf"})
    assert exchange(backlog, daemon).endswith("is not a URL: it has to begin with https:// or http://")
    assert exchange(backlog, daemon) == ""
    assert (backlog.over, daemon.jobs[ID].status) == (True, JobStatus.COMPLETED)


def test_of_a_job_of_somebody_else_only_the_progress_is_told() -> None:
    backlog, daemon = PendingEvents(ID, None), Daemon()
    daemon.take({"type": "job_created", "job_id": ID, "data": {}})
    backlog.move(step(3))
    backlog.end(None, {})
    assert not backlog.over
    assert exchange(backlog, daemon) == ""
    assert (backlog.over, daemon.jobs[ID].status) == (True, JobStatus.PROCESSING)
    assert daemon.jobs[ID].progress.current_step == 3


def test_after_a_silence_the_last_progress_is_told_once_more() -> None:
    backlog, daemon = begun(), Daemon()
    exchange(backlog, daemon)
    [renewal] = backlog.renewal()
    assert (renewal["type"], renewal["data"]) == ("progress", step(0))
    backlog.move(step(1))
    assert [event["data"] for event in backlog.renewal()] == [step(1)]
