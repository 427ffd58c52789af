from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.core.progress import percentage

counts = st.integers(0, 2**53)


@pytest.mark.parametrize(
    ("current", "total", "percent"),
    [(0, 12, 0), (5, 12, 41), (1, 3, 33), (2, 3, 66), (11, 12, 91), (12, 12, 100), (13, 12, 100), (199, 200, 99)],
)
def test_the_percentage_is_rounded_down_to_100(current: int, total: int, percent: int) -> None:
    assert percentage(current, total) == percent


@given(counts)
def test_the_percentage_of_nothing_is_0(current: int) -> None:
    assert percentage(current, 0) == 0


@given(counts, counts.filter(bool))
def test_the_percentage_is_exact_however_large_the_numbers(current: int, total: int) -> None:
    assert percentage(current, total) == min(100, int(Fraction(100 * current, total)))


@given(counts, counts, st.floats(0, 1e308))
def test_a_producers_own_percentage_is_rounded_down(current: int, total: int, own: float) -> None:
    percent = percentage(current, total, own)
    assert type(percent) is int
    assert percent == (int(own) if own < 100 else 100)
