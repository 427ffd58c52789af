"""Numbers as programs print them: `491,520`, `1.234.567`, `12.4KiB`, `N/A`, `0:01:30`."""

import re
from typing import Final, NamedTuple

# The powers of the prefixes. A K, M or G with an i, or without a B, is 1024; kB, MB and GB are 1000.
_PREFIXES: Final = {letter: power for power, letter in enumerate("KMGTPEZY", 1)}
_NUMBER: Final = re.compile(
    r"([-+]?)([0-9][0-9.,'_\u00a0\u202f]{0,40}|\.[0-9]{1,30})"
    r"\s?(?:([kKMGTPEZY])(i?)(?=[Bb]|$|/s))?([a-zA-Z%]{0,12})(?:/s)?",
    re.ASCII,
)
_BYTES: Final = frozenset({"B", "b", "byte", "bytes", "Byte", "Bytes"})
_GROUPS: Final = re.compile(r"[0-9]{1,3}(?:([.,'_\u00a0\u202f])[0-9]{3})(?:\1[0-9]{3})*", re.ASCII)
_CLOCK: Final = re.compile(
    r"(?:([0-9]{1,4}) ?d(?:ays?)?,? ?)?(?:([0-9]{1,6}):)?([0-9]{1,6}):([0-9]{1,2}(?:[.,][0-9]{1,9})?)"
)
_UNITS: Final = re.compile(
    r"(?:([0-9]{1,6})d ?)?(?:([0-9]{1,6})h ?)?(?:([0-9]{1,6})m(?:in)? ?)?(?:([0-9]{1,9}(?:\.[0-9]{1,9})?)s?)?"
)


class Quantity(NamedTuple):
    """A number and the unit after it: "B" for bytes, "" for none."""

    value: float
    unit: str


def quantity(text: str) -> Quantity | None:
    """Return a number with its unit, or None for `N/A`, `?`, `--` and other texts that are not numbers."""
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return None
    sign, digits, prefix, binary, unit = found.groups()
    value = _value(digits)
    if value is None or sign == "-":
        return None
    if prefix:
        base = 1000 if unit and not binary else 1024
        value *= base ** _PREFIXES[prefix.upper()]
    return Quantity(value, "B" if binary or unit in _BYTES else unit)


def number(text: str) -> float | None:
    """Return a number without its unit, or None if the text is not a number."""
    found = quantity(text)
    return None if found is None else found.value


def rate(text: str) -> Quantity | None:
    """Return units a second: `1.21 MiB/s`, `4.0it/s`, `3.99x`, or `600.00s/it`, which is its reciprocal."""
    head, per, unit = text.strip().partition("s/")
    if per and (value := quantity(head)) is not None and not value.unit:  # and not pages/s
        return Quantity(1 / value.value, unit) if value.value else None
    return quantity(text)


def _value(digits: str) -> float | None:
    """Read digits with the separators of any locale."""
    separators = {mark for mark in digits if not mark.isdigit()}
    if not separators:
        return int(digits)
    if len(separators) == 1:
        mark = separators.pop()
        grouped = _GROUPS.fullmatch(digits) is not None and not digits.startswith("0")
        if grouped and (mark != "." or digits.count(mark) > 1):
            return int(digits.replace(mark, ""))
        if mark in ".," and digits.count(mark) == 1:
            return _decimal(digits.replace(",", "."))
        return None
    if len(separators) == 2:  # such as 1.234.567,8
        decimal = max(separators, key=digits.rindex)
        (group,) = separators - {decimal}
        whole, _, rest = digits.rpartition(decimal)
        if decimal in ".," and rest.isdigit() and _GROUPS.fullmatch(whole) and decimal not in whole:
            return _decimal(f"{whole.replace(group, '')}.{rest}")
    return None


def _decimal(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def seconds(text: str) -> float | None:
    """Return a duration in seconds: `0:00:01`, `00:05`, `4m40s`, `12.5`, or None for `--:--:--` and `?`."""
    text = text.strip()
    if clock := _CLOCK.fullmatch(text):
        days, hours, minutes, rest = clock.groups()
        return int(days or 0) * 86400 + int(hours or 0) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))
    if text and (parts := _UNITS.fullmatch(text)):
        days, hours, minutes, rest = parts.groups()
        return int(days or 0) * 86400 + int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest or 0)
    return None
