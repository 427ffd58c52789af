"""HTTP clients: httpx for valid requests, plain bytes on a socket for others."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio

from support.daemon import PATIENCE, RunningDaemon
from support.submitting import PDF

BOUNDARY = "----boundary"


@asynccontextmanager
async def client_of(running: RunningDaemon) -> AsyncGenerator[httpx.AsyncClient]:
    """Give an HTTP client of the daemon."""
    async with httpx.AsyncClient(base_url=running.url, timeout=PATIENCE, trust_env=False, verify=False) as client:
        yield client


async def exchange(running: RunningDaemon, request: bytes) -> bytes:
    """Send bytes, and return everything until the daemon closes the connection."""
    answer = b""
    async with await running.connect() as stream:
        with trio.fail_after(PATIENCE):
            await stream.send_all(request)
            while chunk := await stream.receive_some():
                answer += chunk
    return answer


def get(path: str, *headers: str) -> bytes:
    """Return a request head."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: progressd", *headers, "\r\n"]).encode()


def part(name: str, content: bytes, disposition: str = "") -> bytes:
    """Return one part of a form; `disposition` follows the name in its header."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{disposition}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def file_part(content: bytes = PDF, filename: str = "book.pdf", name: str = "file") -> bytes:
    """Return a file of a form."""
    return part(name, content, f'; filename="{filename}"')


def options_part(options: object) -> bytes:
    """Return the options of a form: bytes unchanged, anything else as JSON."""
    return part("options", options if isinstance(options, bytes) else json.dumps(options).encode())


def form(*parts: bytes) -> bytes:
    """Return the body of a form."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


FORM_TYPE = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


async def post_form(client: httpx.AsyncClient, *parts: bytes, pipeline: str | None = None) -> httpx.Response:
    """Submit a form with these parts."""
    params = {"pipeline": pipeline} if pipeline else {}
    return await client.post("/api/convert", content=form(*parts), headers=FORM_TYPE, params=params)


class Pieces(httpx.AsyncByteStream):
    """A body that is generated while it is sent."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


async def post_pieces(
    client: httpx.AsyncClient, path: str, pieces: Iterable[bytes], headers: Mapping[str, str]
) -> httpx.Response:
    """Post a body in pieces, chunked unless the headers have its length."""
    framing = {} if "Content-Length" in headers else {"Transfer-Encoding": "chunked"}
    request = httpx.Request(
        "POST",
        client.base_url.join(path),
        headers={"Host": "progressd", **framing, **headers},
        stream=Pieces(pieces),
        extensions={"timeout": httpx.Timeout(2 * PATIENCE).as_dict()},
    )
    return await client.send(request)


def error_of(response: httpx.Response) -> str:
    """Return the message of a JSON error."""
    assert response.headers["Content-Type"] == "application/json"
    body: Mapping[str, Any] = response.json()
    assert body.keys() - {"retry_after"} == {"error", "code"}
    return str(body["error"])
