"""Presets: what progressd knows about the output of a program, as data in `presets/NAME.toml`.

A preset is read when its program is run. The file has the name of the program. A user's preset has the same format and
replaces the built-in one of that name.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from progressd.core.errors import InvalidInput
from progressd.core.events import MAX_COUNT
from progressd.core.progress_pattern import Pattern
from progressd.detect import numbers
from progressd.detect.reading import Reading

BUILT_IN: Final = Path(__file__).with_name("presets")
SYSTEM: Final = Path("/etc/progressd/presets")

_PLAIN: Final = re.compile("[0-9.,]+")
_SUFFIX: Final = re.compile("[A-Za-z ]+$")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_GROUPS: Final = frozenset(
    {"current", "total", "left", "percent", "fraction", "clock", "duration", "step", "phase", "rate", "eta"}
    | {"item", "items", "id"}
)


class Rule(Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """A regular expression (RE2's) for a frame of the output, with the named groups of `_GROUPS`."""

    regex: str
    unit: str = ""
    phase: str = ""  # the phase of the frames that match
    scale: float = 1  # of one unit of `current` and `total`
    percent: float | None = None  # of the frames that match, if they have no number
    descriptor: bool = False  # only for the descriptor that `adapt` gives to the program
    resets: bool = False  # the frame announces another item, which begins at 0
    grows: bool = False  # the total is final only if it does not change
    files: bool = False  # `left` of `total` files remain after the current one

    def __post_init__(self) -> None:
        if unknown := self.pattern.names - _GROUPS:
            raise ValueError(f"(?P<{min(unknown)}>…) is not one of {', '.join(sorted(_GROUPS))}")

    @cached_property
    def pattern(self) -> Pattern:
        """Return the compiled regular expression."""
        return Pattern(self.regex)

    def read(self, text: bytes) -> Reading | None:
        """Return the values in a frame, or None if the frame does not match."""
        groups = self.pattern.groups(text)
        return None if groups is None else reading_of(groups, self)


class JsonRule(Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of a JSON object that have the progress. A dot selects a key of a nested object."""

    current: str = ""
    total: str = ""
    percent: str = ""
    fraction: str = ""
    step: str = ""
    phase: str = ""
    rate: str = ""
    eta: str = ""
    id: str = ""  # with it, the progress is the sum over all ids
    where: dict[str, str | bool | int] = {}  # values that the object must have
    unit: str = ""

    def read(self, line: Mapping[str, Any]) -> Reading | None:
        """Return the values in an object, or None if it lacks them."""
        if any(_inside(line, key) != value for key, value in self.where.items()):
            return None
        found = Reading(
            current=_json_number(line, self.current),
            total=_json_number(line, self.total),
            percent=_json_number(line, self.percent),
            rate=_json_number(line, self.rate),
            eta=_json_number(line, self.eta),
            step=_json_text(line, self.step),
            phase=_json_text(line, self.phase),
            id=_json_text(line, self.id),
            unit=self.unit,
        )
        fraction = _json_number(line, self.fraction)
        if fraction is not None and fraction <= 1:
            found.percent = fraction * 100
        wanted = self.total or self.percent or self.fraction
        if found.current is None and found.percent is None:
            # programs such as restic omit a zero
            if not wanted or _inside(line, wanted) is None:
                return None
            found.current = 0
        return found


class Adaptation(Struct, frozen=True, forbid_unknown_fields=True):
    """A change to the command that makes the program report progress, and that its user does not see.

    `{fd}` in an argument becomes the number of a descriptor that only progressd reads.
    """

    arguments: tuple[str, ...] = ()
    at: Literal["program", "subcommand", "end"] = "program"  # the arguments are inserted after it
    environment: dict[str, str] = {}
    terminal: bool | None = None  # only with the output on a terminal (true), or only without one (false)
    subcommands: tuple[str, ...] = ()  # if set, only with one of these
    unless: tuple[str, ...] = ()  # arguments (globs) with which nothing is changed; -v means -av, too
    hide: str = ""  # a regular expression for the frames that the change adds to the output
    hide_redraws: bool = True  # only hide frames that the program redraws

    @property
    def needs_descriptor(self) -> bool:
        """Return whether an argument contains `{fd}`."""
        return any("{fd}" in argument for argument in self.arguments)

    def __post_init__(self) -> None:
        if not self.arguments and not self.environment:
            raise ValueError("adapt needs arguments or environment")
        if self.hide:
            Pattern(self.hide)

    def fits(self, arguments: Sequence[str], subcommand: str, terminal: bool) -> bool:
        """Return whether the change is possible for a command with these arguments."""
        if self.terminal is not None and self.terminal != terminal:
            return False
        options = arguments[: arguments.index("--")] if "--" in arguments else arguments
        if self.at == "end" and len(options) < len(arguments):
            return False
        if self.subcommands and subcommand not in self.subcommands:
            return False
        return not any_match(options, self.unless)

    def shown(self) -> str:
        """Return a description for the user."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return "adds " + " ".join([*variables, *self.arguments]).replace("{fd}", "N")


class Preset(Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """What progressd knows about one program."""

    name: str = ""
    about: str = ""
    same_as: str = ""  # the name of another preset that this one is an alias of
    instead: dict[str, tuple[str, ...]] = {}  # presets that replace this one if an argument (glob) is given
    subcommands: tuple[str, ...] = ()  # if set, only with one of these
    options: tuple[str, ...] = ()  # options before the subcommand that take a value
    adapt: tuple[Adaptation, ...] = ()  # the first that fits is used
    rules: tuple[Rule, ...] = ()  # the first that matches a frame is used
    json: tuple[JsonRule, ...] = ()
    phases: dict[str, Annotated[float, Meta(ge=0)]] = {}  # in order, each with its share; NAME|NAME: one of these
    labels: dict[str, str] = {}  # the names of phases for people
    many: bool = False  # the program handles many items one by one, each from 0 to 100 %
    needs_terminal: bool = False  # the program reports progress only on a terminal
    total: Literal["", "dd", "tar", "ffmpeg"] = ""  # how to find a total that the program does not print

    def knows(self, phase: str) -> bool:
        """Return whether a phase has a share."""
        return phase.casefold() in {one for name in self.phases for one in name.casefold().split("|")}

    def read(self, text: bytes, descriptor: bool) -> Reading | None:
        """Return the values in a frame, or None if no rule matches."""
        if self.json and text.startswith(b"{"):
            return read_json(text, self.json)
        for rule in self.rules:
            if rule.descriptor == descriptor and (found := rule.read(text)) is not None:
                return found
        return None


def reading_of(groups: Mapping[str, str], rule: Rule | None = None) -> Reading:
    """Return the values of named groups. Values that are not numbers are unknown."""
    found = Reading(step=groups.get("step", "").strip(), phase=groups.get("phase", "").strip(), id=groups.get("id", ""))
    scale = rule.scale if rule else 1
    if rule:
        found.unit, found.percent = rule.unit, rule.percent
        found.phase = found.phase or rule.phase
        found.resets, found.grows = rule.resets, rule.grows
    if _PLAIN.fullmatch(groups.get("current", "")) and (suffix := _SUFFIX.search(groups.get("total", ""))):
        groups = {**groups, "current": groups["current"] + suffix[0]}  # such as 2.3/16.9 MB
    for name in ("current", "total", "left"):
        amount = numbers.quantity(groups[name]) if name in groups else None
        if amount is not None and amount.value * scale <= MAX_COUNT:
            setattr(found, name, amount.value * scale)
            found.unit = found.unit or amount.unit
    if "current" in groups and found.current is None:
        found.total = None  # of a frame without progress
    if found.left is not None and found.total is not None:
        found.current = max(found.total - found.left, 0)
        if rule and rule.files:
            found.item, found.items = found.current, found.total
            found.current = found.total = None
    if "clock" in groups:
        found.current = numbers.seconds(groups["clock"])
    if "duration" in groups:
        found.total = numbers.seconds(groups["duration"])
    if "percent" in groups:
        found.percent = numbers.number(groups["percent"])
    if "fraction" in groups and (fraction := numbers.number(groups["fraction"])) is not None and fraction <= 1:
        found.percent = fraction * 100
    if "rate" in groups and (rate := numbers.rate(groups["rate"])) is not None:
        found.rate = rate.value
    if "eta" in groups:
        found.eta = numbers.seconds(groups["eta"])
    if "item" in groups and "items" in groups:
        found.item, found.items = numbers.number(groups["item"]), numbers.number(groups["items"])
    return found


_decode = msgspec.json.Decoder(dict[str, Any]).decode


def read_json(text: bytes, rules: Sequence[JsonRule]) -> Reading | None:
    """Return the values in a line of JSON, or None if no rule fits."""
    try:
        line = _decode(text)
    except (ValueError, RecursionError):
        return None
    return next((found for rule in rules if (found := rule.read(line)) is not None), None)


def _inside(line: Mapping[str, Any], path: str) -> Any:
    value: Any = line
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _json_number(line: Mapping[str, Any], path: str) -> float | None:
    value = _inside(line, path) if path else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


def _json_text(line: Mapping[str, Any], path: str) -> str:
    value = _inside(line, path) if path else None
    if isinstance(value, list) and value:
        value = value[0]
    return str(value) if isinstance(value, str | int) else ""


def any_match(arguments: Sequence[str], globs: Sequence[str]) -> bool:
    """Return whether a glob matches an argument. An option of one letter is also found in `-abc`."""
    letters = {letter for argument in arguments if re.match("-[A-Za-z]", argument) for letter in argument}
    return any(
        glob[1] in letters if re.fullmatch("-[A-Za-z]", glob) else any(fnmatchcase(one, glob) for one in arguments)
        for glob in globs
    )


class Presets:
    """The presets of some directories. The first directory that contains a name wins. The built-in presets are last."""

    def __init__(self, directories: Sequence[Path] = ()) -> None:
        self._directories = (*directories, BUILT_IN)
        self._read = dict[str, Preset | None]()

    @classmethod
    def of_user(cls, environ: Mapping[str, str]) -> "Presets":
        """Return the presets of a user: of the user's configuration, of the host, and the built-in ones."""
        home = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or "/", ".config")
        return cls([Path(home, "progressd", "presets"), SYSTEM])

    def find(self, name: str) -> Preset | None:
        """Return a preset by its name. Raises InvalidInput if its file is invalid."""
        if name not in self._read:
            self._read[name] = self._load(name)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of all presets, sorted, without aliases."""
        files = {path.stem: path for each in reversed(self._directories) for path in each.glob("*.toml")}
        return (name for name in sorted(files) if (preset := self.find(name)) is not None and preset.name == name)

    def path(self, name: str) -> Path | None:
        """Return the file of a preset, or of the preset that an alias names. None if there is no such preset."""
        preset = self.find(name)
        files = [directory / f"{preset.name}.toml" for directory in self._directories] if preset else []
        return next((file for file in files if file.is_file()), None)

    def _load(self, name: str, *, alias: bool = False) -> Preset | None:
        """Read a preset. `alias`: another preset has its name in `same_as`."""
        if _NAME.fullmatch(name) is None:
            return None
        for directory in self._directories:
            path = directory / f"{name}.toml"
            try:
                preset = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Preset)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if not os.access(directory, os.X_OK):  # such as the home directory of another user, after su
                    continue
                raise InvalidInput(f"cannot read the preset {path}: {error.strerror}") from None
            except (ValueError, RecursionError) as error:
                raise InvalidInput(f"the preset {path} is invalid: {error}") from None
            if not preset.same_as:
                return msgspec.structs.replace(preset, name=name)
            target = None if alias else self._load(preset.same_as, alias=True)
            if target is None:
                raise InvalidInput(f"the preset {path} is invalid: same_as must name a preset that is not an alias")
            return target
        return None
