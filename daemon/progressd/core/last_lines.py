"""The last lines of a program's output, as a sentence for the error of its job."""

import re
from typing import Final

RULES: Final = "=-_*#~ "  # characters of rules around headings
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")  # ECMA-48


def last_lines(written: bytes, count: int = 1) -> list[str]:
    """Return up to `count` of the last lines that contain text, without escapes and control characters.

    If a line was redrawn with carriage returns, only its last version is used. Indented lines, such as those of a
    traceback, are skipped unless the last line is indented.
    """
    found: list[str] = []
    for line in reversed(_ESCAPES.sub("", written.decode(errors="replace")).split("\n")):
        shown = next((part for part in reversed(line.split("\r")) if not part.isspace() and part), "")
        words = " ".join("".join(one if one.isprintable() else " " for one in shown).split()).strip(RULES)
        if words and not (found and shown[0].isspace()):
            found.insert(0, words)
            if len(found) == count:
                break
    return found
