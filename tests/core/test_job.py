"""The state machine: examples of every rule, then random events against the specification."""

from datetime import datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace
from progressd.core.errors import Conflict, NotFound, ProgressdError
from progressd.core.events import (
    CompletedEvent,
    ErrorEvent,
    Event,
    LeaseExpiredEvent,
    PreviewEvent,
    ProgressEvent,
    RegisterEvent,
    Registration,
    ReportedProgress,
    ReportedResult,
    ReportedStatus,
    RequeueEvent,
    RunnerEvent,
    StalledEvent,
    StartEvent,
    StatusEvent,
    SubmitEvent,
)
from progressd.core.job import Applied, Job, apply
from progressd.core.messages import (
    Completed,
    CompletedData,
    Error,
    ErrorData,
    Eta,
    JobCreated,
    JobCreatedData,
    JobMessage,
    JobStatus,
    PagePreview,
    PagePreviewData,
    Progress,
    ProgressData,
    StatusChange,
    StatusChangeData,
    ends_job,
)
from support.samples import ID, NOW

QUEUED, PROCESSING, COMPLETED, FAILED, CANCELLED = JobStatus
LATER = NOW + timedelta(seconds=10)

REGISTER = RegisterEvent(ID, Registration("scan", "book.pdf", 12, {"dpi": 300}, {"by": "eve"}))
SUBMIT = SubmitEvent(ID, Registration("pdf", "book.pdf"), "pdf")
STEP = ProgressEvent(ID, ReportedProgress(5, 12, "AI Upscaling"))
START = StatusEvent(ID, ReportedStatus(PROCESSING))
CANCEL = StatusEvent(ID, ReportedStatus(CANCELLED))
COMPLETE = CompletedEvent(ID, ReportedResult("/api/jobs/x/download", 45.2, 12))
FAIL = ErrorEvent(ID, ErrorData("no paper"))
PREVIEW = PreviewEvent(ID, PagePreviewData(3, "aGVsbG8=", "deskew", 320, 200))


def after(*events: Event) -> Job:
    """Return the job after these events, one second apart and all accepted."""
    job = None
    for number, event in enumerate(events):
        job = apply(job, event, NOW + timedelta(seconds=number)).job
    assert job is not None
    return job


def change(old: JobStatus, new: JobStatus) -> StatusChange:
    return StatusChange(ID, StatusChangeData(old, new))


# Registration


def test_a_registered_job_is_queued() -> None:
    job, messages, durable = apply(None, REGISTER, NOW)
    assert job == Job(
        id=ID,
        kind="scan",
        status=QUEUED,
        created_at=NOW,
        progress=ProgressData(0, 12, "", 0),
        options={"dpi": 300},
        labels={"by": "eve"},
        input_filename="book.pdf",
    )
    assert messages == (JobCreated(ID, JobCreatedData("scan", QUEUED, NOW, "book.pdf", {"by": "eve"})),)
    assert durable


def test_a_job_may_have_a_name() -> None:
    job, (created,), _ = apply(None, RegisterEvent(ID, Registration("rsync", name="rsync -a /a /b")), NOW)
    assert isinstance(created, JobCreated)
    assert (job.name, created.data.name) == ("rsync -a /a /b", "rsync -a /a /b")
    assert b'"name"' not in msgspec.json.encode(apply(None, REGISTER, NOW).messages[0])


def test_a_submitted_job_belongs_to_its_pipeline() -> None:
    assert after(SUBMIT).pipeline == "pdf"
    assert after(REGISTER).pipeline is None


@pytest.mark.parametrize("first", [REGISTER, SUBMIT], ids=["registered", "submitted"])
@pytest.mark.parametrize("second", [REGISTER, SUBMIT], ids=["registered", "submitted"])
def test_a_repeated_registration_changes_nothing(first: Event, second: Event) -> None:
    job = after(first)
    assert apply(job, second, LATER) == Applied(job, (), False)


# Progress


def test_progress_is_published_and_not_durable() -> None:
    eta = Eta(14.0, 9.0, 21.7, "rate")
    job, messages, durable = apply(after(REGISTER, START), STEP, NOW + timedelta(seconds=11), lambda *_: eta)
    data = ProgressData(5, 12, "AI Upscaling", 41, 14.0, eta=eta)
    assert job.progress == data
    assert messages == (Progress(ID, data),)
    assert not durable


def test_first_progress_starts_a_producers_job() -> None:
    job, messages, durable = apply(after(REGISTER), STEP, LATER)
    assert (job.status, job.started_at) == (PROCESSING, LATER)
    assert messages == (change(QUEUED, PROCESSING), Progress(ID, ProgressData(5, 12, "AI Upscaling", 41, UNSET)))
    assert durable


