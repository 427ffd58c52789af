import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from progressd.client.errors import APIError, ClientError, ConnectError
from progressd.client.rest import RestClient


class Answers(HTTPServer):
    """Gives every request the same answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.body = b"{}"
        self.headers: dict[str, str] = {}
        self.asked: list[str] = []
        self.posted = b""
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Answers

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.send_response(self.server.status)
        for name, value in {**self.server.headers, "Content-Length": str(len(self.server.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    do_DELETE = do_GET  # noqa: N815, http.server's name

    def do_POST(self) -> None:
        self.server.posted = self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answers() -> Iterator[Answers]:
    with Answers() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_ids_and_base_paths_are_kept_apart_from_the_path(answers: Answers) -> None:
    with RestClient(f"{answers.url}/base/") as client:
        client.job("../a b?c")
        client.cancel("x")
    assert answers.asked == ["GET /base/api/jobs/..%2Fa%20b%3Fc", "DELETE /base/api/jobs/x"]


@pytest.mark.parametrize(
    ("options", "labels", "fields"),
    [
        ({}, {}, []),
        ({"dpi": 300}, {}, [b"options"]),
        ({}, {"team": "scan"}, [b"labels"]),
        ({"dpi": 300}, {"team": "scan"}, [b"options", b"labels"]),
    ],
)
def test_of_a_file_only_what_was_given_is_sent_along(
    answers: Answers, tmp_path: Path, options: dict[str, object], labels: dict[str, str], fields: list[bytes]
) -> None:
    answers.body = b'{"job_id": "x"}'
    (tmp_path / "book").touch()
    with RestClient(answers.url) as client:
        assert client.submit(tmp_path / "book", options, labels=labels) == "x"
    assert re.findall(rb'form-data; name="(.*?)"', answers.posted) == [*fields, b"file"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"error": "no job x"}, "no job x"),
        ({"error": "rate_limit_exceeded", "message": "wait a little"}, "wait a little"),
        (["unexpected"], "URL answered with HTTP status 429"),
    ],
)
def test_a_refusal_has_the_daemons_sentence(answers: Answers, body: object, sentence: str) -> None:
    answers.status, answers.body, answers.headers = 429, json.dumps(body).encode(), {"Retry-After": "7"}
    with RestClient(answers.url) as client, pytest.raises(APIError) as caught:
        client.job("x")
    assert str(caught.value) == sentence.replace("URL", answers.url)
    assert (caught.value.status, caught.value.retry_after) == (429, 7)


@pytest.mark.parametrize("body", [b"<html>", b'{"kind":"\xff"}', b"[" * 100_000])
def test_what_answers_without_json_is_not_progressd(answers: Answers, body: bytes) -> None:
    answers.body = body
    with RestClient(answers.url) as client, pytest.raises(ClientError, match=r"is not progressd: it sent no JSON$"):
        client.job("x")


def test_nobody_there_is_told_as_such() -> None:
    with RestClient("http://127.0.0.1:1") as client, pytest.raises(ConnectError, match="no daemon answers at http"):
        client.jobs()


def test_a_daemon_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with RestClient(url, timeout=0.05) as client, pytest.raises(ClientError, match=r"no answer within 0\.05 sec"):
            client.jobs()
