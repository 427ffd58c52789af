"""The ledger detects missing and duplicate data."""

import random
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from torture.forge import Forge
from torture.ledger import CHANGES, Ledger
from torture.power import Mains
from torture.rounds import Campaign
from torture.watchers import Collector


def told(errors: BaseException) -> list[str]:
    """Return the messages in an exception group."""
    if isinstance(errors, BaseExceptionGroup):
        return [sentence for error in errors.exceptions for sentence in told(error)]
    return [str(errors)]


async def rounds(campaign: Campaign, count: int) -> None:
    """Check that the next start detects the error."""
    for _ in range(count):
        await campaign.round("load")


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


def with_a_story_that_stays_behind(campaign: Campaign, db: sqlite3.Connection) -> None:
    """Simulate a daemon that loses the last progress before an end."""
    story = next(story for story in campaign._by_unix if story.answered_at)
    story.ended_as, story.answered_at = None, {story.steps + 1: 0.0}


def as_two_jobs(campaign: Campaign, db: sqlite3.Connection) -> None:
    """Simulate a daemon that forgets the key of an upload."""
    job_id, name = next(iter(campaign.ledger.uploads.accepted.items()))
    campaign.ledger.uploads.made["another"] = name
    campaign.ledger.uploads.made.pop(job_id, None)


def with_an_inattentive_watcher(campaign: Campaign, db: sqlite3.Connection) -> None:
    """Simulate a daemon that omits changes for a watcher of many topics."""
    *_, collector = campaign._returners
    assert isinstance(collector, Collector)
    collector.seen = {offset for offset in collector.seen if offset % 2}
    collector.told.clear()


def with_a_watcher_who_goes_back(campaign: Campaign, db: sqlite3.Connection) -> None:
    """Simulate a daemon that repeats changes for a watcher of many topics."""
    *_, collector = campaign._returners
    collector.cursor = f"{campaign.ledger.store}-{collector.base}"


@pytest.mark.parametrize(
    ("sabotage", "sentence"),
    [
        (without_a_change, "and it is gone|was None and is"),
        (without_a_job, "was answered, and it is gone"),
        (with_offsets_given_back, "was given twice"),
        (with_half_of_an_input, "half of an upload is left"),
        (with_a_pipeline_that_fails, "failed at .*, and no disk did"),
        (with_a_story_that_stays_behind, "was to be kept"),
        (without_an_input, "the input .* is gone"),
        (with_an_inattentive_watcher, "a watcher of many topics has never seen"),
        (with_a_watcher_who_goes_back, "came twice"),
        (as_two_jobs, "has become the jobs"),
    ],
)
async def test_a_manipulated_store_is_detected(
    forge: Forge, tmp_path: Path, sabotage: Callable[[Campaign, sqlite3.Connection], None], sentence: str
) -> None:
    campaign = Campaign(tmp_path, forge, random.Random(1), Mains(tmp_path))
    while not (campaign.ledger.uploads.accepted and campaign.ledger.counted["events answered"] > 20):
        await campaign.round("load")
    with closing(sqlite3.connect(campaign.state_dir / "progressd.db", isolation_level=None)) as db:
        sabotage(campaign, db)
    with pytest.raises(BaseException) as caught:  # noqa: PT011, groups of groups of AssertionError
        await rounds(campaign, 3)
    assert re.search(sentence, "\n".join(told(caught.value)))