@pytest.mark.parametrize("event", [STEP, START], ids=["progress", "status_change"])
def test_only_the_runner_starts_its_jobs(event: Event) -> None:
    with pytest.raises(Conflict, match="runner"):
        apply(after(SUBMIT), event, LATER)


def test_a_started_job_of_the_runner_accepts_progress() -> None:
    job, messages, durable = apply(after(SUBMIT), StartEvent(ID), LATER)
    assert (job.status, job.started_at) == (PROCESSING, LATER)
    assert messages == (change(QUEUED, PROCESSING),)
    assert durable
    assert apply(job, STEP, LATER).job.progress.current_step == 5


def test_a_preview_changes_nothing() -> None:
    job = after(REGISTER, START)
    assert apply(job, PREVIEW, LATER) == Applied(job, (PagePreview(ID, PREVIEW.data),), False)


# Ends


def test_a_completion_is_two_messages() -> None:
    job, messages, durable = apply(after(REGISTER, START), COMPLETE, LATER)
    url = "/api/jobs/x/download"
    assert messages == (change(PROCESSING, COMPLETED), Completed(ID, CompletedData(url, 45.2, 12, url)))
    assert (job.status, job.completed_at) == (COMPLETED, LATER)
    assert (job.output_path, job.elapsed_seconds, job.page_count) == (url, 45.2, 12)
    assert durable


def test_a_missing_elapsed_time_is_measured() -> None:
    job = after(REGISTER, START)  # started at NOW + 1 s
    applied = apply(job, CompletedEvent(ID), NOW + timedelta(seconds=3.5))
    assert applied.job.elapsed_seconds == 2.5
    assert applied.messages[-1] == Completed(ID, CompletedData(None, 2.5, None, None))


def test_a_clock_set_back_gives_no_negative_time() -> None:
    applied = apply(after(REGISTER, START), CompletedEvent(ID), NOW - timedelta(hours=1))
    assert applied.job.elapsed_seconds == 0


BEFORE = pytest.mark.parametrize(
    "before", [(REGISTER,), (REGISTER, START), (SUBMIT,)], ids=["queued", "begun", "runner"]
)


@BEFORE
def test_a_failure_is_two_messages(before: tuple[Event, ...]) -> None:
    job = after(*before)
    failed, messages, durable = apply(job, RunnerEvent(ID, FAIL) if job.pipeline else FAIL, LATER)
    assert messages == (change(job.status, FAILED), Error(ID, ErrorData("no paper")))
    assert (failed.status, failed.error, failed.completed_at) == (FAILED, "no paper", LATER)
    assert durable


@BEFORE
def test_a_cancellation_is_one_message(before: tuple[Event, ...]) -> None:
    job = after(*before)
    cancelled, messages, durable = apply(job, CANCEL, LATER)
    assert messages == (change(job.status, CANCELLED),)
    assert (cancelled.status, cancelled.completed_at) == (CANCELLED, LATER)
    assert durable


@pytest.mark.parametrize("end", [COMPLETE, FAIL, CANCEL], ids=["completed", "failed", "cancelled"])
def test_a_repeated_end_is_accepted_without_messages(end: Event) -> None:
    job = after(REGISTER, START, end)
    assert apply(job, end, LATER) == Applied(job, (), False)


@pytest.mark.parametrize(("new", "type_"), [(COMPLETED, "completed"), (FAILED, "error")])
def test_a_status_event_cannot_complete_or_fail_a_job(new: JobStatus, type_: str) -> None:
    with pytest.raises(Conflict, match=f"'{type_}'"):
        apply(after(REGISTER, START), StatusEvent(ID, ReportedStatus(new)), LATER)


def test_a_wrong_old_status_is_rejected() -> None:
    with pytest.raises(Conflict, match="is processing, not queued"):
        apply(after(REGISTER, START), StatusEvent(ID, ReportedStatus(CANCELLED, QUEUED)), LATER)


# The runner's job, after a crash


def test_a_requeued_job_starts_its_next_attempt() -> None:
    job = after(SubmitEvent(ID, Registration(total_steps=12), "pdf"), StartEvent(ID), STEP)
    job = replace(job, progress_offset=7, progress_at=NOW)
    again, messages, durable = apply(job, RequeueEvent(ID), LATER)
    assert messages == (change(PROCESSING, QUEUED),)
    assert (again.status, again.started_at, again.attempt) == (QUEUED, None, 2)
    assert (again.progress, again.progress_offset, again.progress_at) == (ProgressData(0, 12, "", 0), 0, None)
    assert durable


