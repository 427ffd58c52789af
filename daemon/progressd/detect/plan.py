"""Plan how to find the progress of a command: choose its preset, and the options to add to the command."""

import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import PurePath
from typing import Final, NamedTuple

from progressd.core.errors import InvalidInput, meant
from progressd.detect.preset import Adaptation, Preset, any_match
from progressd.detect.preset_loader import Presets

NONE: Final = "none"  # the name of a preset that searches for nothing

# Programs that run another program, each with its options that take a value and the number of arguments before the
# other program.
_WRAPPERS: Final[Mapping[str, tuple[str, int]]] = {
    "chrt": ("", 1),
    "doas": ("-C -u", 0),
    "env": ("-C -S -u", 0),
    "ionice": ("-c -n", 0),
    "nice": ("-n", 0),
    "nohup": ("", 0),
    "setsid": ("", 0),
    "stdbuf": ("-e -i -o", 0),
    "sudo": ("-C -D -R -T -U -g -h -p -r -t -u", 0),
    "taskset": ("", 1),
    "time": ("-f -o", 0),
    "timeout": ("-k -s", 1),
}
_CHANGES_USER: Final = frozenset({"doas", "sudo"})  # these close descriptors and reset the environment
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=")
_PYTHON: Final = re.compile(r"python[0-9.]*")
_VERSION: Final = re.compile(r"-?[0-9.]+$")
_WALK_SECONDS: Final = 0.2  # for the size of the files that tar reads
_WALK_ENTRIES: Final = 20_000


