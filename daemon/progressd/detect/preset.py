"""One preset: how to find the progress in the output of a program, and the options to add to its command.

This module only defines the types. `rules.py` describes and applies the rules of a preset.
"""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

_NONE: Final = MappingProxyType[str, Any]({})


class Adaptation(NamedTuple):
    """A change to the command that makes the program report progress. The user does not see a difference.

    `{fd}` in an argument becomes the number of a descriptor that only progressd reads.
    """

    arguments: tuple[str, ...] = ()
    at: Literal["program", "subcommand", "end"] = "program"  # the arguments are inserted after it
    environment: Mapping[str, str] = _NONE
    terminal: bool | None = None  # only with the output on a terminal (true), or only without one (false)
    subcommands: tuple[str, ...] = ()  # if set, only with one of these
    unless: tuple[str, ...] = ()  # arguments (globs) with which nothing is changed; -v also matches -av
    hide: str = ""  # a regular expression for the frames that the change adds to the output
    hide_redraws: bool = True  # only hide frames that the program redraws

    @property
    def needs_descriptor(self) -> bool:
        """Return whether an argument contains `{fd}`."""
        return any("{fd}" in argument for argument in self.arguments)

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


class Preset(NamedTuple):
    """The known output of one program. `rules.py` describes `rules` and `json`."""

    name: str = ""
    about: str = ""
    same_as: str = ""  # the name of another preset that this one is an alias of
    instead: Mapping[str, tuple[str, ...]] = _NONE  # presets that replace this one if an argument (glob) is given
    subcommands: tuple[str, ...] = ()  # if set, only with one of these
    options: tuple[str, ...] = ()  # options before the subcommand that take a value
    adapt: tuple[Adaptation, ...] = ()  # the first that fits is used
    rules: tuple[dict[str, Any], ...] = ()  # the first that matches a frame is used
    json: tuple[dict[str, Any], ...] = ()
    phases: Mapping[str, float] = _NONE  # in order, each with its share; NAME|NAME: one of these
    labels: Mapping[str, str] = _NONE  # the display names of phases
    many: bool = False  # the program handles many items one by one, each from 0 to 100 %
    items: Literal["", "files", "urls"] = ""  # the arguments that are items, each from 0 to 100 %
    needs_terminal: bool = False  # the program reports progress only on a terminal
    total: Literal["", "dd", "tar", "ffmpeg"] = ""  # how to find a total that the program does not print


def any_match(arguments: Sequence[str], globs: Sequence[str]) -> bool:
    """Return whether a glob matches an argument. An option of one letter is also found in `-abc`."""
    letters = {letter for argument in arguments if re.match("-[A-Za-z]", argument) for letter in argument}
    return any(
        glob[1] in letters if re.fullmatch("-[A-Za-z]", glob) else any(fnmatchcase(one, glob) for one in arguments)
        for glob in globs
    )
