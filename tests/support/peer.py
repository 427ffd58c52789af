"""A client that sends exactly the bytes of a test, valid or not, and returns the exact reply."""

import json
import socket
import struct
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

import h11
import trio
from wsproto.frame_protocol import Frame, FrameProtocol, Opcode

from support.waiting import PATIENCE

MASK = b"\x11\x22\x33\x44"


class Response(NamedTuple):
    """One HTTP response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self
        return json.loads(self.body)


def request(
    target: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", version: str = "1.1"
) -> bytes:
    """Return a request head. An empty header is omitted."""
    lines = [f"{method} {target} HTTP/{version}"]
    lines += [f"{name}: {value}" for name, value in {"Host": "daemon", **(headers or {})}.items() if value]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def upgrade(target: str = "/ws/jobs", headers: Mapping[str, str] | None = None, **how: str) -> bytes:
    """Return the head of a WebSocket handshake. An empty header is omitted."""
    usual = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    return request(target, {**usual, **(headers or {})}, **how)


def frame(
    opcode: Opcode | int, payload: bytes = b"", *, final: bool = True, reserved: int = 0, masked: bool = True
) -> bytes:
    """Return a client's frame (RFC 6455 §5.2); `reserved` has the three reserved bits."""
    size = len(payload)
    head = bytes([(0x80 if final else 0) | reserved << 4 | opcode])
    masking = 0x80 if masked else 0
    if size < 126:
        head += bytes([masking | size])
    elif size < 65536:
        head += bytes([masking | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([masking | 127]) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    pad = (MASK * (size // 4 + 1))[:size]
    return head + MASK + (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a client's close frame."""
    return frame(Opcode.CLOSE, code.to_bytes(2, "big") + reason.encode())


def frames_in(data: bytes) -> list[tuple[Opcode, bytes]]:
    """Return a server's messages and control frames in order. Fails if a frame is truncated or invalid."""
    client = FrameProtocol(client=True, extensions=[])
    client.receive_bytes(data)
    frames: list[tuple[Opcode, bytes]] = []
    whole = True
    for received in client.received_frames():
        payload = _payload(received)
        if whole:
            frames.append((received.opcode, payload))
        else:
            opcode, begun = frames[-1]
            frames[-1] = opcode, begun + payload
        whole = received.message_finished
    assert whole, "the last frame is cut"
    assert len(data) == sum(len(frame(*one, masked=False)) for one in frames), "bytes are left over"
    return frames


def _payload(received: Frame) -> bytes:
    match received.payload:
        case str() as text:
            return text.encode()
        case (code, reason):  # of a close
            return int(code).to_bytes(2, "big") + reason.encode()
        case data:
            return bytes(data)


class Peer:
    """A client on a plain TCP connection. `patience` is the timeout of each wait, in seconds."""

    def __init__(self, stream: Any, patience: float = PATIENCE) -> None:
        self.stream = stream
        self._patience = patience
        self._http = h11.Connection(h11.CLIENT)
        self._frames = FrameProtocol(client=True, extensions=[])

    async def __aenter__(self) -> "Peer":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stream.aclose()

    async def send(self, data: bytes) -> None:
        with trio.fail_after(self._patience):
            await self.stream.send_all(data)

    async def receive(self, most: int = 65536) -> bytes:
        """Return the next bytes, b"" at the end."""
        with trio.fail_after(self._patience):
            return bytes(await self.stream.receive_some(most))

    async def rest(self) -> bytes:
        """Return all bytes after the last frame until the daemon closes the connection."""
        data = bytes(self._frames._frame_decoder.buffer.buffer)
        while chunk := await self.receive():
            data += chunk
        return data

    async def ask(self, target: str, headers: Mapping[str, str] | None = None, **how: str) -> Response:
        """Send a request without a body, and return its response."""
        await self.send(request(target, headers, **how))
        return await self.response()

    async def response(self) -> Response:
        """Return the next response. Fails if it is incomplete."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        if self._http.our_state is h11.IDLE:  # the request was not sent through h11
            self._http.send(h11.Request(method="GET", target="/", headers=[("Host", "daemon")]))
            self._http.send(h11.EndOfMessage())
        status, headers, body = 0, {}, b""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self.receive())
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                assert isinstance(event, h11.EndOfMessage), event
                return Response(status, headers, body)

    async def open(
        self, target: str = "/ws/jobs", headers: Mapping[str, str] | None = None, behind: bytes = b""
    ) -> bytes:
        """Open a WebSocket; return the head of the response. `behind` is sent in the same segment."""
        return await self.open_with(upgrade(target, headers) + behind)

    async def open_with(self, data: bytes) -> bytes:
        """Send the rest of a handshake; return the head of the response."""
        await self.send(data)
        return await self.opened()

    async def opened(self) -> bytes:
        """Return the head of the response to a handshake. Fails if it is rejected."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = await self.receive(1)
            if not byte:
                raise EOFError(f"the connection ended within the response {head!r}")
            head += byte
        assert head.startswith(b"HTTP/1.1 101 "), head
        return head

    async def next_frame(self, *, hello: bool = False) -> tuple[Opcode, Any]:
        """Return the next message or control frame: text is str, a close is (code, reason).

        Omit `hello`, unless it is wanted. Raises EOFError.
        """
        parts: list[Any] = []
        while True:
            for received in self._frames.received_frames():
                parts.append(received.payload)
                if not received.message_finished:
                    continue
                whole = parts[0] if len(parts) == 1 else "".join(parts)
                if not hello and isinstance(whole, str) and whole.startswith('{"type":"hello"'):
                    parts = []
                    continue
                return received.opcode, whole if isinstance(whole, str | tuple) else bytes(whole)
            data = await self.receive()
            if not data:
                raise EOFError("the connection ended without a close frame")
            self._frames.receive_bytes(data)

    async def close_code(self) -> int:
        """Wait for the close frame, and return its code."""
        while True:
            opcode, payload = await self.next_frame()
            if opcode is Opcode.CLOSE:
                return int(payload[0])

    async def reset(self) -> None:
        """Close the connection with RST."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.stream.aclose()
