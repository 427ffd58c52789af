"""Parse the bytes of a server with wsproto's frame protocol."""

from wsproto.frame_protocol import Frame, FrameProtocol, Opcode


def frames_in(data: bytes) -> list[tuple[Opcode, bytes]]:
    """Return the messages and control frames in order. Fails if a frame is truncated or invalid."""
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
    """Return the size of an unmasked frame: its header has 2, 4 or 10 bytes."""
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
