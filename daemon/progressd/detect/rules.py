"""Apply the rules of a preset to a frame, and check a preset's file.

`progressd.detect.plan` does not import this module, whose own imports are slow.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Final, NamedTuple, get_type_hints

import msgspec
from msgspec import Meta, Struct, defstruct

from progressd.core.event_limits import MAX_COUNT
from progressd.core.progress_pattern import Pattern
from progressd.detect import numbers
from progressd.detect.preset import Adaptation, Preset
from progressd.detect.reading import Reading

_PLAIN: Final = re.compile("[0-9.,]+")
_SUFFIX: Final = re.compile("[A-Za-z ]+$")
_GROUPS: Final = frozenset(
    {"current", "total", "left", "percent", "fraction", "clock", "duration", "step", "phase", "rate", "eta"}
    | {"item", "items", "id"}
)


class Rule(Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """A regular expression (RE2 syntax) for a frame of the output, with the named groups of `_GROUPS`."""

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
            raise ValueError(f"the group (?P<{min(unknown)}>…) is not one of {', '.join(sorted(_GROUPS))}")

    @cached_property
    def pattern(self) -> Pattern:
        """Return the compiled regular expression."""
        return Pattern(self.regex)

    def read(self, text: bytes) -> Reading | None:
        """Return the values in a frame, or None if the frame does not match."""
        groups = self.pattern.groups(text)
        return None if groups is None else reading_of(groups, self)


class JsonRule(Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of a JSON object that contain the progress. A dot selects a key of a nested object."""

    current: str = ""
    total: str = ""
    percent: str = ""
    fraction: str = ""
    step: str = ""
    phase: str = ""
    rate: str = ""
    eta: str = ""
    id: str = ""  # with it, the progress is the sum over all ids
    each: str = ""  # the key of a list of objects; each has an `id` and a `step`, and counts as one
    done: str = ""  # the key that only finished objects of this list have
    skip: str = ""  # objects whose `step` begins with this text do not count
    where: dict[str, str | bool | int] = {}  # values that the object must have
    unit: str = ""

    def read(self, line: Mapping[str, Any]) -> Reading | None:
        """Return the values in an object, or None if it lacks them."""
        if any(_inside(line, key) != value for key, value in self.where.items()):
            return None
        if self.each:
            return self._read_each(_inside(line, self.each))
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

    def _read_each(self, objects: Any) -> Reading | None:
        """Return which objects of a list are done. The first one that is not done is the step."""
        if not isinstance(objects, list):
            return None
        counted = [
            one
            for one in objects
            if isinstance(one, dict) and not (self.skip and _json_text(one, self.step).startswith(self.skip))
        ]
        named = {key: one for one in counted if (key := _json_text(one, self.id))}
        done = {key: _inside(one, self.done) is not None for key, one in named.items()}
        step = next((_json_text(named[key], self.step) for key, is_done in done.items() if not is_done), "")
        return Reading(done=done, step=step, current=0) if done else None


def _struct(name: str, fields: type[NamedTuple], **types: Any) -> type[Struct]:
    """Return a struct with the fields of a named tuple. `types` replaces the types of some fields."""
    hints = get_type_hints(fields)
    given = [(field, types.get(field, hints[field]), default) for field, default in fields._field_defaults.items()]
    return defstruct(name, given, forbid_unknown_fields=True)


_Adaptation: Final = _struct("Adaptation", Adaptation)
_Preset: Final = _struct(
    "Preset",
    Preset,
    adapt=tuple[_Adaptation, ...],  # type: ignore[valid-type]
    rules=tuple[Rule, ...],
    json=tuple[JsonRule, ...],
    phases=dict[str, Annotated[float, Meta(ge=0)]],
)


def check(table: Mapping[str, Any]) -> None:
    """Raise ValueError if the table of a preset's file is invalid."""
    preset: Any = msgspec.convert(table, _Preset)
    for adaptation in preset.adapt:
        if not adaptation.arguments and not adaptation.environment:
            raise ValueError("adapt needs arguments or environment")
        if adaptation.hide:
            Pattern(adaptation.hide)


class Rules:
    """The compiled rules of a preset."""

    def __init__(self, preset: Preset) -> None:
        self.preset = preset
        self.rules = msgspec.convert(preset.rules, tuple[Rule, ...])
        self.json = msgspec.convert(preset.json, tuple[JsonRule, ...])
        self._phases = {one for name in preset.phases for one in name.casefold().split("|")}

    def knows(self, phase: str) -> bool:
        """Return whether a phase has a share."""
        return phase.casefold() in self._phases

    def read(self, text: bytes, *, descriptor: bool) -> Reading | None:
        """Return the values in a frame, or None if no rule matches."""
        if self.json and text.startswith(b"{"):
            return read_json(text, self.json)
        for rule in self.rules:
            if rule.descriptor == descriptor and (found := rule.read(text)) is not None:
                return found
        return None


def reading_of(groups: Mapping[str, str], rule: Rule | None = None) -> Reading:
    """Return the values of named groups. If the text for a number is not a number, its value is unknown."""
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
        if rule is None or "current" not in groups:  # otherwise it may be the rate of something else, as for git
            found.unit = found.unit or rate.unit.removesuffix("/s")
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
