"""Numbers as programs print them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.detect import numbers


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("491,520", 491520, ""),
        ("1.234.567", 1234567, ""),
        ("1 234", None, ""),
        ("1\u202f234", 1234, ""),
        ("1'234'567", 1234567, ""),
        ("1.234.567,8", 1234567.8, ""),
        ("1,234,567.8", 1234567.8, ""),
        ("0.5833", 0.5833, ""),
        ("0,583", 0.583, ""),
        ("12,5", 12.5, ""),
        (".5", 0.5, ""),
        ("12.4KiB", 12.4 * 1024, "B"),
        ("3.2G", 3.2 * 1024**3, ""),
        ("400.36kB/s", 400360, "B"),
        ("1.21 MiB/s", 1.21 * 1024**2, "B"),
        ("10.00MB", 10_000_000, "B"),
        ("1.2M", 1.2 * 1024**2, ""),
        ("128 KiB", 131072, "B"),
        ("0 B", 0, "B"),
        ("5 items", 5, "items"),
        ("5 Tests", 5, "Tests"),
        ("3.99x", 3.99, "x"),
        ("42%", 42, "%"),
        *((text, None, "") for text in ("N/A", "?", "--", "-", "", "NA", "-5", "1..2", "1,2,3", "x1", "1.2.3", "٣")),
    ],
)
def test_a_number_is_read_as_people_write_it(text: str, value: float | None, unit: str) -> None:
    found = numbers.quantity(text)
    if value is None:
        assert found is None
    else:
        assert found is not None
        assert found.value == pytest.approx(value)
        assert found.unit == unit


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0:00:01", 1),
        ("00:05", 5),
        ("1:02:03.5", 3723.5),
        ("1d 02:00:00", 93600),
        ("1 day, 2:00:00", 93600),
        ("2 days 1:00:00", 176400),
        ("4m40s", 280),
        ("1h2m", 3720),
        ("00h00m05s", 5),
        ("12s", 12),
        ("12.5", 12.5),
        ("1min", 60),
        *((text, None) for text in ("--:--:--", "-:--:--", "?", "", "n/a", "Unknown", "??:??")),
    ],
)
def test_a_duration_is_read(text: str, value: float | None) -> None:
    assert numbers.seconds(text) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("text", "value"), [("600.00s/it", 1 / 600), ("4.0it/s", 4), ("3.99x", 3.99), ("0.00s/it", None), ("5 pages/s", 5)]
)
def test_a_rate_may_be_seconds_for_each_unit(text: str, value: float | None) -> None:
    found = numbers.rate(text)
    assert (found.value if found else None) == (None if value is None else pytest.approx(value))


@given(st.integers(0, 10**15), st.sampled_from(",'_\u00a0\u202f"))
def test_grouped_digits_are_the_integer(value: int, separator: str) -> None:
    text = f"{value:,}".replace(",", separator)
    assert numbers.number(text) == value


@given(st.text(max_size=200))
def test_any_text_is_no_negative_number(text: str) -> None:
    for read in (numbers.number, numbers.seconds):
        found = read(text)
        assert found is None or found >= 0
