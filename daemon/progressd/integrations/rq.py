"""`rq worker --worker-class progressd.integrations.rq.Worker`: each RQ job becomes a job with the same id."""

from collections.abc import Mapping
from typing import Any, ClassVar

from progressd.client.job import Job
from progressd.integrations import LEASE, MAX_WAIT, report, required, uuid_of

with required("rq", "RQ"):
    import rq
    from rq.job import JobStatus

__all__ = ["SimpleWorker", "Worker"]

_running = dict[str, Job]()  # of this process, by the id of RQ's job


class _Reporting(rq.worker.BaseWorker):
    """Report each job that the worker runs. Subclasses may set arguments of `Job` in `job_options`."""

    job_options: ClassVar[Mapping[str, Any]] = {}

    def perform_job(self, job: rq.job.Job, queue: rq.Queue, *more: Any) -> bool:
        """Run a job, in its own process."""
        reported = _running[job.id] = self._job(job).start()
        try:
            return super().perform_job(job, queue, *more)
        finally:
            if _running.pop(job.id, None) is not None:
                reported.release(MAX_WAIT)

    def handle_job_success(self, job: rq.job.Job, *arguments: Any, **options: Any) -> Any:
        """Complete a job."""
        done = super().handle_job_success(job, *arguments, **options)
        self._end(job, None)
        return done

    def handle_job_retry(self, job: rq.job.Job, *arguments: Any, **options: Any) -> Any:
        """Leave a job open if its function asks for another attempt."""
        done = super().handle_job_retry(job, *arguments, **options)
        self._retry(job, "")
        return done

    def handle_job_failure(
        self,
        job: rq.job.Job,
        queue: rq.Queue,
        started_job_registry: Any = None,
        exc_string: Any = "",
        *more: Any,
        **options: Any,
    ) -> Any:
        """Fail a job, or leave it open for another attempt. The main process does it if the other one was killed."""
        done = super().handle_job_failure(job, queue, started_job_registry, exc_string, *more, **options)
        reason = (exc_string.strip().splitlines() or [""])[-1]
        match job.get_status():
            case JobStatus.STOPPED:
                self._end(job, KeyboardInterrupt())
            case JobStatus.FAILED:
                self._end(job, RuntimeError(reason))
            case _:
                self._retry(job, reason)
        return done

    def _end(self, job: rq.job.Job, error: BaseException | None) -> None:
        reported = _running.pop(job.id, None) or self._job(job).start(begun=True)
        reported.end(error, MAX_WAIT)

    def _retry(self, job: rq.job.Job, reason: str) -> None:
        if (reported := _running.pop(job.id, None)) is not None:
            reported.progress(0, step_name=f"Retry: {reason}" if reason else "Retry")
            reported.release(MAX_WAIT)

    def _job(self, job: rq.job.Job) -> Job:
        labels = {"worker": self.name, "queue": job.origin, **self.job_options.get("labels", {})}
        options = {"lease_seconds": LEASE, **self.job_options, "labels": labels, "stop_when_cancelled": False}
        return Job(job.func_name or "job", job_id=uuid_of(job.id), **options)


class Worker(_Reporting, rq.Worker):
    """A worker that reports each of its jobs."""


class SimpleWorker(_Reporting, rq.SimpleWorker):
    """The same, in one process."""


_save_meta = rq.job.Job.save_meta


def _reporting_save_meta(self: rq.job.Job) -> None:
    _save_meta(self)  # type: ignore[no-untyped-call]
    if (reported := _running.get(self.id)) is not None:
        report(reported, self.meta.get("progress", self.meta))


rq.job.Job.save_meta = _reporting_save_meta  # type: ignore[method-assign]
