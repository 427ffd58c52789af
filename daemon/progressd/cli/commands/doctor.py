"""`progressd doctor`: find problems that keep the daemon from working."""

from pathlib import Path

import click

from progressd.cli.options import config_option, given_settings, settings_options

MARKS = {"good": "   ok", "note": " note", "bad": "wrong"}


@click.command()
@settings_options
@config_option
def doctor(config_path: Path | None, **flags: object) -> None:
    """Find problems that keep the daemon from working on this machine.

    It checks the port, permissions, disk, clock and missing programs of the installed service. Without a service, it
    checks progressd serve as if started in this directory. The exit status is 1 if something is wrong.

    \b
    Examples:
      sudo progressd doctor
      progressd doctor --state-dir ~/jobs --port 8081
    """
    import os

    from progressd.admin.doctor import Finding, diagnose
    from progressd.admin.install import CONFIG, STATE, UNIT_DIRECTORY, pending_settings, socket_addresses
    from progressd.config.load import load

    environ = dict(os.environ)
    installed = (UNIT_DIRECTORY / "progressd.service").exists() and config_path in (None, CONFIG)
    if installed:
        environ = {"STATE_DIRECTORY": str(STATE), "RUNTIME_DIRECTORY": "/run/progressd", **environ}
    given = given_settings(flags)
    settings, _ = load(config_path, environ, given)
    of_service = installed and all(value is None for value in given.values())
    findings = list(diagnose(settings, socket_addresses() if of_service else ()))
    if of_service and (status := pending_settings()):
        findings.insert(0, Finding("note", f"the running service says: {status}"))
    for finding in findings:
        click.echo(f"{MARKS[finding.grade]}  {finding.sentence}")
    if any(finding.grade == "bad" for finding in findings):
        raise SystemExit(1)
