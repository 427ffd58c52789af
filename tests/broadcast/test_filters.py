"""Filters of one watcher, which never drop state changes or the last progress before an end."""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace
from progressd.broadcast.envelope import Envelope, FrameBatch, ReplayedEnvelope
from progressd.broadcast.filters import Delivery, FilteredOutbox, ProgressThrottle, ThrottledOutbox, of_types
from progressd.core.close_codes import JOB_FINISHED
from progressd.core.messages import JobMessage, Progress, ends_job
from support.outboxes import Collected
from support.samples import ID, cancelled, created, job_id, moved, started, succeeded

OTHER = job_id(2)


def numbered(messages: Iterable[JobMessage], first: int = 1, *, hidden: bool = False) -> list[Envelope]:
    """`hidden`: as while a commit is undecided, without cursors."""
    return [
        Envelope(offset, replace(message, cursor=UNSET if hidden else f"store-{offset}"))
        for offset, message in enumerate(messages, first)
    ]


STORIES = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["move", "move", "move", "hidden", "end"]), st.floats(0, 3)),
    max_size=40,
)


@given(STORIES)
def test_one_progress_per_job_and_interval(
    story: list[tuple[str, str, float]],
) -> None:
    pace, now, offset = ProgressThrottle(2.0), 0.0, 0
    ended: set[str] = set()
    told: list[Envelope] = []
    out: list[tuple[float, Envelope]] = []
    for name, what, wait in story:
        job = {"a": ID, "b": OTHER}[name]
        if job in ended:
            continue
        while pace and pace.next_due <= now + wait:
            now_due = pace.next_due
            out += [(now_due, let.item) for let in pace.release(now_due)]
            wait -= max(0.0, now_due - now)
            now = max(now, now_due)
        now += wait
        messages = list(succeeded(job)) if what == "end" else [moved(offset, job)]
        items = numbered(messages, offset + 1, hidden=what == "hidden")
        offset += len(items)
        told += items
        if what == "end":
            ended.add(job)
        out += [(now, let.item) for let in pace.take(items, now)]
    out += [(now, let.item) for let in pace.release(float("inf"))]

    for job in (ID, OTHER):
        mine = [item for item in told if item.message.job_id == job]
        got = [(at, item) for at, item in out if item.message.job_id == job]
        assert [item.offset for _, item in got] == sorted({item.offset for _, item in got})
        assert [i for _, i in got if not isinstance(i.message, Progress)] == [
            i for i in mine if not isinstance(i.message, Progress)
        ]
        steps = [item for item in mine if isinstance(item.message, Progress)]
        got_steps = [(at, item) for at, item in got if isinstance(item.message, Progress)]
        if steps:
            assert got_steps[-1][1] is steps[-1]
        paced = got_steps[:-1]  # the end may have released the last one early
        assert all(later - earlier >= 2.0 - 1e-9 for (earlier, _), (later, _) in pairwise(paced))


@given(STORIES)
def test_resuming_from_any_cursor_misses_nothing(story: list[tuple[str, str, float]]) -> None:
    pace, now = ProgressThrottle(2.0), 0.0
    told: list[Envelope] = []
    out: list[Delivery] = []
    for name, what, wait in story:
        now += wait
        out += pace.release(now)
        job = {"a": ID, "b": OTHER}[name]
        message = started(job) if what == "end" else moved(1, job)
        told += numbered([message], len(told) + 1, hidden=what == "hidden")
        out += pace.take(told[-1:], now)
        had = {let.item.offset for let in out}
        upto = max([let.resume_offset for let in out] + [pace.resume_offset(len(told))])
        newest = {item.message.job_id: item for item in told if isinstance(item.message, Progress)}
        for item in told[:upto]:
            overtaken = isinstance(item.message, Progress) and newest[item.message.job_id] is not item
            assert item.offset in had or overtaken
    assert [let.resume_offset for let in out] == sorted(let.resume_offset for let in out)


def test_ended_jobs_leave_nothing() -> None:
    pace = ProgressThrottle(1.0)
    pace.take(numbered([moved(1), moved(2), *succeeded()]), 0.0)
    assert not pace
    assert pace.next_due == float("inf")
    assert pace._allowed == {}
    assert pace._due == []


def test_the_cost_per_held_progress_is_constant() -> None:
    def steps(jobs: int) -> int:
        """Count instructions to hold the progress of some jobs and release each in time."""
        pace, count = ProgressThrottle(1.0), 0
        for at in (0.0, 0.5):
            for number in range(jobs):
                pace.take(
                    numbered([moved(1, job_id(number + 1))], int(2 * at * jobs) + number + 1), at + number / 2 / jobs
                )

        def trace(frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
            nonlocal count
            count += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            while pace:
                pace.release(pace.next_due)
        finally:
            sys.settrace(before)
        return count

    assert steps(1000) < 1.5 * 10 * steps(100)


async def test_overtaking_messages_have_an_earlier_cursor(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    outbox = Collected()
    paced = ThrottledOutbox(outbox, 1.0, nursery.start_soon)
    paced.put(FrameBatch(numbered([moved(1), moved(2), started(OTHER)])))
    await trio.sleep(1.5)
    assert isinstance(outbox.messages[-1], Progress)
    assert [message.cursor for message in outbox.messages] == ["store-1", "store-1", "store-3"]


async def test_replayed_progress_replaces_held_progress(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    outbox = Collected()
    paced = ThrottledOutbox(outbox, 1.0, nursery.start_soon)
    paced.put(FrameBatch(numbered([started(), moved(1), moved(2)], 7)))
    replayed = [ReplayedEnvelope(Envelope(offset, moved(2, job))) for offset, job in ((3, OTHER), (9, ID))]
    paced.put(FrameBatch(replayed))
    await trio.sleep(1.5)
    assert [message.cursor for message in outbox.messages] == ["store-7", "store-8", UNSET, UNSET]


async def test_progress_that_is_due_sooner_does_not_wait(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    outbox = Collected()
    paced = ThrottledOutbox(outbox, 5.0, nursery.start_soon)
    paced.put(FrameBatch(numbered([moved(1)])))
    await trio.sleep(2)
    paced.put(FrameBatch(numbered([moved(1, OTHER), moved(2, OTHER)], 2)))
    await trio.sleep(1)
    paced.put(FrameBatch(numbered([moved(2)], 4)))
    await trio.sleep(2.5)
    assert [item.message.job_id for item in outbox.items] == [ID, OTHER, ID]


async def test_held_progress_goes_out_before_the_end(nursery: trio.Nursery) -> None:
    outbox = Collected()
    paced = ThrottledOutbox(outbox, 60.0, nursery.start_soon)
    paced.put(FrameBatch(numbered([moved(1), moved(2)])))
    paced.end(JOB_FINISHED)
    assert [item.offset for item in outbox.items] == [1, 2]
    assert outbox.endings == [JOB_FINISHED]


@pytest.mark.parametrize("types", [set(), {"progress"}, {"job_created", "page_preview"}])
def test_filters_never_drop_status_changes_and_ends(types: set[str]) -> None:
    outbox = Collected()
    selected = FilteredOutbox(outbox, partial(of_types, types))
    told = [created(), started(), moved(1), *succeeded(), started(OTHER), cancelled(OTHER)]
    selected.put(FrameBatch(numbered(told)))
    selected.end(JOB_FINISHED)
    wanted = {type(message).__struct_config__.tag for message in outbox.messages}
    assert {"status_change", "completed"} <= wanted <= {"status_change", "completed"} | types
    assert sum(ends_job(message) for message in outbox.messages) == 2
    assert outbox.endings == [JOB_FINISHED]
