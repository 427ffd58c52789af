"""The errors of recorded runs. `make eta ARGS=--write` writes these numbers, and docs/eta.md explains them."""

from typing import Final

# Before there is progress: the probabilities that a job takes longer than the beginning, the middle and the end of its
# interval, as earlier runs predict them.
OF_DURATION: Final = (0.99, 0.5, 0.272)

# By the fraction of the time that has passed, in eighths: the 10 %, 50 % and 90 % quantiles of the error. It is the
# logarithm of the quotient of the true and the estimated remaining time, in units of the expected error. First without
# earlier runs, then with earlier runs.
OF_SPEED: Final = (
    (-1.877, -0.409, -0.017),
    (-2.052, -0.269, 0.335),
    (-2.368, -0.196, 0.477),
    (-3.909, -0.298, 0.587),
    (-2.574, -0.269, 1.142),
    (-2.308, -0.114, 1.494),
    (-2.812, -0.096, 2.052),
    (-2.435, 0.084, 5.743),
    (-2.047, 0.873, 4.243),
)
OF_RUNS: Final = (
    (-1.559, -0.054, 1.539),
    (-2.217, -0.117, 1.147),
    (-2.167, -0.119, 1.147),
    (-2.405, -0.1, 1.175),
    (-2.259, -0.183, 1.084),
    (-2.851, -0.168, 1.475),
    (-3.482, -0.056, 2.888),
    (-2.864, 0.109, 3.531),
    (-1.708, 0.525, 3.869),
)
