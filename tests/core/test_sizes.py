import pytest
from progressd.core.sizes import readable_size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1 MiB"),
        (40_000_361, "38.1 MiB"),
        (500 << 20, "500 MiB"),
        (3 << 40, "3 TiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_a_size_is_readable(size: int, text: str) -> None:
    assert readable_size(size) == text
