"""The errors of recorded runs. `make eta ARGS=--write` writes this file, and docs/eta.md describes the measurement."""

from typing import Final

# By the fraction of the time that has passed, in eighths: the 10 %, 50 % and 90 % quantiles of the error, which is the
# logarithm of the quotient of the true and the estimated remaining time, in units of the expected error.
OF_SPEED: Final = ((-1.0, 0.0, 1.0),) * 9
OF_RUNS: Final = ((-1.0, 0.0, 1.0),) * 9
