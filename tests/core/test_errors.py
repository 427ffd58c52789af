"""The texts of errors: sizes, and the reasons of a decoder."""

import msgspec
import pytest
from progressd.core.errors import InvalidInput, readable_size
from progressd.core.json import decode
from progressd.core.messages import JobStatus


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


def test_an_invalid_status_lists_the_valid_ones() -> None:
    reading = msgspec.json.Decoder(msgspec.defstruct("Asked", [("new_status", JobStatus)])).decode
    with pytest.raises(InvalidInput) as refused:
        decode(reading, b'{"new_status":"done"}', "an event")
    assert str(refused.value) == (
        "not an event: Invalid enum value 'done' - at `$.new_status`, where one of queued, processing, completed,"
        " failed, cancelled is expected"
    )
