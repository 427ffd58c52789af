"""The Unix socket: producers of this host write lines, and are answered where they ask (`ref`) or err."""

import socket
import struct
from typing import Final

import structlog
import trio
from msgspec import UNSET

from progressd.core.messages import encode
from progressd.ingest import Ingest
from progressd.producers.intake import take_lines
from progressd.producers.lines import LineSplitter, NumberedLine

CHUNK: Final = 65536  # bytes read at once; some 400 lines, which then are one batch

log = structlog.get_logger(__name__)


class UnixSocket:
    """Serves producers until cancelled."""

    def __init__(self, ingest: Ingest, max_line_bytes: int) -> None:
        self._ingest = ingest
        self._max_line_bytes = max_line_bytes

    async def run(self, listening: socket.socket) -> None:
        """Accept producers on a bound socket."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        """The boundary of one producer."""
        pid, uid, _ = struct.unpack("3i", stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        log.debug("producer connected", pid=pid, uid=uid)
        splitter = LineSplitter(self._max_line_bytes)
        try:
            async with stream:
                async for chunk in stream:
                    await self._take(splitter.feed(bytes(chunk)), stream)
                await self._take(splitter.end(), stream)
        except* (OSError, trio.BrokenResourceError):
            log.debug("producer left without reading its answers", pid=pid)
        except* Exception as group:
            log.error("producer failed", pid=pid, error=repr(group.exceptions[0]), exc_info=group)

    async def _take(self, lines: list[NumberedLine], stream: trio.SocketStream) -> None:
        answers = await take_lines(self._ingest, lines)
        told = [encode(answer) + b"\n" for answer in answers if not answer.ok or answer.ref is not UNSET]
        if told:
            await stream.send_all(b"".join(told))
