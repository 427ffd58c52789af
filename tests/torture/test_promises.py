"""The exceptions that the ledger accepts: only while a disk fails, and only what is documented."""

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import pytest
from support.samples import ID, job_id
from torture.ledger import Kill, Ledger, Story
from torture.load import Clients
from torture.uploads import Uploads

Message = Mapping[str, Any]


def said(offset: int, type_: str, **data: object) -> Message:
    """Return a message about the job."""
    return {"type": type_, "job_id": ID, "data": data, "cursor": f"store-{offset}"}


def turned(offset: int, old: str, new: str) -> Message:
    return said(offset, "status_change", old_status=old, new_status=new)


def runs(*offsets: int) -> Iterable[Message]:
    """Return the ledger of a job that starts at these offsets."""
    yield said(1, "job_created", kind="copy")
    for number, offset in enumerate(offsets):
        if number:
            yield turned(offset - 1, "processing", "queued")
        yield turned(offset, "queued", "processing")


def fails(offset: int, sentence: str = "Pipeline error: copy ended with status 1") -> Iterable[Message]:
    yield turned(offset, "processing", "failed")
    yield said(offset + 1, "error", message=sentence)


# Jobs of the runner


def test_only_a_failing_disk_may_fail_a_job() -> None:
    ledger = Ledger()
    with pytest.raises(AssertionError, match="and no disk did"):
        ledger.compare_changes([*runs(10), *fails(20)])


def test_a_job_that_runs_on_a_failing_disk_may_fail() -> None:
    ledger = Ledger()
    ledger.offset("store-15")
    ledger.disk_fails(5.0)
    ledger.compare_changes([*runs(10), *fails(20)])
    ledger.settled()
    ledger.start_over()
    ledger.compare_changes([*runs(10), *fails(20)])


def test_a_job_may_not_fail_before_the_disk() -> None:
    ledger = Ledger()
    ledger.offset("store-30")
    ledger.disk_fails(5.0)
    with pytest.raises(AssertionError, match="and no disk did"):
        ledger.compare_changes([*runs(10), *fails(20)])


def test_a_job_may_not_fail_after_the_disk_recovers() -> None:
    ledger = Ledger()
    ledger.disk_fails(5.0)
    ledger.disk_works(6.0, "store-8")
    with pytest.raises(AssertionError, match="and no disk did"):
        ledger.compare_changes([*runs(10), *fails(20)])


def test_an_outage_ends_with_the_comparison() -> None:
    ledger = Ledger()
    ledger.disk_fails(5.0)
    ledger.settled()
    with pytest.raises(AssertionError, match="and no disk did"):
        ledger.compare_changes([*runs(10), *fails(20)])


def test_a_job_is_interrupted_after_three_attempts() -> None:
    Ledger().compare_changes([*runs(10, 20, 30), *fails(40, "interrupted")])
    with pytest.raises(AssertionError, match="interrupted at attempt 2"):
        Ledger().compare_changes([*runs(10, 20), *fails(40, "interrupted")])


def test_only_the_runner_requeues_jobs() -> None:
    story = said(1, "job_created", kind="story")
    with pytest.raises(AssertionError, match="was processing and is queued"):
        Ledger().compare_changes([story, turned(2, "queued", "processing"), turned(3, "processing", "queued")])
    with pytest.raises(AssertionError, match="was processing and is cancelled"):
        Ledger().compare_changes([*runs(10), turned(20, "processing", "cancelled")])


# Jobs


def test_a_finished_job_never_changes() -> None:
    ledger = Ledger()
    ledger.compare_changes([said(1, "job_created", kind="story"), turned(2, "queued", "cancelled")])
    ledger.compare_job({"id": ID, "status": "cancelled"})
    ledger.compare_all({ID})
    with pytest.raises(AssertionError, match="was told cancelled, and it is queued"):
        ledger.compare_job({"id": ID, "status": "queued"})
    with pytest.raises(AssertionError, match="are gone"):
        ledger.compare_all(set())


# Uploads


@pytest.fixture
def uploads() -> Uploads:
    uploads = Uploads(Counter())
    uploads.inputs["file"] = b"%PDF"
    uploads.sent("file")
    return uploads


def test_an_upload_without_room_becomes_no_job(uploads: Uploads) -> None:
    uploads.refused("file", full=True)
    with pytest.raises(AssertionError, match="was refused, and has become"):
        uploads.compare(ID, "file", b"%PDF")


def test_an_upload_in_doubt_may_become_a_job(uploads: Uploads) -> None:
    uploads.refused("file", full=False)
    uploads.sent("file")
    uploads.refused("file", full=True)
    uploads.compare(ID, "file", b"%PDF")


def test_a_repeated_upload_becomes_one_job(uploads: Uploads) -> None:
    uploads.compare(ID, "file", b"%PDF")
    with pytest.raises(AssertionError, match="has become the jobs"):
        uploads.compare(job_id(2), "file", b"%PDF")


