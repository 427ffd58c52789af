"""Run a command as a job, for `progressd run`.

Until the command has been started, nothing may be imported that takes long, such as click, Trio or an HTTP library.
"""

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from progressd.client.endpoint import DEFAULT_URL, checked_url, request_headers
from progressd.client.errors import ClientError
from progressd.client.run import plan as planning
from progressd.client.run import registration as registering
from progressd.client.run.launch import Command, become_reaper, launch, recorded_signals
from progressd.client.run.options import RunOptions, parsed
from progressd.core.errors import ProgressdError
from progressd.system.private_socket import PrivateSocket

if TYPE_CHECKING:
    from progressd.client.log_sender import LogSender
    from progressd.client.rest import RestClient

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
        print(planning.explanation(plan))
        return 0
    older = become_reaper()
    with recorded_signals() as received:
        return _launch_and_report(options, plan, older, received)


def _launch_and_report(options: RunOptions, plan: planning.RunPlan, older: list[int], received: list[int]) -> int:
    command, url = options.command, options.url or DEFAULT_URL
    job_id = registering.new_id()
    registration: dict[str, Any] = {
        "kind": registering.shortened(os.path.basename(command[0]), registering.MAX_KIND),
        "name": registering.shortened(options.name or registering.name_of(command), registering.MAX_NAME),
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
    try:
        return _report(options, url, job_id, registration, received, known, older, plan, started, failure, notify)
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


def _report(
    options: RunOptions,
    url: str,
    job_id: str,
    registration: dict[str, Any],
    received: list[int],
    known: bool | None,
    older: list[int],
    plan: planning.RunPlan,
    started: Command | None,
    failure: OSError | None,
    notify: PrivateSocket | None,
) -> int:
    """Report a command until its end, and return the exit status. `failure`: why it was not started."""

    def client() -> "RestClient":
        from progressd.client.rest import RestClient

        return RestClient(url, options.key, timeout=registering.TIMEOUT)

    log: LogSender | None = None
    if started is not None:
        from progressd.client import log_sender
        from progressd.client.run.output import Outputs

        if not (options.no_log or plan.keeps_streams):
            log = log_sender.LogSender(job_id, client, lambda text: job.say(text), log_sender.interval_for(url))
        outputs = Outputs(  # passes it on
            started,
            plan.detection(),
            lambda error: _print(f"progressd: cannot pass on what the command writes: {error.strerror}"),
            log.queue if log else None,
        )
    import trio

    from progressd.client.run.reporter import event_of, failure_of
    from progressd.client.run.supervisor import CommandJob

    def say(what: str | Exception) -> None:
        if isinstance(what, Exception):
            from progressd.cli.remote import Remote, error_sentence

            what = f"{error_sentence(what, Remote(url, options.key))}; the command continues"
        _print(f"progressd: {what}")

    job = CommandJob(client, job_id, registration, say, received, known, notify)
    if started is not None:
        if log is not None:
            job.log = log
            log.start()
        status = trio.run(job.run, started, outputs, older)
        if options.verbose:
            _print(f"progressd: progress from: {outputs.source or 'nowhere'}")
        return status
    if failure is None:
        trio.run(job.run_nothing, event_of("status_change", new_status="cancelled"))
        return 128 + received[0]
    program = options.command[0]
    trio.run(job.run_nothing, failure_of(f"{program} cannot be started: {failure.strerror}"))
    say(f"{program}: {failure.strerror}")
    return NOT_FOUND if isinstance(failure, FileNotFoundError) else NOT_EXECUTABLE


def _print(text: str) -> None:
    """Print a message. If standard error is broken, the command still runs."""
    try:
        sys.stderr.write(f"{text}\n".encode("utf-8", "backslashreplace").decode())
        sys.stderr.flush()
    except (OSError, AttributeError):  # AttributeError: there is no standard error
        pass
