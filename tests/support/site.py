"""A web site of its own origin, whose pages show jobs of a daemon.

with site() as (url, pages):
    pages["/"] = "<!doctype html>…"
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

TYPES = {"js": "text/javascript", "json": "application/json", "txt": "text/plain"}


@contextmanager
def site() -> Iterator[tuple[str, dict[str, str]]]:
    """Serve pages from a dict by path, on any free port. Gives the origin and the dict."""
    pages: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            body = pages.get(path, "").encode()
            self.send_response(200 if path in pages else 204)
            self.send_header("Content-Type", TYPES.get(path.rpartition(".")[2], "text/html") + "; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", pages
        finally:
            server.shutdown()
            thread.join()