@pytest.mark.parametrize(("content", "sentence"), [(None, "is gone"), (b"%P", "is not what was uploaded")])
def test_an_upload_is_complete(uploads: Uploads, content: bytes | None, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        uploads.compare(ID, "file", content)


def test_a_repeated_batch_is_the_same(uploads: Uploads) -> None:
    uploads.batches["file", "other"] = None
    uploads.batch_answered(("file", "other"), ID)
    with pytest.raises(AssertionError, match="has become the batches"):
        uploads.batch_answered(("file", "other"), job_id(2))


def test_a_batch_is_atomic(uploads: Uploads) -> None:
    uploads.batches["file", "other"] = None
    uploads.compare_batches()
    uploads.compare(ID, "file", b"%PDF")
    with pytest.raises(AssertionError, match="have become jobs"):
        uploads.compare_batches()


# Refusals


@pytest.fixture
def clients() -> Clients:
    return Clients(Ledger(), "http://127.0.0.1:1", random.Random(1))


STORE_FAILS = "cannot use the database: disk I/O error"


def test_a_rejection_needs_a_later_disk_failure(clients: Clients) -> None:
    story = Story(ID, 3, "completed")
    with pytest.raises(AssertionError, match="disk I/O error"):
        clients.refused(story, 1, STORE_FAILS, 4.0)
    clients.ledger.disk_fails(5.0)
    clients.refused(story, 1, STORE_FAILS, 4.9)
    clients.ledger.disk_works(6.0, "store-8")
    clients.refused(story, 1, STORE_FAILS, 5.9)
    with pytest.raises(AssertionError, match="disk I/O error"):
        clients.refused(story, 1, STORE_FAILS, 6.1)
    assert clients.excuses(httpx.Response(503), 5.9)
    assert not clients.excuses(httpx.Response(503), 6.1)


def test_a_registered_job_is_always_known(clients: Clients) -> None:
    clients.ledger.disk_fails(5.0)
    clients.refused(Story(ID, 3, "completed", sent=2), 2, "there is no job", 5.1)
    with pytest.raises(AssertionError, match="no job"):
        clients.refused(Story(ID, 3, "completed", sent=2, answered=1), 2, "there is no job", 5.1)


def test_each_event_has_its_answer(clients: Clients) -> None:
    with pytest.raises(ValueError, match="zip"):
        clients.take([(Story(ID, 3, "completed"), 1)], [], 1.0)


def test_no_stream_ends_before_its_job(clients: Clients) -> None:
    with pytest.raises(AssertionError, match="closed a connection"), clients.until_gone():
        raise EOFError
    clients.ending = True
    with clients.until_gone():
        raise EOFError


def test_only_a_failing_disk_omits_cursors() -> None:
    ledger = Ledger()
    with pytest.raises(AssertionError, match="and no disk failed"):
        ledger.saw_without_cursor({"type": "progress"})
    ledger.disk_fails(5.0)
    ledger.saw_without_cursor({"type": "progress"})
    with pytest.raises(AssertionError, match="has no cursor"):
        ledger.saw_without_cursor({"type": "completed"})


# Progress


def told_of(*steps: float, kept: int = 0, end: str | None = None) -> Story:
    """Return a story whose steps were answered at these times."""
    answered_at = dict(enumerate(steps, kept + 1))
    position = kept + len(steps) + 1 if end is None else 12
    ends = set() if end is None else {end}
    return Story(ID, 10, "completed", position, position, ended_as=end, ends=ends, answered_at=answered_at, kept=kept)


def job(step: int, status: str = "processing") -> Message:
    return {"status": status, "progress": {"current_step": step}}


def test_progress_may_lose_its_last_second() -> None:
    Ledger().compare_story(told_of(1.0, 2.0), job(1), Kill(2.99))
    with pytest.raises(AssertionError, match="and 2 was to be kept"):
        Ledger().compare_story(told_of(1.0, 2.0), job(1), Kill(3.01))


def test_time_without_processor_is_added() -> None:
    Ledger().compare_story(told_of(1.0, 2.0), job(1), Kill(3.2, starved=0.25))
    with pytest.raises(AssertionError, match="and 2 was to be kept"):
        Ledger().compare_story(told_of(1.0, 2.0), job(1), Kill(3.3, starved=0.25))


def test_a_clean_end_loses_no_progress() -> None:
    with pytest.raises(AssertionError, match="and 2 was to be kept"):
        Ledger().compare_story(told_of(1.0, 2.0), job(1), Kill(math.inf))


def test_stored_progress_is_kept() -> None:
    with pytest.raises(AssertionError, match="and 5 was to be kept"):
        Ledger().compare_story(told_of(kept=5), job(4), Kill(1.0))


@pytest.mark.parametrize("end", ["completed", "error", "cancelled"])
def test_the_last_progress_is_durable_with_the_end(end: str) -> None:
    status = {"error": "failed"}.get(end, end)
    Ledger().compare_story(told_of(1.0, 1.1, end=end), job(2, status), Kill(1.2))
    with pytest.raises(AssertionError, match="and 2 was to be kept"):
        Ledger().compare_story(told_of(1.0, 1.1, end=end), job(1, status), Kill(1.2))


def test_the_first_progress_starts_the_job() -> None:
    with pytest.raises(AssertionError, match="without the progress that started it"):
        Ledger().compare_story(told_of(1.0), job(0), Kill(1.1))


def test_an_outage_excuses_only_unwritten_progress() -> None:
    ledger = Ledger()
    ledger.disk_fails(3.5)
    ledger.compare_story(told_of(1.0, 2.0, 2.6), job(2), Kill(9.0))
    with pytest.raises(AssertionError, match="and 2 was to be kept"):
        ledger.compare_story(told_of(1.0, 2.0, 2.6), job(1), Kill(9.0))


def test_after_an_outage_progress_is_due_again() -> None:
    ledger = Ledger()
    ledger.disk_fails(3.5)
    ledger.disk_works(4.0, "store-8")
    ledger.compare_story(told_of(1.0, 2.6), job(1), Kill(4.9))
    with pytest.raises(AssertionError, match="and 2 was to be kept"):
        ledger.compare_story(told_of(1.0, 2.6), job(1), Kill(5.1))
