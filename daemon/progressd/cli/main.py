"""The command line. To start fast, it imports only the called command, which imports its dependencies when it runs."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import click

from progressd import __version__
from progressd.cli.language import current, sentence, t
from progressd.cli.remote import REMOTE, error_sentence
from progressd.client.errors import ClientError
from progressd.core.errors import ProgressdError

__all__ = ["main"]

INTERRUPTED: Final = 130  # a shell's exit status after SIGINT
# The prefix of errors on stderr in the journal, see sd-daemon(3). With the native protocol, the journal may not find
# the unit of a process that exits right after its message.
ERR: Final = "<3>"


# The commands in the order of the help, each with its module.
COMMANDS: Final[Mapping[str, str]] = {
    "serve": "serve",
    "submit": "submit",
    "run": "run",
    "attach": "attach",
    "presets": "presets",
    "emit": "emit",
    "watch": "watch",
    "logs": "logs",
    "jobs": "jobs",
    "show": "show",
    "cancel": "job_actions",
    "retry": "job_actions",
    "delete": "job_actions",
    "backup": "maintenance",
    "check": "maintenance",
    "keys": "keys",
    "token": "keys",
    "config": "config",
    "install": "install",
    "uninstall": "install",
    "doctor": "doctor",
    "completion": "completion",
}


# The commands of an operator. Their help and their output are English.
OPERATORS: Final = frozenset({"serve", "backup", "check", "keys", "token", "config", "install", "uninstall", "doctor"})


class _Commands(click.Group):
    """Convert errors to sentences and to the exit status that a shell expects."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._in_sentences(ctx)
        except click.ClickException as error:
            setattr(error, "message", sentence(error.message))  # noqa: B010, mypy: it is final
            from progressd.system.log_sinks import stderr_is_journal

            if not stderr_is_journal():
                raise
            for line in error.format_message().splitlines():
                click.echo(f"{ERR}{t('Error: {message}', message=line)}", err=True)
            ctx.exit(error.exit_code)

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        if current() != "en":
            from progressd.cli import translated_help

            translated_help.install()
            translated_help.translate(self)
        with _checked_output():  # --help and --version print from here
            return super().make_context(*arguments, **options)

    def _in_sentences(self, ctx: click.Context) -> Any:
        try:
            with _checked_output():
                return super().invoke(ctx)
        except (ClientError, ProgressdError) as error:
            raise click.ClickException(error_sentence(error, ctx.meta.get(REMOTE))) from error
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("progressd"):
                raise
            hint = "install progressd with the extra server; in a clone: pip install '.[server]'"
            raise click.ClickException(f"this command needs {error.name}, which is not installed ({hint})") from error
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"progressd.cli.commands.{COMMANDS[cmd_name]}"), cmd_name)
        if current() != "en":
            from progressd.cli.translated_help import translate

            translate(command, whole=cmd_name not in OPERATORS)
        return command


@contextmanager
def _checked_output() -> Iterator[None]:
    """Report output that cannot be written. Click exits silently on a broken pipe."""
    try:
        yield
    except OSError as error:
        from progressd.system.transient_errors import UNWRITTEN

        if error.errno not in UNWRITTEN or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python prints an error about it at exit
        raise click.ClickException(f"cannot write the output: {error.strerror}") from error


_SETTINGS: Final[Mapping[str, Any]] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=_Commands, context_settings=_SETTINGS)
@click.version_option(__version__, "-V", "--version", prog_name="progressd", message="%(prog)s %(version)s")
def main() -> None:
    """Report the progress of long-running jobs to watchers, live.

    \b
    Examples:
      progressd serve                        run the daemon
      progressd submit book.pdf --watch      submit a file and watch its job
      progressd watch                        watch all jobs
      progressd run -- make -j4              run a command as a job
    """
