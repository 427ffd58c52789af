"""The errors of recorded runs. `make eta ARGS=--write` writes these numbers, and docs/eta.md has their meaning."""

from typing import Final

# Before there is progress: the probabilities that a job takes longer than the beginning, the middle and the end of its
# interval, as earlier runs predict them.
OF_DURATION: Final = (0.92, 0.5, 0.027)

# By the fraction of the time that has passed, in eighths: the 10 %, 50 % and 90 % quantiles of the error. It is the
# logarithm of the quotient of the true and the estimated remaining time, in units of the expected error. First without
# earlier runs, then with earlier runs.
OF_SPEED: Final = (
    (-2.669, -0.46, -0.032),
    (-2.726, -0.364, 0.478),
    (-2.436, -0.278, 0.776),
    (-3.198, -0.289, 1.165),
    (-3.408, -0.231, 2.015),
    (-2.783, -0.075, 2.593),
    (-3.209, -0.02, 3.462),
    (-2.873, 0.598, 9.578),
    (-1.684, 2.088, 18.446),
)
OF_RUNS: Final = (
    (-1.753, 0.088, 1.67),
    (-1.964, 0.134, 1.67),
    (-2.429, 0.045, 1.891),
    (-2.784, -0.047, 2.257),
    (-3.197, -0.084, 2.432),
    (-3.32, -0.071, 3.856),
    (-3.874, 0.13, 5.725),
    (-3.38, 0.435, 8.782),
    (-3.139, 1.479, 12.087),
)
