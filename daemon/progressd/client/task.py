"""`with job.task("layer", total=3) as task:` reports a part of a job that has its own progress."""

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from progressd.client import values
from progressd.client.errors import JobCancelled
from progressd.core.event_limits import MAX_COUNT, MAX_TASK_ID, MAX_TASKS


class Tasks:
    """The tasks of one job, as reported: all unfinished ones, and as many finished ones as there is room for."""

    def __init__(self) -> None:
        self._tasks: dict[str, dict[str, object]] = {}

    def begin(self, name: str, data: dict[str, object]) -> str:
        """Add a task and return its id. Raises ValueError if there are too many unfinished ones."""
        if len(self._tasks) >= MAX_TASKS:
            finished = next((id_ for id_, task in self._tasks.items() if "state" in task), None)
            if finished is None:
                raise ValueError(f"a job has at most {MAX_TASKS} unfinished tasks")
            del self._tasks[finished]
        id_, number = values.text(name, MAX_TASK_ID), 1
        while "state" not in self._tasks.get(id_, {"state": ""}):
            number += 1
            id_ = f"{values.text(name, MAX_TASK_ID - 5)} {number}"
        self._tasks.pop(id_, None)
        self._tasks[id_] = {"id": id_, "name": name, "current": 0, **data}
        return id_

    def change(self, id_: str, **data: object) -> None:
        """Change a task, unless another task has replaced it."""
        if id_ in self._tasks:
            self._tasks[id_].update(data)

    @property
    def data(self) -> list[dict[str, object]]:
        """Return a copy of the tasks, for a report."""
        return [dict(task) for task in self._tasks.values()]


class Task:
    """A part of a job, from `Job.task`. Leaving its `with` block completes it; an exception fails it.

    `report` applies a change to the tasks, reports it, and raises JobCancelled. `check` converts values.
    """

    def __init__(
        self,
        report: Callable[[Callable[[Tasks], None]], None],
        check: values.Checker,
        name: object,
        total: object,
        unit: object,
    ) -> None:
        self._report = report
        self._check = check
        self._name = check("task", values.phase, name, "") or "task"
        given = {"total": check("total", values.count, total, 0), "unit": check("unit", values.unit, unit)}
        self._data: dict[str, object] = {key: value for key, value in given.items() if value is not None}
        self._current = 0
        self._id = ""  # while the task is not reported

    def advance(self, steps: float = 1) -> None:
        """Add to the completed steps. Never waits. Raises JobCancelled."""

        def change(tasks: Tasks) -> None:
            self._current = min(self._current + added, MAX_COUNT)
            tasks.change(self._id, current=self._current)

        added = self._check("steps", values.count, steps, 0)
        self._report(change)

    def progress(self, current: int | None = None, total: int | None = None) -> None:
        """Set the number of completed steps, and the total. Never waits. Raises JobCancelled."""
        given: dict[str, Any] = {
            "current": self._check("current", values.count, current),
            "total": self._check("total", values.count, total),
        }

        def change(tasks: Tasks) -> None:
            if given["current"] is not None:
                self._current = given["current"]
            tasks.change(self._id, **{key: value for key, value in given.items() if value is not None})

        self._report(change)

    def __enter__(self) -> Self:
        def change(tasks: Tasks) -> None:
            self._id = self._check("tasks", lambda name: tasks.begin(str(name), self._data), self._name, "")

        self._report(change)
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: TracebackType | None) -> None:
        state = "completed" if error is None else "failed" if isinstance(error, Exception) else "cancelled"
        with contextlib.suppress(JobCancelled) if error is not None else contextlib.nullcontext():
            self._report(lambda tasks: tasks.change(self._id, state=state))
