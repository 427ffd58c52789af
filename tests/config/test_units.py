import contextlib
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.config import units

Read = Callable[[str], float]


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        *(
            (units.seconds, *one)
            for one in [("30", 30), ("500ms", 0.5), ("5min", 300), ("1.5 h", 5400), (" 2H ", 7200)]
        ),
        *((units.size, *one) for one in [("65536", 65536), ("64 kib", 65536), ("0.5KiB", 512), ("2GB", 2 * 10**9)]),
    ],
)
def test_units_are_read(read: Read, text: str, value: float) -> None:
    assert read(text) == value


INVALID: dict[Read, list[str]] = {
    units.seconds: ["", "s", "5 minutes", "-5s", "5s5", "1h30min", "inf", "nan", "0x10", "٣s", "1e400s"],
    units.size: ["", "KiB", "64 bytes", "-1", "0.3B", "1e400", "64K"],
}


@pytest.mark.parametrize(("read", "text"), [(read, text) for read, texts in INVALID.items() for text in texts])
def test_invalid_text_is_rejected(read: Read, text: str) -> None:
    with pytest.raises(ValueError, match="is"):
        read(text)


@given(st.one_of(st.integers(0, 10**12), st.floats(0, 1e12)), st.integers(0, 2**53))
def test_printed_units_are_read_back(seconds: float, size: int) -> None:
    assert math.isclose(units.seconds(units.seconds_text(seconds)), seconds, rel_tol=1e-12)
    assert units.size(units.size_text(size)) == size


@given(st.text(max_size=50))
def test_any_text_is_read_or_rejected(text: str) -> None:
    for read in (units.seconds, units.size):
        with contextlib.suppress(ValueError):
            assert read(text) >= 0
