"""The runner: takes queued jobs of the configured pipelines, in the order of `RoundRobin`, and runs each as a child.

It is a producer like any other: what the child writes becomes events, and so does its end. Nobody else starts them.
"""

import json
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import structlog
import trio
from msgspec.structs import replace

from progressd.config.settings import Settings
from progressd.core.errors import Conflict, NotFound, StoreFailed
from progressd.core.events import CompletedEvent, ErrorEvent, ReportedResult, RequeueEvent, RunnerEvent, StartEvent
from progressd.core.job import Job
from progressd.core.messages import ErrorData
from progressd.core.pipeline import Pipeline
from progressd.core.status import JobStatus
from progressd.engine.ingest import Ingest
from progressd.engine.registry import Registry
from progressd.files.job_files import JobFiles
from progressd.net.base_path import download_path
from progressd.runner.orphans import JOB, MARK, ProcessRecords
from progressd.runner.output import OutputParser
from progressd.runner.process import ChildProcess
from progressd.runner.rlimits import ResourceLimits
from progressd.system.transient import passes

PRIVATE: Final = ("PROGRESSD_", "NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_", "CREDENTIALS_DIRECTORY")
RETRY_AFTER: Final = 1.0  # seconds until a pipeline is started that could not be for want of something
HAND_BACK_WITHIN: Final = 5.0  # seconds, should the store keep nothing

log = structlog.get_logger(__name__)


