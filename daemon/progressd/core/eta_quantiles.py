"""The errors of recorded runs. `make eta ARGS=--write` writes these numbers, and docs/eta.md explains them."""

from typing import Final

# Before there is progress: the probabilities that a job takes longer than the beginning, the middle and the end of its
# interval, as earlier runs predict them.
OF_DURATION: Final = (0.92, 0.5, 0.027)

# By the fraction of the time that has passed, in eighths: the 10 %, 50 % and 90 % quantiles of the error. It is the
# logarithm of the quotient of the true and the estimated remaining time, in units of the expected error. First without
# earlier runs, then with earlier runs.
OF_SPEED: Final = (
    (-2.625, -0.529, -0.051),
    (-2.666, -0.368, 0.451),
    (-2.461, -0.283, 0.764),
    (-3.218, -0.274, 1.151),
    (-3.404, -0.228, 2.015),
    (-2.784, -0.077, 2.605),
    (-3.264, -0.012, 3.462),
    (-2.901, 0.608, 9.576),
    (-1.697, 2.182, 18.446),
)
OF_RUNS: Final = (
    (-1.758, 0.077, 1.669),
    (-1.942, 0.145, 1.67),
    (-2.446, 0.006, 1.876),
    (-2.922, -0.044, 2.268),
    (-3.086, -0.096, 2.395),
    (-3.348, -0.083, 3.94),
    (-3.863, 0.136, 5.726),
    (-3.454, 0.434, 8.908),
    (-3.189, 1.479, 12.087),
)
