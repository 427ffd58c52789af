"""The progress displays of Rich are also jobs."""

import io
from typing import Any

import pytest
from progressd.client import JobCancelled
from progressd.integrations.rich import Progress
from rich.console import Console
from support.reporting import newest, request, to
from support.serving import ServedDaemon
from support.waiting import until


def display(daemon: ServedDaemon, **options: Any) -> Progress:
    return Progress(job=to(daemon), console=Console(file=io.StringIO()), **options)


def numbers(job: dict[str, Any]) -> tuple[Any, ...]:
    progress = job.get("progress", {})
    return progress.get("current_step"), progress.get("total_steps"), progress.get("step_name")


@pytest.mark.parametrize("disable", [False, True])
def test_all_tasks_are_one_job(disable: bool, daemon: ServedDaemon) -> None:
    with display(daemon, disable=disable) as progress:
        first, second = progress.add_task("[red]one", total=10), progress.add_task("two", total=30)
        endless = progress.add_task("endless", total=None)
        progress.advance(first, 10)
        progress.remove_task(first)
        progress.advance(endless, 3)
        progress.update(second, completed=20)
        until(lambda: numbers(newest(daemon, "one")) == (30, 40, "two"))
        progress.update(second, advance=10)
    job = newest(daemon, "one")
    tasks = {task["name"]: (task["current"], task["total"], task["state"]) for task in job["progress"]["tasks"]}
    assert tasks == {
        "one": (10, 10, "completed"),
        "two": (30, 30, "completed"),
        "endless": (3, 0, "completed"),
    }
    assert (job["status"], numbers(job)) == ("completed", (40, 40, "two"))


def test_a_task_without_a_total_counts_its_steps(daemon: ServedDaemon) -> None:
    with display(daemon) as progress:
        progress.advance(progress.add_task("endless", total=None), 7)
    assert numbers(newest(daemon, "endless")) == (7, 0, "endless")


def test_fractions_become_a_percentage(daemon: ServedDaemon) -> None:
    with display(daemon) as progress:
        task = progress.add_task("fraction", total=1.0)
        progress.update(task, completed=0.25)
        until(lambda: newest(daemon, "fraction").get("progress", {}).get("percent") == 25)
        progress.reset(task)
        until(lambda: newest(daemon, "fraction").get("progress", {}).get("percent") == 0)


def test_a_tracked_loop_is_a_job(daemon: ServedDaemon) -> None:
    with display(daemon) as progress:
        assert list(progress.track([1, 2, 3], description="tracked")) == [1, 2, 3]
    job = newest(daemon, "tracked")
    assert (job["status"], numbers(job)) == ("completed", (3, 3, "tracked"))


def test_an_error_of_the_block_fails_the_job(daemon: ServedDaemon) -> None:
    def work(progress: Progress) -> None:
        progress.add_task("torn")
        raise ValueError("the tape is torn")

    with pytest.raises(ValueError, match="torn"), display(daemon) as progress:
        work(progress)
    assert newest(daemon, "torn")["error"] == "the tape is torn"


def test_a_cancelled_job_ends_the_block(daemon: ServedDaemon) -> None:
    def work(progress: Progress) -> None:
        task = progress.add_task("stop")
        until(lambda: newest(daemon, "stop").get("status") == "processing")
        assert request(daemon, "DELETE", newest(daemon, "stop")["id"]).is_success
        while True:
            progress.advance(task, 0)

    with pytest.raises(JobCancelled), display(daemon) as progress:
        work(progress)


def test_each_display_without_a_block_is_a_job(daemon: ServedDaemon) -> None:
    progress = display(daemon)
    for name in ("first", "second"):
        progress.start()
        progress.add_task(name)
        progress.stop()
        assert newest(daemon, name)["status"] == "completed"
