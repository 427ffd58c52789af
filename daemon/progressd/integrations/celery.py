"""`install(app)`: each task of a Celery app becomes a job with the same id."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, Final

from progressd.client.job import Job
from progressd.integrations import LEASE, Ends, report, required, uuid_of

with required("celery", "Celery"):
    from celery import Celery, Task, signals, states
    from celery.exceptions import Retry

__all__ = ["install"]

PROGRESS: Final = "PROGRESS"  # the state of a task that has progress, by convention
INTERNAL: Final = "celery.*"  # Celery's own tasks


def install(app: Celery, *, ignore: Sequence[str] = (), **job: Any) -> None:
    """Report each task of the app that a worker starts, until its end.

    `update_state(state="PROGRESS", meta={"current": 3, "total": 12})` reports progress, and raises JobCancelled if the
    job is cancelled. The ids of jobs and tasks are equal if the latter are UUIDs, as they are by default.

    Args:
        ignore: Patterns for the names of tasks that do not become jobs, such as "mail.*".
        job: Arguments of `Job`, such as `url` and `key`.
    """
    app.progressd = _Tasks(app, (*ignore, INTERNAL), {"lease_seconds": LEASE, **job, "stop_when_cancelled": False})


class _Tasks:
    """The jobs of the tasks that this process runs, by task id."""

    def __init__(self, app: Celery, ignored: Sequence[str], options: Mapping[str, Any]) -> None:
        self._app = app
        self._ignored = ignored
        self._options = options
        self._jobs = dict[str, Job]()
        self._ends = Ends()
        for signal, receiver in (
            (signals.task_prerun, self._begin),
            (signals.task_postrun, self._end),
            (signals.task_failure, self._fail),
            (signals.task_revoked, self._revoke),
            (signals.worker_process_shutdown, self._ends.wait),
            (signals.worker_shutdown, self._ends.wait),
        ):
            signal.connect(receiver, weak=False, dispatch_uid=f"progressd {receiver.__name__} {id(app)}")

    def progress(self, task_id: str, state: str, meta: object) -> None:
        """Report the arguments of `update_state`. Raises JobCancelled."""
        if (job := self._jobs.get(task_id)) is not None:
            report(job, meta if isinstance(meta, Mapping) else None, "" if state == PROGRESS else state.capitalize())

    def _begin(self, *, task_id: str, task: Task, **_: Any) -> None:
        if self._has(task):
            job = self._jobs[task_id] = self._job(task_id, task, task.request)
            if task.request.retries:
                job.progress(0, step_name=f"Attempt {task.request.retries + 1}")
            job.start()

    def _end(self, *, task_id: str, state: str, retval: Any, **_: Any) -> None:
        if (job := self._jobs.pop(task_id, None)) is None:
            return
        if state == states.RETRY:
            assert isinstance(retval, Retry)
            job.progress(0, step_name=f"Retry {retval.humanize()}: {retval.exc or retval.message}")
        if state in (states.SUCCESS, states.FAILURE, states.IGNORED):
            job.end(retval if state == states.FAILURE else None, wait=0)
        else:  # another process runs the task again, or reports that it was terminated
            job.release(wait=0)
        self._ends.add(job)

    def _fail(self, *, sender: Task, task_id: str, exception: BaseException, **_: Any) -> None:
        """Report a task whose process was killed, from the process that has noticed it."""
        if self._has(sender) and task_id not in self._jobs:
            self._end_elsewhere(task_id, sender, sender.request, exception)

    def _revoke(self, *, sender: Task, request: Any, **_: Any) -> None:
        if self._has(sender) and request.id not in self._jobs:
            self._end_elsewhere(request.id, sender, request, KeyboardInterrupt())

    def _end_elsewhere(self, task_id: str, task: Task, request: Any, error: BaseException) -> None:
        job = self._job(task_id, task, request)
        job.start(begun=True).end(error, wait=0)
        self._ends.add(job)

    def _has(self, task: Task) -> bool:
        return task.app is self._app and not any(fnmatch(task.name, pattern) for pattern in self._ignored)

    def _job(self, task_id: str, task: Task, request: Any) -> Job:
        delivery = getattr(request, "delivery_info", None) or {}
        labels = {"worker": getattr(request, "hostname", None), "queue": delivery.get("routing_key")}
        given = {name: str(value) for name, value in labels.items() if value}
        options = {**self._options, "labels": {**given, **self._options.get("labels", {})}}
        return Job(task.name, job_id=uuid_of(task_id), **options)


_update_state = Task.update_state


def _reporting_update_state(
    self: Task, task_id: str | None = None, state: str | None = None, meta: Any = None, **options: Any
) -> None:
    _update_state(self, task_id, state, meta, **options)
    tasks = getattr(self.app, "progressd", None)
    if isinstance(tasks, _Tasks):
        tasks.progress(task_id or self.request.id, state or "", meta)


Task.update_state = _reporting_update_state
