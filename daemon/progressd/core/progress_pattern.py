"""Progress in the output of a program that knows nothing of progressd: a regular expression finds the numbers."""

import re

import msgspec

from progressd.core.errors import InvalidInput
from progressd.core.events import ReportedProgress


class ProgressPattern:
    """A regular expression (Python's) with the groups `current` and `total`, or `percent`, and if need be `step`."""

    def __init__(self, pattern: str) -> None:
        """Raises ValueError unless it is one."""
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        groups = self._pattern.groupindex.keys()
        if "percent" not in groups and not {"current", "total"} <= groups:
            raise ValueError(f"{pattern!r} needs the named groups (?P<current>…) and (?P<total>…), or (?P<percent>…)")
        if unknown := groups - {"current", "total", "percent", "step"}:
            raise ValueError(f"(?P<{min(unknown)}>…) is none of current, total, percent and step")

    def find(self, line: bytes) -> ReportedProgress | None:
        """The progress in a line, if there is any. Raises InvalidInput where what was found are no numbers."""
        found = self._pattern.search(line.decode(errors="replace"))
        if found is None:
            return None
        named = {name: text for name, text in found.groupdict().items() if text is not None}
        try:
            numbers = {
                "current_step": int(named.get("current", 0)),
                "total_steps": int(named.get("total", 0)),
                "percent": float(named["percent"]) if "percent" in named else None,
                "step_name": named.get("step", ""),
            }
            return msgspec.convert(numbers, ReportedProgress)
        except ValueError as error:
            raise InvalidInput(f"the progress pattern found no numbers: {error}") from None
