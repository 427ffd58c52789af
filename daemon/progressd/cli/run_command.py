"""Run a command as a job, for `progressd run`.

Do not import anything slow, such as click, Trio or an HTTP library, before the command has started.
"""

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from progressd.cli.language import for_reader, sentence, t
from progressd.client.endpoint import DEFAULT_URL, checked_url, request_headers
from progressd.client.errors import ClientError
from progressd.client.run import plan as planning
from progressd.client.run import registration as registering
from progressd.client.run.launch import Command, become_reaper, launch, recorded_signals
from progressd.client.run.options import RunOptions, parsed
from progressd.core.errors import ProgressdError
from progressd.core.event_limits import MAX_JOB_NAME, MAX_KIND
from progressd.system.private_socket import PrivateSocket

if TYPE_CHECKING:
    from progressd.client.log_sender import LogSender
    from progressd.client.rest import RestClient
    from progressd.client.run.supervisor import CommandJob

NOT_FOUND: Final = 127  # a shell's exit statuses
NOT_EXECUTABLE: Final = 126


def run(arguments: list[str], environ: Mapping[str, str]) -> None:
    """Run a command and exit. Return if the command line has to handle this."""
    options = parsed(arguments, environ)
    if options is None:
        return
    try:
        plan = prepared(options)
    except (ClientError, ProgressdError):  # the command line prints it
        return
    sys.exit(run_command(options, plan))


def prepared(options: RunOptions) -> planning.RunPlan:
    """Return the plan for a command. Raises InvalidURL, InvalidKey, InvalidInput."""
    request_headers(checked_url(options.url or DEFAULT_URL), options.key)
    return planning.plan_run(options.command, options.preset, options.pattern, adapt=not options.no_adapt)


def run_command(options: RunOptions, plan: planning.RunPlan) -> int:
    """Run a command and return its exit status."""
    if options.explain:
        import shutil

        with for_reader(sys.stdout):
            print("\n".join(map(sentence, planning.explanation(plan).splitlines())))
        if shutil.which(options.command[0]) is not None:
            return 0
        _print(f"{options.command[0]}: there is no such program")
        return NOT_FOUND
    older = become_reaper()
    with recorded_signals() as received:
        return _launch_and_report(options, plan, older, received)


def _launch_and_report(options: RunOptions, plan: planning.RunPlan, older: list[int], received: list[int]) -> int:
    command, url = options.command, options.url or DEFAULT_URL
    job_id = registering.new_id()
    registration: dict[str, Any] = {
        "kind": registering.shortened(os.path.basename(command[0]), MAX_KIND),
        "name": registering.shortened(options.name or registering.name_of(command), MAX_JOB_NAME),
        "labels": registering.with_origin(options.labels),
        "lease_seconds": options.lease,
    }
    if plan.source:
        registration["options"] = {"progress_from": plan.source}
    remote = {"PROGRESSD_URL": url, **({"PROGRESSD_KEY": options.key} if options.key else {})}
    notify = _notify_socket()
    notifies = {} if notify is None else {"NOTIFY_SOCKET": notify.path}
    environment = {**os.environ, **remote, **notifies, "PROGRESSD_JOB_ID": job_id, **plan.environment}
    known = registering.register_quickly(url, options.key, job_id, registration)
    started, failure = None, None
    if not received:
        try:
            started = launch(plan.command, environment, plan.progress_fd, keeps_streams=plan.keeps_streams)
        except OSError as error:
            failure = error
    report = _Report(options, url, job_id, registration, received, known, notify)
    try:
        if started is None:
            return report.not_started(failure)
        return report.follow(started, plan, older)
    finally:
        if notify is not None:
            notify.close()
        if started is not None and started.terminal is not None:
            started.terminal.restore()


def _notify_socket() -> PrivateSocket | None:
    """Return a notification socket for the command, unless it has one of a systemd service, or none is possible."""
    if "NOTIFY_SOCKET" in os.environ:
        return None
    try:
        return PrivateSocket()
    except OSError:
        return None


class _Report(NamedTuple):
    """The report of a command to the daemon. `received`: the signals so far. `known`: see `register_quickly`."""

    options: RunOptions
    url: str
    job_id: str
    registration: dict[str, Any]
    received: list[int]
    known: bool | None
    notify: PrivateSocket | None

    def follow(self, started: Command, plan: planning.RunPlan, older: list[int]) -> int:
        """Report a command until its end, and return its exit status."""
        from progressd.client import log_sender
        from progressd.client.run.output import Outputs

        log: LogSender | None = None
        if not (self.options.no_log or plan.keeps_streams):
            interval = log_sender.interval_for(self.url)
            log = log_sender.LogSender(self.job_id, self.client, lambda text: job.say(text), interval)
        outputs = Outputs(started, plan.detection(), _say_unwritten, log.buffer if log else None)  # passes it on
        import trio

        job = self._job()
        if log is not None:
            job.log = log
            log.start()
        status = trio.run(job.run, started, outputs, older)
        if self.options.verbose:
            _print(f"progress from: {outputs.source or 'nowhere'}")
        return status

    def not_started(self, failure: OSError | None) -> int:
        """Report that the command was not started, and return the exit status. `failure`: None after a signal."""
        import trio

        from progressd.client.run.reporter import event_of, failure_of

        job = self._job()
        if failure is None:
            trio.run(job.run_nothing, event_of("status_change", new_status="cancelled"))
            return 128 + self.received[0]
        program = self.options.command[0]
        trio.run(job.run_nothing, failure_of(f"{program} cannot be started: {failure.strerror}"))
        _print(f"{program}: {sentence(str(failure.strerror))}")
        return NOT_FOUND if isinstance(failure, FileNotFoundError) else NOT_EXECUTABLE

    def client(self) -> "RestClient":
        """Return a client for the daemon."""
        from progressd.client.rest import RestClient

        return RestClient(self.url, self.options.key, timeout=registering.TIMEOUT)

    def say(self, what: str | Exception, runs: bool) -> None:
        """Print a message, or the reason why the daemon does not receive the report. `runs`: the command still runs."""
        if isinstance(what, Exception):
            from progressd.cli.remote import Remote, error_sentence

            what = error_sentence(what, Remote(self.url, self.options.key))
            what = t("{reason}; the command continues", reason=what) if runs else what
        _print(what)

    def _job(self) -> "CommandJob":
        from progressd.client.run.supervisor import CommandJob

        return CommandJob(self.client, self.job_id, self.registration, self.say, self.received, self.known, self.notify)


def _say_unwritten(error: OSError) -> None:
    _print(f"cannot pass on the output of the command: {error.strerror}")


def _print(text: str) -> None:
    """Print a message in the language of the user. If standard error is broken, the command still runs."""
    try:
        sys.stderr.write(f"progressd: {sentence(text)}\n".encode("utf-8", "backslashreplace").decode())
        sys.stderr.flush()
    except (OSError, AttributeError):  # AttributeError: there is no standard error
        pass
