"""The columns of the list in a terminal of any width. The name stays readable; other columns go first."""

from collections.abc import Collection
from typing import Final, NamedTuple

GAP: Final = 2  # cells between two columns
NAME_WIDTH: Final = 18  # cells that a name keeps, unless the terminal is narrower

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
OPTIONAL: Final = frozenset({"rate", "host"})
ALL: Final = 1 << 16  # as many cells as there are
# How the cells are given away: a column is added with its smallest width, or grows to the width that follows.
STAGES: Final = (
    ("percent", 0),
    ("mark", 0),
    ("left", 0),
    ("bar", 0),
    ("step", 0),
    ("rate", 0),
    ("name", 30),
    ("step", 22),
    ("bar", 10),
    ("id", 0),
    ("host", 0),
    ("name", 40),
    ("step", 30),
    ("name", 60),
    ("bar", 24),
    ("name", ALL),
    ("step", ALL),
)


class Column(NamedTuple):
    """A column: its name, its first cell from 0, and its width."""

    name: str
    start: int
    width: int


def layout(width: int, longest_name: int, optional: Collection[str] = OPTIONAL) -> list[Column]:
    """Return the columns that fit into `width` cells, from left to right.

    `longest_name`: in cells. `optional`: those of OPTIONAL that have something to show.
    """
    widths = {"name": min(width, max(1, min(longest_name, NAME_WIDTH)))}
    spare = width - widths["name"]
    full = False  # a column did not fit, so those after it are left out
    for name, wanted in STAGES:
        if name in widths:
            more = max(0, min(spare, min(wanted, longest_name if name == "name" else ALL) - widths[name]))
            widths[name] += more
            spare -= more
        elif not full and (name not in OPTIONAL or name in optional):
            needed = MIN_WIDTHS[name] + _gap(name)
            full = needed > spare
            if not full:
                widths[name] = MIN_WIDTHS[name]
                spare -= needed
    columns, start = list[Column](), 0
    for name in MIN_WIDTHS:
        if name in widths:
            columns.append(Column(name, start, widths[name]))
            start += widths[name] + _gap(name)
    return columns


def _gap(name: str) -> int:
    return 1 if name == "mark" else GAP
