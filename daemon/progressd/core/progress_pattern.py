"""Find progress in the output of any program, with a regular expression.

RE2 matches in linear time. Python's `re` takes 54 s for `\\d+/\\d+` in 64 KiB of digits, and never finishes for
`(a+)+$` on 100 letters.
"""

import re
from collections.abc import Set
from typing import TYPE_CHECKING, Final

import re2

from progressd.core.errors import InvalidInput

if TYPE_CHECKING:
    from progressd.core.events import ReportedProgress

MAX_SEARCHED: Final = 1024  # bytes from the beginning of a line
MAX_PROGRAM: Final = 2000  # instructions of RE2 for a pattern; at this limit, searching 1 KiB takes at most 60 ms

_NAMES: Final = frozenset({"current", "total", "percent", "fraction", "step", "phase", "rate", "eta"})
_NAMED_GROUP: Final = re.compile(r"\(\?P?<(\w+)>")


class Pattern:
    """A regular expression (RE2 syntax) with named groups, for the first MAX_SEARCHED bytes of a line."""

    def __init__(self, pattern: str) -> None:
        """Compile a pattern. Raises ValueError if RE2 rejects it or it is too complex."""
        options = re2.Options()
        options.log_errors = False
        try:
            # Bytes: with text, the library takes ten times as long to find the groups.
            self._pattern = re2.compile(pattern.encode(errors="surrogateescape"), options)
        except re2.error as error:
            reason = error.args[0].decode(errors="replace")
            raise ValueError(
                f"'{pattern}' is not a regular expression: {reason} (use the syntax of RE2, "
                "https://github.com/google/re2/wiki/Syntax; instead of lookaround or a backreference, match the text "
                "around the named groups)"
            ) from None
        if self._pattern.programsize > MAX_PROGRAM:
            raise ValueError(f"'{pattern}' is too complex: use * or + instead of counted repetitions such as {{1,200}}")
        self._groups: dict[str, int] = {name.decode(): number for name, number in self._pattern.groupindex.items()}
        names = _NAMED_GROUP.findall(pattern)
        if len(names) > len(self._groups):  # RE2 would set only one of two groups with the same name
            raise ValueError(f"'{pattern}' names a group twice: put the alternatives into one group")

    @property
    def names(self) -> Set[str]:
        """Return the names of the groups."""
        return self._groups.keys()

    def groups(self, line: bytes) -> dict[str, str] | None:
        """Return the named groups that take part in a match at the beginning of a line, or None without a match.

        A number that may be truncated is no match.
        """
        text = line[:MAX_SEARCHED]
        if not text.isascii():
            text = text.decode(errors="replace").encode()
        found = self._pattern.search(text)
        if found is None:
            return None
        named = dict[str, str]()
        for name, number in self._groups.items():
            start, end = found.span(number)
            if end == len(text) and len(line) > MAX_SEARCHED and name != "step":
                return None
            if start >= 0:
                named[name] = text[start:end].decode()
        return named


class ProgressPattern(Pattern):
    """A pattern with the groups `current` and `total`, `percent` or `fraction`. Optional: step, phase, rate, eta."""

    def __init__(self, pattern: str) -> None:
        """Compile a pattern. Raises ValueError if RE2 rejects it or it lacks a group."""
        super().__init__(pattern)
        if not {"percent", "fraction"} & self.names and not {"current", "total"} <= self.names:
            raise ValueError(
                f"'{pattern}' needs the named groups (?P<current>…) and (?P<total>…), or (?P<percent>…),"
                " or (?P<fraction>…)"
            )
        if unknown := self.names - _NAMES:
            raise ValueError(f"(?P<{min(unknown)}>…) is not one of {', '.join(sorted(_NAMES))}")

    def find(self, line: bytes) -> "ReportedProgress | None":
        """Return the progress at the beginning of a line, if any. Raises InvalidInput if the values are not numbers."""
        import msgspec  # not above: a command waits while its preset is read

        from progressd.core.event_limits import MAX_STEP_NAME
        from progressd.core.events import ReportedProgress

        named = self.groups(line)
        if named is None:
            return None
        try:
            numbers = {
                "current_step": int(named.get("current", 0)),
                "total_steps": int(named.get("total", 0)),
                "percent": float(named["percent"]) if "percent" in named else None,
                "step_name": named.get("step", "")[:MAX_STEP_NAME],
            }
            return msgspec.convert(numbers, ReportedProgress)
        except ValueError as error:
            raise InvalidInput(f"the progress pattern found no numbers: {error}") from None
