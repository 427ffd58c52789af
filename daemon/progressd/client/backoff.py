"""How long to wait before the next attempt to reach a daemon."""

import random
from typing import Final

FIRST_DELAY: Final = 0.5  # seconds
LONGEST_DELAY: Final = 30.0  # seconds


def backoff(failures: int, longest: float = LONGEST_DELAY) -> float:
    """The seconds to wait after so many failures in a row; random, lest all clients come back at the same moment."""
    most = min(longest, FIRST_DELAY * 2 ** min(failures, 16))
    return random.uniform(most / 2, most)  # noqa: S311, spread, and no secret
