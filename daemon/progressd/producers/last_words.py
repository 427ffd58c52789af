"""The last thing that a pipeline complained of, as a client may read it: one line, printable, without any path."""

import re
from typing import Final

MOST: Final = 300  # characters

_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # for colours, and the like
_DIRECTORIES: Final = re.compile(r"""(?<![\w:/.])/(?:[^\s/:'"]+/)*(?=[^\s/])""")  # of a file, which alone is left


def last_words(stderr: bytes) -> str:
    """The last line that says anything; "" where there is none."""
    for line in reversed(stderr.splitlines()):
        text = _ESCAPES.sub("", line.decode(errors="replace"))
        words = " ".join("".join(one if one.isprintable() else " " for one in text).split())
        if words:
            words = _DIRECTORIES.sub("", words)
            return words if len(words) <= MOST else words[: MOST - 1] + "…"
    return ""
