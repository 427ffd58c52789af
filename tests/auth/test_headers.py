"""What every answer over HTTP has, so that browsers make nothing else of it; and names and JSON that mean harm."""

import httpx
import pytest
from support.daemon import RunningDaemon
from support.http_client import client_of, get
from support.peer import Peer, request, upgrade

PATHS = ["/", "/static/main.js", "/api/health", "/api/jobs", "/api/jobs/x", "/api/no", "/ws", "/api/metrics"]
NAMES = ["a\r\nX-Evil: 1", "%0d%0aX-Evil: 1", "../../etc/passwd", "a\x00b", "\u2028", "<script>"]


def is_safe(headers: httpx.Headers) -> None:
    policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Opener-Policy"] == headers["Cross-Origin-Resource-Policy"] == "same-origin"


async def test_every_answer_is_safe_in_a_browser(daemon: RunningDaemon) -> None:
    async with client_of(daemon) as client:
        for path in PATHS:
            is_safe((await client.get(path)).headers)
            is_safe((await client.put(path)).headers)
            is_safe((await client.get(path, headers={"Host": "evil.example"})).headers)


async def test_reads_ahead_of_the_application_are_too(daemon: RunningDaemon) -> None:
    async with client_of(daemon) as client:
        job = (await client.post("/api/jobs", json={})).json()["id"]
        read = await client.get(f"/api/jobs/{job}")
        is_safe(read.headers)
        is_safe((await client.get(f"/api/jobs/{job}", headers={"If-None-Match": read.headers["ETag"]})).headers)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (request("/api/jobs", {"A": "x" * 20_000}), 431),
        (request("/api/jobs", {"Transfer-Encoding": "gzip"}, method="POST"), 501),
        (upgrade("/ws/jobs/x"), 400),
        (upgrade("/ws/jobs", {"Origin": "http://evil.example"}), 403),
    ],
    ids=["no request", "a long head", "an unknown coding", "a handshake", "a foreign handshake"],
)
async def test_so_are_those_that_no_handler_gives(daemon: RunningDaemon, said: bytes, status: int) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(said)
        answer = await peer.response()
        assert answer.status == status
        is_safe(httpx.Headers(answer.headers))


async def test_a_file_name_is_neither_a_header_nor_a_path(daemon: RunningDaemon) -> None:
    async with client_of(daemon) as client:
        for name in NAMES:
            made = await client.post("/api/jobs", json={"input_filename": name})
            assert made.status_code == 201
            answer = await client.get(f"/api/jobs/{made.json()['id']}")
            assert answer.json()["input_filename"] == name
            assert "X-Evil" not in answer.headers


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/%00"]
)
async def test_no_path_leads_out_of_the_pages_files(daemon: RunningDaemon, path: str) -> None:
    async with Peer(await daemon.connect()) as peer:
        await peer.send(get(path))
        assert (await peer.response()).status in (400, 404)


@pytest.mark.parametrize("depth", [100, 10_000, 100_000])
async def test_json_that_is_nested_deeply_is_an_answer(daemon: RunningDaemon, depth: int) -> None:
    async with client_of(daemon) as client:
        for path in ("/api/jobs", "/api/events"):
            body = '{"options": ' + '{"a":' * depth + "1" + "}" * depth + "}"
            response = await client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == 400, response.text


async def test_keys_that_would_collide_are_an_answer_soon(daemon: RunningDaemon) -> None:
    async with client_of(daemon) as client:
        options = {str(number * (2**61 - 1)): number for number in range(2_000)}
        response = await client.post("/api/jobs", json={"options": options})
        assert response.status_code in (201, 400, 413)
