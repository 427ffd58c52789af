"""The daemon that a command talks to: its address, and the key where it asks for one."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click
from click.core import ParameterSource

from progressd.client.endpoint import DEFAULT_URL

if TYPE_CHECKING:
    from progressd.client.rest import RestClient

Command = TypeVar("Command", bound=Callable[..., Any])

REMOTE: Final = "progressd.remote"  # where it stands in the meta of the contexts, for sentences about errors


@dataclass(frozen=True)
class Remote:
    """Where a daemon answers, and the key to it."""

    url: str
    key: str | None = field(default=None, repr=False)

    def client(self, **how: Any) -> "RestClient":
        """Its REST API; `how` as for RestClient. Raises BadUrl, BadKey."""
        from progressd.client.rest import RestClient

        return RestClient(self.url, self.key, **how)

    @property
    def environment(self) -> dict[str, str]:
        """What leads a command to this daemon that is started by this one."""
        return {"PROGRESSD_URL": self.url, **({"PROGRESSD_KEY": self.key} if self.key else {})}


def remote_options(command: Command) -> Command:
    """`--url`, `--key` and `--key-file`, or the environment; the command gets a `remote`."""

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
    """The daemon that these options name; a key on the command line counts before one in the environment.

    Raises BadKey.
    """
    key, path = given.get("key"), given.get("key_file")
    counts = key is None or (_typed(ctx, "key_file") and not _typed(ctx, "key"))
    if path is not None and counts and ctx.invoked_subcommand is None:  # which talks to no daemon
        from progressd.client.endpoint import read_key

        key = read_key(path)
    return Remote(given.get("url") or DEFAULT_URL, key)


def _typed(ctx: click.Context, name: str) -> bool:
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
