"""The options of `progressd run`."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

DEFAULT_LEASE = 60.0  # seconds
MIN_LEASE, MAX_LEASE = 10, 86400  # seconds
_VALUES = frozenset({"--name", "--label", "--progress-pattern", "--as", "--lease", "--url", "--key", "--key-file"})
_FLAGS = frozenset({"--no-adapt", "--no-log", "--explain", "--verbose"})
_SHORT = {"-p": "--progress-pattern", "-v": "--verbose"}
_VARIABLES = {"--url": "PROGRESSD_URL", "--key": "PROGRESSD_KEY", "--key-file": "PROGRESSD_KEY_FILE"}


class RunOptions(NamedTuple):
    """The command, and how to run it. `url`: None for the default. `preset`: "none" keeps the streams."""

    command: tuple[str, ...]
    name: str | None = None
    labels: Mapping[str, str] = {}
    pattern: str | None = None
    preset: str | None = None
    no_adapt: bool = False
    no_log: bool = False
    explain: bool = False
    verbose: bool = False
    lease: float = DEFAULT_LEASE
    url: str | None = None
    key: str | None = None


def parsed(arguments: Sequence[str], environ: Mapping[str, str]) -> RunOptions | None:
    """Return the options; None if click has to parse them, because it also prints errors."""
    given = {option: environ[name] for option, name in _VARIABLES.items() if environ.get(name)}
    if "--key-file" in given or "_PROGRESSD_COMPLETE" in environ:
        return None
    labels, rest = dict[str, str](), list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "--":
        option, equals, value = rest.pop(0).partition("=")
        option = option if equals else _SHORT.get(option, option)
        if option in _FLAGS and not equals:
            given[option] = "yes"
            continue
        if option not in _VALUES or option == "--key-file" or not (equals or rest):
            return None
        value = value if equals else rest.pop(0)
        if option == "--label":
            name, _, content = value.partition("=")
            if not (name and content and value.isprintable()):
                return None
            labels[name] = content
        given[option] = value
    command = tuple(rest[1:] if rest[:1] == ["--"] else rest)
    try:
        lease = float(given.get("--lease", DEFAULT_LEASE))
    except ValueError:
        return None
    if not command or not MIN_LEASE <= lease <= MAX_LEASE:
        return None
    return RunOptions(
        command,
        given.get("--name"),
        labels,
        given.get("--progress-pattern"),
        given.get("--as"),
        "--no-adapt" in given,
        "--no-log" in given,
        "--explain" in given,
        "--verbose" in given,
        lease,
        given.get("--url"),
        given.get("--key"),
    )
