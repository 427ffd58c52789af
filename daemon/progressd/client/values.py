"""Convert the values of a program to valid ones: JSON, numbers in range, text without surrogates.

If a conversion fails, the function may raise an exception of any type, since its argument may be any object.
"""

import json
import math
import operator
from collections.abc import Mapping
from typing import Final

MAX_COUNT: Final = 2**53  # JavaScript numbers are exact up to this value
MAX_NAME: Final = 200  # characters
MAX_STEP: Final = 1000  # characters
MAX_URL: Final = 4096  # characters
MAX_SENTENCE: Final = 10_000  # characters
MAX_OPTIONS: Final = 65536  # bytes of JSON
MAX_NESTING: Final = 32  # levels of options
MAX_LABELS: Final = 50
MAX_LEASE: Final = 30 * 86400.0  # seconds

LeftOut = dict[str, Exception]
"""The names of values that cannot be sent, each with the reason."""


def encodable(text: object) -> str:
    """Return the object as text that UTF-8 can encode: file names may contain invalid bytes."""
    return str(text).encode("utf-8", "replace").decode()


def text(value: object, max_length: int) -> str:
    """Return the value as text of at most `max_length` characters."""
    whole = str(value)
    return encodable(whole if len(whole) <= max_length else f"{whole[: max_length - 1]}…")


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
        raise ValueError(f"{given:g} is not a number of seconds")
    return given


def lease(number: object) -> float:
    """Return the seconds of a lease."""
    given = _finite(number)
    if given <= 0:
        raise ValueError(f"{given:g} is not a number of seconds")
    return min(given, MAX_LEASE)


def labels(left_out: LeftOut, given: Mapping[object, object]) -> dict[str, str]:
    """Return the labels that can be sent."""
    if len(given) > MAX_LABELS:
        raise ValueError(f"more than {MAX_LABELS} labels")
    sent = {}
    for name, value in given.items():
        try:
            sent[text(name, MAX_NAME)] = text(value, MAX_NAME)
        except Exception as error:
            left_out["labels"] = error
    return sent


def options(left_out: LeftOut, given: Mapping[object, object]) -> bytes:
    """Return the options that can be sent, as JSON. Values of types unknown to JSON become text."""
    plain = _plain_object(given, left_out, "options", 1)
    encoded = json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    sent = encoded.encode("utf-8", "replace")
    if len(sent) > MAX_OPTIONS:
        raise ValueError(f"larger than {MAX_OPTIONS} bytes")
    return sent


def _plain(value: object, left_out: LeftOut, name: str, level: int) -> object:
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
            return _plain_object(value, left_out, name, level + 1)
        return [_plain(inner, left_out, f"{name}[{number}]", level + 1) for number, inner in enumerate(value)]
    if callable(scalar := getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:  # NumPy's and PyTorch's
        return _plain(scalar(), left_out, name, level)
    return str(value)


def _plain_object(given: Mapping[object, object], left_out: LeftOut, name: str, level: int) -> dict[str, object]:
    plain: dict[str, object] = {}
    for key, value in given.items():
        within = name
        try:
            if not isinstance(key, str | int | float | None):
                raise TypeError(f"a name has the type {type(key).__name__} instead of str")
            within = f"{name}.{text(key, MAX_NAME)}"
            plain[str(key)] = _plain(value, left_out, within, level)
        except Exception as error:
            left_out[within] = error
    return plain


def _finite(number: object) -> float:
    given = float(number)  # type: ignore[arg-type]
    if not math.isfinite(given):
        raise ValueError(f"{given:g} is not a finite number")
    return given