class Plan(NamedTuple):
    """A command to run, and the source of its progress. `added`: a sentence for the user; "" if nothing was added."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = {}
    preset: Preset | None = None
    adaptation: Adaptation | None = None
    enabled: bool = True
    total: float | None = None  # of the program's own counter, if it does not print one
    items: int = 0  # files or addresses that the program handles one by one; 0 if unknown

    @property
    def added(self) -> str:
        """Return a description of the change to the command, or "" if there is none."""
        return self.adaptation.shown() if self.adaptation else ""

    @property
    def progress_fd(self) -> bool:
        """Return whether the command needs an additional descriptor. `arguments` then takes its number."""
        return self.adaptation is not None and self.adaptation.needs_descriptor

    @property
    def needs_terminal(self) -> bool:
        """Return whether the command reports progress only on a terminal."""
        return self.preset is not None and self.preset.needs_terminal

    @property
    def hides(self) -> bool:
        """Return whether an OutputFilter must remove frames from the output."""
        return self.adaptation is not None and bool(self.adaptation.hide)

    def arguments(self, descriptor: int) -> list[str]:
        """Return the command with the number of its descriptor."""
        ours = set(self.adaptation.arguments) if self.adaptation else set()
        return [part.replace("{fd}", str(descriptor)) if part in ours else part for part in self.command]


def plan(
    command: Sequence[str],
    presets: Presets,
    *,
    adapt: bool = True,
    name: str | None = None,
    terminal: bool = False,
) -> Plan:
    """Return the plan for a command. Raises InvalidInput if the preset is unknown or invalid.

    Args:
        adapt: Add arguments and variables that cause no visible difference.
        name: The preset to use, or "none". None: the preset of the program.
        terminal: The output of the command is a terminal.
    """
    command = tuple(command)
    if name == NONE:
        return Plan(command, enabled=False)
    at, plain = _program(command)
    arguments = command[at + 1 :]
    preset = own = _of_program(command, at, presets)
    if name is not None:
        preset = presets.find(name)
        if preset is None:
            raise InvalidInput(
                f"there is no preset {name!r}{meant(name, list(presets))} (progressd presets lists them)"
            )
    if preset is None:
        return Plan(command)
    adapt = adapt and preset == own and not _is_busybox(command[at])
    for other, globs in preset.instead.items():
        if any_match(arguments, globs):
            preset = presets.find(other) or preset
    total, items = _total(preset, arguments), _items(preset, arguments)
    subcommand = _subcommand(command, at, preset)
    for adaptation in preset.adapt if adapt else ():
        if (adaptation.needs_descriptor or adaptation.environment) and not plain:
            continue
        if adaptation.at == "end" and "POSIXLY_CORRECT" in os.environ:  # then options come before other arguments
            continue
        if adaptation.fits(arguments, "" if subcommand is None else command[subcommand], terminal):
            place = {"program": at + 1, "end": len(command)}.get(adaptation.at, (subcommand or at) + 1)
            changed = (*command[:place], *adaptation.arguments, *command[place:])
            return Plan(changed, adaptation.environment, preset, adaptation, total=total, items=items)
    return Plan(command, preset=preset, total=total, items=items)


def _is_busybox(program: str) -> bool:
    """Return whether a program is part of BusyBox or toybox, which have fewer options."""
    # shutil.which is not used: its import takes 2 ms.
    paths = [program] if "/" in program else [os.path.join(each, program) for each in os.get_exec_path()]
    path = next((path for path in paths if os.access(path, os.X_OK)), program)
    return os.path.basename(os.path.realpath(path)) in ("busybox", "toybox")


def _of_program(command: tuple[str, ...], at: int, presets: Presets) -> Preset | None:
    program = PurePath(command[at]).name
    preset = presets.find(program) or presets.find(_VERSION.sub("", program))
    if preset is None or (preset.subcommands and _subcommand(command, at, preset) is None):
        return None
    return preset


def _subcommand(command: tuple[str, ...], at: int, preset: Preset) -> int | None:
    """Return the index of the first argument that is not an option, if it is a subcommand of the preset."""
    place = at + 1
    while place < len(command) and command[place].startswith("-"):
        place += 2 if command[place] in preset.options else 1
    return place if place < len(command) and command[place] in preset.subcommands else None


def _program(command: tuple[str, ...]) -> tuple[int, bool]:
    """Return the index of the program after wrappers such as `nice`, and whether it inherits descriptors.

    `python -m NAME` is the program NAME.
    """
    at, plain = 0, True
    while at < len(command):
        program = PurePath(command[at]).name
        if _PYTHON.fullmatch(program):
            if command[at + 1 : at + 2] == ("-m",) and at + 2 < len(command):
                return at + 2, plain
            return at, plain
        if program not in _WRAPPERS:
            return at, plain
        plain = plain and program not in _CHANGES_USER
        options, positional = _WRAPPERS[program]
        inner = at + 1
        while inner < len(command) and (command[inner].startswith("-") or _ASSIGNMENT.match(command[inner])):
            inner += 2 if command[inner] in options.split() else 1
        inner += positional
        if inner >= len(command):
            return at, plain
        at = inner
    return 0, plain


def _items(preset: Preset, arguments: Sequence[str]) -> int:
    """Return how many files or addresses are in the arguments; 0 if this is unknown."""
    if preset.items == "urls":
        return sum("://" in argument for argument in arguments)
    if preset.items == "files":
        *sources, _ = [one for one in arguments if not one.startswith("-")] or [""]
        return len(sources) if all(map(os.path.isfile, sources)) else 0
    return 0


def _total(preset: Preset, arguments: Sequence[str]) -> float | None:
    """Return the total that a program does not print, from its arguments. None if it is unknown."""
    match preset.total:
        case "dd":
            return _total_of_dd(arguments)
        case "ffmpeg":
            return _total_of_ffmpeg(arguments)
        case "tar":
            return _total_of_tar(arguments)
    return None


def _total_of_dd(arguments: Sequence[str]) -> float | None:
    """Return the bytes that dd copies: of `count` blocks, or of its input file after `skip` blocks."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    block = _dd_number(given.get("ibs", given.get("bs", "512")))
    skip = _dd_number(given.get("skip", given.get("iseek", "0")))
    if block is None or skip is None:
        return None
    flags = given.get("iflag", "").split(",")
    skipped = skip if "skip_bytes" in flags or given.get("skip", "").endswith("B") else skip * block
    sizes = []
    if "count" in given and (count := _dd_number(given["count"])) is not None:
        sizes.append(count if "count_bytes" in flags or given["count"].endswith("B") else count * block)
    if "if" in given and (size := _size(given["if"])) is not None:
        sizes.append(max(size - skipped, 0))
    return min(sizes) or None if sizes else None


