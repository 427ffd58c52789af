"""Convert the values of a program to valid ones: JSON, numbers in range, text without surrogates.

If a conversion fails, the function may raise an exception of any type, since its argument may be any object.
"""

import json
import math
import operator
from collections.abc import Callable, Mapping
from typing import Final, TypeVar, overload

from progressd.core.event_limits import (
    MAX_COUNT,
    MAX_ERROR,
    MAX_ETA,
    MAX_KIND,
    MAX_LABEL,
    MAX_LABELS,
    MAX_LEASE,
    MAX_NESTING,
    MAX_OPTIONS_BYTES,
    MAX_PHASE,
    MAX_STEP_NAME,
    MAX_UNIT,
)

MAX_KEY: Final = 200  # characters of an option's key that are shown in a warning

LeftOut = dict[str, Exception]
"""The names of values that cannot be sent, each with the reason."""

T = TypeVar("T")


class Checker:
    """Convert the values of a job, and log invalid ones with `warn`, once for each name. No value may stop the work."""

    def __init__(self, warn: Callable[..., None]) -> None:
        self.name = "job"
        self._warn = warn
        self._logged: set[str] = set()

    @overload
    def __call__(self, what: str, convert: Callable[[object], T], value: object) -> T | None: ...

    @overload
    def __call__(self, what: str, convert: Callable[[object], T], value: object, default: T) -> T: ...

    def __call__(self, what: str, convert: Callable[[object], T], value: object, default: T | None = None) -> T | None:
        """Return the converted value, or the default if the value is invalid or None."""
        try:
            return default if value is None else convert(value)
        except Exception as error:
            self._log({what: error})
            return default

    def members(self, what: str, convert: Callable[[LeftOut, Mapping[object, object]], T], value: object) -> T | None:
        """Return the converted mapping without its invalid members; None if it is invalid or None."""
        left_out: LeftOut = {}
        converted = self(what, lambda given: convert(left_out, given), value)  # type: ignore[arg-type]
        self._log(left_out)
        return converted

    def _log(self, left_out: LeftOut) -> None:
        new = [what for what in left_out if what not in self._logged]
        if new:
            self._logged.update(new)
            more = f" and {len(new) - 1} more" if len(new) > 1 else ""
            self._warn("%s: ignored %s%s: %s", self.name, new[0], more, sentence(left_out[new[0]]))


def encodable(text: object) -> str:
    """Return the object as text that UTF-8 can encode: file names may contain invalid bytes."""
    return str(text).encode("utf-8", "replace").decode()


def text(value: object, max_length: int) -> str:
    """Return the value as text of at most `max_length` characters."""
    whole = str(value)
    return encodable(whole if len(whole) <= max_length else f"{whole[: max_length - 1]}…")


def kind(value: object) -> str:
    """Return the kind of a job."""
    return text(value, MAX_KIND)


def step_name(value: object) -> str:
    """Return the name of a step or a file."""
    return text(value, MAX_STEP_NAME)


def unit(value: object) -> str:
    """Return the unit of steps. Raises ValueError if it is empty."""
    if not (word := text(value, MAX_UNIT)):
        raise ValueError("a unit is empty")
    return word


def phase(value: object) -> str:
    """Return the name of a phase or a task."""
    return text(value, MAX_PHASE)


