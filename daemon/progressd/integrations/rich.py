"""`from progressd.integrations.rich import Progress` instead of `from rich.progress import Progress`."""

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import rich.progress
from rich.progress import ProgressColumn, Task, TaskID
from rich.text import Text

from progressd.client.errors import JobCancelled
from progressd.client.job import Job
from progressd.client.task import Task as JobTask

__all__ = ["Progress"]


class Progress(rich.progress.Progress):
    """A Rich progress display that also reports a job, even if the display is disabled.

    `job`: arguments of `Job`. The job starts with the first task, whose description is its name unless `job` has one.
    Its progress is that of all tasks with a total, including those that were removed. If there are several tasks, they
    are also tasks of the job. The end of the display completes the job, and an exception of the `with` block fails it.
    `update` and `advance` raise JobCancelled if the job is cancelled.
    """

    def __init__(self, *columns: str | ProgressColumn, job: Mapping[str, Any] | None = None, **options: Any) -> None:
        self._arguments = job or {}
        self._job: Job | None = None
        self._job_tasks = dict[TaskID, JobTask]()  # the unfinished ones, if there has been more than one
        self._removed = [0.0, 0.0]  # of removed tasks: the completed part, and the total
        super().__init__(*columns, **options)

    def add_task(self, description: str, *arguments: Any, **options: Any) -> TaskID:
        """Add a task, and begin the job."""
        task = super().add_task(description, *arguments, **options)
        with self._lock:
            if self._job is None:
                name = Text.from_markup(description).plain or "job"
                job = Job(**{"name": name, "stop_when_cancelled": False, **self._arguments})
                self._job = job.start()
            elif self._job_tasks or len(self._tasks) > 1:
                for one in self._tasks.values() if not self._job_tasks else [self._tasks[task]]:
                    if not one.finished:
                        self._job_tasks[one.id] = self._job.task(_plain(one), _count(one.total)).__enter__()
        self._report(task)
        return task

    def remove_task(self, task_id: TaskID) -> None:
        """Remove a task from the display. Its completed part still counts."""
        with self._lock:
            if (task := self._tasks.get(task_id)) is not None and task.total:
                self._removed[0] += _done(task)
                self._removed[1] += _done(task)
            self._end_task(task_id, None)
        super().remove_task(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Update a task. Raises JobCancelled."""
        super().update(task_id, **changes)
        self._report(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Advance a task. Raises JobCancelled."""
        super().advance(task_id, advance)
        self._report(task_id)

    def reset(self, task_id: TaskID, **changes: Any) -> None:
        """Restart a task."""
        super().reset(task_id, **changes)
        self._report(task_id)

    def stop(self) -> None:
        """End the display and the job."""
        self._end(None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        try:
            super().stop()
        finally:
            job, self._job = self._job, None
            if job is not None:
                for task_id in list(self._job_tasks):
                    self._end_task(task_id, error)
                job.end(error)

    def _end_task(self, task_id: TaskID, error: BaseException | None) -> None:
        if (task := self._job_tasks.pop(task_id, None)) is not None:
            task.__exit__(type(error), error, None)

    def _report(self, task_id: TaskID) -> None:
        job = self._job
        if job is None:
            return
        with self._lock:
            counted = [task for task in self._tasks.values() if task.total]
            done = self._removed[0] + sum(map(_done, counted))
            total = self._removed[1] + sum(task.total or 0 for task in counted)
            now = self._tasks[task_id]
            done = done if total else now.completed
            if task_id in self._job_tasks:
                self._job_tasks[task_id].progress(_count(now.completed), _count(now.total))
                if now.finished:
                    self._end_task(task_id, None)
        percent = None if not total or total == int(total) > 1 else done / total * 100
        job.progress(done, total, _plain(now), percent)  # type: ignore[arg-type]
        if job.cancelled and type(threading.current_thread()).__module__ != rich.progress.__name__:
            raise JobCancelled(f"job {job.id} was cancelled")


def _plain(task: Task) -> str:
    return Text.from_markup(task.description).plain


def _count(number: float | None) -> int:
    return int(number or 0)


def _done(task: Task) -> float:
    return min(max(task.completed, 0), task.total) if task.total else 0
