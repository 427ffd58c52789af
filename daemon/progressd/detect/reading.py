"""The values in one frame of a program's output."""

from msgspec import Struct


class Reading(Struct):
    """The values in one frame. None and "" mean unknown.

    `current` and `total` are in `unit`s, `rate` in units a second, `eta` in seconds. `item` of `items` is the position
    of a file or a task that has its own percentage. The progress of several `id`s is added up. `done` says which tasks
    are done, by name.
    """

    current: float | None = None
    total: float | None = None
    left: float | None = None
    percent: float | None = None
    rate: float | None = None
    eta: float | None = None
    step: str = ""
    phase: str = ""
    unit: str = ""
    item: float | None = None
    items: float | None = None
    id: str = ""
    done: dict[str, bool] | None = None
    resets: bool = False  # the next progress is of another item
    grows: bool = False  # the total is final only if it does not change

    @property
    def moves(self) -> bool:
        """Return whether the frame contains progress."""
        return self.current is not None or self.percent is not None
