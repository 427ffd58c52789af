"""The options of a job: what a client gave, held against what the pipeline knows; no program is looked for here."""

import difflib
from collections.abc import Callable, Mapping

from progressd.core.errors import InvalidOption
from progressd.core.pipeline import Option, Pipeline, Value, shown


def checked_options(
    pipeline: Pipeline, given: Mapping[str, object], available: Callable[[str], bool]
) -> dict[str, object]:
    """All options in the pipeline's order, with its defaults for those that were not given.

    `available` tells whether a program is on PATH. Raises InvalidOption, naming the option, its value and what is
    allowed.
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
    close = difflib.get_close_matches(name, pipeline.options, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"there is no option {shown(name)}: choose from {known}{hint}"
