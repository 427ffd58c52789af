"""`progressd serve`: run the daemon in the foreground."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from progressd.cli.options import config_option, given_settings, settings_options

if TYPE_CHECKING:
    from progressd.config.settings import Settings


@click.command()
@settings_options
@config_option
def serve(config_path: Path | None, **flags: object) -> None:
    """Run the daemon until Ctrl-C or SIGTERM.

    It prints "listening on URL" on stdout when it is ready, and logs to stderr. After the first signal it waits for
    running jobs and disconnects the watchers. Each further signal ends one wait early. SIGHUP reloads the settings. In
    a terminal, SIGHUP means that the terminal was closed, and stops the daemon like SIGTERM. All other settings are in
    the config file or in environment variables: see progressd config.

    \b
    Examples:
      progressd serve
      progressd serve --port 0 --state-dir /tmp/jobs
      PROGRESSD_RUNNER_CONCURRENCY=2 progressd serve --config progressd.toml
    """
    import os

    from progressd.config.load import load
    from progressd.config.settings import Settings

    os.umask(0o077)  # the files of the daemon and its pipelines are private
    environ = dict(os.environ)  # the daemon removes variables that its children must not inherit

    def read_settings(*, again: bool = True) -> Settings:
        return load(config_path, environ, given_settings(flags), again=again)[0]

    _run(read_settings(again=False), read_settings)


def _run(settings: "Settings", read_settings: "Callable[[], Settings]") -> None:
    import faulthandler

    import structlog
    import trio

    from progressd import app
    from progressd.core.errors import ProgressdError, leaves
    from progressd.system import log
    from progressd.system.reaper import adopt

    async def run() -> None:
        below = adopt()
        await app.serve(settings, read_settings, on_listening=_announce)
        if left := await below.end(settings.runner.kill_grace):  # processes that jobs left behind
            structlog.get_logger().error("processes of jobs cannot be killed", processes=[str(one) for one in left])

    log.configure(settings.log.level, settings.log.format)
    if sys.stderr is not None:
        faulthandler.enable()  # prints the stack when the watchdog kills a stuck daemon
    try:
        trio.run(run)
    except Exception as error:
        for leaf in leaves(error):
            if isinstance(leaf, ProgressdError):
                raise leaf from None
        structlog.get_logger().critical("daemon failed", exc_info=error)
        raise SystemExit(1) from None
    finally:
        log.close()  # before the error is printed to stderr


def _announce(url: str) -> None:
    """Print the address from a thread, because a full pipe or Ctrl-S may block the write."""
    import os
    import threading

    import structlog

    def write() -> None:
        try:
            if sys.stdout is not None:
                os.write(sys.stdout.fileno(), f"listening on {url}\n".encode())
        except OSError as error:
            structlog.get_logger(__name__).warning("cannot print the address", error=error.strerror)

    threading.Thread(target=write, daemon=True).start()
