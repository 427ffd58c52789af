"""Convert durations and sizes from their text in a config file, and back."""

import math
import re
from collections.abc import Mapping
from typing import Final

_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([a-z]*)", re.ASCII | re.IGNORECASE)

MAX_BYTES: Final = 8 << 50  # maximum of any size: exact as a float
MAX_SECONDS: Final = 100 * 365 * 86400.0  # maximum of any duration: dates stay in Python's range

_SECONDS: Final = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def seconds(text: str) -> float:
    """Return the seconds in "30", "30s", "1.5min", "2h" or "30d". Raises ValueError."""
    return _scaled(text, _SECONDS)


def size(text: str) -> int:
    """Return the bytes in "65536", "64KiB", "500MiB" (powers of 1024) or "64kB" (of 1000). Raises ValueError."""
    value = _scaled(text, _BYTES)
    if not value.is_integer():
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(value)


def seconds_text(value: float) -> str:
    """Return the shortest text for which `seconds` returns this value."""
    for unit in ("d", "h", "min"):
        if value and value % _SECONDS[unit] == 0:
            return f"{int(value / _SECONDS[unit])}{unit}"
    return f"{int(value) if float(value).is_integer() else value}s"


def size_text(value: int) -> str:
    """Return the shortest text for which `size` returns this value."""
    for unit in ("GiB", "MiB", "KiB"):
        if value and value % _BYTES[unit.lower()] == 0:
            return f"{value // _BYTES[unit.lower()]}{unit}"
    return f"{value}B"


def _scaled(text: str, units: Mapping[str, float]) -> float:
    found = _NUMBER.fullmatch(text.strip())
    if found is None or found[2].lower() not in units:
        raise ValueError(f"{text!r} is not a number with one of the units {', '.join(filter(None, units))}")
    value = float(found[1]) * units[found[2].lower()]
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is too large")
    return value
