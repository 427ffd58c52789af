"""Loops as jobs: `progressd.track`, and the bars of tqdm."""

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import progressd
import pytest
from progressd.client import Job, JobCancelled
from progressd.tqdm import tqdm, trange
from support.reporting import newest, request, seen, status, to
from support.serving import PATIENCE, ServedDaemon
from support.waiting import until
from tqdm import tqdm as Bar  # noqa: N812, the class of any program


def broken() -> Iterator[int]:
    yield 1
    raise ValueError("the tape is torn")


def bar(daemon: ServedDaemon, iterable: Any = None, desc: str = "bar", **options: Any) -> Any:
    return tqdm(iterable, desc=desc, job=to(daemon), **options)


@pytest.mark.parametrize(
    "given", [[1, 2, 3], iter([1, 2, 3]), (one for one in (1, 2, 3))], ids=["list", "iterator", "generator"]
)
def test_a_loop_is_a_job(given: Any, daemon: ServedDaemon) -> None:
    total = 0 if "generator" in type(given).__name__ else 3
    assert list(progressd.track(given, name="loop", **to(daemon))) == [1, 2, 3]
    job = newest(daemon, "loop")
    assert (job["status"], job["progress"]["current_step"], job["progress"]["total_steps"]) == ("completed", 3, total)


def test_the_unit_of_a_bar_is_reported(daemon: ServedDaemon) -> None:
    list(progressd.track([1, 2], name="units", unit="pages", **to(daemon)))
    assert newest(daemon, "units")["progress"]["unit"] == "pages"
    with bar(daemon, desc="bytes", total=10, unit="B") as one:
        one.update(10)
    progress = newest(daemon, "bytes")["progress"]
    assert (progress["unit"], progress["current_step"], progress["total_steps"]) == ("B", 10, 10)


def test_a_loop_left_early_is_cancelled(daemon: ServedDaemon) -> None:
    for item in progressd.track(range(5), name="early", **to(daemon)):
        if item == 2:
            break
    assert newest(daemon, "early")["status"] == "cancelled"


def test_an_error_of_the_iterable_fails_the_job(daemon: ServedDaemon) -> None:
    with pytest.raises(ValueError, match="torn"):
        list(progressd.track(broken(), 2, name="torn", **to(daemon)))
    assert newest(daemon, "torn")["error"] == "the tape is torn"


def cancelling(daemon: ServedDaemon, name: str) -> Iterator[int]:
    """Yield without end, and cancel the job after the first item."""
    yield 1
    until(lambda: newest(daemon, name).get("status") == "processing")
    assert request(daemon, "DELETE", newest(daemon, name)["id"]).is_success
    while True:
        yield 2


def test_a_cancelled_job_ends_the_loop(daemon: ServedDaemon) -> None:
    with pytest.raises(JobCancelled):
        for _ in progressd.track(cancelling(daemon, "stop"), name="stop", **to(daemon)):
            pass


def test_only_iterables_are_tracked() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        progressd.nothing  # noqa: B018
    with pytest.raises(TypeError, match="not iterable"):
        progressd.track(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("disable", [False, True, None])
def test_a_bar_is_a_job(disable: bool | None, daemon: ServedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(bar(daemon, [1, 2, 3], disable=disable)) == [1, 2, 3]
    job = newest(daemon, "bar")
    assert (job["status"], job["progress"]["current_step"], job["progress"]["total_steps"]) == ("completed", 3, 3)
    assert ("3/3" in capsys.readouterr().err) is (disable is False)


def test_a_bar_without_an_iterable_reports_its_updates(daemon: ServedDaemon) -> None:
    with bar(daemon, desc="manual", total=10, mininterval=0) as manual:
        manual.set_postfix(file="a")
        manual.update(4)
        until(lambda: newest(daemon, "manual").get("progress", {}).get("percent") == 40)
    job = newest(daemon, "manual")
    assert (job["status"], job["progress"]["step_name"]) == ("completed", "file=a")


def test_a_bar_ends_as_its_loop_does(daemon: ServedDaemon) -> None:
    for item in bar(daemon, range(5), "left"):
        if item == 2:
            break
    assert newest(daemon, "left")["status"] == "cancelled"
    with pytest.raises(ValueError, match="torn"):
        list(bar(daemon, broken(), "torn"))
    assert newest(daemon, "torn")["error"] == "the tape is torn"
    with pytest.raises(ValueError, match="paper"), bar(daemon, desc="with", total=2):
        raise ValueError("no paper left")
    assert newest(daemon, "with")["error"] == "no paper left"
    try:
        raise ValueError("handled")
    except ValueError:
        list(bar(daemon, range(5), "retry"))
    assert newest(daemon, "retry")["status"] == "completed"


def test_only_the_outermost_bar_is_a_job(daemon: ServedDaemon) -> None:
    for _ in bar(daemon, range(2), "outer bar"):
        for _ in trange(3, desc="inner bar", job=to(daemon)):
            pass
    assert newest(daemon, "outer bar")["status"] == "completed"
    assert newest(daemon, "inner bar") == {}


def test_a_cancelled_job_ends_the_loop_of_a_bar(daemon: ServedDaemon) -> None:
    with pytest.raises(JobCancelled):
        for _ in bar(daemon, cancelling(daemon, "endless"), "endless", mininterval=0.01):
            pass


def test_any_bar_in_the_block_reports_the_job(daemon: ServedDaemon) -> None:
    with Job("bars", track_tqdm=True, **to(daemon)) as job:
        for _ in Bar(range(4), desc="outer", mininterval=0):
            for _ in Bar(range(3), desc="inner", leave=False, mininterval=0):
                pass
        list(Bar(range(9), disable=True))
    list(Bar(range(7)))
    shown = seen(daemon, job)
    assert (shown["status"], shown["progress"]["current_step"], shown["progress"]["total_steps"]) == ("completed", 4, 4)
    assert shown["progress"]["step_name"] == "outer"


def test_a_bar_belongs_to_the_job_of_its_thread(daemon: ServedDaemon) -> None:
    def work(job: Job, total: int) -> None:
        with job:
            both.wait(PATIENCE)
            bar = Bar(total=total, position=0)
            bar.update(total)
            bar.close()

    both = threading.Barrier(2)
    jobs = {total: Job(f"thread {total}", track_tqdm=True, **to(daemon)) for total in (3, 5)}
    threads = [threading.Thread(target=work, args=(job, total)) for total, job in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [seen(daemon, job)["progress"]["current_step"] for job in jobs.values()] == [3, 5]


def test_a_cancelled_job_ends_its_bar(daemon: ServedDaemon) -> None:
    with Job("bars", track_tqdm=True, **to(daemon)) as job:
        until(lambda: status(daemon, job) == "processing")
        assert request(daemon, "DELETE", job).is_success
        with pytest.raises(JobCancelled):
            sum(Bar(itertools.count(), mininterval=0))


def test_without_tqdm_the_work_continues(daemon: ServedDaemon) -> None:
    program = f"""
import logging, sys
logging.basicConfig(format="%(message)s")
sys.modules["tqdm"] = None
from progressd.client import Job
with Job("bars", track_tqdm=True, url={daemon.url!r}):
    print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "bars: track_tqdm has no effect: tqdm is not installed\n")
