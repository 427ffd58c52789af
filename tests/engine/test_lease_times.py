"""Leases: examples, then random jobs against a model that checks every job at every moment."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from progressd.core.events import LeaseEvent, LeaseExpiredEvent, StalledEvent
from progressd.core.job import Job, apply
from progressd.core.status import JobStatus
from progressd.engine.leases import EXPIRY_BATCH, Leases
from support.samples import NOW, job, job_id

STALLED, LOST = StalledEvent(job_id(1)), LeaseExpiredEvent(job_id(1))


def leased(number: int = 1, seconds: float = 10, **fields: object) -> Job:
    return job(number, **{"status": JobStatus.PROCESSING, "lease_seconds": seconds, **fields})  # type: ignore[arg-type]


def say(leases: Leases, jobs: dict[str, Job], now: float) -> list[LeaseEvent]:
    """Apply the events that are due, and keep the jobs, as the daemon does."""
    events = leases.expired(now)
    for event in events:
        jobs[event.job_id] = apply(jobs[event.job_id], event, NOW).job
        leases.keep(jobs[event.job_id], now)
    return events


def test_an_event_at_the_last_moment_renews_all_leases() -> None:
    leases, jobs = Leases(), {job_id(1): leased()}
    leases.keep(jobs[job_id(1)], 0)
    assert say(leases, jobs, 10) == [STALLED]
    leases.renew(job_id(1), 29.9)
    jobs[job_id(1)] = leased()
    leases.keep(leased(), 30.5)  # its event is decided later
    assert [(when, said) for when in range(30, 80) if (said := say(leases, jobs, when))] == [
        (40, [STALLED]),
        (60, [LOST]),
    ]


def test_an_unstored_event_is_repeated_a_lease_later() -> None:
    leases = Leases()
    leases.keep(leased(), 0)
    assert [(when, leases.expired(when)) for when in (10, 15, 20)] == [(10, [STALLED]), (15, []), (20, [STALLED])]


def test_after_a_long_halt_a_producer_has_two_leases() -> None:
    leases, jobs = Leases(), {job_id(1): leased()}
    leases.keep(jobs[job_id(1)], 0)
    assert say(leases, jobs, 1000) == [STALLED]
    assert say(leases, jobs, 1019) == []
    assert say(leases, jobs, 1020) == [LOST]


@pytest.mark.parametrize("one", [job(), leased(pipeline="pdf"), leased(status=JobStatus.FAILED)])
def test_jobs_without_a_running_lease_are_not_tracked(one: Job) -> None:
    leases = Leases()
    leases.keep(one, 0)
    leases.renew(one.id, 1)
    assert (len(leases), leases.next_check, leases.expired(1e9)) == (0, math.inf, [])


def test_finished_jobs_leave_nothing_behind() -> None:
    leases = Leases()
    for number in range(10_000):
        leases.keep(leased(number, 86400), number)
        leases.keep(leased(number, 86400, status=JobStatus.COMPLETED), number)
    assert len(leases._checks) <= 101


def test_many_expiries_come_in_batches() -> None:
    leases = Leases()
    for number in range(250):
        leases.keep(leased(number), 0)
    parts = [leases.expired(10) for _ in range(4)]
    assert [len(part) for part in parts] == [EXPIRY_BATCH, EXPIRY_BATCH, 50, 0]
    assert {event.job_id for part in parts for event in part} == {job_id(number) for number in range(250)}


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["heard", "wait", "end", "begin"]), st.integers(1, 4), st.integers(1, 15)), max_size=60
)


@given(ACTIONS)
def test_leases_equal_a_model_that_checks_all_jobs_always(
    actions: list[tuple[str, int, int]],
) -> None:
    leases, jobs, now = Leases(), dict[str, Job](), 0
    heard, stalled = dict[str, int](), dict[str, int]()  # the model: last event and stall of each job
    for action, number, amount in actions:
        id_ = job_id(number)
        alive = id_ in jobs and not jobs[id_].status.finished
        if action == "begin" and id_ not in jobs:
            jobs[id_] = leased(number, amount)
            leases.keep(jobs[id_], now)
            heard[id_] = now
        elif action == "end" and alive:
            jobs[id_] = replace(jobs[id_], status=JobStatus.COMPLETED)
            leases.keep(jobs[id_], now)
        elif action == "heard" and alive:
            leases.renew(id_, now)
            jobs[id_] = replace(jobs[id_], progress=replace(jobs[id_].progress, stalled=False))
            leases.keep(jobs[id_], now)
            heard[id_] = now
            stalled.pop(id_, None)
        elif action == "wait":
            for _ in range(amount):
                now += 1
                expected = set[LeaseEvent]()
                for one in jobs.values():
                    if one.status.finished or one.lease_seconds is None:
                        continue
                    silent = now - heard[one.id]
                    if one.id not in stalled and silent >= one.lease_seconds:
                        expected.add(StalledEvent(one.id))
                        stalled[one.id] = now
                    elif one.id in stalled and silent >= 3 * one.lease_seconds:
                        expected.add(LeaseExpiredEvent(one.id))
                assert now >= leases.next_check or not expected
                assert set(say(leases, jobs, now)) == expected
