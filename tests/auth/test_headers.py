"""Security headers of every response, and hostile paths and JSON."""

from itertools import product

import httpx
from support.daemon import RunningDaemon
from support.http_client import client_of
from support.peer import Peer, request, upgrade

PATHS = ["/", "/static/main.js", "/api/health", "/api/jobs", "/api/jobs/x", "/api/no", "/ws", "/api/metrics"]


def is_safe(headers: httpx.Headers, resource_policy: str = "same-origin") -> None:
    policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["base-uri"] == policy["script-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Resource-Policy"] == resource_policy


async def test_every_response_has_the_security_headers(daemon: RunningDaemon) -> None:
    async with client_of(daemon) as client:
        for path in PATHS:
            policy = "cross-origin" if path.startswith("/static/") else "same-origin"
            is_safe((await client.get(path)).headers, policy)
            is_safe((await client.put(path)).headers, policy)
            is_safe((await client.get(path, headers={"Host": "evil.example"})).headers, policy)
        job = (await client.post("/api/jobs", json={})).json()["id"]
        read = await client.get(f"/api/jobs/{job}")
        is_safe(read.headers)
        is_safe((await client.get(f"/api/jobs/{job}", headers={"If-None-Match": read.headers["ETag"]})).headers)
    for sent, status in (
        (b"nonsense\r\n\r\n", 400),
        (request("/api/jobs", {"A": "x" * 20_000}), 431),
        (request("/api/jobs", {"Transfer-Encoding": "gzip"}, method="POST"), 501),
        (request("/api/convert", {"Content-Length": "9" * 5000}, method="POST"), 400),
        (upgrade("/ws/jobs/x"), 400),
        (upgrade("/ws/jobs", {"Origin": "http://evil.example"}), 403),
    ):
        async with Peer(await daemon.connect()) as peer:
            await peer.send(sent)
            answer = await peer.response()
            assert answer.status == status
            is_safe(httpx.Headers(answer.headers))


async def test_deeply_nested_json_is_rejected(daemon: RunningDaemon) -> None:
    async with client_of(daemon) as client:
        for path, depth in product(("/api/jobs", "/api/events"), (100, 10_000, 100_000)):
            body = '{"options": ' + '{"a":' * depth + "1" + "}" * depth + "}"
            response = await client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == 400, response.text


async def test_colliding_json_keys_do_not_hang(daemon: RunningDaemon) -> None:
    async with client_of(daemon) as client:
        options = {str(number * (2**61 - 1)): number for number in range(2_000)}
        response = await client.post("/api/jobs", json={"options": options})
        assert response.status_code in (201, 400, 413)