def test_a_stop_does_not_count_as_an_attempt() -> None:
    again, messages, durable = apply(after(SUBMIT, StartEvent(ID)), RequeueEvent(ID, stopped=True), LATER)
    assert messages == (change(PROCESSING, QUEUED),)
    assert (again.status, again.started_at, again.attempt) == (QUEUED, None, 1)
    assert durable


# Any sequence of events

statuses = st.sampled_from(JobStatus)
steps = st.integers(0, 30)
anything = st.one_of(
    st.builds(
        ProgressEvent,
        st.just(ID),
        st.builds(ReportedProgress, steps, steps, st.sampled_from(["", "Scan"]), st.none() | st.floats(0, 1e6)),
    ),
    st.builds(StatusEvent, st.just(ID), st.builds(ReportedStatus, statuses, st.none() | statuses)),
    st.builds(
        CompletedEvent,
        st.just(ID),
        st.builds(
            ReportedResult, st.sampled_from([None, "/api/a", "/api/b"]), st.sampled_from([None, 1.5]), st.none() | steps
        ),
    ),
    st.sampled_from([FAIL, ErrorEvent(ID, ErrorData("no ink")), PREVIEW]),
    st.sampled_from([REGISTER, SUBMIT, StartEvent(ID), RequeueEvent(ID), RequeueEvent(ID, stopped=True)]),
    st.sampled_from([RunnerEvent(ID, FAIL), RunnerEvent(ID, COMPLETE)]),
)
beginnings = st.sampled_from([(), (REGISTER,), (REGISTER, START), (SUBMIT,), (SUBMIT, StartEvent(ID))])

PATH = {
    None: {QUEUED},
    QUEUED: {PROCESSING, CANCELLED, FAILED},
    PROCESSING: {COMPLETED, FAILED, CANCELLED, QUEUED},  # queued: again, after a crash
    COMPLETED: set(),
    FAILED: set(),
    CANCELLED: set(),
}


def status_after(job: Job | None, event: Event) -> JobStatus | None:
    """Return the status after the event by the specification; None if it is rejected."""
    if isinstance(event, RegisterEvent | SubmitEvent):
        return job.status if job else QUEUED
    if job is None:
        return None
    if isinstance(event, RunnerEvent):
        event = event.end
    elif isinstance(event, CompletedEvent | ErrorEvent) and job.pipeline is not None:
        return None  # only the runner can end it
    was, running = job.status, job.status is PROCESSING
    open_ = running or was is QUEUED
    startable = was is QUEUED and job.pipeline is None
    match event:
        case ProgressEvent():
            return PROCESSING if running or startable else None
        case PreviewEvent():
            return was if open_ else None
        case StatusEvent(data=ReportedStatus(new, old)):
            if new is was is CANCELLED:
                return was
            fits = (new is PROCESSING and startable) or (new is CANCELLED and open_)
            return new if fits and old in (None, was) else None
        case CompletedEvent(data=ReportedResult(path, elapsed, pages)):
            same = (
                was is COMPLETED
                and path in (None, job.output_path)
                and elapsed in (None, job.elapsed_seconds)
                and pages in (None, job.page_count)
            )
            return COMPLETED if running or same else None
        case ErrorEvent(data=ErrorData(message)):
            return FAILED if open_ or (was is FAILED and message == job.error) else None
        case StartEvent():
            return PROCESSING if was is QUEUED else None
        case RequeueEvent():
            return QUEUED if running else None


def played(events: list[Event], now: datetime = NOW) -> tuple[Job | None, list[JobMessage]]:
    """Apply the events and compare each with the specification. Return the job and all messages."""
    job: Job | None = None
    told: list[JobMessage] = []
    for event in events:
        now += timedelta(seconds=1)
        expected = status_after(job, event)
        if expected is None:
            with pytest.raises(NotFound if job is None else Conflict) as refused:
                apply(job, event, now)
            assert isinstance(refused.value, ProgressdError)
            continue
        was = job.status if job else None
        applied = apply(job, event, now)
        assert applied.job.status is expected
        assert applied.durable == (expected is not was)
        if not applied.messages:
            assert applied.job is job
        job = applied.job
        told.extend(applied.messages)
    return job, told


sequences = st.builds(lambda first, rest: [*first, *rest], beginnings, st.lists(anything, max_size=25))


@given(sequences)
def test_every_event_is_accepted_or_rejected_as_specified(events: list[Event]) -> None:
    played(events)


@given(sequences)
def test_published_statuses_follow_the_state_machine(events: list[Event]) -> None:
    job, told = played(events)
    status: JobStatus | None = None
    for message in told:
        if isinstance(message, JobCreated):
            assert status is None
            status = message.data.status
        elif isinstance(message, StatusChange):
            assert message.data.old_status is status
            assert message.data.new_status in PATH[status]
            status = message.data.new_status
        elif isinstance(message, Progress):
            assert status is PROCESSING
        elif isinstance(message, Completed | Error):
            assert status is (COMPLETED if isinstance(message, Completed) else FAILED)
    assert status is (job.status if job else None)


