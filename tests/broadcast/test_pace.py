"""Less for who asks for less, and never the state changes or the last progress before an end."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from outboxes import Collected
from progressd.broadcast.pace import Pace, Paced, Selected
from progressd.broadcast.published import Batch, Published
from progressd.core.closing import JOB_FINISHED
from progressd.core.messages import JobMessage, Progress, ends_job
from samples import ID, cancelled, created, job_id, moved, started, succeeded

OTHER = job_id(2)


def numbered(messages: Iterable[JobMessage], first: int = 1) -> list[Published]:
    return [
        Published(offset, replace(message, cursor=f"store-{offset}")) for offset, message in enumerate(messages, first)
    ]


STORIES = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["move", "move", "move", "end"]), st.floats(0, 3)), max_size=40
)


@given(STORIES)
def test_each_job_has_one_progress_an_interval_its_newest_before_its_end_and_every_change(
    story: list[tuple[str, str, float]],
) -> None:
    pace, now, offset = Pace(2.0), 0.0, 0
    ended: set[str] = set()
    told: list[Published] = []
    out: list[tuple[float, Published]] = []
    for name, what, wait in story:
        job = {"a": ID, "b": OTHER}[name]
        if job in ended:
            continue
        while pace and pace.next_due <= now + wait:
            now_due = pace.next_due
            out += [(now_due, item) for item in pace.release(now_due)]
            wait -= max(0.0, now_due - now)
            now = max(now, now_due)
        now += wait
        messages = [moved(offset, job)] if what == "move" else list(succeeded(job))
        items = numbered(messages, offset + 1)
        offset += len(items)
        told += items
        if what == "end":
            ended.add(job)
        out += [(now, item) for item in pace.take(items, now)]
    out += [(now, item) for item in pace.release(float("inf"))]

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
        paced = got_steps[:-1]  # the last one may have been let out early by the end
        assert all(later - earlier >= 2.0 - 1e-9 for (earlier, _), (later, _) in pairwise(paced))


def test_nothing_is_remembered_of_a_job_that_has_ended() -> None:
    pace = Pace(1.0)
    pace.take(numbered([moved(1), moved(2), *succeeded()]), 0.0)
    assert not pace
    assert pace._allowed == {}


async def test_kept_progress_goes_out_when_its_time_has_come(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    outbox = Collected()
    paced = Paced(outbox, 5.0, nursery.start_soon)
    paced.put(Batch(numbered([started(), moved(1), moved(2), moved(3)])))
    assert [item.offset for item in outbox.items] == [1, 2]
    await trio.sleep(4.9)
    assert [item.offset for item in outbox.items] == [1, 2]
    await trio.sleep(0.2)
    assert [item.offset for item in outbox.items] == [1, 2, 4]


async def test_overtaken_progress_goes_out_with_the_cursor_of_what_overtook_it(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    outbox = Collected()
    paced = Paced(outbox, 1.0, nursery.start_soon)
    paced.put(Batch(numbered([moved(1), moved(2), started(OTHER)])))
    await trio.sleep(1.5)
    assert [item.offset for item in outbox.items] == [1, 3, 3]
    assert isinstance(outbox.messages[-1], Progress)
    assert outbox.messages[-1].cursor == outbox.messages[-2].cursor == "store-3"


async def test_what_is_kept_goes_out_before_the_end(nursery: trio.Nursery) -> None:
    outbox = Collected()
    paced = Paced(outbox, 60.0, nursery.start_soon)
    paced.put(Batch(numbered([moved(1), moved(2)])))
    paced.end(JOB_FINISHED)
    assert [item.offset for item in outbox.items] == [1, 2]
    assert outbox.endings == [JOB_FINISHED]


@pytest.mark.parametrize("types", [set(), {"progress"}, {"job_created", "page_preview"}])
def test_a_selection_always_has_the_changes_of_status_and_the_ends(types: set[str]) -> None:
    outbox = Collected()
    selected = Selected(outbox, types)
    told = [created(), started(), moved(1), *succeeded(), started(OTHER), cancelled(OTHER)]
    selected.put(Batch(numbered(told)))
    selected.end(JOB_FINISHED)
    wanted = {type(message).__struct_config__.tag for message in outbox.messages}
    assert {"status_change", "completed"} <= wanted <= {"status_change", "completed"} | types
    assert sum(ends_job(message) for message in outbox.messages) == 2
    assert outbox.endings == [JOB_FINISHED]
