"""How far a job is: the percentage and the time left, from the numbers a producer gives."""

import math
from datetime import datetime


def percentage(current_step: int, total_steps: int, given: float | None = None) -> int:
    """The percentage, 0 to 100: the producer's own where it gave one, else floor(100 · current / total)."""
    if given is not None:
        return math.floor(max(0.0, min(100.0, given)))  # in this order, for a pattern can find "inf"
    if total_steps <= 0:
        return 0
    return min(100, 100 * current_step // total_steps)


def seconds_left(started_at: datetime, now: datetime, current_step: int, total_steps: int) -> float | None:
    """The seconds left if the rest goes as fast as the part that is done; None while nothing tells."""
    if not 0 < current_step <= total_steps:
        return None
    elapsed = (now - started_at).total_seconds()
    if elapsed <= 0:
        return None
    return round(elapsed * (total_steps - current_step) / current_step, 1)
