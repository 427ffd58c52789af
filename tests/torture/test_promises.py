"""What the ledger excuses, by itself: no more than is promised, and for no longer than a disk fails."""

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
    """A message about the one job that there is."""
    return {"type": type_, "job_id": ID, "data": data, "cursor": f"store-{offset}"}


def turned(offset: int, old: str, new: str) -> Message:
    return said(offset, "status_change", old_status=old, new_status=new)


def runs(*offsets: int) -> Iterable[Message]:
    """A job of the runner, which starts at these offsets."""
    yield said(1, "job_created", kind="copy")
    for number, offset in enumerate(offsets):
        if number:
            yield turned(offset - 1, "processing", "queued")
        yield turned(offset, "queued", "processing")


def fails(offset: int, sentence: str = "Pipeline error: copy ended with status 1") -> Iterable[Message]:
    yield turned(offset, "processing", "failed")
    yield said(offset + 1, "error", message=sentence)


# Jobs of the runner


def test_a_job_of_the_runner_fails_for_no_reason_but_a_disk() -> None:
    ledger = Ledger()
    with pytest.raises(AssertionError, match="and no disk did"):
        ledger.compare_changes([*runs(10), *fails(20)])


def test_a_job_that_is_worked_on_while_the_disk_fails_may_fail_and_is_excused_for_good() -> None:
    ledger = Ledger()
    ledger.offset("store-15")
    ledger.disk_fails(5.0)
    ledger.compare_changes([*runs(10), *fails(20)])
    ledger.settled()
    ledger.start_over()
    ledger.compare_changes([*runs(10), *fails(20)])


def test_a_job_that_failed_before_the_disk_did_is_not_excused() -> None:
    ledger = Ledger()
    ledger.offset("store-30")
    ledger.disk_fails(5.0)
    with pytest.raises(AssertionError, match="and no disk did"):
        ledger.compare_changes([*runs(10), *fails(20)])


def test_a_job_that_was_started_on_a_mended_disk_is_not_excused() -> None:
    ledger = Ledger()
    ledger.disk_fails(5.0)
    ledger.disk_works(6.0, "store-8")
    with pytest.raises(AssertionError, match="and no disk did"):
        ledger.compare_changes([*runs(10), *fails(20)])


def test_no_disk_is_an_excuse_once_the_books_have_been_compared() -> None:
    ledger = Ledger()
    ledger.disk_fails(5.0)
    ledger.settled()
    with pytest.raises(AssertionError, match="and no disk did"):
        ledger.compare_changes([*runs(10), *fails(20)])


def test_a_job_is_interrupted_after_three_attempts_and_not_before() -> None:
    Ledger().compare_changes([*runs(10, 20, 30), *fails(40, "interrupted")])
    with pytest.raises(AssertionError, match="interrupted at attempt 2"):
        Ledger().compare_changes([*runs(10, 20), *fails(40, "interrupted")])


def test_only_the_runner_queues_a_job_again_and_it_cancels_none() -> None:
    story = said(1, "job_created", kind="story")
    with pytest.raises(AssertionError, match="was processing and is queued"):
        Ledger().compare_changes([story, turned(2, "queued", "processing"), turned(3, "processing", "queued")])
    with pytest.raises(AssertionError, match="was processing and is cancelled"):
        Ledger().compare_changes([*runs(10), turned(20, "processing", "cancelled")])


# Jobs


def test_a_finished_job_is_what_its_changes_made_it_and_stays() -> None:
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


def test_what_was_refused_for_want_of_room_becomes_no_job(uploads: Uploads) -> None:
    uploads.refused("file", full=True)
    with pytest.raises(AssertionError, match="was refused, and has become"):
        uploads.compare(ID, "file", b"%PDF")


def test_what_was_sent_once_more_or_refused_in_doubt_may_become_a_job(uploads: Uploads) -> None:
    uploads.refused("file", full=False)
    uploads.sent("file")
    uploads.refused("file", full=True)
    uploads.compare(ID, "file", b"%PDF")


def test_an_upload_becomes_one_job_however_often_it_is_sent(uploads: Uploads) -> None:
    uploads.compare(ID, "file", b"%PDF")
    with pytest.raises(AssertionError, match="has become the jobs"):
        uploads.compare(job_id(2), "file", b"%PDF")