@given(sequences)
def test_the_last_messages_match_the_job(events: list[Event]) -> None:
    job, told = played(events)
    if job is None:
        assert not told
        return
    since = [position for position, m in enumerate(told) if isinstance(m, StatusChange) and m.data.new_status is QUEUED]
    progress = [message.data for message in told[since[-1] if since else 0 :] if isinstance(message, Progress)]
    assert job.progress == (progress[-1] if progress else ProgressData(0, job.progress.total_steps, "", 0))
    assert (job.error is not None) == (job.status is FAILED)
    assert (job.elapsed_seconds is not None) == (job.status is COMPLETED)
    assert (job.completed_at is not None) == job.status.finished
    if job.status in (PROCESSING, COMPLETED):
        assert job.started_at is not None
    if isinstance(told[-1], Completed):
        url = job.output_path
        assert told[-1].data == CompletedData(url, job.elapsed_seconds or 0, job.page_count, url)
    if isinstance(told[-1], Error):
        assert told[-1].data.message == job.error


# Leases

STALL, LOSE = StalledEvent(ID), LeaseExpiredEvent(ID)
LEASED = RegisterEvent(ID, Registration("scan", total_steps=12, lease_seconds=30))


def came_of(*events: Event) -> Applied:
    """Return the result of the last event."""
    job, applied = None, None
    for event in events:
        applied = apply(job, event, LATER)
        job = applied.job
    assert applied is not None
    return applied


def test_a_stalled_job_publishes_progress() -> None:
    before = came_of(LEASED, STEP).job
    applied = apply(before, STALL, LATER)
    data = ProgressData(5, 12, "AI Upscaling", 41, stalled=True)
    assert applied == Applied(replace(before, progress=data), (Progress(ID, data),), False)
    assert came_of(LEASED, STALL).messages == (Progress(ID, ProgressData(0, 12, "", 0, stalled=True)),)
    assert apply(applied.job, STALL, LATER) == Applied(applied.job, (), False)


@pytest.mark.parametrize(
    ("event", "messages"),
    [
        (STEP, [Progress]),
        (PREVIEW, [PagePreview, Progress]),
        (LEASED, [Progress]),
        (StatusEvent(ID, ReportedStatus(PROCESSING)), [StatusChange, Progress]),
    ],
)
def test_any_event_resumes_a_stalled_job(event: Event, messages: list[type[JobMessage]]) -> None:
    first = [LEASED, STALL] if isinstance(event, StatusEvent) else [LEASED, STEP, STALL]
    applied = came_of(*first, event)
    assert [type(message) for message in applied.messages] == messages
    newest = next(message for message in applied.messages if isinstance(message, Progress))
    assert newest.data == applied.job.progress
    assert not applied.job.progress.stalled


@pytest.mark.parametrize("end", [CompletedEvent(ID), FAIL, CANCEL, LOSE])
def test_a_stalled_jobs_end_is_its_last_message(end: Event) -> None:
    applied = came_of(LEASED, STEP, STALL, end)
    assert not any(isinstance(message, Progress) for message in applied.messages)
    assert not applied.job.progress.stalled
    with pytest.raises(Conflict):
        apply(applied.job, STALL, LATER)


def test_a_lost_job_fails_and_rejects_later_events() -> None:
    for first in ([LEASED], [LEASED, STEP], [LEASED, STEP, STALL]):
        lost = came_of(*first, LOSE)
        assert (lost.job.status, lost.job.error, lost.durable) == (FAILED, "producer lost", True)
        assert isinstance(lost.messages[-1], Error)
        for late in (STEP, CompletedEvent(ID), FAIL, START):
            with pytest.raises(Conflict):
                apply(lost.job, late, LATER)


@given(st.lists(anything | st.sampled_from([STALL, LOSE, LEASED]), max_size=25))
def test_a_job_ends_once_in_any_order_of_events(events: list[Event]) -> None:
    job, told = apply(None, LEASED, NOW).job, list[JobMessage]()
    for event in events:
        before = job
        try:
            job, messages, durable = apply(job, event, LATER)
        except ProgressdError:
            continue
        told += messages
        assert durable or job.status is before.status
        assert job.progress.stalled <= (event == STALL)
        if job.progress != before.progress and not job.status.finished and job.status is before.status:
            assert isinstance(messages[-1], Progress)
            assert messages[-1].data == job.progress
    ends = [position for position, message in enumerate(told) if ends_job(message)]
    assert ends == ([len(told) - 1] if job.status.finished else [])