_DD_FACTORS: Final = {"c": 1, "w": 2, "b": 512, "B": 1}


def _dd_number(text: str) -> float | None:
    """Read a number of dd: `4M`, `1kB`, `512b`, or a product such as `2x1024`."""
    from progressd.detect import numbers  # not above: few commands need it

    product = 1.0
    for part in text.split("x"):
        factor = _DD_FACTORS.get(part[-1:]) if part[-2:-1].isdigit() else None
        value = numbers.number(part[:-1] if factor else part)
        if value is None:
            return None
        product *= value * (factor or 1)
    return product


def _size(path: str) -> int | None:
    """Return the size of a regular file or a block device."""
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return status.st_size
        if stat.S_ISBLK(status.st_mode):
            with open(path, "rb", buffering=0) as device:
                return device.seek(0, os.SEEK_END)
    except OSError:
        pass
    return None


def _total_of_ffmpeg(arguments: Sequence[str]) -> float | None:
    """Return the length of ffmpeg's output in seconds if `-t` limits it, otherwise None."""
    from progressd.detect import numbers

    for option, value in pairwise(arguments):
        if option == "-t":
            return numbers.seconds(value)
    return None


def _total_of_tar(arguments: Sequence[str]) -> float | None:
    """Return the bytes that tar reads: of an uncompressed archive, or of the files that it packs if they are few."""
    mode, archive, directory, members = _tar_arguments(arguments)
    if mode in "xtd":
        return _size(archive) if archive and archive.endswith(".tar") else None
    if mode not in "cru" or not mode:
        return None
    end = time.monotonic() + _WALK_SECONDS
    total = entries = 0
    pending = [os.path.join(directory, member) for member in members]
    while pending:
        path = pending.pop()
        entries += 1
        if entries > _WALK_ENTRIES or time.monotonic() > end:
            return None
        try:
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                pending += [os.path.join(path, name) for name in os.listdir(path)]
        except OSError:
            continue
        total += 512 + (-(-status.st_size // 512) * 512 if stat.S_ISREG(status.st_mode) else 0)
    return total + 1024 if total else None


def _tar_arguments(arguments: Sequence[str]) -> tuple[str, str | None, str, list[str]]:
    """Return the mode, the archive, the directory and the members of a tar command."""
    mode, archive, directory, members = "", None, ".", list[str]()
    long = {"--create": "c", "--extract": "x", "--get": "x", "--list": "t", "--append": "r", "--update": "u"}
    waiting = list[str]()  # options that wait for their value
    for place, argument in enumerate(arguments):
        if waiting:
            option = waiting.pop(0)
            archive, directory = (argument, directory) if option == "f" else (archive, argument)
        elif argument.startswith("--"):
            name, _, value = argument.partition("=")
            mode = long.get(name, mode)
            archive = value if name == "--file" and value else archive
            directory = value if name == "--directory" and value else directory
        elif argument.startswith("-") or place == 0:
            letters = argument.removeprefix("-")
            for position, letter in enumerate(letters):
                if letter in "cxtrud":
                    mode = letter
                elif letter in "fC" and argument.startswith("-") and position + 1 < len(letters):
                    rest = letters[position + 1 :]
                    archive, directory = (rest, directory) if letter == "f" else (archive, rest)
                    break
                elif letter in "fC":
                    waiting.append(letter)
        else:
            members.append(argument)
    return mode, archive, directory, members
