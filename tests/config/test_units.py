import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.config import units


@pytest.mark.parametrize(
    ("text", "value"),
    [("30", 30), ("30s", 30), ("500ms", 0.5), ("5min", 300), ("1.5 h", 5400), ("30d", 2592000), (" 2H ", 7200)],
)
def test_durations_are_read(text: str, value: float) -> None:
    assert units.seconds(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("65536", 65536), ("64KiB", 65536), ("64 kib", 65536), ("0.5KiB", 512), ("500MiB", 500 << 20), ("2GB", 2 * 10**9)],
)
def test_sizes_are_read(text: str, value: int) -> None:
    assert units.size(text) == value


@pytest.mark.parametrize("text", ["", "s", "5 minutes", "-5s", "5s5", "1h30min", "inf", "nan", "0x10", "٣s", "1e400s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is"):
        units.seconds(text)


@pytest.mark.parametrize("text", ["", "KiB", "64 bytes", "-1", "0.3B", "1e400", "64K"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is"):
        units.size(text)


@pytest.mark.parametrize("text", ["", "66", "888", "0o660", "00660", "1777", "rw-rw----"])
def test_what_is_no_mode_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a file mode"):
        units.mode(text)


@given(st.one_of(st.integers(0, 10**12), st.floats(0, 1e12)))
def test_durations_are_printed_as_they_are_read(value: float) -> None:
    assert math.isclose(units.seconds(units.seconds_text(value)), value, rel_tol=1e-12)


@given(st.integers(0, 2**53))
def test_sizes_are_printed_as_they_are_read(value: int) -> None:
    assert units.size(units.size_text(value)) == value


@given(st.integers(0, 0o777))
def test_modes_are_printed_as_they_are_read(value: int) -> None:
    assert units.mode(units.mode_text(value)) == value


@given(st.text(max_size=50))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (units.seconds, units.size, units.mode):
        with contextlib.suppress(ValueError):
            assert read(text) >= 0
