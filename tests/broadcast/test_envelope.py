import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.broadcast.envelope import PING, text_frame
from support.peer import frames_in
from wsproto.frame_protocol import FrameProtocol, Opcode


def written_by_wsproto(payload: bytes) -> bytes:
    return FrameProtocol(client=False, extensions=[]).send_data(payload.decode(), fin=True)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 65537, 200_000])
def test_text_frames_equal_those_of_wsproto(size: int) -> None:
    payload = b"x" * size
    assert text_frame(payload) == written_by_wsproto(payload)
    assert frames_in(text_frame(payload)) == [(Opcode.TEXT, payload)]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_a_frame(text: str) -> None:
    payload = text.encode()
    assert text_frame(payload) == written_by_wsproto(payload)
    assert frames_in(text_frame(payload)) == [(Opcode.TEXT, payload)]


@given(st.lists(st.sampled_from([b"", b"{}", b"x" * 125, b"x" * 126, b"x" * 65535, b"x" * 65536]), max_size=6))
def test_joined_frames_are_parsed_separately(payloads: list[bytes]) -> None:
    data = PING.join(map(text_frame, payloads))
    texts = [payload for opcode, payload in frames_in(data) if opcode is Opcode.TEXT]
    assert texts == payloads


def test_the_ping_is_empty() -> None:
    assert frames_in(PING) == [(Opcode.PING, b"")]
