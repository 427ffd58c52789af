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
def test_invalid_durations_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="is"):
        units.seconds(text)


@pytest.mark.parametrize("text", ["", "KiB", "64 bytes", "-1", "0.3B", "1e400", "64K"])
def test_invalid_sizes_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="is"):
        units.size(text)


@pytest.mark.parametrize("text", ["", "66", "888", "0o660", "00660", "1777", "rw-rw----"])
def test_invalid_modes_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="is not a file mode"):
        units.mode(text)


@given(st.one_of(st.integers(0, 10**12), st.floats(0, 1e12)), st.integers(0, 2**53), st.integers(0, 0o777))
def test_printed_units_are_read_back(seconds: float, size: int, mode: int) -> None:
    assert math.isclose(units.seconds(units.seconds_text(seconds)), seconds, rel_tol=1e-12)
    assert units.size(units.size_text(size)) == size
    assert units.mode(units.mode_text(mode)) == mode


@given(st.text(max_size=50))
def test_any_text_is_read_or_rejected(text: str) -> None:
    for read in (units.seconds, units.size, units.mode):
        with contextlib.suppress(ValueError):
            assert read(text) >= 0
