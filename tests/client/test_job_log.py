"""`Job.log` and the handler for `logging`."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.client import Job, LogHandler
from progressd.client.log_sender import BURST, INTERVAL, QUICK_INTERVAL, REMOTE_INTERVAL, RequestPace
from support.reporting import WAYS, to, warnings, working
from support.serving import PATIENCE, ServedDaemon
from support.waiting import until

NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("test_job_log")
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers.clear()


def log_of(daemon: ServedDaemon, job: Job, query: str = "") -> str:
    return daemon.request("GET", f"/api/jobs/{job.id}/log{query}").text


@pytest.mark.parametrize("way", WAYS)
def test_the_log_is_complete_after_the_block(way: str, daemon: ServedDaemon) -> None:
    with Job("scan", **to(daemon, way)) as job:
        for number in range(2000):
            job.log(f"line {number}")
        job.log("two\nlines \udcff", stream="stderr")
    assert log_of(daemon, job) == "".join([f"line {number}\n" for number in range(2000)]) + "two\nlines ?\n"


def test_a_handler_passes_on_what_a_program_logs(daemon: ServedDaemon, logger: logging.Logger) -> None:
    with Job("scan", **to(daemon)) as job:
        logger.addHandler(LogHandler(job, logging.INFO))
        logger.debug("hidden")
        logger.info("page %d", 3)
        try:
            raise ValueError("no pages")
        except ValueError:
            logger.exception("failed")
        logging.getLogger("progressd.client").warning("about the log itself")
    first, *traceback = log_of(daemon, job).splitlines()
    assert first == "INFO test_job_log: page 3"
    assert (traceback[0], traceback[-1]) == ("ERROR test_job_log: failed", "ValueError: no pages")


async def test_asyncio_and_trio_blocks_wait_without_blocking(daemon: ServedDaemon) -> None:
    async with Job("scan", **to(daemon)) as job:
        job.log("in Trio")
    assert log_of(daemon, job) == "in Trio\n"

    async def main() -> Job:
        async with Job("scan", **to(daemon)) as job:
            job.log("in asyncio")
        return job

    other = await run_in_asyncio(main)
    assert log_of(daemon, other) == "in asyncio\n"


async def run_in_asyncio(main: object) -> Job:
    import trio

    return await trio.to_thread.run_sync(lambda: asyncio.run(main()))  # type: ignore[operator]


def test_many_threads_write_whole_lines(daemon: ServedDaemon) -> None:
    with Job("scan", **to(daemon)) as job:
        threads = [
            threading.Thread(target=lambda: [job.log("x" * 100) for _ in range(200)])  # type: ignore[func-returns-value]
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert log_of(daemon, job) == ("x" * 100 + "\n") * 800


def test_lines_without_a_daemon_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    with Job("scan", url=NOBODY) as job:
        began = time.monotonic()
        for _ in range(2000):
            job.log("x" * 10_000)
        assert time.monotonic() - began < PATIENCE
        assert job._log is not None
        assert job._log.buffer._head_size + job._log.buffer._tail_size <= 5 << 20
    assert any("end of the log" in one for one in warnings(caplog))


def test_lines_after_the_block_are_reported_once(daemon: ServedDaemon, caplog: pytest.LogCaptureFixture) -> None:
    with Job("scan", **to(daemon)) as job:
        pass
    job.log("late")
    job.log("later")
    assert warnings(caplog) == ["scan: lines are logged only inside the block, in its own process"]


@given(st.lists(st.floats(0, 20), min_size=1, max_size=60), st.sampled_from([INTERVAL, REMOTE_INTERVAL]))
def test_requests_for_a_log_are_on_average_far_apart(silences: list[float], interval: float) -> None:
    pace, now, times = RequestPace(interval), 1000.0, list[float]()
    for silence in silences:
        times.append(now)
        pause = pace.pause(now)
        assert pause <= interval
        now += pause + silence
    for first, began in enumerate(times):
        for last, ended in enumerate(times[first:], 1):
            assert last <= BURST + (ended - began) / interval + 1e-6


def test_after_a_quiet_time_lines_are_sent_quickly() -> None:
    pace = RequestPace(REMOTE_INTERVAL)
    busy = [pace.pause(1000 + 0.25 * number) for number in range(BURST)]
    assert busy[: BURST - 1] == [QUICK_INTERVAL] * (BURST - 1)
    assert busy[-1] > QUICK_INTERVAL
    assert pace.pause(1100) == QUICK_INTERVAL


def test_lines_are_visible_while_the_block_runs(daemon: ServedDaemon) -> None:
    with working(**to(daemon)) as (job, go):
        job.log("now")
        until(lambda: log_of(daemon, job) == "now\n")
        go.set()
