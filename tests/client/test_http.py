"""One HTTP connection to a daemon, and to what is none."""

import gzip
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from progressd.client.errors import APIError, ClientError, InvalidURL, ResponseTimeout
from progressd.client.http import HTTPClient
from progressd.client.multipart import Upload
from progressd.client.rest import MAX_ANSWERS, RestClient
from support.answering import answer, answering

TIMEOUT = 20.0


@pytest.mark.parametrize(
    ("reply", "error", "complaint"),
    [
        (answer(b"nonsense", Content_Encoding="gzip"), ClientError, "it sent no JSON"),
        (answer(gzip.compress(b"{}"), Content_Encoding="gzip"), ClientError, "it sent no JSON"),
        (answer(b"{}" + b" " * MAX_ANSWERS), ClientError, f"it sent more than {MAX_ANSWERS} bytes"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{}",
            ResponseTimeout,
            "broke: IncompleteRead(2 bytes read, 7 more",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\n{}",
            ResponseTimeout,
            "broke: IncompleteRead",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\nConnection: close\r\n", ClientError, "it speaks no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", ResponseTimeout, "broke: got more than 65536 bytes"),
        (answer(b"<html>", 404), APIError, "answered with HTTP status 404"),
        (answer(b"{}", 429, Retry_After="9" * 5000), APIError, "answered with HTTP status 429"),
        (b"", ResponseTimeout, "broke: Remote end closed connection"),
    ],
    ids=["no gzip", "gzip", "too long", "short", "half a chunk", "no HTTP", "long header", "404", "retry", "closed"],
)
def test_any_answer_ends_in_an_error_of_the_client(reply: bytes, error: type[ClientError], complaint: str) -> None:
    with (
        answering(reply) as server,
        RestClient(server.url, timeout=TIMEOUT) as client,
        pytest.raises(error, match=re.escape(complaint)) as caught,
    ):
        client.exchange([{}])
    assert type(caught.value) is error


def test_a_connection_is_used_again_until_the_daemon_has_closed_it() -> None:
    with answering(answer(b"{}")) as server, RestClient(server.url) as client:
        for _ in range(3):
            client.job("x")
        assert server.connections == 1
        server.hang_up()
        client.job("x")
        assert server.connections == 2


def test_a_request_that_is_rejected_before_it_is_read_has_its_reason() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(65536)

    refusal = answer(b'{"error": "too big"}', 413, Connection="close")
    with answering(refusal, unread=True) as server:
        client = HTTPClient(server.url, None, TIMEOUT, TIMEOUT)
        with pytest.raises(ClientError):
            client.request("POST", "/", endless(), {"Content-Length": str(1 << 40)})
        assert client._http.sock is None


def test_a_password_in_the_address_is_for_a_proxy_and_is_not_shown() -> None:
    with answering(answer(b"<html>", 502)) as server:
        url = server.url.replace("//", "//me:p%40ss@")
        with RestClient(url) as client, pytest.raises(APIError) as caught:
            client.job("x")
    assert str(caught.value) == f"{server.url} answered with HTTP status 502"
    assert b"Authorization: Basic bWU6cEBzcw==\r\n" in server.requests[0]


@pytest.mark.parametrize("url", ["http://a b:1", "http://a\x7f:1", "http:// :1"])
def test_an_address_that_cannot_be_one_is_named(url: str) -> None:
    with pytest.raises(InvalidURL, match="is not the address of a daemon"):
        RestClient(url)


def test_a_host_name_that_is_too_long_is_nobody() -> None:
    with RestClient(f"http://{'x' * 70}.example") as client, pytest.raises(ClientError, match="no daemon answers"):
        client.job("x")


def test_a_file_is_uploaded_byte_by_byte_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / 'a"b\n\udcff.bin'
    path.write_bytes(os.urandom(200_000))
    with answering(answer(b'{"job_id": "x"}')) as server, RestClient(server.url) as client:
        assert client.submit(path, {"dpi": 300}, "scan it") == "x"
    [request] = server.requests
    assert request.startswith(b"POST /api/convert?pipeline=scan+it HTTP/1.1\r\n")
    assert b'name="file"; filename="a%22b%0A?.bin"' in request
    assert path.read_bytes() in request
    assert request.count(b'name="options"\r\n\r\n{"dpi":300}\r\n') == 1


def test_a_file_that_shrinks_while_it_is_sent_is_not_uploaded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(bytes(1 << 20))

    with path.open("rb") as file:
        upload = iter(Upload({}, file, "log"))
        next(upload)
        os.truncate(path, 10)
        with pytest.raises(ClientError, match="has become shorter while it was sent"):
            list(upload)


def test_a_pipe_is_not_uploaded_as_an_empty_file(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    try:
        with RestClient("http://127.0.0.1:1") as client, pytest.raises(OSError, match=r"not seekable|Illegal seek"):
            client.submit(Path(f"/dev/fd/{reading}"), {})
    finally:
        os.close(reading)
