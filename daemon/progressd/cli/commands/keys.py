"""`progressd keys` and `progressd token`: the credentials of a daemon."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click

from progressd.cli.options import daemon_here, labels_option, state_dir_options
from progressd.cli.remote import Command

SCOPES: Final = ("read", "write", "admin")


@click.group()
def keys() -> None:
    """Add, list and revoke the keys of a daemon on this machine.

    The scopes of a key are its permissions. The scope "read" may list and watch jobs, "write" may submit, report and
    cancel, and "admin" may do both. With auth.required = true every request needs a key. These commands write the key
    file (auth.keys_file), even while the daemon is stopped. A running daemon rereads it every second. Only root and the
    daemon's user should be able to write that file.

    \b
    Examples:
      progressd keys add dashboard --scope read
      progressd keys add scanner --scope read,write --label team=scan --expires 90d
      progressd keys revoke scanner
    """


def _scopes(_ctx: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> list[str]:
    scopes = [part.strip() for text in given for part in text.split(",")]
    for scope in scopes:
        if scope not in SCOPES:
            raise click.BadParameter(f"{scope!r} is not a scope: choose from {', '.join(SCOPES)}")
    return list(dict.fromkeys(scopes))


def _duration(_ctx: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    """Parse a duration such as 12h or 30d, at most a century."""
    from progressd.config import units

    try:
        seconds = None if text is None else units.seconds(text)
    except ValueError:
        seconds = 0
    if seconds is not None and seconds > units.MAX_SECONDS:
        raise click.BadParameter(f"{text!r} is too long: use at most {units.seconds_text(units.MAX_SECONDS)}")
    if seconds is not None and seconds <= 0:
        raise click.BadParameter(f"{text!r} is not a duration, such as 12h or 30d")
    return seconds


def _expires_option(meaning: str) -> Callable[[Command], Command]:
    return click.option("--expires", "lifetime", metavar="DURATION", callback=_duration, help=meaning)


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    default=("read",),
    show_default=True,
    metavar="SCOPE[,SCOPE]",
    callback=_scopes,
    help="What the key may do: read, write or admin.",
)
@_expires_option("How long the key is valid, such as 12h or 30d.  [default: never]")
@labels_option("Limit the key to jobs with this label; repeat it to require several labels.")
@state_dir_options
def add(
    name: str,
    scopes: list[str],
    lifetime: float | None,
    labels: dict[str, str],
    state_dir: Path | None,
    config_path: Path | None,
) -> None:
    """Create a key and print it, once."""
    from datetime import UTC, datetime, timedelta

    import msgspec

    from progressd.auth.api_keys import Key, add_key, hashed, new_secret
    from progressd.core.errors import InvalidInput

    secret, now = new_secret(), datetime.now(UTC)
    given: Mapping[str, object] = {
        "name": name,
        "hash": hashed(secret),
        "scopes": scopes,
        "created_at": now,
        "labels": labels,
    }
    try:
        expires_at = None if lifetime is None else now + timedelta(seconds=lifetime)
        key = msgspec.convert({**given, "expires_at": expires_at}, Key)
    except msgspec.ValidationError:
        raise InvalidInput(
            f"{name!r} cannot be the name of a key: use up to 64 letters, digits and ._@-, with a letter or digit first"
        ) from None
    file = _file(state_dir, config_path)
    add_key(file, key)
    click.echo(secret)
    click.echo(f"Keep this key: it is not shown again. Only its hash is stored, in {file}.", err=True)


@keys.command("list")
@state_dir_options
def list_(state_dir: Path | None, config_path: Path | None) -> None:
    """List the keys: names, scopes, labels and expiry, but not the keys themselves."""
    from datetime import UTC, datetime

    from progressd.auth.api_keys import read_keys

    now = datetime.now(UTC)
    for key in read_keys(_file(state_dir, config_path)):
        labels = " ".join(f"{name}={value}" for name, value in key.labels.items())
        end = "never expires"
        if key.expires_at is not None:
            end = f"{'expired' if key.expires_at <= now else 'expires'} {key.expires_at:%Y-%m-%d %H:%M} UTC"
        click.echo("  ".join(filter(None, [key.name, ",".join(key.scopes), labels, end])))


@keys.command()
@click.argument("name")
@state_dir_options
def revoke(name: str, state_dir: Path | None, config_path: Path | None) -> None:
    """Revoke a key, and close the connections made with it."""
    from progressd.auth.api_keys import revoke_key

    revoke_key(_file(state_dir, config_path), name)
    click.echo(f"{name} revoked")


def _file(state_dir: Path | None, config_path: Path | None) -> Path:
    return daemon_here(config_path, state_dir, "auth.keys_file").auth.keys_file


@click.command()
@click.argument("job_id", metavar="[JOB]", required=False)
@_expires_option("How long the token is valid, such as 8h.  [default: auth.token_lifetime]")
@state_dir_options
def token(job_id: str | None, lifetime: float | None, state_dir: Path | None, config_path: Path | None) -> None:
    """Create and print a token to watch one job, or all jobs, of a daemon on this machine.

    Put it into a URL, for clients that cannot send a header: /ws/jobs/JOB?token=TOKEN or
    /api/jobs/JOB/events?token=TOKEN. Its holder can watch that job and do nothing else. The first eight characters of
    the job's id are enough.

    \b
    Examples:
      progressd token 6e4d1c9e-0d5c-4f0e-9d3a-8f6f2f1f5b7c
      progressd token --expires 8h
    """
    from datetime import UTC, datetime, timedelta

    from progressd.admin import maintenance
    from progressd.auth.watch_tokens import new_token, secret_from
    from progressd.cli.remote import is_abbreviated, the_only_id
    from progressd.core.errors import NotFound
    from progressd.core.events import checked_job_id
    from progressd.core.messages import ALL_JOBS, job_topic

    settings = daemon_here(config_path, state_dir, "auth.token_secret_file")
    if job_id is not None:
        beginning = job_id.lower() if is_abbreviated(job_id) else checked_job_id(job_id)
        found = maintenance.ids_beginning(settings.state_dir, beginning)
        job_id = the_only_id(job_id, found or ()) if is_abbreviated(job_id) else beginning
        if found == []:
            raise NotFound(f"there is no job {job_id} in the state directory {settings.state_dir}")
    topic = ALL_JOBS if job_id is None else job_topic(job_id)
    seconds = settings.auth.token_lifetime if lifetime is None else lifetime
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    click.echo(new_token(secret_from(settings.auth.token_secret_file), topic, end))