class Runner:
    """`run` it once; `stop_taking` lets that end with the last job that is running."""

    def __init__(self, settings: Settings, registry: Registry, ingest: Ingest, files: JobFiles) -> None:
        self._settings = settings
        self._registry = registry
        self._ingest = ingest
        self._files = files
        self._slots = trio.Semaphore(settings.runner.concurrency)
        self._children = ProcessRecords(settings.state_dir, ingest.store_id)
        self._left = dict[str, str]()  # by job, the processes that could not be ended
        self._taking = trio.CancelScope()

    def use(self, settings: Settings) -> None:
        """Settings that have been read again; the number of slots stays. Jobs that run keep theirs."""
        self._settings = settings

    async def run(self) -> None:
        """Take up what an earlier daemon left, then run jobs until cancelled, or the last one after `stop_taking`."""
        async with trio.open_nursery() as nursery:
            with self._taking:
                await self._recover()
                while True:
                    await self._slots.acquire()
                    nursery.start_soon(self._run_job, await self._registry.next_queued())

    def stop_taking(self) -> None:
        """Start no further job."""
        self._taking.cancel()

    async def _recover(self) -> None:
        """Queue again what an earlier daemon left running, once its children have ended; too often tried, it fails."""
        interrupted = {
            job.id: job
            for job in self._registry.unfinished.values()
            if job.pipeline is not None and job.status is JobStatus.PROCESSING
        }
        still_running = await self._clear_up(set(interrupted))
        for job in interrupted.values():
            try:
                if job.attempt < self._settings.runner.max_attempts and job.id not in still_running:
                    await self._report(RequeueEvent(job.id))
                    log.info("job queued again", job_id=job.id, attempt=job.attempt + 1)
                else:
                    await self._report(RunnerEvent(job.id, ErrorEvent(job.id, ErrorData("interrupted"))))
                    log.warning("job interrupted", job_id=job.id, attempts=job.attempt)
            except (Conflict, NotFound) as refusal:
                log.info("job ended otherwise", job_id=job.id, reason=str(refusal))

    async def _clear_up(self, jobs: set[str]) -> set[str]:
        """End what runs for these jobs and others on record, and delete what it left; the jobs for which it runs on.

        Tried again and again while the machine is short of something, such as descriptors.
        """
        while True:
            try:
                jobs = jobs.union(await trio.to_thread.run_sync(self._children.recorded_jobs))
                still_running = await self._children.end_left_over(self._settings.runner.kill_grace)
                await self._files.discard_attempts(jobs - still_running)
            except OSError as error:
                if not passes(error):
                    raise
                log.warning("cannot clear up after an earlier daemon yet, no job is started", error=str(error))
                await trio.sleep(RETRY_AFTER)
            else:
                return still_running

    async def _run_job(self, job: Job) -> None:
        try:
            await self._report(StartEvent(job.id))
            await self._report(RunnerEvent(job.id, await self._outcome(job)))
        except (Conflict, NotFound) as refusal:  # somebody else has ended it meanwhile, or even deleted it
            log.info("job ended otherwise", job_id=job.id, reason=str(refusal))
        except BaseException:  # of which a cancellation is one, or a group of them
            if self._taking.cancel_called:
                await self._hand_back(job)
            raise
        finally:
            self._left.pop(job.id, None)
            self._slots.release()

    async def _hand_back(self, job: Job) -> None:
        """Queue a job again whose child was ended because the daemon stops; else the next start counts the attempt.

        It fails where its processes could not be ended: the next daemon would run it beside them.
        """
        with trio.move_on_after(HAND_BACK_WITHIN, shield=True):
            try:
                if job.id in self._left:
                    await self._report(RunnerEvent(job.id, self._failed(job, "the daemon stopped")))
                    return
                await self._report(RequeueEvent(job.id, stopped=True))
                log.info("job queued again, for the daemon stops", job_id=job.id)
            except (Conflict, NotFound) as refusal:
                log.info("job ended otherwise", job_id=job.id, reason=str(refusal))

    async def _report(self, event: StartEvent | RunnerEvent | RequeueEvent) -> None:
        """Hand in what must not be lost, as often as it takes."""
        while True:
            try:
                await self._ingest.submit_one(event)
            except StoreFailed as error:
                log.error("cannot report on a job yet", job_id=event.job_id, error=str(error))
                await trio.sleep(error.retry_after)
            else:
                return

    async def _outcome(self, job: Job) -> CompletedEvent | ErrorEvent:
        """The boundary of one job: what goes wrong here, such as a full disk, ends this job and nothing else."""
        try:
            return await self._attempt(job)
        except Conflict:
            raise
        except Exception as error:
            log.error("cannot run job", job_id=job.id, pipeline=job.pipeline, error=repr(error), exc_info=error)
            return self._failed(job, f"the daemon failed to run {job.pipeline}; its log says why")

    async def _attempt(self, job: Job) -> CompletedEvent | ErrorEvent:
        """Run the job once; how it ended. Raises Conflict when somebody else ends it, OSError."""
        pipeline = self._settings.pipelines.get(job.pipeline or "")
        if pipeline is None:
            return self._failed(job, f"the pipeline {job.pipeline} is no longer configured")
        limits = ResourceLimits.of(pipeline, self._settings.runner)
        async with AsyncExitStack() as started:
            try:
                child, result = await self._start(job, pipeline, limits, started)
            except OSError as error:
                log.error("cannot start pipeline", job_id=job.id, pipeline=job.pipeline, error=str(error))
                program = Path(pipeline.command[0]).name
                why = error.strerror or "the daemon's log says why"
                return self._failed(job, f"cannot start {program}, the program of the pipeline {job.pipeline}: {why}")
            return await self._run_pipeline(job, pipeline, limits, result, child)

    async def _start(
        self, job: Job, pipeline: Pipeline, limits: ResourceLimits, started: AsyncExitStack
    ) -> tuple[ChildProcess, Path]:
        """The child, and where it writes its result; tried again and again while the machine is short of something.

        Its directory goes when `started` is left. Raises Conflict when somebody else ends the job meanwhile, OSError.
        """
        while True:
            try:
                async with AsyncExitStack() as entered:
                    work = await entered.enter_async_context(self._files.attempt(job.id, job.attempt))
                    result = work / pipeline.output
                    command = pipeline.arguments(self._placeholders(job, result))
                    environment = self._environment(job, pipeline)
                    grace = self._settings.runner.kill_grace
                    child = await ChildProcess.start(command, result.parent, environment, grace, limits.words())
                    started.push_async_exit(entered.pop_all())
                    return child, result
            except OSError as error:
                if not passes(error):
                    raise
                log.warning("cannot start pipeline yet", job_id=job.id, pipeline=job.pipeline, error=str(error))
            with trio.move_on_after(RETRY_AFTER):
                await self._registry.wait_finished(job.id)
                raise Conflict(f"job {job.id} was ended before its pipeline was started")

    async def _run_pipeline(
        self, job: Job, pipeline: Pipeline, limits: ResourceLimits, result: Path, child: ChildProcess
    ) -> CompletedEvent | ErrorEvent:
        output = OutputParser(job.id, self._ingest, pipeline.progress_pattern)
        timeout = pipeline.timeout or self._settings.runner.job_timeout
        try:
            with self._children.recorded(job.id, child.pid), trio.move_on_after(timeout) as in_time:
                status = await self._run_child(job, child, output)
        finally:
            if child.left:
                self._left[job.id] = ", ".join(map(str, child.left))
                log.error("cannot end all processes of a job", job_id=job.id, processes=self._left[job.id])
        if child.stderr:
            await self._keep_stderr(job, child.stderr)
        if in_time.cancelled_caught:
            return self._failed(job, f"stopped after {timeout:g} s, the time limit of the pipeline {job.pipeline}")
        if output.complaint is not None:
            return self._error(job, output.complaint)
        if status != 0:
            return self._failed(job, f"{job.pipeline} {limits.told(status, child.stderr)}")
        return await self._succeed(job, pipeline, result, output.result)

    async def _keep_stderr(self, job: Job, text: bytes) -> None:
        """Keep it if there is room: the job is none the worse without."""
        try:
            await self._files.keep_stderr(job.id, text)
        except OSError as error:
            if not passes(error):
                raise
            log.warning("cannot keep what a pipeline complained of", job_id=job.id, error=str(error))

    async def _run_child(self, job: Job, child: ChildProcess, output: OutputParser) -> int:
        """Run the child to its end, or until somebody else ends the job. Raises Conflict for that."""
        async with trio.open_nursery() as nursery:

            async def stop_when_ended() -> None:
                await self._registry.wait_finished(job.id)
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_when_ended)
            status = await child.run(output.on_stdout, output.on_stderr)
            nursery.cancel_scope.cancel()
            return status
        raise Conflict(f"job {job.id} was ended while it ran")

    async def _succeed(
        self, job: Job, pipeline: Pipeline, result: Path, reported: ReportedResult
    ) -> CompletedEvent | ErrorEvent:
        """Keep the result, if the pipeline writes one."""
        url = None
        if any("{output}" in part for part in pipeline.command):
            try:
                await self._files.keep_output(job.id, result)
            except FileNotFoundError:
                return self._failed(job, f"{job.pipeline} exited with status 0, but wrote no result")
            except OSError as error:
                if not passes(error):
                    raise
                log.error("cannot keep a result", job_id=job.id, error=str(error))
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

    def _environment(self, job: Job, pipeline: Pipeline) -> dict[str, str]:
        """The daemon's own, without what is meant for the daemon alone."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
        return {
            **inherited,
            **pipeline.environment,
            JOB: job.id,
            MARK: self._children.mark,
            "PROGRESSD_SOCKET": str(self._settings.ingest.socket),
        }

    def _failed(self, job: Job, sentence: str) -> ErrorEvent:
        return self._error(job, f"Pipeline error: {sentence}")

    def _error(self, job: Job, sentence: str) -> ErrorEvent:
        left = self._left.get(job.id)
        return ErrorEvent(job.id, ErrorData(f"{sentence}; cannot end its processes {left}" if left else sentence))
