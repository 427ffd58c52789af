"""The ledger detects missing and duplicate data, and accepts only documented exceptions."""

import math
import random
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from progressd.core.errors import leaves
from support.samples import ID, job_id
from torture.disk import Power
from torture.fork_server import ForkServer
from torture.ledger import CHANGES, Kill, Ledger, Story, Uploads
from torture.load import Clients
from torture.rounds import Campaign
from torture.watchers import Collector


def seen_change(ledger: Ledger) -> int:
    """Return the newest offset that was sent since the last comparison."""
    return max(offset for offset, message in ledger._messages.items() if message["type"] in CHANGES)


def without_a_change(campaign: Campaign, db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM changes WHERE offset = ?", (seen_change(campaign.ledger),))


def without_a_job(campaign: Campaign, db: sqlite3.Connection) -> None:
    job_id = next(story.id for story in [*campaign._by_unix, *campaign._by_http] if story.answered)
    assert db.execute("DELETE FROM jobs WHERE id = ?", (job_id,)).rowcount == 1


def with_offsets_given_back(campaign: Campaign, db: sqlite3.Connection) -> None:
    """Simulate a daemon that uses offsets twice."""
    last = seen_change(campaign.ledger)
    db.execute("DELETE FROM changes WHERE offset >= ?", (last,))
    db.execute("DELETE FROM jobs WHERE created_offset >= ?", (last,))
    db.execute("UPDATE meta SET value = ? WHERE key = 'reserved'", (last,))


def without_an_input(campaign: Campaign, db: sqlite3.Connection) -> None:
    job_id = next(iter(campaign.ledger.uploads.accepted.keys() - campaign.ledger.uploads.made.keys()))
    (campaign.state_dir / "jobs" / job_id / "input").unlink()


def with_half_of_an_input(campaign: Campaign, db: sqlite3.Connection) -> None:
    """Simulate a repeated upload that is truncated."""
    (campaign.state_dir / "jobs" / next(iter(campaign.ledger.uploads.accepted)) / "input.new").touch()


def with_a_pipeline_that_fails(campaign: Campaign, db: sqlite3.Connection) -> None:
    """Simulate a daemon that cannot run an accepted job."""
    config = campaign._config.read_text()
    campaign._config.write_text(config.replace("sleep 0.05", "exit 1"))


def with_an_inattentive_watcher(campaign: Campaign, db: sqlite3.Connection) -> None:
    """Simulate a daemon that omits changes for a watcher of many topics."""
    *_, collector = campaign._returners
    assert isinstance(collector, Collector)
    collector.seen = {offset for offset in collector.seen if offset % 2}
    collector.received.clear()


def with_a_watcher_who_goes_back(campaign: Campaign, db: sqlite3.Connection) -> None:
    """Simulate a daemon that repeats changes for a watcher of many topics."""
    *_, collector = campaign._returners
    collector.cursor = f"{campaign.ledger.store}-{collector.base}"


OF_INPUTS = (without_an_input, with_half_of_an_input, with_a_pipeline_that_fails)  # which need a job that waits


@pytest.mark.parametrize(
    ("sabotage", "sentence"),
    [
        (without_a_change, "and it is gone|was None and is"),
        (with_an_inattentive_watcher, "a watcher of many topics has never seen"),
        pytest.param(without_an_input, "the input .* is gone", marks=pytest.mark.torture),
        pytest.param(without_a_job, "was answered, and it is gone", marks=pytest.mark.torture),
        pytest.param(with_offsets_given_back, "was given twice", marks=pytest.mark.torture),
        pytest.param(with_half_of_an_input, "half of an upload is left", marks=pytest.mark.torture),
        pytest.param(with_a_pipeline_that_fails, "failed at .*, and no disk did", marks=pytest.mark.torture),
        pytest.param(with_a_watcher_who_goes_back, "came twice", marks=pytest.mark.torture),
    ],
)
async def test_a_manipulated_store_is_detected(
    fork_server: ForkServer, tmp_path: Path, sabotage: Callable[[Campaign, sqlite3.Connection], None], sentence: str
) -> None:
    campaign = Campaign(tmp_path, fork_server, random.Random(1), Power(tmp_path))
    uploads, collector = campaign.ledger.uploads, campaign._returners[-1]
    assert isinstance(collector, Collector)
    while (
        campaign.ledger.counted["events answered"] <= 20
        or len(collector.received) <= 20
        or (sabotage in OF_INPUTS and not uploads.accepted.keys() - uploads.made.keys())
    ):
        await campaign.round("load")
    with closing(sqlite3.connect(campaign.state_dir / "progressd.db", isolation_level=None)) as db:
        sabotage(campaign, db)
    with pytest.raises(BaseException) as caught:  # noqa: PT011, PT012
        for _ in range(10):
            await campaign.round("load")
    assert re.search(sentence, "\n".join(str(leaf) for leaf in leaves(caught.value)))


# The exceptions that the ledger accepts: only while a disk fails, and only what is documented

Message = Mapping[str, Any]


def said(offset: int, type_: str, **data: object) -> Message:
    """Return a message about the job."""
    return {"type": type_, "job_id": ID, "data": data, "cursor": f"store-{offset}"}


def turned(offset: int, old: str, new: str) -> Message:
    return said(offset, "status_change", old_status=old, new_status=new)


def runs(*offsets: int) -> Iterable[Message]:
    """Return the messages of a job of the runner that starts at these offsets."""
    yield said(1, "job_created", kind="copy")
    for number, offset in enumerate(offsets):
        if number:
            yield turned(offset - 1, "processing", "queued")
        yield turned(offset, "queued", "processing")


def fails(offset: int, sentence: str = "Pipeline error: copy ended with status 1") -> Iterable[Message]:
    yield turned(offset, "processing", "failed")
    yield said(offset + 1, "error", message=sentence)


@pytest.mark.parametrize(
    ("began", "over", "settled"),
    [
        pytest.param(None, None, False, id="the disk works"),
        pytest.param(30, None, False, id="the disk fails later"),
        pytest.param(0, 8, False, id="the disk has recovered"),
        pytest.param(0, None, True, id="the outage was compared"),
    ],
)
def test_only_a_failing_disk_may_fail_a_job(began: int | None, over: int | None, settled: bool) -> None:
    ledger = Ledger()
    if began is not None:
        ledger.offset(f"store-{began}")
        ledger.disk_fails(5.0)
    if over is not None:
        ledger.disk_works(6.0, f"store-{over}")
    if settled:
        ledger.settled()
    with pytest.raises(AssertionError, match="and no disk did"):
        ledger.compare_changes([*runs(10), *fails(20)])


def test_a_job_on_a_failing_disk_may_fail() -> None:
    ledger = Ledger()
    ledger.offset("store-15")
    ledger.disk_fails(5.0)
    ledger.compare_changes([*runs(10), *fails(20)])
    ledger.settled()
    ledger.start_over()
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


def test_a_finished_job_never_changes() -> None:
    ledger = Ledger()
    ledger.compare_changes([said(1, "job_created", kind="story"), turned(2, "queued", "cancelled")])
    ledger.compare_job({"id": ID, "status": "cancelled"})
    ledger.compare_all({ID})
    with pytest.raises(AssertionError, match="was cancelled, and it is queued"):
        ledger.compare_job({"id": ID, "status": "queued"})
    with pytest.raises(AssertionError, match="are gone"):
        ledger.compare_all(set())


@pytest.fixture
def uploads() -> Uploads:
    uploads = Uploads(Counter())
    uploads.inputs["file"] = b"%PDF"
    uploads.sent("file")
    return uploads


def test_only_an_upload_in_doubt_becomes_a_job(uploads: Uploads) -> None:
    uploads.rejected("file", full=True)
    with pytest.raises(AssertionError, match="was rejected, and has become"):
        uploads.compare(ID, "file", b"%PDF")
    uploads.sent("file")
    uploads.rejected("file", full=False)
    uploads.compare(ID, "file", b"%PDF")


def test_a_repeated_upload_becomes_one_job(uploads: Uploads) -> None:
    uploads.compare(ID, "file", b"%PDF")
    with pytest.raises(AssertionError, match="has become the jobs"):
        uploads.compare(job_id(2), "file", b"%PDF")


@pytest.mark.parametrize(("content", "sentence"), [(None, "is gone"), (b"%P", "is not what was uploaded")])
def test_an_upload_is_complete(uploads: Uploads, content: bytes | None, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        uploads.compare(ID, "file", content)


def test_a_batch_is_atomic_and_repeatable(uploads: Uploads) -> None:
    uploads.batches["file", "other"] = None
    uploads.compare_batches()
    uploads.compare(ID, "file", b"%PDF")
    with pytest.raises(AssertionError, match="have become jobs"):
        uploads.compare_batches()
    uploads.batch_answered(("file", "other"), ID)
    with pytest.raises(AssertionError, match="has become the batches"):
        uploads.batch_answered(("file", "other"), job_id(2))


@pytest.fixture
def clients() -> Clients:
    return Clients(Ledger(), "http://127.0.0.1:1", random.Random(1))


STORE_FAILS = "cannot use the database: disk I/O error"


def test_a_rejection_needs_a_later_disk_failure(clients: Clients) -> None:
    story = Story(ID, 3, "completed")
    with pytest.raises(AssertionError, match="disk I/O error"):
        clients.rejected(story, 1, STORE_FAILS, 4.0)
    clients.ledger.disk_fails(5.0)
    clients.rejected(story, 1, STORE_FAILS, 4.9)
    clients.ledger.disk_works(6.0, "store-8")
    clients.rejected(story, 1, STORE_FAILS, 5.9)
    with pytest.raises(AssertionError, match="disk I/O error"):
        clients.rejected(story, 1, STORE_FAILS, 6.1)
    assert clients.excuses(httpx.Response(503), 5.9)
    assert not clients.excuses(httpx.Response(503), 6.1)


def test_a_registered_job_is_always_known(clients: Clients) -> None:
    clients.ledger.disk_fails(5.0)
    clients.rejected(Story(ID, 3, "completed", sent=2), 2, "there is no job", 5.1)
    with pytest.raises(AssertionError, match="no job"):
        clients.rejected(Story(ID, 3, "completed", sent=2, answered=1), 2, "there is no job", 5.1)


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


def told_of(*steps: float, kept: int = 0, end: str | None = None) -> Story:
    """Return a story whose steps were answered at these times."""
    answered_at = dict(enumerate(steps, kept + 1))
    position = kept + len(steps) + 1 if end is None else 12
    ends = set() if end is None else {end}
    return Story(ID, 10, "completed", position, position, ended_as=end, ends=ends, answered_at=answered_at, kept=kept)


def job(step: int, status: str = "processing") -> Message:
    return {"status": status, "progress": {"current_step": step}}


@pytest.mark.parametrize(
    ("steps", "step", "kill", "owed"),
    [
        pytest.param((1.0, 2.0), 1, Kill(2.99), None, id="the last second"),
        pytest.param((1.0, 2.0), 1, Kill(3.01), 2, id="more than a second"),
        pytest.param((1.0, 2.0), 1, Kill(3.2, starved=0.25), None, id="without a processor"),
        pytest.param((1.0, 2.0), 1, Kill(3.3, starved=0.25), 2, id="not only without a processor"),
        pytest.param((1.0, 2.0), 1, Kill(math.inf), 2, id="a clean end"),
        pytest.param((), 4, Kill(1.0), 5, id="stored before"),
    ],
)
def test_a_kill_loses_a_second_of_progress(steps: tuple[float, ...], step: int, kill: Kill, owed: int | None) -> None:
    story = told_of(*steps, kept=0 if steps else 5)
    with pytest.raises(AssertionError, match=f"and {owed} was to be kept") if owed else nullcontext():
        Ledger().compare_story(story, job(step), kill)


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
    ledger.disk_works(4.0, "store-8")
    ledger.compare_story(told_of(1.0, 2.6), job(1), Kill(4.9))
    with pytest.raises(AssertionError, match="and 2 was to be kept"):
        ledger.compare_story(told_of(1.0, 2.6), job(1), Kill(5.1))
