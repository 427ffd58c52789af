"""The status and counts of a batch follow from its jobs."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.batch import BatchStatus, JobBatch, batch_messages, moved
from progressd.core.events import Priority
from progressd.core.messages import BatchCompleted, BatchCompletedData, BatchProgress, BatchProgressData, JobStatus
from support.samples import NOW, job_id

QUEUED, PROCESSING, COMPLETED, FAILED, CANCELLED = JobStatus


def batch_of(*ways: tuple[JobStatus, ...], as_batch: bool = False) -> JobBatch:
    """Return a batch whose jobs took these statuses, one per second, from queued."""
    batch = JobBatch(id=job_id(99), status=BatchStatus.QUEUED, created_at=NOW)
    for _ in ways:
        batch = moved(batch, None, QUEUED, NOW)
    seconds = 0
    for way in ways:
        for before, after in zip((QUEUED, *way), way, strict=False):
            seconds += 1
            batch = moved(
                batch, before, after, NOW + timedelta(seconds=seconds), as_batch=as_batch and after is CANCELLED
            )
    return batch


DONE, BROKEN, GONE, RUNNING = (PROCESSING, COMPLETED), (PROCESSING, FAILED), (CANCELLED,), (PROCESSING,)


@pytest.mark.parametrize(
    ("ways", "status"),
    [
        ([(), ()], "queued"),
        ([RUNNING, ()], "processing"),
        ([DONE, ()], "processing"),
        ([GONE, ()], "processing"),
        ([(PROCESSING, QUEUED)], "queued"),  # after a crash
        ([DONE, DONE], "completed"),
        ([DONE, BROKEN], "partially_completed"),
        ([DONE, GONE], "partially_completed"),
        ([BROKEN, BROKEN], "failed"),
        ([BROKEN, GONE], "failed"),
        ([GONE, GONE], "cancelled"),
    ],
)
def test_the_status_follows_from_the_jobs(ways: list[tuple[JobStatus, ...]], status: str) -> None:
    batch = batch_of(*ways)
    assert batch.status == status
    assert (batch.completed_at is not None) == batch.status.finished


def test_a_batch_cancelled_as_a_whole_is_cancelled() -> None:
    assert batch_of(DONE, GONE, as_batch=True).status == "cancelled"


def test_a_job_that_is_added_to_a_cancelled_batch_goes_on_with_it() -> None:
    batch = moved(batch_of(GONE, GONE, as_batch=True), None, QUEUED, NOW)
    assert batch.status is BatchStatus.PROCESSING
    batch = moved(moved(batch, QUEUED, PROCESSING, NOW), PROCESSING, COMPLETED, NOW)
    assert batch.status is BatchStatus.PARTIALLY_COMPLETED


def test_a_batch_lasts_from_first_to_last_job() -> None:
    batch = batch_of(DONE, DONE)
    assert batch.started_at == NOW + timedelta(seconds=1)
    assert batch.completed_at == NOW + timedelta(seconds=4)


def test_completion_is_estimated_from_finished_jobs() -> None:
    assert batch_of(RUNNING, ()).estimated_completion is None
    assert batch_of(DONE, (), (), ()).estimated_completion == NOW + timedelta(seconds=1 + 4)
    assert batch_of(DONE).estimated_completion is None


def test_watchers_get_counts_and_the_end() -> None:
    id_ = job_id(99)
    assert batch_messages(batch_of(DONE, RUNNING, ())) == (BatchProgress(id_, BatchProgressData(1, 1, 1, 0, 3, 0)),)
    assert batch_messages(batch_of(DONE, BROKEN, GONE)) == (
        BatchProgress(id_, BatchProgressData(1, 0, 0, 1, 3, 1)),
        BatchCompleted(id_, BatchCompletedData(1, 1, 1)),
    )


@given(st.lists(st.sampled_from([(), RUNNING, DONE, BROKEN, GONE]), min_size=1, max_size=20))
def test_no_job_is_lost_or_counted_twice(ways: list[tuple[JobStatus, ...]]) -> None:
    batch = batch_of(*ways)
    assert batch.total == len(ways)
    ends = [way[-1] if way else QUEUED for way in ways]
    assert [batch.pending, batch.processing, batch.completed, batch.failed, batch.cancelled] == [
        ends.count(status) for status in JobStatus
    ]


def test_the_priorities_are_ordered() -> None:
    assert sorted(["normal", "high", "low"], key=lambda name: Priority(name).rank) == ["low", "normal", "high"]
