"""The remaining times of jobs from the history, which a restart keeps."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import datetime, timedelta
from itertools import pairwise, product
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace
from progressd.auth.authenticator import UNRESTRICTED
from progressd.core.eta import RUNS_PER_KEY, Forecasts, KeyedRun, Run, hashed
from progressd.core.events import (
    CompletedEvent,
    ErrorEvent,
    Event,
    Priority,
    ProgressEvent,
    RegisterEvent,
    Registration,
    ReportedProgress,
)
from progressd.core.job import Job, apply
from progressd.core.messages import ErrorData, Eta, JobStatus, Progress
from progressd.engine.attention import MAX_ESTIMATES, Attention
from progressd.engine.log_reader import LogReaders
from progressd.engine.queue_estimates import QueueEstimates, QueuePlace
from progressd.engine.registry import RunQueue
from progressd.engine.view import ClientView, Engine
from progressd.store.base import Filter, Paging
from progressd.store.sqlite import SQLiteStore
from support.samples import NOW, job, job_id
from support.spine import Spine, register, running, start, submit

HOST = {"host": "a"}


def finished(forecasts: Forecasts, seconds: float, given: Registration, end: Event | None = None) -> Job:
    """Run a job with ten steps."""
    job = apply(None, RegisterEvent(job_id(1), given), NOW).job
    for step in range(11):
        event = ProgressEvent(job_id(1), ReportedProgress(step, 10))
        job = apply(job, event, NOW + timedelta(seconds=seconds * step / 10), forecasts.eta).job
    return apply(job, end or CompletedEvent(job_id(1)), NOW + timedelta(seconds=seconds), forecasts.eta).job


def keep(forecasts: Forecasts, *jobs: Job) -> None:
    runs = [run for job in jobs if (run := forecasts.run_of(job)) is not None]
    forecasts.finish(jobs, runs)


def begun(forecasts: Forecasts, given: Registration) -> tuple[Job, list[Eta]]:
    """Start a job. Return it and the estimates that its watchers receive."""
    registered = apply(None, RegisterEvent(job_id(2), given), NOW).job
    job, messages, _ = apply(registered, start(2), NOW, forecasts.eta)
    return job, [message.data.eta for message in messages if isinstance(message, Progress) and message.data.eta]


def test_a_job_is_slow_beyond_its_longest_usual_duration() -> None:
    forecasts, given = Forecasts(), Registration("tar", name="tar -czf 1.tgz /home", labels=HOST)
    unknown, _ = begun(forecasts, given)
    assert not forecasts.is_slow(unknown, NOW + timedelta(days=1))
    forecasts = Forecasts()
    keep(forecasts, *[finished(forecasts, seconds, given) for seconds in (95, 100, 105)])
    job, [eta] = begun(forecasts, given)
    after = 1.25 * eta.high
    assert 125 < after < 250
    assert not forecasts.is_slow(job, NOW + timedelta(seconds=after - 1))
    assert forecasts.is_slow(job, NOW + timedelta(seconds=after + 1))
    assert not forecasts.is_slow(replace(job, status=JobStatus.QUEUED), NOW + timedelta(days=1))


def test_a_repeated_job_shows_its_time_at_once() -> None:
    forecasts, given = Forecasts(), Registration("tar", name="tar -czf 1.tgz /home", labels=HOST)
    keep(forecasts, finished(forecasts, 100, given))
    job, [eta] = begun(forecasts, replace(given, name="tar -czf 2.tgz /home"))
    assert (eta.source, eta.runs) == ("history", 1)
    assert eta.seconds == pytest.approx(100)
    assert job.progress.eta == eta


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "rsync"},
        {"name": "tar -xzf 1.tgz"},
        {"labels": {"host": "b"}},
    ],
    ids=["kind", "shape of the command", "host"],
)
def test_a_job_of_another_sort_shows_no_remaining_time(other: dict[str, object]) -> None:
    forecasts, given = Forecasts(), Registration("tar", name="tar -czf 1.tgz /home", labels=HOST)
    keep(forecasts, finished(forecasts, 100, given))
    assert begun(forecasts, replace(given, **other))[1] == []


def test_failed_and_short_jobs_are_not_kept() -> None:
    forecasts, given = Forecasts(), Registration("tar")
    keep(forecasts, finished(forecasts, 100, given, ErrorEvent(job_id(1), ErrorData("no paper"))))
    keep(forecasts, finished(forecasts, 0.9, given))
    assert begun(forecasts, given)[1] == []


def test_a_short_job_starts_without_progress() -> None:
    forecasts, given = Forecasts(), Registration("tar")
    keep(forecasts, finished(forecasts, 4, given))
    assert begun(forecasts, given)[1] == []


def test_a_requeued_job_begins_a_new_estimate() -> None:
    forecasts, given = Forecasts(), Registration("tar")
    first = apply(None, RegisterEvent(job_id(1), given), NOW).job
    half = ProgressEvent(job_id(1), ReportedProgress(5, 10))
    apply(first, start(1), NOW, forecasts.eta)
    job = apply(apply(first, start(1), NOW).job, half, NOW + timedelta(seconds=1000), forecasts.eta).job
    again = replace(job, started_at=NOW + timedelta(seconds=2000))
    data = apply(again, half, NOW + timedelta(seconds=2010), forecasts.eta).job.progress
    assert data.eta_seconds == pytest.approx(10, rel=0.3)


async def test_the_store_keeps_the_newest_runs_of_each_key(tmp_path: Path) -> None:
    path = tmp_path / "progressd.db"
    runs = [KeyedRun("tar", Run(("tar",), float(number + 1), 10, ())) for number in range(RUNS_PER_KEY + 3)]
    other = KeyedRun("rsync", Run(("rsync",), 7.0, 0, tuple(part / 20 for part in range(21))))
    with closing(SQLiteStore.open(path)) as store:
        await store.commit((), (), (), [other, *runs[:5]])
        await store.commit((), (), (), runs[5:])
    with closing(SQLiteStore.open(path)) as store:
        assert await store.runs() == [other, *runs[-RUNS_PER_KEY:]]


def test_the_history_contains_no_text_of_a_job() -> None:
    forecasts, given = Forecasts(), Registration("secret", name="secret x", options={"k": "secret"}, labels=HOST)
    run = forecasts.run_of(finished(forecasts, 60, given))
    assert run is not None
    assert "secret" not in str(run)


async def test_a_restart_keeps_the_history(tmp_path: Path) -> None:
    path, given, forecasts = tmp_path / "progressd.db", Registration("tar", name="tar -c /home"), Forecasts()
    run = forecasts.run_of(finished(forecasts, 60, given))
    assert run is not None
    with closing(SQLiteStore.open(path)) as store:
        await store.commit((), (), (), [run])
    again = Forecasts()
    with closing(SQLiteStore.open(path)) as store:
        again.add(await store.runs())
    _, [eta] = begun(again, given)
    assert eta.seconds == pytest.approx(60)


@asynccontextmanager
async def running_with(path: Path, *runs: KeyedRun) -> AsyncIterator[tuple[Spine, QueueEstimates]]:
    """Run with these earlier jobs. The queue has one slot."""
    with closing(SQLiteStore.open(path)) as store:
        async with running(store) as spine:
            forecasts = Forecasts()
            forecasts.finish((), runs)
            yield spine, QueueEstimates(spine.registry, forecasts, 1)


def place_of(spine: Spine, estimates: QueueEstimates, number: int) -> QueuePlace | None:
    return estimates.place(spine.registry.unfinished[job_id(number)])


async def test_a_waiting_job_has_place_and_time(tmp_path: Path) -> None:
    earlier = KeyedRun(hashed("pdf\npdf\n\n"), Run((), 100.0, 0, ()))
    async with running_with(tmp_path / "progressd.db", *[earlier] * 3) as (spine, queue):
        await spine.submit(submit(1), submit(2), submit(3), register(4))
        places = [place_of(spine, queue, number) for number in (1, 2, 3)]
        assert [place and place.position for place in places] == [1, 2, 3]
        starts = [place.expected_start for place in places if place]
        for before, after in pairwise(starts):
            assert isinstance(before, datetime)
            assert isinstance(after, datetime)
            assert (after - before).total_seconds() == pytest.approx(100, abs=2)
        assert place_of(spine, queue, 4) is None  # a producer's job does not wait


async def test_a_list_after_a_restart_does_not_block_the_event_loop(tmp_path: Path) -> None:
    many = 4 * MAX_ESTIMATES
    run = KeyedRun(hashed("pdf\npdf\n\n"), Run((), 100.0, 0, ()))
    forecasts = Forecasts()
    forecasts.finish((), [run])
    with closing(SQLiteStore.open(tmp_path / "progressd.db")) as store:
        async with running(store) as spine, trio.open_nursery() as nursery:
            attention = Attention(spine.registry, forecasts)
            logs = LogReaders(spine.files.logs, spine.registry)
            core = (store, spine.registry, spine.batches, spine.history, spine.broadcaster, spine.ingest, logs)
            view = ClientView(Engine(*core, attention), UNRESTRICTED)
            await spine.submit(*map(register, range(many)))
            await spine.submit(*map(start, range(many)))
            most = 0  # estimates in a pass
            before = len(forecasts._running)

            async def count() -> None:
                nonlocal most, before
                while True:
                    await trio.lowlevel.checkpoint()
                    most, before = max(most, len(forecasts._running) - before), len(forecasts._running)

            nursery.start_soon(count)
            assert len((await view.page(Filter(), Paging(many))).jobs) == many
            for _ in range(3):
                await trio.lowlevel.checkpoint()  # so that the last pass counts
            nursery.cancel_scope.cancel()
    assert len(forecasts._running) == many
    assert most <= 2 * MAX_ESTIMATES


async def test_without_history_a_waiting_job_has_only_a_place(tmp_path: Path) -> None:
    async with running_with(tmp_path / "progressd.db") as (spine, queue):
        await spine.submit(submit(1), submit(2))
        assert place_of(spine, queue, 2) == QueuePlace(2)


def test_places_follow_the_order_of_starts() -> None:
    jobs = [
        job(number, owner=owner, priority=priority)
        for number, (owner, priority) in enumerate(product("aabac", (Priority.NORMAL, Priority.HIGH, Priority.LOW)), 1)
    ]
    known = {one.id: one for one in jobs}
    run_queue = RunQueue()
    for one in jobs:
        run_queue.add(one)
    expected = run_queue.order(known.get, 100)
    assert run_queue.order(known.get, 4) == expected[:4]
    assert [run_queue.take(known.get) for _ in jobs] == expected
