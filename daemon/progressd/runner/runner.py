"""The runner: take queued jobs of the configured pipelines, in the order of `RunQueue`, and run each as a child
process.

The runner is an ordinary producer: it reports the output and the end of the child as events. Only the runner starts
these jobs.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import structlog
import trio
from msgspec.structs import replace

from progressd.config.settings import Settings
from progressd.core.errors import Conflict, InvalidInput, NotFound, StoreFailed
from progressd.core.events import CompletedEvent, ErrorEvent, ReportedResult, RequeueEvent, RunnerEvent, StartEvent
from progressd.core.job import Job
from progressd.core.messages import ErrorData, JobStatus
from progressd.core.pipeline import Pipeline
from progressd.core.progress_pattern import ProgressPattern
from progressd.detect.detector import Detector
from progressd.detect.plan import NONE, Plan, plan
from progressd.detect.preset_loader import SYSTEM, Presets
from progressd.engine.ingest import Ingest
from progressd.engine.registry import Registry
from progressd.files.job_files import JobFiles
from progressd.net.request import download_path
from progressd.runner.orphans import JOB, MARK, ProcessRecords
from progressd.runner.output import OutputParser, PipelineLog
from progressd.runner.process import ChildProcess, ResourceLimits
from progressd.system.notify_socket import NotifySocket
from progressd.system.transient_errors import is_transient

PRIVATE: Final = ("PROGRESSD_", "NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_", "CREDENTIALS_DIRECTORY")
ESTIMATE_INTERVAL: Final = 1.0  # seconds between two checks of how far a program has read its input
RETRY_INTERVAL: Final = 1.0  # seconds, after a transient error of the system
REQUEUE_TIMEOUT: Final = 5.0  # seconds, in case the store fails

log = structlog.get_logger(__name__)


class Runner:
    """Run jobs. Call `run` once. After `stop_taking`, it sets `done` and returns when the last job has ended."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        ingest: Ingest,
        files: JobFiles,
        retry_interval: float = RETRY_INTERVAL,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._ingest = ingest
        self._files = files
        self._retry_interval = retry_interval
        self.done = trio.Event()
        self._slots = trio.Semaphore(settings.runner.concurrency)
        self._children = ProcessRecords(settings.state_dir, ingest.store_id)
        self._left = dict[str, str]()  # by job, processes that could not be stopped
        self._taking = trio.CancelScope()
        self._logging: trio.Nursery | None = None  # for the logs of jobs, which may take longer than the jobs

    def apply_settings(self, settings: Settings) -> None:
        """Use new settings. Running jobs keep the old settings, and the number of slots does not change."""
        self._settings = settings

    async def run(self) -> None:
        """Recover the jobs of an earlier daemon, then run jobs until cancelled, or drained after `stop_taking`."""
        async with trio.open_nursery() as nursery:
            self._logging = nursery
            with self._taking:
                await self._recover()
                while True:
                    await self._slots.acquire()
                    nursery.start_soon(self._run_job, await self._registry.next_queued())
        self.done.set()

    def stop_taking(self) -> None:
        """Start no further jobs."""
        self._taking.cancel()

    async def _recover(self) -> None:
        """Requeue jobs that were interrupted by the end of an earlier daemon. After too many attempts, a job fails."""
        interrupted = {
            job.id: job
            for job in self._registry.unfinished.values()
            if job.pipeline is not None and job.status is JobStatus.PROCESSING
        }
        still_running = await self._clean_up(set(interrupted))
        for job in interrupted.values():
            if job.attempt < self._settings.runner.max_attempts and job.id not in still_running:
                if await self._report(RequeueEvent(job.id)):
                    log.info("job requeued", job_id=job.id, attempt=job.attempt + 1)
            elif await self._report(RunnerEvent(job.id, ErrorEvent(job.id, ErrorData("interrupted")))):
                log.warning("job interrupted", job_id=job.id, attempts=job.attempt)

    async def _clean_up(self, jobs: set[str]) -> set[str]:
        """Stop the processes of these and all recorded jobs, and delete their working directories.

        Return the jobs that still run. Retry after transient errors, such as a shortage of descriptors.
        """
        while True:
            try:
                jobs = jobs.union(await trio.to_thread.run_sync(self._children.recorded_jobs))
                still_running = await self._children.end_orphans(self._settings.runner.kill_grace)
                await self._files.discard_attempts(jobs - still_running)
            except OSError as error:
                if not is_transient(error):
                    raise
                log.warning("cannot clean up after an earlier daemon, retrying before the first job", error=str(error))
                await trio.sleep(self._retry_interval)
            else:
                return still_running

    async def _run_job(self, job: Job) -> None:
        try:
            if await self._report(StartEvent(job.id)):
                await self._report(RunnerEvent(job.id, await self._outcome(job)))
        except Conflict as error:
            log.info("job already ended", job_id=job.id, reason=str(error))
        except BaseException:  # this task was cancelled
            if self._taking.cancel_called:
                with trio.move_on_after(REQUEUE_TIMEOUT, shield=True):
                    await self._requeue(job)
            raise
        finally:
            self._left.pop(job.id, None)
            self._slots.release()

    async def _requeue(self, job: Job) -> None:
        """Requeue a job that was interrupted by a shutdown, which does not count as an attempt.

        If its processes could not be stopped, the job fails, because another attempt would run at the same time.
        """
        if job.id in self._left:
            await self._report(RunnerEvent(job.id, self._failed(job, "the daemon stopped")))
        elif await self._report(RequeueEvent(job.id, stopped=True)):
            log.info("job requeued, the daemon is stopping", job_id=job.id)

    async def _report(self, event: StartEvent | RunnerEvent | RequeueEvent) -> bool:
        """Submit an event, and retry until the store accepts it. Return False if the job was cancelled or deleted."""
        while True:
            try:
                await self._ingest.submit_one(event)
            except StoreFailed as error:
                log.error("cannot store the state of a job, retrying", job_id=event.job_id, error=str(error))
                await trio.sleep(error.retry_after)
            except (Conflict, NotFound) as error:
                log.info("job already ended", job_id=event.job_id, reason=str(error))
                return False
            else:
                return True

    async def _outcome(self, job: Job) -> CompletedEvent | ErrorEvent:
        """Run a job. An error, such as a full disk, fails only this job."""
        try:
            return await self._attempt(job)
        except Conflict:
            raise
        except Exception as error:
            log.error("cannot run job", job_id=job.id, pipeline=job.pipeline, error=repr(error), exc_info=error)
            return self._failed(job, f"the daemon failed to run {job.pipeline} (see the daemon's log)")

    async def _attempt(self, job: Job) -> CompletedEvent | ErrorEvent:
        """Run the job once, and return its outcome. Raises OSError, and Conflict if the job ends in the meantime."""
        pipeline = self._settings.pipelines.get(job.pipeline or "")
        if pipeline is None:
            return self._failed(job, f"the pipeline {job.pipeline} is no longer configured")
        limits = ResourceLimits.of(pipeline, self._settings.runner)
        pattern = None if pipeline.progress_pattern is None else ProgressPattern(pipeline.progress_pattern)
        async with AsyncExitStack() as started:
            try:
                child, result, notify, planned = await self._start(job, pipeline, limits, started)
            except OSError as error:
                log.error("cannot start pipeline", job_id=job.id, pipeline=job.pipeline, error=str(error))
                program = Path(pipeline.command[0]).name
                why = error.strerror or "see the daemon's log"
                return self._failed(job, f"cannot start {program}, the program of the pipeline {job.pipeline}: {why}")
            detector = Detector(planned, pattern)
            return await self._run_pipeline(job, pipeline, limits, result, child, detector, notify)

    async def _start(
        self, job: Job, pipeline: Pipeline, limits: ResourceLimits, started: AsyncExitStack
    ) -> tuple[ChildProcess, Path, NotifySocket | None, Plan]:
        """Start the child. Return it, the path of its result, its socket and its plan. Retry after transient errors.

        The working directory is deleted on exit of `started`. Raises OSError, and Conflict if the job ends before the
        child starts.
        """
        while True:
            try:
                async with AsyncExitStack() as entered:
                    work = await entered.enter_async_context(self._files.attempt(job.id, job.attempt))
                    result = work / pipeline.output
                    command = pipeline.arguments(self._placeholders(job, result))
                    planned = await trio.to_thread.run_sync(_planned, job, pipeline, command)  # it may look at files
                    notify = _notify_socket(job, entered)
                    environment = {
                        **(notify.environment if notify else {}),
                        **self._environment(job, pipeline, planned),
                    }
                    grace = self._settings.runner.kill_grace
                    child = await ChildProcess.start(planned, result.parent, environment, grace, limits)
                    started.push_async_exit(entered.pop_all())
                    return child, result, notify, planned
            except OSError as error:
                if not is_transient(error):
                    raise
                log.warning("cannot start pipeline, retrying", job_id=job.id, pipeline=job.pipeline, error=str(error))
            with trio.move_on_after(self._retry_interval):
                await self._registry.wait_finished(job.id)
                raise Conflict(f"job {job.id} was ended before its pipeline was started")

    async def _run_pipeline(
        self,
        job: Job,
        pipeline: Pipeline,
        limits: ResourceLimits,
        result: Path,
        child: ChildProcess,
        detector: Detector,
        notify: NotifySocket | None,
    ) -> CompletedEvent | ErrorEvent:
        output = OutputParser(job.id, self._ingest, detector, always=pipeline.progress_pattern is not None)
        timeout = pipeline.timeout or self._settings.runner.job_timeout
        log_of_job = PipelineLog(self._files.logs, job.id, job.attempt)
        assert self._logging is not None
        if job.id in self._registry.unfinished:  # otherwise it may be deleted already
            self._logging.start_soon(log_of_job.run)
        try:
            with self._children.recorded(job.id, child.pid), trio.move_on_after(timeout) as in_time:
                estimates = pipeline.progress_pattern is None and pipeline.preset != NONE
                status = await self._run_child(job, child, output, log_of_job, notify, estimates=estimates)
        finally:
            log_of_job.close()
            if child.processes:
                log.info("ended the processes of a job", job_id=job.id, processes=child.processes - len(child.left))
            if child.left:
                self._left[job.id] = ", ".join(map(str, child.left))
                log.error("cannot end all processes of a job", job_id=job.id, processes=self._left[job.id])
        if child.stderr:
            await self._keep_stderr(job, child.stderr)
        if in_time.cancelled_caught:
            return self._failed(job, f"stopped after {timeout:g} s, the time limit of the pipeline {job.pipeline}")
        if output.error is not None:
            return self._error(job, output.error)
        if status != 0 and notify is not None and notify.error is not None:
            return self._failed(job, f"{job.pipeline}: {notify.error}")
        if status != 0:
            return self._failed(job, limits.describe_exit(str(job.pipeline), status, child.stderr))
        return await self._succeed(job, pipeline, result, output.result)

    async def _keep_stderr(self, job: Job, text: bytes) -> None:
        """Keep standard error if possible. A transient error does not affect the job."""
        try:
            await self._files.keep_stderr(job.id, text)
        except OSError as error:
            if not is_transient(error):
                raise
            log.warning("cannot keep the stderr of a pipeline", job_id=job.id, error=str(error))

    async def _run_child(
        self,
        job: Job,
        child: ChildProcess,
        output: OutputParser,
        log_of_job: PipelineLog,
        notify: NotifySocket | None,
        *,
        estimates: bool,
    ) -> int:
        """Run the child until it exits. Raises Conflict if the job ends first."""
        async with trio.open_nursery() as nursery:

            async def stop_when_ended() -> None:
                await self._registry.wait_finished(job.id)
                nursery.cancel_scope.cancel()

            async def read_notifications(notify: NotifySocket) -> None:
                while True:
                    await output.on_notification(await notify.receive())

            async def estimate() -> None:
                """Report how far the program has read its input, until there is progress."""
                before, path = None, self._files.input(job.id)
                while not output.has_found:
                    await trio.sleep(ESTIMATE_INTERVAL)
                    found = await trio.to_thread.run_sync(child.position_in, path)
                    if found is not None and found[0] and found != before:
                        before = found
                        await output.on_position(*found)

            nursery.start_soon(stop_when_ended)
            if estimates:
                nursery.start_soon(estimate)
            if notify is not None:
                nursery.start_soon(read_notifications, notify)
            status = await child.run(output.on_stdout, output.on_chunk, log_of_job.put)
            if notify is not None and (last := notify.receive_nowait()) is not None:
                await output.on_notification(last)
            nursery.cancel_scope.cancel()
            return status
        raise Conflict(f"job {job.id} was ended while it ran")

    async def _succeed(
        self, job: Job, pipeline: Pipeline, result: Path, reported: ReportedResult
    ) -> CompletedEvent | ErrorEvent:
        """Store the result if the pipeline writes one, and return the event for the end of the job."""
        url = None
        if any("{output}" in part for part in pipeline.command):
            try:
                await self._files.keep_output(job.id, result)
            except FileNotFoundError:
                return self._failed(job, f"{job.pipeline} exited with status 0, but wrote no result")
            except OSError as error:
                if not is_transient(error):
                    raise
                log.error("cannot store a result", job_id=job.id, error=str(error))
                return self._failed(job, f"the daemon cannot store the result of {job.pipeline}: {error.strerror}")
            url = download_path(job.id)
        return CompletedEvent(job.id, replace(reported, output_path=url))

    def _placeholders(self, job: Job, output: Path) -> dict[str, str]:
        return {
            "python": sys.executable,
            "input": str(self._files.input(job.id)),
            "output": str(output),
            "options": json.dumps(job.options),
            "job_id": job.id,
        }

    def _environment(self, job: Job, pipeline: Pipeline, planned: Plan) -> dict[str, str]:
        """Return the environment of the child: the daemon's without its private variables, and the pipeline's."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
        return {
            **inherited,
            **planned.environment,
            **pipeline.environment,
            JOB: job.id,
            MARK: self._children.mark,
            "PROGRESSD_SOCKET": str(self._settings.ingest.socket),
        }

    def _failed(self, job: Job, message: str) -> ErrorEvent:
        return self._error(job, f"Pipeline error: {message}")

    def _error(self, job: Job, message: str) -> ErrorEvent:
        left = self._left.get(job.id)
        return ErrorEvent(job.id, ErrorData(f"{message}; cannot end its processes {left}" if left else message))


def _notify_socket(job: Job, entered: AsyncExitStack) -> NotifySocket | None:
    """Return a notification socket that is open until the exit of `entered`; None if none is possible.

    Raises OSError if the system lacks resources.
    """
    try:
        return entered.enter_context(NotifySocket())
    except OSError as error:
        if is_transient(error):
            raise
        log.warning("cannot make a notification socket for a job", job_id=job.id, error=str(error))
        return None


def _planned(job: Job, pipeline: Pipeline, command: Sequence[str]) -> Plan:
    """Return the plan for the command of a pipeline. Blocks."""
    adapt = pipeline.progress_pattern is None
    try:
        return plan(command, Presets([SYSTEM]), adapt=adapt, name=pipeline.preset)
    except InvalidInput as error:
        log.error("cannot use preset", job_id=job.id, pipeline=job.pipeline, error=str(error))
        return Plan(tuple(command))
