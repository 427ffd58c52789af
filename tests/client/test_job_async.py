"""`Job` in asyncio and Trio: a cancellation interrupts the block, and the loop never blocks."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace
from progressd.client import Job, JobCancelled
from support.reporting import SOON, request, seen, status, to
from support.serving import PATIENCE, ServedDaemon
from support.waiting import until

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def in_thread(function: Callable[[], object]) -> None:
    """Call a function in a thread: the browser of other tests keeps an event loop in this one."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(function).result()


def run(backend: str, work: Callable[[], Awaitable[object]]) -> None:
    async def in_time() -> None:
        with anyio.fail_after(PATIENCE):
            await work()

    in_thread(partial(anyio.run, in_time, backend=backend))


@BACKENDS
def test_a_block_is_a_job(backend: str, daemon: ServedDaemon) -> None:
    async def work() -> None:
        async with Job("scan", 2, **to(daemon)) as job:
            job.step("Looking")
            await anyio.lowlevel.checkpoint()
        assert status(daemon, job) == "completed"
        with pytest.raises(ValueError, match="no pages"):
            async with Job("scan", **to(daemon)) as job:
                raise ValueError("no pages in it")
        assert seen(daemon, job)["error"] == "no pages in it"

    run(backend, work)


@BACKENDS
def test_a_cancelled_job_interrupts_the_block(backend: str, daemon: ServedDaemon) -> None:
    def cancel(job: Job) -> None:
        until(lambda: status(daemon, job) == "processing")
        assert request(daemon, "DELETE", job).is_success

    async def block(job: Job) -> None:
        async with job:
            threading.Thread(target=cancel, args=(job,)).start()
            await anyio.sleep(1000)

    async def work() -> None:
        job = Job("scan", **to(daemon))
        with pytest.raises(JobCancelled):
            await block(job)
        await anyio.lowlevel.checkpoint()  # is not cancelled any more
        assert status(daemon, job) == "cancelled"

    run(backend, work)


@BACKENDS
def test_a_block_may_ignore_the_cancellation(backend: str, daemon: ServedDaemon) -> None:
    async def work() -> None:
        async with Job("scan", stop_when_cancelled=False, **to(daemon)) as job:
            await anyio.to_thread.run_sync(until, lambda: status(daemon, job) == "processing")
            assert request(daemon, "DELETE", job).is_success
            await anyio.to_thread.run_sync(until, lambda: job.cancelled)
            await anyio.lowlevel.checkpoint()

    run(backend, work)


@BACKENDS
def test_a_cancelled_block_cancels_the_job(backend: str, daemon: ServedDaemon) -> None:
    async def work() -> None:
        with anyio.CancelScope() as outer:
            async with Job("scan", **to(daemon)) as job:
                outer.cancel()
                await anyio.sleep(1000)
        assert status(daemon, job) == "cancelled"
        with anyio.CancelScope() as outer:
            async with Job("scan", **to(daemon)) as job:
                outer.cancel()  # the block ends well all the same
        assert status(daemon, job) == "completed"

    run(backend, work)


def test_a_cancelled_asyncio_task_cancels_the_job(daemon: ServedDaemon) -> None:
    async def work() -> None:
        jobs, started = [], asyncio.Event()

        async def sleep() -> None:
            async with Job("scan", **to(daemon)) as job:
                jobs.append(job)
                started.set()
                await asyncio.sleep(1000)

        task = asyncio.create_task(sleep())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await sleep()
        assert [status(daemon, job) for job in jobs] == ["cancelled", "cancelled"]

    in_thread(lambda: asyncio.run(work()))


@BACKENDS
def test_the_loop_runs_while_the_end_waits(backend: str, daemon: ServedDaemon) -> None:
    ticks = 0

    async def go_on_later() -> None:
        nonlocal ticks
        while ticks < 20:
            await anyio.lowlevel.checkpoint()
            ticks += 1
        daemon.process.send_signal(signal.SIGCONT)

    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            async with Job("scan", patience=1000, **to(daemon)) as job:
                await anyio.to_thread.run_sync(until, lambda: status(daemon, job) == "processing")
                daemon.process.send_signal(signal.SIGSTOP)
                tasks.start_soon(go_on_later)
            assert ticks == 20
            assert status(daemon, job) == "completed"

    try:
        run(backend, work)
    finally:
        daemon.process.send_signal(signal.SIGCONT)


@BACKENDS
def test_a_plain_with_block_reports_its_end_later(backend: str, daemon: ServedDaemon) -> None:
    async def work() -> None:
        with Job("scan", patience=1000, **{**to(daemon), "timing": replace(SOON, loop_timeout=0.05)}) as job:
            await anyio.to_thread.run_sync(until, lambda: status(daemon, job) == "processing")
            daemon.process.send_signal(signal.SIGSTOP)
        daemon.process.send_signal(signal.SIGCONT)
        await anyio.to_thread.run_sync(until, lambda: status(daemon, job) == "completed")

    try:
        run(backend, work)
    finally:
        daemon.process.send_signal(signal.SIGCONT)


@BACKENDS
def test_the_thread_outlives_the_loop(backend: str, daemon: ServedDaemon) -> None:
    job = Job("scan", stop_when_cancelled=False, **to(daemon))

    async def work() -> None:
        await job.__aenter__()
        await anyio.to_thread.run_sync(until, lambda: status(daemon, job) == "processing")

    run(backend, work)
    job.__exit__(None, None, None)
    assert status(daemon, job) == "completed"


def test_a_dropped_async_generator_cancels_its_job(daemon: ServedDaemon, caplog: pytest.LogCaptureFixture) -> None:
    job = Job("scan", stop_when_cancelled=False, **to(daemon))

    async def pages() -> AsyncIterator[int]:
        async with job:
            for page in range(10):
                yield page

    async def work() -> None:
        async for page in pages():
            if page == 5:
                break

    in_thread(lambda: asyncio.run(work()))
    until(lambda: status(daemon, job) == "cancelled")
    assert caplog.records == []
