"""What a client sees of the bytes a server sends, read by wsproto's own frame protocol."""

from wsproto.frame_protocol import Frame, FrameProtocol, Opcode


def frames_in(data: bytes) -> list[tuple[Opcode, bytes]]:
    """The whole messages and control frames in a server's bytes, in order; fails where a frame is cut or malformed."""
    client = FrameProtocol(client=True, extensions=[])
    client.receive_bytes(data)
    frames: list[tuple[Opcode, bytes]] = []
    whole = True
    for frame in client.received_frames():
        payload = _payload(frame)
        if whole:
            frames.append((frame.opcode, payload))
        else:
            opcode, begun = frames[-1]
            frames[-1] = opcode, begun + payload
        whole = frame.message_finished
    assert whole, "the last frame is cut"
    assert len(data) == sum(map(written_length, frames)), "bytes are left over"
    return frames


def written_length(frame: tuple[Opcode, bytes]) -> int:
    """How many bytes a server writes for a frame: a header of 2, 4 or 10, and no mask."""
    size = len(frame[1])
    return size + (2 if size < 126 else 4 if size < 65536 else 10)


def _payload(frame: Frame) -> bytes:
    match frame.payload:
        case str() as text:
            return text.encode()
        case (code, reason):  # of a close
            return int(code).to_bytes(2, "big") + reason.encode()
        case data:
            return bytes(data)