def sentence(error: BaseException) -> str:
    """Return the message of an exception, with its type if the message is not a sentence."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        [error] = error.exceptions
    kind = type(error).__name__
    try:
        message = str(error).strip()
    except Exception:  # this exception must not replace `error`
        message = ""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        message = f"the program exited with status {error.code}"
    elif " " not in message:
        message = f"{kind}: {message}" if message else kind
    return text(message, MAX_ERROR)


def count(number: object) -> int:
    """Return a number of steps from an int, a float, a Decimal, a scalar of NumPy or PyTorch, or a similar object."""
    try:
        whole = operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        whole = int(number)  # type: ignore[call-overload]
    return min(max(0, int(whole)), MAX_COUNT)


def percentage(number: object) -> float:
    """Return a number from 0 to 100."""
    return min(max(0.0, _finite(number)), 100.0)


def seconds(number: object) -> float:
    """Return a non-negative number of seconds, which may be infinite."""
    given = float(number)  # type: ignore[arg-type]
    if not given >= 0:
        raise ValueError(f"expected 0 or more seconds, not {given:g}")
    return given


def lease(number: object) -> float:
    """Return the seconds of a lease."""
    given = _finite(number)
    if given <= 0:
        raise ValueError(f"expected more than 0 seconds, not {given:g}")
    return min(given, MAX_LEASE)


def remaining(number: object) -> float:
    """Return the seconds that remain."""
    return min(max(0.0, _finite(number)), MAX_ETA)


def labels(left_out: LeftOut, given: Mapping[object, object]) -> dict[str, str]:
    """Return the labels that can be sent."""
    if len(given) > MAX_LABELS:
        raise ValueError(f"more than {MAX_LABELS} labels")
    sent = {}
    for name, value in given.items():
        try:
            sent[text(name, MAX_LABEL)] = text(value, MAX_LABEL)
        except Exception as error:
            left_out["labels"] = error
    return sent


class _TooLarge(ValueError):
    def __init__(self) -> None:
        super().__init__(f"larger than {MAX_OPTIONS_BYTES} bytes")


def options(left_out: LeftOut, given: Mapping[object, object]) -> bytes:
    """Return the options that can be sent, as JSON. Values of types unknown to JSON become text."""
    plain = _Converter(left_out).plain_object(given, "options", 1)
    encoded = json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    sent = encoded.encode("utf-8", "replace")
    if len(sent) > MAX_OPTIONS_BYTES:
        raise _TooLarge
    return sent


class _Converter:
    """Convert one set of options. It stops after MAX_OPTIONS_BYTES values, because each takes at least a byte of JSON.

    Otherwise an object that contains itself twice would never end.
    """

    def __init__(self, left_out: LeftOut) -> None:
        self._left_out = left_out
        self._values = 0

    def plain(self, value: object, name: str, level: int) -> object:
        """Return the value with types that JSON has."""
        self._values += 1
        if self._values > MAX_OPTIONS_BYTES:
            raise _TooLarge
        if value is None or isinstance(value, str | bool):
            return value
        if isinstance(value, int):
            if not -(2**63) <= value < 2**64:
                raise ValueError("the number is too large")
            return value
        if isinstance(value, float):
            return _finite(value)
        if isinstance(value, Mapping | list | tuple):
            if level >= MAX_NESTING:
                raise ValueError(f"nested deeper than {MAX_NESTING} levels")
            if isinstance(value, Mapping):
                return self.plain_object(value, name, level + 1)
            return [self.plain(inner, f"{name}[{number}]", level + 1) for number, inner in enumerate(value)]
        scalar = getattr(value, "item", None)  # NumPy's and PyTorch's
        if callable(scalar) and getattr(value, "ndim", None) == 0:
            return self.plain(scalar(), name, level)
        return str(value)

    def plain_object(self, given: Mapping[object, object], name: str, level: int) -> dict[str, object]:
        """Return the members that can be converted."""
        plain: dict[str, object] = {}
        for key, value in given.items():
            within = name
            try:
                if not isinstance(key, str | int | float | None):
                    raise TypeError(f"a name has the type {type(key).__name__} instead of str")
                within = f"{name}.{text(key, MAX_KEY)}"
                plain[str(key)] = self.plain(value, within, level)
            except _TooLarge:
                raise
            except Exception as error:
                self._left_out[within] = error
        return plain


def _finite(number: object) -> float:
    given = float(number)  # type: ignore[arg-type]
    if not math.isfinite(given):
        raise ValueError(f"{given:g} is not a finite number")
    return given
