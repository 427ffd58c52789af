"""HTTP requests of a client: URLs, headers, keys, uploads, and every kind of response."""

import contextlib
import gzip
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from progressd.auth.api_keys import new_secret
from progressd.client.endpoint import DEFAULT_URL, read_key, request_headers
from progressd.client.errors import APIError, ClientError, InvalidKey, InvalidURL, ResponseTimeout
from progressd.client.http import HTTPClient
from progressd.client.rest import MAX_ANSWERS, RestClient, Upload
from support.answering import answer, answering

TIMEOUT = 20.0
INVALID = "is invalid: it contains spaces or other characters that a key cannot have"


@pytest.mark.parametrize(
    ("reply", "error", "sentence"),
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
        (b"SSH-2.0-OpenSSH_9.2\r\nConnection: close\r\n", ClientError, "it does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", ResponseTimeout, "broke: got more than 65536 bytes"),
        (answer(b"<html>", 404), APIError, "answered with HTTP status 404"),
        (answer(b"{}", 429, Retry_After="9" * 5000), APIError, "answered with HTTP status 429"),
        (b"", ResponseTimeout, "broke: Remote end closed connection"),
    ],
    ids=["no gzip", "gzip", "too long", "short", "half a chunk", "no HTTP", "long header", "404", "retry", "closed"],
)
def test_bad_responses_raise_client_errors(reply: bytes, error: type[ClientError], sentence: str) -> None:
    with (
        answering(reply) as server,
        RestClient(server.url, timeout=TIMEOUT) as client,
        pytest.raises(error, match=re.escape(sentence)) as caught,
    ):
        client.exchange([{}])
    assert type(caught.value) is error


@pytest.mark.parametrize("body", [b"<html>", b'{"kind":"\xff"}', b"[" * 100_000])
def test_a_response_must_be_json(body: bytes) -> None:
    with (
        answering(answer(body)) as server,
        RestClient(server.url) as client,
        pytest.raises(ClientError, match=r"is not progressd: it sent no JSON$"),
    ):
        client.job("x")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"error": "no job x"}, "no job x"),
        ({"error": "rate_limit_exceeded", "message": "wait a little"}, "wait a little"),
        (["unexpected"], "URL answered with HTTP status 429"),
    ],
)
def test_an_error_has_the_daemons_sentence(body: object, sentence: str) -> None:
    with (
        answering(answer(json.dumps(body).encode(), 429, Retry_After="7")) as server,
        RestClient(server.url) as client,
        pytest.raises(APIError) as caught,
    ):
        client.job("x")
    assert str(caught.value) == sentence.replace("URL", server.url)
    assert (caught.value.status, caught.value.retry_after) == (429, 7)


def test_a_connection_is_reused_until_closed() -> None:
    with answering(answer(b"{}")) as server, RestClient(server.url) as client:
        for _ in range(3):
            client.job("x")
        assert server.connections == 1
        server.hang_up()
        client.job("x")
        assert server.connections == 2


def test_an_early_response_ends_an_upload() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(65536)

    with answering(answer(b'{"error": "too big"}', 413, Connection="close"), unread=True) as server:
        client = HTTPClient(server.url, None, TIMEOUT, TIMEOUT)
        with pytest.raises(ClientError):
            client.request("POST", "/", endless(), {"Content-Length": str(1 << 40)})


def test_a_daemon_that_never_answers_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with RestClient(url, timeout=0.05) as client, pytest.raises(ClientError, match=r"not answer within 0\.05 sec"):
            client.jobs()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", f"http://{'x' * 70}.example"])
def test_an_unreachable_host_raises_an_error(url: str) -> None:
    with RestClient(url) as client, pytest.raises(ClientError, match="no daemon answers at http"):
        client.job("x")


@pytest.mark.parametrize("url", ["http://a b:1", "http://a\x7f:1", "http:// :1"])
def test_an_invalid_url_is_rejected(url: str) -> None:
    with pytest.raises(InvalidURL, match="is not the address of a daemon"):
        RestClient(url)


