"""Lease checks: examples, then random jobs against a model that checks every job at every moment."""

import math
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from progressd.core.events import LeaseEvent, LeaseExpiredEvent, StalledEvent
from progressd.core.job import Job, apply
from progressd.core.messages import JobStatus
from progressd.engine.leases import LeaseTimer
from progressd.engine.registry import Registry
from progressd.store.base import Store
from support.samples import NOW, job, job_id

STALLED, LOST = StalledEvent(job_id(1)), LeaseExpiredEvent(job_id(1))


def leased(number: int = 1, seconds: float = 10, **fields: object) -> Job:
    return job(number, **{"status": JobStatus.PROCESSING, "lease_seconds": seconds, **fields})  # type: ignore[arg-type]


class Leased:
    """Jobs whose leases began at 0."""

    def __init__(self, *jobs: Job) -> None:
        self.registry = Registry(cast(Store, None))
        self.leases = LeaseTimer(self.registry)
        self.keep(*jobs)

    def keep(self, *jobs: Job, now: float = 0) -> None:
        for one in jobs:
            self.registry.keep(one)
        self.leases.begin(jobs, now)

    def hear(self, job_id: str, now: float) -> None:
        self.registry.last_heard[job_id] = now
        self.keep(replace(self.registry.unfinished[job_id], progress=leased().progress))

    def say(self, now: float) -> list[LeaseEvent]:
        """Apply the events that are due, as the daemon does."""
        events = self.leases.expired(now)
        for event in events:
            self.keep(apply(self.registry.unfinished[event.job_id], event, NOW).job)
        return events


def test_an_event_at_the_last_moment_renews_the_lease() -> None:
    one = Leased(leased())
    assert one.say(10) == [STALLED]
    one.hear(job_id(1), 29.9)
    said = [(when, said) for when in range(30, 80) if (said := one.say(when))]
    assert said == [(40, [STALLED]), (60, [LOST])]


def test_an_unstored_event_is_repeated_a_lease_later() -> None:
    leases = Leased(leased()).leases
    assert [(when, leases.expired(when)) for when in (10, 15, 20)] == [(10, [STALLED]), (15, []), (20, [STALLED])]


def test_after_a_long_halt_a_producer_has_two_leases() -> None:
    one = Leased(leased())
    assert [one.say(when) for when in (1000, 1019, 1020)] == [[STALLED], [], [LOST]]


@pytest.mark.parametrize("one", [job(), leased(pipeline="pdf"), leased(status=JobStatus.FAILED)])
def test_jobs_without_a_running_lease_are_not_tracked(one: Job) -> None:
    leases = Leased(one)
    assert (leases.leases.next_check, leases.registry.last_heard) == (math.inf, {})


def test_finished_jobs_leave_nothing_behind() -> None:
    leases = Leased()
    for number in range(2000):
        leases.keep(leased(number, 86400))
        leases.keep(leased(number, 86400, status=JobStatus.COMPLETED))
    assert len(leases.leases._checks) <= 101
    assert not leases.registry.last_heard


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["heard", "wait", "end", "begin"]), st.integers(1, 4), st.integers(1, 15)), max_size=60
)


@given(ACTIONS)
def test_leases_equal_a_simple_model(actions: list[tuple[str, int, int]]) -> None:
    leases, now = Leased(), 0
    jobs = leases.registry.unfinished
    heard, stalled = dict[str, int](), dict[str, int]()  # the model: last event and stall of each job
    for action, number, amount in actions:
        id_ = job_id(number)
        if action == "begin" and id_ not in heard:
            leases.keep(leased(number, amount), now=now)
            heard[id_] = now
        elif action == "end" and id_ in jobs:
            leases.keep(replace(jobs[id_], status=JobStatus.COMPLETED))
        elif action == "heard" and id_ in jobs:
            leases.hear(id_, now)
            heard[id_] = now
            stalled.pop(id_, None)
        elif action == "wait":
            for _ in range(amount):
                now += 1
                expected = set[LeaseEvent]()
                for one in jobs.values():
                    assert one.lease_seconds is not None
                    silent = now - heard[one.id]
                    if one.id not in stalled and silent >= one.lease_seconds:
                        expected.add(StalledEvent(one.id))
                        stalled[one.id] = now
                    elif one.id in stalled and silent >= 3 * one.lease_seconds:
                        expected.add(LeaseExpiredEvent(one.id))
                assert now >= leases.leases.next_check or not expected
                assert set(leases.say(now)) == expected