@pytest.mark.parametrize(("content", "sentence"), [(None, "is gone"), (b"%P", "is not what was uploaded")])
def test_an_upload_is_whole(uploads: Uploads, content: bytes | None, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        uploads.compare(ID, "file", content)


def test_a_batch_that_is_sent_again_is_the_same(uploads: Uploads) -> None:
    uploads.batches["file", "other"] = None
    uploads.batch_answered(("file", "other"), ID)
    with pytest.raises(AssertionError, match="has become the batches"):
        uploads.batch_answered(("file", "other"), job_id(2))


def test_a_batch_becomes_jobs_as_a_whole(uploads: Uploads) -> None:
    uploads.batches["file", "other"] = None
    uploads.compare_batches()
    uploads.compare(ID, "file", b"%PDF")
    with pytest.raises(AssertionError, match="have become jobs"):
        uploads.compare_batches()


# Refusals


@pytest.fixture
def clients() -> Clients:
    return Clients(Ledger(), "http://127.0.0.1:1", random.Random(1))


STORE_FAILS = "the disk of the daemon's store fails: disk I/O error"


def test_a_refusal_is_excused_only_where_the_disk_failed_after_it_was_sent(clients: Clients) -> None:
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


def test_no_disk_excuses_that_a_registered_job_is_unknown(clients: Clients) -> None:
    clients.ledger.disk_fails(5.0)
    clients.refused(Story(ID, 3, "completed", sent=2), 2, "there is no job", 5.1)
    with pytest.raises(AssertionError, match="no job"):
        clients.refused(Story(ID, 3, "completed", sent=2, answered=1), 2, "there is no job", 5.1)


def test_each_event_has_its_answer(clients: Clients) -> None:
    with pytest.raises(ValueError, match="zip"):
        clients.take([(Story(ID, 3, "completed"), 1)], [], 1.0)


def test_nobody_is_left_alone_before_the_end(clients: Clients) -> None:
    with pytest.raises(AssertionError, match="left somebody alone"), clients.until_gone():
        raise EOFError
    clients.ending = True
    with clients.until_gone():
        raise EOFError


def test_a_message_has_a_cursor_unless_a_disk_fails() -> None:
    ledger = Ledger()
    with pytest.raises(AssertionError, match="and no disk failed"):
        ledger.saw_without_cursor({"type": "progress"})
    ledger.disk_fails(5.0)
    ledger.saw_without_cursor({"type": "progress"})
    with pytest.raises(AssertionError, match="has no cursor"):
        ledger.saw_without_cursor({"type": "completed"})


# Progress


def told_of(*steps: float, kept: int = 0, end: str | None = None) -> Story:
    """A story of which steps were answered at these times."""
    answered_at = dict(enumerate(steps, kept + 1))
    position = kept + len(steps) + 1 if end is None else 12
    ends = set() if end is None else {end}
    return Story(ID, 10, "completed", position, position, ended_as=end, ends=ends, answered_at=answered_at, kept=kept)


def job(step: int, status: str = "processing") -> Message:
    return {"status": status, "progress": {"current_step": step}}


def test_progress_loses_its_last_second_and_no_more() -> None:
    Ledger().compare_story(told_of(1.0, 2.0), job(1), Kill(2.99))
    with pytest.raises(AssertionError, match="and 2 was to be kept"):
        Ledger().compare_story(told_of(1.0, 2.0), job(1), Kill(3.01))


def test_a_daemon_that_got_no_processor_has_that_time_as_well() -> None:
    Ledger().compare_story(told_of(1.0, 2.0), job(1), Kill(3.2, starved=0.25))
    with pytest.raises(AssertionError, match="and 2 was to be kept"):
        Ledger().compare_story(told_of(1.0, 2.0), job(1), Kill(3.3, starved=0.25))


def test_a_daemon_that_came_to_its_end_loses_no_progress() -> None:
    with pytest.raises(AssertionError, match="and 2 was to be kept"):
        Ledger().compare_story(told_of(1.0, 2.0), job(1), Kill(math.inf))


def test_progress_that_an_earlier_daemon_had_kept_stays() -> None:
    with pytest.raises(AssertionError, match="and 5 was to be kept"):
        Ledger().compare_story(told_of(kept=5), job(4), Kill(1.0))


@pytest.mark.parametrize("end", ["completed", "error", "cancelled"])
def test_the_progress_before_an_end_is_as_durable_as_the_end(end: str) -> None:
    status = {"error": "failed"}.get(end, end)
    Ledger().compare_story(told_of(1.0, 1.1, end=end), job(2, status), Kill(1.2))
    with pytest.raises(AssertionError, match="and 2 was to be kept"):
        Ledger().compare_story(told_of(1.0, 1.1, end=end), job(1, status), Kill(1.2))


def test_a_job_is_started_together_with_its_progress() -> None:
    with pytest.raises(AssertionError, match="without the progress that started it"):
        Ledger().compare_story(told_of(1.0), job(0), Kill(1.1))


def test_a_disk_that_fails_excuses_only_what_was_not_yet_due() -> None:
    ledger = Ledger()
    ledger.disk_fails(3.5)
    ledger.compare_story(told_of(1.0, 2.0, 2.6), job(2), Kill(9.0))
    with pytest.raises(AssertionError, match="and 2 was to be kept"):
        ledger.compare_story(told_of(1.0, 2.0, 2.6), job(1), Kill(9.0))


def test_once_the_disk_works_again_all_progress_is_due_within_a_second() -> None:
    ledger = Ledger()
    ledger.disk_fails(3.5)
    ledger.disk_works(4.0, "store-8")
    ledger.compare_story(told_of(1.0, 2.6), job(1), Kill(4.9))
    with pytest.raises(AssertionError, match="and 2 was to be kept"):
        ledger.compare_story(told_of(1.0, 2.6), job(1), Kill(5.1))
