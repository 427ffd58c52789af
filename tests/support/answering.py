"""An HTTP server with prepared responses, including invalid ones."""

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any

Answer = bytes | Callable[[bytes], bytes]


class Answering(socketserver.ThreadingTCPServer):
    """Send the responses in order, and repeat the last one. An empty response closes the connection."""

    daemon_threads = True

    def __init__(self, answers: tuple[Answer, ...], *, unread: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.answers = list(answers)
        self.unread = unread  # ignore the bodies of requests
        self.requests: list[bytes] = []
        self.connections = 0
        self.opened: list[socket.socket] = []

    def hang_up(self) -> None:
        """Close all connections, as a daemon closes idle ones."""
        for connection in self.opened:
            connection.shutdown(socket.SHUT_RDWR)

    def next_answer(self, request: bytes) -> bytes:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(request) if callable(answer) else answer


class _Handler(socketserver.StreamRequestHandler):
    server: Answering

    def handle(self) -> None:
        self.server.connections += 1
        self.server.opened.append(self.connection)
        with contextlib.suppress(ConnectionError):
            while request := self._request():
                answer = self.server.next_answer(request)
                self.wfile.write(answer)
                if not answer or b"Connection: close" in answer:
                    return

    def _request(self) -> bytes:
        head = b""
        while (line := self.rfile.readline()) != b"\r\n":
            if not line:
                return b""  # the client has closed the connection
            head += line
        length = re.search(rb"(?i)content-length: (\d+)", head)
        return head + (self.rfile.read(int(length[1])) if length and not self.server.unread else b"")


def answer(body: bytes, status: int = 200, **headers: Any) -> bytes:
    """Return a response with this body."""
    lines = [f"HTTP/1.1 {status} Reason", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.contextmanager
def answering(*answers: Answer, unread: bool = False) -> Iterator[Answering]:
    """Run the server."""
    with Answering(answers, unread=unread) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def taken(request: bytes) -> bytes:
    """Return the response of a daemon that accepts all events."""
    return answer(b'{"ok": true}\n' * request.count(b'"job_id"'), Content_Type="application/x-ndjson")


@contextlib.contextmanager
def unreachable() -> Iterator[str]:
    """Give a URL where connecting times out: the backlog is full, so packets are dropped."""
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
