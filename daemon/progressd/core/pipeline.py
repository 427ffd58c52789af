"""Pipelines: the command of a job, the accepted file types, and the options. This module runs no programs."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from progressd.core.errors import InvalidOption, meant
from progressd.core.progress_pattern import ProgressPattern

Value: TypeAlias = bool | int | float | str

PLACEHOLDERS: Final = ("python", "input", "output", "options", "job_id")
MAX_TEXT: Final = 4096  # characters of a text option; all options together must fit into one argument (128 KiB)

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


class Option(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One option of a pipeline."""

    type: Annotated[
        Literal["boolean", "integer", "number", "string"],
        Meta(description="`boolean`, `integer`, `number` or `string`."),
    ]
    default: Annotated[
        Value | None,
        Meta(description="The value if the client gives none. Without a default, the option is left out."),
    ] = None
    minimum: Annotated[int | float | None, Meta(description="The smallest number allowed.")] = None
    maximum: Annotated[int | float | None, Meta(description="The largest number allowed.")] = None
    choices: Annotated[tuple[Value, ...], Meta(description="The only values allowed.")] = ()
    needs: Annotated[
        str | None,
        Meta(description="A program that must be on `PATH` when a boolean option is true."),
    ] = None
    title: Annotated[str, Meta(description="The name of the option for people.")] = ""
    description: Annotated[str, Meta(description="What the option does, in a few words.")] = ""
    values_command: Annotated[
        tuple[str, ...],
        Meta(
            description="For a text option: a command that prints the values that this server has, one per line, which "
            "clients may offer. Other values stay possible. `{python}` is the Python that runs the daemon."
        ),
    ] = ()

    def __post_init__(self) -> None:
        number = self.type in ("integer", "number")
        if not number and (self.minimum is not None or self.maximum is not None):
            raise ValueError("minimum and maximum are only for integers and numbers")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        if self.values_command and self.type != "string":
            raise ValueError("values_command is only for string options")
        if self.needs is not None and self.type != "boolean":
            raise ValueError("needs is only for boolean options")
        for choice in self.choices:
            if not self._fits(choice):
                raise ValueError(f"choice {shown(choice)} is not {self._kind}")
        if self.default is not None and not self.accepts(self.default):
            raise ValueError(f"default {shown(self.default)} is not {self.expected}")

    @property
    def expected(self) -> str:
        """Return a description of the valid values, as the end of a sentence."""
        return f"one of {', '.join(map(shown, self.choices))}" if self.choices else self._kind

    def accepts(self, value: object) -> bool:
        """Return whether a value is valid. A boolean is not a number."""
        if self.choices and not any(value == choice and type(value) is type(choice) for choice in self.choices):
            return False
        return self._fits(value)

    def _fits(self, value: object) -> bool:
        match value:
            case bool():
                return self.type == "boolean"
            case int():
                return self.type in ("integer", "number") and self._in_range(value)
            case float():
                return self.type == "number" and math.isfinite(value) and self._in_range(value)
            case str():
                return self.type == "string" and len(value) <= MAX_TEXT
        return False

    def _in_range(self, value: float) -> bool:
        return (self.minimum is None or value >= self.minimum) and (self.maximum is None or value <= self.maximum)

    @property
    def _kind(self) -> str:
        if self.type == "boolean":
            return "true or false"
        if self.type == "string":
            return f"text of at most {MAX_TEXT} characters"
        name = "an integer" if self.type == "integer" else "a number"
        match self.minimum, self.maximum:
            case None, None:
                return name
            case least, None:
                return f"{name} of at least {least}"
            case None, most:
                return f"{name} of at most {most}"
            case least, most:
                return f"{name} from {least} to {most}"


