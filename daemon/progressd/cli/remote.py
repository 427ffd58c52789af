"""The daemon that a command talks to: its URL and key, job ids, and sentences for its errors."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click
from click.core import ParameterSource

from progressd.cli.language import later, sentence, t
from progressd.client.endpoint import DEFAULT_URL, read_key
from progressd.client.errors import APIError, StreamClosed
from progressd.core.close_codes import CREDENTIALS_EXPIRED

if TYPE_CHECKING:
    from progressd.client.rest import RestClient

Command = TypeVar("Command", bound=Callable[..., Any])

REMOTE: Final = "progressd.remote"  # key of the daemon in the `meta` of click's contexts, for `error_sentence`
MAX_JOBS: Final = 1000  # newest jobs searched for an abbreviated job id
ID_LENGTH: Final = 36  # characters
MAX_LISTED: Final = 3  # job ids listed in the error for an ambiguous id
KEY_HINT: Final = later("set PROGRESSD_KEY or --key-file (progressd keys add NAME on the daemon's machine makes a key)")
OTHER_KEY_HINT: Final = later("use another key with PROGRESSD_KEY or --key-file")

_ABBREVIATED = re.compile(r"[0-9a-f]{8}[0-9a-f-]{0,27}")


@dataclass(frozen=True)
class Remote:
    """The URL of a daemon, and the key for it."""

    url: str
    key: str | None = field(default=None, repr=False)

    def client(self, **options: Any) -> "RestClient":
        """Return a client; `options` as for RestClient. Raises InvalidURL, InvalidKey."""
        from progressd.client.rest import RestClient

        return RestClient(self.url, self.key, **options)


def remote_options(command: Command) -> Command:
    """Add `--url`, `--key` and `--key-file`, with their environment variables. The command gets them as `remote`."""

    @functools.wraps(command)
    def with_remote(*arguments: Any, **parameters: Any) -> Any:
        ctx = click.get_current_context()
        given = {name: parameters.pop(name) for name in ("url", "key", "key_file")}
        remote = ctx.meta[REMOTE] = remote_of(ctx, given)
        return command(*arguments, remote=remote, **parameters)

    for option in reversed(_OPTIONS):
        with_remote = option(with_remote)
    return cast(Command, with_remote)


def remote_of(ctx: click.Context, given: Mapping[str, Any]) -> Remote:
    """Return the daemon that these options select. A key on the command line overrides one in the environment.

    Raises InvalidKey.
    """
    key, path = given.get("key"), given.get("key_file")
    file_wins = key is None or (is_typed(ctx, "key_file") and not is_typed(ctx, "key"))
    if path is not None and file_wins and ctx.invoked_subcommand is None:  # a subcommand talks to no daemon
        key = read_key(path)
    return Remote(given.get("url") or DEFAULT_URL, key)


def is_typed(ctx: click.Context, name: str) -> bool:
    """Return whether the command line has this option. Environment variables do not count."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


_OPTIONS: Final = (
    click.option(
        "--url",
        envvar="PROGRESSD_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        metavar="URL",
        help="The daemon to talk to.",
    ),
    click.option(
        "--key",
        envvar="PROGRESSD_KEY",
        show_envvar=True,
        metavar="KEY",
        help="The key, if the daemon requires one. Other users of this machine can see it here.",
    ),
    click.option(
        "--key-file",
        envvar="PROGRESSD_KEY_FILE",
        show_envvar=True,
        type=click.Path(path_type=Path, dir_okay=False),
        help="A file that contains the key.",
    ),
)


def whole_id(client: "RestClient", given: str) -> str:
    """Return the id of the newest job whose id begins with `given`, if that has 8 to 35 characters.

    Raises APIError, like the daemon for an unknown job, or another ClientError.
    """
    if not is_abbreviated(given):
        if len(given) != ID_LENGTH:
            raise APIError(400, f"{given[:60]!r} is not a job id: give the id, or at least its first eight characters")
        return given
    start = given.lower()
    found = [str(job["id"]) for job in client.jobs(limit=MAX_JOBS) if job["id"].startswith(start)]
    return the_only_id(given, found, f" (among the newest {MAX_JOBS} jobs)")


def is_abbreviated(given: str) -> bool:
    """Return whether this may be the first 8 to 35 characters of a job id."""
    return bool(_ABBREVIATED.fullmatch(given.lower()))


def the_only_id(given: str, found: Sequence[str], where: str = "") -> str:
    """Return the single id found. Raises APIError if there is none or more than one."""
    if not found:
        raise APIError(404, f"no job id begins with {given}{where}")
    if len(found) > 1:
        ids = ", ".join(found[:MAX_LISTED]) + (", …" if len(found) > MAX_LISTED else "")
        raise APIError(409, f"{len(found)} job ids begin with {given}: {ids} (give more characters)")
    return found[0]


def error_sentence(error: Exception, remote: Remote | None) -> str:
    """Return the sentence for an error of a client of this daemon, in the language of the user."""
    said = sentence(str(error), error.code if isinstance(error, APIError) else "")
    if remote is None:
        return said
    if isinstance(error, StreamClosed) and error.code == CREDENTIALS_EXPIRED.code:
        return t("the key for {url} has expired or was revoked: {hint}", url=remote.url, hint=t(OTHER_KEY_HINT))
    if isinstance(error, APIError) and error.status == 401 and not remote.key:
        return t("{url} requires a key: {hint}", url=remote.url, hint=t(KEY_HINT))
    if isinstance(error, APIError) and (error.status == 401 or error.code == "forbidden"):
        return f"{said}: {t(OTHER_KEY_HINT)}"
    return said
