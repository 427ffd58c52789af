from collections import Counter
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from progressd.core.batch import Priority
from progressd.core.job import Job
from progressd.engine.registry import RunQueue
from support.samples import job

LOW, NORMAL, HIGH = Priority

OWNERS = st.sampled_from([None, "key:a", "address:192.0.2.1"])
PRIORITIES = st.sampled_from([NORMAL, NORMAL, NORMAL, HIGH])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), OWNERS, PRIORITIES),
        st.tuples(st.sampled_from(["start", "start", "start", "cancel", "requeue"])),
    ),
    min_size=10,
    max_size=80,
)


def owned(number: int, owner: str | None, priority: Priority = NORMAL) -> Job:
    return job(number, pipeline="pdf", owner=owner, priority=priority)


def order(jobs: Iterable[Job]) -> list[int]:
    """Return the numbers of the jobs in the order in which they start."""
    waiting = {one.id: one for one in jobs}
    queue = RunQueue()
    for one in waiting.values():
        queue.add(one)
    started = []
    while (taken := queue.take(waiting.get)) is not None:
        started.append(taken.created_offset)
    return started


def test_owners_take_turns() -> None:
    jobs = [owned(1, "a"), owned(2, "a"), owned(3, "a"), owned(4, "b"), owned(5, "c"), owned(6, "b")]
    assert order(jobs) == [1, 4, 5, 2, 6, 3]


@given(ACTIONS)
def test_no_owner_waits_for_two_jobs_of_another(actions: list[tuple[object, ...]]) -> None:
    queue, waiting, started = RunQueue(), dict[str, Job](), list[Job]()
    passed = Counter[tuple[Priority, str | None, str | None]]()  # starts of another owner since this one waits
    for number, (name, *arguments) in enumerate(actions):
        if name == "submit":
            new = owned(number, *arguments)  # type: ignore[arg-type]
            waiting[new.id] = new
            queue.add(new)
        elif name == "cancel" and waiting:
            del waiting[next(reversed(waiting))]
        elif name == "requeue" and started:
            again = started.pop()
            waiting[again.id] = again
            queue.add(again)
        elif name == "start":
            taken = queue.take(waiting.get)
            assert (taken is None) == (not waiting)
            if taken is None:
                continue
            assert taken.priority.rank == max(one.priority.rank for one in waiting.values())
            same = [one for one in waiting.values() if one.priority is taken.priority]
            assert taken == min((one for one in same if one.owner == taken.owner), key=lambda one: one.created_offset)
            del waiting[taken.id]
            started.append(taken)
            for key in [key for key in passed if key[0] is taken.priority and key[1] == taken.owner]:
                del passed[key]
            for owner in {one.owner for one in same} - {taken.owner}:
                passed[taken.priority, owner, taken.owner] += 1
        present = {(one.priority, one.owner) for one in waiting.values()}
        for key in [key for key in passed if key[:2] not in present]:
            del passed[key]
        assert all(count <= 1 for count in passed.values()), passed