def test_job_ids_are_quoted_below_the_base_path() -> None:
    with answering(answer(b"{}")) as server, RestClient(f"{server.url}/base/") as client:
        client.job("../a b?c")
        client.cancel("x")
    lines = [request.partition(b" HTTP")[0] for request in server.requests]
    assert lines == [b"GET /base/api/jobs/..%2Fa%20b%3Fc", b"DELETE /base/api/jobs/x"]


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({}, []),
        ({"options": {"dpi": 300}}, [b"options"]),
        ({"labels": {"team": "scan"}}, [b"labels"]),
        ({"options": {"dpi": 300}, "labels": {"team": "scan"}}, [b"options", b"labels"]),
    ],
)
def test_a_file_is_uploaded_with_its_fields(given: Mapping[str, Any], fields: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / 'a"b\n\udcff.bin'
    path.write_bytes(os.urandom(200_000))
    with answering(answer(b'{"job_id": "x"}')) as server, RestClient(server.url) as client:
        assert client.submit(path, **{"options": {}, "pipeline": "scan it", **given}) == "x"
    [request] = server.requests
    assert request.startswith(b"POST /api/convert?pipeline=scan+it HTTP/1.1\r\n")
    assert b'name="file"; filename="a%22b%0A?.bin"' in request
    assert path.read_bytes() in request
    assert re.findall(rb'form-data; name="(.*?)"', request) == [*fields, b"file"]
    assert request.count(b'name="options"\r\n\r\n{"dpi":300}\r\n') == ("options" in given)


def test_a_file_that_shrinks_is_not_uploaded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file:
        upload = iter(Upload({}, file, "log"))
        next(upload)
        os.truncate(path, 10)
        with pytest.raises(ClientError, match="became shorter during the upload"):
            list(upload)


def test_a_pipe_is_not_uploaded() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    try:
        with RestClient("http://127.0.0.1:1") as client, pytest.raises(OSError, match=r"not seekable|Illegal seek"):
            client.submit(Path(f"/dev/fd/{reading}"), {})
    finally:
        os.close(reading)


def test_a_password_in_the_url_is_hidden() -> None:
    with answering(answer(b"<html>", 502)) as server:
        url = server.url.replace("//", "//me:p%40ss@")
        with RestClient(url) as client, pytest.raises(APIError) as caught:
            client.job("x")
    assert str(caught.value) == f"{server.url} answered with HTTP status 502"
    assert b"Authorization: Basic bWU6cEBzcw==\r\n" in server.requests[0]


def test_a_key_goes_into_the_authorization_header() -> None:
    secret = new_secret()
    assert request_headers("http://me:pass@host", secret)["Authorization"] == f"Bearer {secret}"
    assert "Authorization" not in request_headers(DEFAULT_URL, None)


@given(st.text(min_size=1))
@example("pgd_\r\nX-Evil: 1")
@example("pgd_\x85")
def test_only_valid_keys_are_sent(text: str) -> None:
    with contextlib.suppress(InvalidKey):
        header = request_headers(DEFAULT_URL, text)["Authorization"]
        assert header.isascii()
        assert header.isprintable()
        assert header.split(" ") == ["Bearer", text]


@pytest.mark.parametrize("text", ["pgd_a b", "pgd_a\r\nX-Evil: 1", "pgd_ö", "pgd_\x00"])
def test_the_error_does_not_contain_the_key(text: str) -> None:
    with pytest.raises(InvalidKey, match=f"^the key {INVALID}$"):
        request_headers(DEFAULT_URL, text)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: path.unlink(), "cannot read the key in PATH: No such file or directory"),
        (lambda path: path.write_bytes(b" \n"), "the key in PATH is empty"),
        (lambda path: path.write_bytes(b"pgd_secret\npgd_other\n"), f"the key in PATH {INVALID}"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "PATH does not contain a key"),
    ],
)
def test_a_file_without_a_key_is_named(write: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("pgd_x\n")
    assert read_key(path) == "pgd_x"
    write(path)
    with pytest.raises(InvalidKey) as caught:
        read_key(path)
    assert str(caught.value) == sentence.replace("PATH", str(path))
