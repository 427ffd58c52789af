"""Options and arguments shared by commands: jobs, labels, and the settings that are flags."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from progressd.cli.remote import Command, remote_of
from progressd.client.run.options import DEFAULT_LEASE, MAX_LEASE, MIN_LEASE
from progressd.client.values import encodable
from progressd.core.errors import SettingsError
from progressd.core.messages import JobStatus

if TYPE_CHECKING:
    from progressd.config.fields import Setting
    from progressd.config.settings import Settings

COMPLETION_TIMEOUT = 2.0  # seconds to wait for the daemon after Tab


def config_option(command: Command) -> Command:
    """Add `--config`."""
    from progressd.config.load import DEFAULT_FILE

    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"The config file, instead of {DEFAULT_FILE}.",
    )(command)


def settings_options(command: Command) -> Command:
    """Add the settings that are flags. The command passes them to `given_settings`."""
    for setting in reversed(_flags()):
        command = _option(setting)(command)
    return command


def state_dir_options(command: Command) -> Command:
    """Add `--state-dir` and `--config`. The command passes them to `state_dir` or `daemon_here`."""
    [setting] = [setting for setting in _flags() if setting.key == "state_dir"]
    return _option(setting)(config_option(command))


def state_dir(config_path: Path | None, given: Path | None) -> Path:
    """Return the state directory of a daemon on this machine. Raises SettingsError."""
    return daemon_here(config_path, given, "state_dir").state_dir


def daemon_here(config_path: Path | None, given: Path | None, used: str) -> "Settings":
    """Return the settings of a daemon on this machine, for a command that uses the setting `used`.

    Raises SettingsError, including if both are defaults and the state directory does not exist.
    """
    from progressd.config.load import load

    settings, origins = load(config_path, os.environ, {"state_dir": given})
    if origins["state_dir"] == origins[used] == "default" and not settings.state_dir.is_dir():
        raise SettingsError(
            f"there is no state directory {settings.state_dir}: name the daemon's with --state-dir, such as"
            " --state-dir /var/lib/progressd"
        )
    return settings


def label(_ctx: click.Context, _option: click.Parameter, given: str | None) -> str | None:
    """Check the value of an option that takes one label."""
    if given is not None and not all(given.partition("=")[:2]):
        raise click.BadParameter(f"{given!r} is not of the form NAME=VALUE, such as host=db1")
    return None if given is None else encodable(given)


def labels_option(meaning: str) -> Callable[[Command], Command]:
    """Return `--label`, which may be repeated. The command gets a mapping as `labels`."""

    def parsed(ctx: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
        return dict(text.split("=", 1) for one in given if (text := label(ctx, option, one)))

    return click.option("--label", "labels", metavar="NAME=VALUE", multiple=True, callback=parsed, help=meaning)


def selection_options(command: Command) -> Command:
    """Add the options that select jobs. The command gets them as `statuses`, `kind`, `labels`, `host` and `search`."""
    statuses = [str(status) for status in JobStatus]
    words = "Only jobs that contain every word, in the name, kind, file name, labels, error or id."
    for option in reversed(
        [
            click.option(
                "--status",
                "statuses",
                type=click.Choice(statuses),
                multiple=True,
                help="Only jobs with this status; repeatable.",
            ),
            click.option("--kind", metavar="KIND", default="", help="Only jobs of this kind, such as pdf or rsync."),
            labels_option("Only jobs with this label; repeatable."),
            click.option("--host", metavar="HOST", default="", help="Only jobs of this host."),
            click.option("--search", metavar="WORDS", default="", help=words),
        ]
    ):
        command = option(command)
    return command


def lease_option(jobs: str) -> Callable[[Command], Command]:
    """Return `--lease` of a command that reports running processes as `jobs`: the job, or a job."""
    return click.option(
        "--lease",
        type=click.FloatRange(MIN_LEASE, MAX_LEASE),
        default=DEFAULT_LEASE,
        show_default=True,
        help=f"Seconds without contact until {jobs} is shown as stalled. After three times as long, it fails.",
    )


def given_settings(parameters: dict[str, Any]) -> dict[str, object]:
    """Return the values of `settings_options` by the key of the setting."""
    return {setting.key: parameters[_parameter(setting)] for setting in _flags()}


def completing(*statuses: JobStatus | None) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return a function that completes the ids of the newest jobs with one of these statuses; None: with any."""

    def complete(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from progressd.cli.text import name
        from progressd.cli.text import status as text_of_status
        from progressd.client.errors import ClientError

        try:
            with remote_of(ctx, ctx.params).client(timeout=COMPLETION_TIMEOUT) as client:
                jobs = [job for status in statuses for job in client.jobs(status=status)]
        except ClientError:
            return []
        return [
            CompletionItem(job["id"], help=f"{text_of_status(job['status'])} {name(job)}")
            for job in jobs
            if job["id"].startswith(incomplete)
        ]

    return complete


complete_job = completing(None)
complete_unfinished = completing(JobStatus.PROCESSING, JobStatus.QUEUED)
complete_retryable = completing(JobStatus.FAILED, JobStatus.CANCELLED)
complete_finished = completing(*(status for status in JobStatus if status.finished))


def _flags() -> "list[Setting]":
    from progressd.config.fields import declared
    from progressd.config.settings import Settings

    return [setting for setting in declared(Settings) if "flag" in setting.extra]


def _option(setting: "Setting") -> Callable[[Command], Command]:
    if setting.base is bool:
        return click.option(
            setting.extra["flag"], _parameter(setting), is_flag=True, default=None, help=setting.meta.description
        )
    default = setting.extra.get("default", setting.default)
    return click.option(
        setting.extra["flag"],
        _parameter(setting),
        type=_type(setting),
        metavar=None if get_origin(setting.base) is Literal else setting.key.rpartition(".")[2].upper(),
        callback=lambda _ctx, _option, text: _checked(setting, text),
        help=f"{setting.meta.description}  [default: {default}]".replace("`", ""),
    )


def _parameter(setting: "Setting") -> str:
    return setting.key.replace(".", "_")


def _type(setting: "Setting") -> Any:
    """Return the type for the shell's completion; `_checked` validates."""
    if get_origin(setting.base) is Literal:
        return click.Choice(get_args(setting.base))
    return click.Path(file_okay=False) if setting.base is Path else click.STRING


def _checked(setting: "Setting", text: str | None) -> object:
    try:
        return None if text is None else setting.read(text, text=True)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not {setting.expected}") from None
