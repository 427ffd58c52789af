"""The columns of the list in a terminal of any width. The name stays readable; other columns go first."""

from collections.abc import Collection
from typing import Final, NamedTuple

GAP: Final = 2  # cells between two columns
NAME_WIDTH: Final = 18  # cells that a name keeps, unless the terminal is narrower
GOOD_NAME: Final = 30  # cells that a name gets before other columns grow
GOOD_BAR: Final = 16
GOOD_STEP: Final = 30
MAX_BAR: Final = 30

# The columns from left to right, each with its smallest width.
MIN_WIDTHS: Final = {
    "mark": 1,
    "name": 1,
    "bar": 6,
    "percent": 4,
    "left": 12,
    "rate": 12,
    "step": 14,
    "host": 8,
    "id": 8,
}
BY_PRIORITY: Final = ("percent", "mark", "left", "bar", "step", "rate", "host", "id")


class Column(NamedTuple):
    """A column: its name, its first cell from 0, and its width."""

    name: str
    start: int
    width: int


OPTIONAL: Final = frozenset({"rate", "host"})


def layout(width: int, longest_name: int, optional: Collection[str] = OPTIONAL) -> list[Column]:
    """Return the columns that fit into `width` cells, from left to right.

    `longest_name`: in cells. `optional`: those of OPTIONAL that have something to show.
    """
    widths = {"name": min(width, max(1, min(longest_name, NAME_WIDTH)))}
    spare = width - widths["name"]
    for name in BY_PRIORITY:
        if name in OPTIONAL and name not in optional:
            continue
        needed = MIN_WIDTHS[name] + _gap(name)
        if needed > spare:
            break
        widths[name] = MIN_WIDTHS[name]
        spare -= needed
    for name, wanted in (
        ("name", min(longest_name, GOOD_NAME)),
        ("bar", GOOD_BAR),
        ("step", GOOD_STEP),
        ("name", longest_name),
        ("bar", MAX_BAR),
        ("step", width),
    ):
        if name in widths:
            more = max(0, min(spare, wanted - widths[name]))
            widths[name] += more
            spare -= more
    columns, start = list[Column](), 0
    for name in MIN_WIDTHS:
        if name in widths:
            columns.append(Column(name, start, widths[name]))
            start += widths[name] + (1 if name == "mark" else GAP)
    return columns


def _gap(name: str) -> int:
    return 1 if name == "mark" else GAP
