"""Progress in the output of an unknown program: `NN%`, `i/n`, and the bars of tqdm.

A number alone is not evidence: prose contains `50%`. The number must rise in frames that look alike. Two such frames
are enough if the program redraws a line, or if the line begins with the number in brackets. Otherwise three are needed.
"""

import re
from typing import Final, NamedTuple

from msgspec import Struct

from progressd.core.progress_pattern import Pattern
from progressd.detect.reading import Reading
from progressd.detect.rules import reading_of
from progressd.detect.track import counter

MAX_SERIES: Final = 64  # kinds of frames that are followed at once
FINISHED: Final = 0.9  # of the total, after which other frames may be the progress
MAX_PREFIX: Final = 60  # bytes before the number that must be alike

_TQDM: Final = Pattern(
    r"^(?:(?P<phase>[^|]*?): +)? *(?P<percent>\d{1,3})%\|[^|]*\| *(?P<current>[\d.,]+[kMGTP]?i?B?)/"
    r"(?P<total>[\d.,]+[kMGTP]?i?B?) \[[\d:]+<(?P<eta>[\d:?]+)(?:, *(?P<rate>[\d.]+ ?[^\],]*))?"
)


_TQDM_COUNT: Final = Pattern(  # of an iterable without a length
    r"^(?:(?P<phase>[^|]*?): +)?(?P<current>[\d.,]+[kMGTP]?) ?[A-Za-z]{1,20} \[[\d:]+, +(?P<rate>[\d.]+ ?[^\],]*)[,\]]"
)


class _Kind(NamedTuple):
    """One way to write progress. `anywhere`: the text before it may change."""

    source: str
    mark: bytes
    pattern: Pattern
    anywhere: bool


_COUNT: Final = r"(?P<current>\d[\d,]{0,15})\s?/\s?(?P<total>\d[\d,]{0,15})"
_KINDS: Final = (
    _Kind("percentages", b"%", Pattern(r"[\[(]\s*(?P<percent>\d{1,3}(?:[.,]\d+)?)\s?%\s*[\])]"), True),
    _Kind("counts", b"/", Pattern(r"[\[(]\s*" + _COUNT + r"(?:\s?[\])]|\s)"), True),
    _Kind("percentages", b"%", Pattern(r"(?:^|[^\d.,\w])(?P<percent>\d{1,3}(?:[.,]\d+)?)\s?%(?:\W|$)"), False),
    _Kind("counts", b"/", Pattern(r"(?:^|[^\d.,\w/])" + _COUNT + r"(?:[^\d.,\w/]|$)"), False),
    _Kind(
        "counts", b"of", Pattern(r"(?:^|[^\d.,\w/])(?P<current>\d{1,15}) of (?P<total>\d{1,15})(?:[^\d.,\w/]|$)"), False
    ),
)
_NUMBERS: Final = re.compile(rb"[\d.,:]+ ?(?:[kKMGTP]?i?B\b)?")


class _Series(Struct):
    value: float
    total: float | None
    rises: int = 0


class GeneralPatterns:
    """Follow the numbers of an unknown program, and return those that are its progress."""

    def __init__(self) -> None:
        self._series = dict[tuple[int, bytes], _Series]()
        self._accepted: tuple[tuple[int, bytes], _Series] | None = None
        self.source = ""

    def read(self, text: bytes, redraw: bool) -> Reading | None:
        """Return the progress in a frame, or None if there is none or it is not certain yet."""
        if b"%|" in text and (groups := _TQDM.groups(text)) is not None:
            self.source = "tqdm"
            found = reading_of(groups)
            if (position := counter(found.phase)) is not None:
                found.item, found.items = position
            return found
        if redraw and b" [" in text and (groups := _TQDM_COUNT.groups(text)) is not None:
            self.source = "tqdm"
            return reading_of(groups)
        if self.source == "tqdm":
            return None
        for number, kind in enumerate(_KINDS):
            if kind.mark in text and (groups := kind.pattern.groups(text)) is not None:
                found = reading_of(groups)
                value = found.percent if found.percent is not None else found.current
                if value is None or value > (100 if found.total is None else found.total) or found.total == 0:
                    continue
                prefix = b"" if kind.anywhere else _prefix(text, groups)
                certain = redraw or (kind.anywhere and text.lstrip()[:1] in b"[(")
                return self._follow((number, prefix), kind, found, 1 if certain else 2)
        return None

    def _follow(self, key: tuple[int, bytes], kind: _Kind, found: Reading, rises: int) -> Reading | None:
        """Return the reading if its series is the progress. Another one may follow when that is FINISHED."""
        value = found.current if found.percent is None else found.percent
        assert value is not None
        accepted = self._accepted
        if accepted is not None and key == accepted[0]:
            accepted[1].value = value
            accepted[1].total = found.total
            return found
        series = self._series.pop(key, None)
        if series is None or series.total != found.total or value < series.value:
            series = _Series(value, found.total)
        elif value > series.value:
            series.value = value
            series.rises += 1
        if len(self._series) >= MAX_SERIES:
            self._series.pop(next(iter(self._series)))
        self._series[key] = series
        if series.rises < rises or (accepted is not None and accepted[1].value < FINISHED * (accepted[1].total or 100)):
            return None
        found.resets = accepted is not None
        self._accepted = (key, series)
        self._series.clear()
        self.source = kind.source
        return found


def _prefix(text: bytes, groups: dict[str, str]) -> bytes:
    """Return the text before the number, with all numbers as 0."""
    number = (groups.get("percent") or groups["current"]).encode()
    return _NUMBERS.sub(b"0", text[: text.find(number)][:MAX_PREFIX].strip())