class Pipeline(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A program that the daemon runs for each submitted file."""

    command: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            description="The program and its arguments; no shell is involved. `{input}` and `{output}` become the "
            "paths of the uploaded file and of the result, `{options}` the options as JSON, `{job_id}` the id of the "
            "job, `{python}` the Python that runs the daemon.",
        ),
    ]
    title: Annotated[str, Meta(description="The name of the pipeline for people. Default: its name.")] = ""
    description: Annotated[str, Meta(description="What the pipeline does, in a few words.")] = ""
    accept: Annotated[
        tuple[str, ...],
        Meta(min_length=1, description="The MIME types of the files that the pipeline accepts."),
    ] = ("application/pdf",)
    output: Annotated[str, Meta(description="The file name of the result.")] = "output.pdf"
    options: Annotated[
        dict[str, Option],
        Meta(description="The options of the pipeline, one table each; see below."),
    ] = {}
    progress_pattern: Annotated[
        str | None,
        Meta(
            description="A regular expression (RE2 syntax) that finds the progress in the output of a program that "
            "does not write progressd's JSON lines. The daemon searches the first 1024 bytes of a line. The named "
            "groups are `current` and `total`, or `percent`, or `fraction` (0 to 1). The groups `step`, `phase`, "
            "`rate` and `eta` are optional. The expression replaces the preset."
        ),
    ] = None
    preset: Annotated[
        str | None,
        Meta(
            description="The preset that finds the progress in the output, such as `ffmpeg`; `none` for no search. "
            "`progressd presets` lists them. Default: the preset of the program, if there is one."
        ),
    ] = None
    timeout: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="A job that runs longer is stopped and fails. Default: `runner.job_timeout`.",
            extra={"unit": "seconds"},
        ),
    ] = None
    max_memory_bytes: Annotated[
        Annotated[int, Meta(ge=4096)] | None,
        Meta(description="Default: `runner.max_memory_bytes`.", extra={"unit": "bytes", "least": 4096}),
    ] = None
    max_cpu_seconds: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Default: `runner.max_cpu_seconds`.", extra={"unit": "seconds"}),
    ] = None
    max_file_bytes: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Default: `runner.max_file_bytes`.", extra={"unit": "bytes", "least": 1}),
    ] = None
    max_open_files: Annotated[
        Annotated[int, Meta(ge=16)] | None,
        Meta(description="Default: `runner.max_open_files`."),
    ] = None
    environment: Annotated[
        dict[str, str],
        Meta(description="Environment variables for the program, in addition to those that the daemon sets."),
    ] = {}

    def __post_init__(self) -> None:
        unknown = {name for part in self.command for name in _PLACEHOLDER.findall(part)} - set(PLACEHOLDERS)
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise ValueError(f"command: {{{min(unknown)}}} is not one of the placeholders {known}")
        if not self.command[0]:
            raise ValueError("command: the first part, the program, is empty")
        if self.output in ("", ".", "..") or "/" in self.output or "\0" in self.output:
            raise ValueError(f"output: {self.output!r} is not a file name")
        if self.progress_pattern is not None:
            try:
                ProgressPattern(self.progress_pattern)
            except ValueError as error:
                raise ValueError(f"progress_pattern: {error}") from None

    @property
    def needs(self) -> frozenset[str]:
        """Return the programs that the options need."""
        return frozenset(option.needs for option in self.options.values() if option.needs is not None)

    def arguments(self, values: Mapping[str, str]) -> list[str]:
        """Return the command with its placeholders replaced. Raises KeyError if a value is missing."""
        return [_PLACEHOLDER.sub(lambda found: values[found[1]], part) for part in self.command]


def shown(value: object) -> str:
    """Return a value as JSON for a sentence, at most 60 characters."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:59]}…"


def checked_options(
    pipeline: Pipeline, given: Mapping[str, object], available: Callable[[str], bool]
) -> dict[str, object]:
    """Return all options in the pipeline's order. Missing options have their defaults.

    `available` returns whether a program is on PATH. Raises InvalidOption with the option, its value and the allowed
    values.
    """
    for name in given:
        if name not in pipeline.options:
            raise InvalidOption(_unknown(name, pipeline))
    checked: dict[str, object] = {}
    for name, option in pipeline.options.items():
        value = _checked(name, option, given[name]) if name in given else option.default
        if value is None:
            continue
        if value is True and option.needs is not None and not available(option.needs):
            raise InvalidOption(
                f"option {name}: true is not possible, because {option.needs} is not installed on the server"
            )
        checked[name] = value
    return checked


def _checked(name: str, option: Option, value: object) -> Value:
    if not option.accepts(value):
        raise InvalidOption(f"option {name}: {shown(value)} is not {option.expected}")
    assert isinstance(value, bool | int | float | str)
    return value


def _unknown(name: str, pipeline: Pipeline) -> str:
    if not pipeline.options:
        return f"there is no option {shown(name)}: this pipeline has none"
    known = ", ".join(pipeline.options)
    return f"there is no option {shown(name)}: choose from {known}{meant(name, pipeline.options)}"
