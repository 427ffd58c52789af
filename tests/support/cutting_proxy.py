"""A proxy that cuts connections at given bytes, or holds them, like a bad network.

with CuttingProxy(daemon.port) as proxy:
    proxy.cuts = [("up", 1000), ("down", 1)]  # of the first two connections
    upload(proxy.url)
"""

import contextlib
import math
import socket
import struct
import threading
from types import TracebackType

RESET = struct.pack("ii", 1, 0)


class CuttingProxy:
    """Forward connections to a port of this machine. Call `cut` for those that are open."""

    def __init__(self, port: int) -> None:
        self.cuts: list[tuple[str, int]] = []  # of the next connections: "up" or "down", and the bytes before the cut
        self.hold_after = math.inf  # bytes of a connection to the server, after which it waits until `cut` or `release`
        self._released = threading.Event()
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        """Return its URL."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "CuttingProxy":
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        self.release()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def cut(self) -> None:
        """Reset all connections."""
        for sock in tuple(self._open):
            _reset(sock)

    def release(self) -> None:
        """Hold nothing any longer."""
        self.hold_after = math.inf
        self._released.set()

    def _start(self, function: object, *given: object) -> None:
        thread = threading.Thread(target=function, args=given)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._port))
                except OSError:  # the daemon is not running
                    _reset(client)
                    continue
                self._open += [client, server]
                direction, size = self.cuts.pop(0) if self.cuts else ("", 0)
                ended = [client, server]  # closed when both directions have ended
                self._start(self._pump, client, server, size if direction == "up" else math.inf, True, ended)
                self._start(self._pump, server, client, size if direction == "down" else math.inf, False, ended)

    def _pump(
        self, source: socket.socket, target: socket.socket, cut_after: float, uplink: bool, ended: list[socket.socket]
    ) -> None:
        passed = 0
        try:
            while data := source.recv(65536):
                if uplink and passed >= self.hold_after:
                    self._released.wait()
                left = cut_after - passed
                target.sendall(data[: int(min(len(data), left))])
                passed += len(data)
                if passed >= cut_after:
                    raise ConnectionResetError
            if self.hold_after < math.inf and not uplink:  # the server would reset it, but sees no more data
                raise ConnectionResetError
            target.shutdown(socket.SHUT_WR)
        except OSError:
            _reset(source)
            _reset(target)
        finally:
            ended.remove(source)
            if not ended:
                for sock in (source, target):
                    self._open.remove(sock)
                    sock.close()


def _reset(sock: socket.socket) -> None:
    """Reset a connection, also for a thread that waits for it."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
    sock.close()
