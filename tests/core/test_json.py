import msgspec
import pytest
from progressd.core.errors import InvalidInput
from progressd.core.json import decode
from progressd.core.messages import JobStatus


def test_an_invalid_status_lists_the_valid_ones() -> None:
    reading = msgspec.json.Decoder(msgspec.defstruct("Asked", [("new_status", JobStatus)])).decode
    with pytest.raises(InvalidInput) as refused:
        decode(reading, b'{"new_status":"done"}', "an event")
    assert str(refused.value) == (
        "not an event: Invalid enum value 'done' - at `$.new_status`, where one of queued, processing, completed,"
        " failed, cancelled is expected"
    )
