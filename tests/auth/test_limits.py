"""Limits per client: requests, uploads and connections, and the address that counts."""

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from progressd.auth.authenticator import ANONYMOUS, Client, Identity
from progressd.auth.limits import MAX_BUCKETS, ConnectionLimiter, RateLimiter, address_group, client_address
from progressd.config.settings import Limits
from progressd.core.errors import (
    RateLimited,
    TooManyConnections,
    TooManyOfAddress,
    TooManyOfKey,
    Unavailable,
)
from support import keys
from support.daemon import RunningDaemon, running_daemon, settings_in
from support.http_client import FORM_TYPE, client_of, file_part, post_form
from support.keys import bearer
from support.peer import Peer, request
from support.submitting import PDF
from support.waiting import eventually
from trio.testing import MockClock

FEW = {"rate_limit_per_minute": 60, "rate_limit_burst": 3, "exempt_addresses": ()}
PROXY = ("10.0.0.0/8", "::1")


class Bucket:
    """A rate limiter with its own clock."""

    def __init__(self, per_minute: int = 60, burst: int = 3) -> None:
        limits = {"rate_limit_per_minute": per_minute, "rate_limit_burst": burst}
        self.limiter = RateLimiter(settings_in(Path("unused"), limits=limits), clock=lambda: self.now)
        self.now = 0.0

    def take(self, address: str = "192.0.2.1") -> int:
        state = self.limiter.take(Client(address, ANONYMOUS))
        assert state is not None
        return state.remaining


def test_a_burst_and_then_one_a_second() -> None:
    bucket = Bucket()
    assert [bucket.take() for _ in range(3)] == [2, 1, 0]
    bucket.now = 0.5
    with pytest.raises(RateLimited) as rejected:
        bucket.take()
    assert rejected.value.retry_after == 1
    bucket.now = 1
    assert bucket.take() == 0
    assert bucket.take("192.0.2.2") == 2
    bucket.now = 100
    assert bucket.limiter.state(Client("192.0.2.1", ANONYMOUS)).remaining == 3


@given(st.lists(st.floats(0, 5), max_size=50), st.integers(1, 600), st.integers(1, 20))
def test_retry_after_is_enough_and_the_rate_holds(pauses: list[float], per_minute: int, burst: int) -> None:
    bucket = Bucket(per_minute, burst)
    for pause in pauses:
        bucket.now += pause
        try:
            bucket.take()
        except RateLimited as error:
            bucket.now += error.retry_after
            bucket.take()
    assert len(pauses) <= burst + bucket.now * per_minute / 60 + 1e-6


def test_keys_have_a_bucket_and_watch_tokens_none() -> None:
    limiter = Bucket().limiter
    for address in ("192.0.2.1", "192.0.2.3"):
        limiter.take(Client(address, Identity(key="a key")))
    limiter.take(Client("192.0.2.1", Identity(key="a key", token="a token")))
    assert limiter.state(Client("192.0.2.1", ANONYMOUS)).remaining == 2
    assert limiter.state(Client("192.0.2.2", Identity(key="a key"))).remaining == 1


def test_buckets_are_limited_in_number() -> None:
    bucket = Bucket()
    for number in range(MAX_BUCKETS + 1):
        bucket.take(f"client {number}")
    remaining = [bucket.limiter.state(Client(f"client {number}", ANONYMOUS)).remaining for number in (0, 1)]
    assert remaining == [3, 2]


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("192.0.2.1", {"x-forwarded-for": "1.1.1.1"}, "192.0.2.1"),
        ("10.0.0.1", {}, "10.0.0.1"),
        ("10.0.0.1", {"x-forwarded-for": "192.0.2.7"}, "192.0.2.7"),
        ("::ffff:10.0.0.1", {"x-forwarded-for": "192.0.2.7"}, "192.0.2.7"),
        ("10.0.0.1", {"x-forwarded-for": "1.1.1.1, 192.0.2.7"}, "192.0.2.7"),
        ("10.0.0.1", {"x-forwarded-for": "1.1.1.1, 192.0.2.7, 10.0.0.2"}, "192.0.2.7"),
        ("10.0.0.1", {"x-forwarded-for": "10.0.0.3, 10.0.0.2"}, "10.0.0.3"),
        ("10.0.0.1", {"x-forwarded-for": "192.0.2.7:4711"}, "192.0.2.7"),
        ("10.0.0.1", {"x-forwarded-for": "1.1.1.1, nonsense"}, "10.0.0.1"),
        ("10.0.0.1", {"x-forwarded-for": ""}, "10.0.0.1"),
        ("10.0.0.1", {"x-forwarded-for": "192.0.2.7", "forwarded": "for=1.1.1.1"}, "192.0.2.7"),
        ("10.0.0.1", {"forwarded": "for=1.1.1.1"}, "10.0.0.1"),
        ("unix", {"x-forwarded-for": "1.1.1.1"}, "unix"),
    ],
)
def test_the_client_is_the_last_untrusted_address(peer: str, headers: dict[str, str], client: str) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert client_address(peer, raw, PROXY) == client


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff:ffff:ffff:ffff", "2001:db8:0:1::/64"),
        ("2001:db8:0:2::1", "2001:db8:0:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unix", "unix"),
        ("a:b", "a:b"),
    ],
)
def test_ipv6_addresses_count_as_their_64(address: str, counted: str) -> None:
    assert address_group(address) == counted


async def statuses(client: httpx.AsyncClient, count: int, **headers: str) -> list[int]:
    return [(await client.get("/api/jobs", headers=headers)).status_code for _ in range(count)]


async def test_too_many_requests_return_429(slow_clock: MockClock, tmp_path: Path) -> None:
    async with running_daemon(tmp_path, limits=FEW) as daemon, client_of(daemon) as client:
        first = await client.get("/api/jobs")
        assert (first.headers["X-RateLimit-Limit"], first.headers["X-RateLimit-Remaining"]) == ("60", "2")
        assert await statuses(client, 2) == [200, 200]
        rejected = await client.get("/api/jobs")
        assert (rejected.status_code, rejected.headers["Retry-After"]) == (429, "1")
        assert (rejected.headers["X-RateLimit-Limit"], rejected.headers["X-RateLimit-Remaining"]) == ("60", "0")
        assert rejected.json().keys() == {"error", "message", "retry_after", "code"}
        assert rejected.json()["error"] == "rate_limit_exceeded"
        assert await statuses(client, 1) == [429]
        assert (await client.get("/api/health")).status_code == 200
        assert (await client.get("/")).status_code == 200
        slow_clock.jump(1)
        assert (await client.get("/api/rate-limit/status")).json()["your_remaining"] == 0
        slow_clock.jump(1)
        job = (await client.post("/api/jobs", json={})).json()["id"]
        assert (await client.get(f"/api/jobs/{job}")).status_code == 429  # a fast read counts, too
        slow_clock.jump(1)
        assert (await client.get(f"/api/jobs/{job}")).headers["X-RateLimit-Remaining"] == "0"
        assert daemon.daemon.services.metrics.rejected == {"429": 3}


async def test_keys_and_proxied_clients_have_their_own_buckets(slow_clock: MockClock, tmp_path: Path) -> None:
    secret = keys.add(tmp_path / "state/keys.json", "ci")
    server = {"port": 0, "trusted_proxies": ("127.0.0.1",)}
    async with running_daemon(tmp_path, limits=FEW, server=server) as daemon, client_of(daemon) as client:
        assert await statuses(client, 4, **{"X-Forwarded-For": "192.0.2.1"}) == [200, 200, 200, 429]
        assert await statuses(client, 4, **{"X-Forwarded-For": "192.0.2.2"}) == [200, 200, 200, 429]
        assert await statuses(client, 1, **{"X-Forwarded-For": "192.0.2.2", "Forwarded": "for=127.0.0.1"}) == [429]
        assert await statuses(client, 4, **bearer(secret)) == [200, 200, 200, 429]
        assert await statuses(client, 2, **{"X-API-Key": "wrong"}) == [401, 401]


async def test_a_handshake_counts_as_a_request(slow_clock: MockClock, tmp_path: Path) -> None:
    async with running_daemon(tmp_path, limits=FEW) as daemon, client_of(daemon) as client:
        for _ in range(2):
            async with daemon.watch():
                pass
        async with client.stream("GET", "/api/events") as events:
            assert events.headers["X-RateLimit-Remaining"] == "0"
        rejection = await daemon.rejected()
        assert rejection.status_code == 429
        assert dict(rejection.headers)[b"retry-after"] == b"1"
        assert json.loads(rejection.body)["error"] == "rate_limit_exceeded"
        await eventually(lambda: daemon.daemon.connection_log.counts["rejected", "rate limited"] == 1)
        assert (await client.get("/api/jobs")).status_code == 429
        async with daemon.watch(local="127.0.0.2"):
            pass


async def test_addresses_of_one_ipv6_64_share_all_limits(slow_clock: MockClock, tmp_path: Path) -> None:
    limits = {**FEW, "max_connections_per_address": 1, "max_uploads_per_address": 1}
    server = {"trusted_proxies": ("127.0.0.1",)}
    async with running_daemon(tmp_path, limits=limits, server=server) as daemon, client_of(daemon) as client:
        for subnet, codes in ((1, [200, 200, 200, 429]), (2, [200, 200, 200, 429])):
            asked = [{"X-Forwarded-For": f"2001:db8:0:{subnet}::{number}"} for number in range(4)]
            assert [(await client.get("/api/jobs", headers=one)).status_code for one in asked] == codes
        ours, more, others = [{"X-Forwarded-For": f"2001:db8:0:{end}"} for end in ("3::1", "3::2", "4::1")]
        async with daemon.watch(headers=ours):
            await daemon.rejected(headers=more)
            async with daemon.watch(headers=others):
                pass
        async with Peer(await daemon.connect()) as slow:
            await slow.send(request("/api/convert", {**FORM_TYPE, **others, "Content-Length": "999"}, method="POST"))
            await eventually(lambda: len(daemon.daemon.services.transfers.uploads) == 1)
            assert [upload.client for upload in daemon.daemon.services.transfers.uploads] == ["2001:db8:0:4::/64"]


async def test_exempt_addresses_have_no_rate_limit(daemon: RunningDaemon) -> None:
    async with client_of(daemon) as client:
        assert await statuses(client, 30) == [200] * 30
        status = (await client.get("/api/rate-limit/status")).json()
        assert (status["enabled"], status["requests_per_minute"], status["burst_size"]) == (False, 60, 10)


async def test_concurrent_uploads_are_limited(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, limits={"max_uploads": 1}) as daemon, client_of(daemon) as client:
        async with Peer(await daemon.connect()) as slow:
            await slow.send(request("/api/convert", {**FORM_TYPE, "Content-Length": "1000"}, method="POST"))
            await eventually(lambda: len(daemon.daemon.services.transfers.uploads) == 1)
            rejected = await post_form(client, file_part())
            assert (rejected.status_code, rejected.headers["Retry-After"]) == (503, "5")
        await eventually(lambda: len(daemon.daemon.services.transfers.uploads) == 0)
        assert (await post_form(client, file_part())).status_code == 202


async def test_connections_per_address_are_limited(tmp_path: Path) -> None:
    limits = {"max_sockets_per_address": 2, "exempt_addresses": ()}
    async with running_daemon(tmp_path, limits=limits) as daemon:
        first, second = [Peer(await daemon.connect()) for _ in range(2)]
        assert (await first.ask("/api/health")).status == 200
        assert (await second.ask("/api/health")).status == 200
        async with Peer(await daemon.connect()) as third, Peer(await daemon.connect(local="127.0.0.2")) as other:
            assert await third.rest() == b""
            assert (await other.ask("/api/health")).status == 200
        await first.stream.aclose()
        await eventually(lambda: daemon.daemon.connection_log.open == 1)
        async with Peer(await daemon.connect()) as again:
            assert (await again.ask("/api/health")).status == 200
        await second.stream.aclose()
        assert daemon.daemon.connection_log.counts["rejected", "too many sockets of address"] == 1


async def test_trusted_proxies_have_no_connection_limit(tmp_path: Path) -> None:
    limits = {"max_sockets_per_address": 2, "exempt_addresses": (), "max_connections_per_address": 1}
    server = {"port": 0, "trusted_proxies": ("127.0.0.3",)}
    async with running_daemon(tmp_path, limits=limits, server=server) as daemon, AsyncExitStack() as stack:
        for number in range(4):
            headers = {"X-Forwarded-For": f"192.0.2.{number}"}
            proxied = Peer(await daemon.connect(local="127.0.0.3"))
            stack.push_async_exit(proxied)
            assert (await proxied.ask("/api/health", headers)).status == 200
            await stack.enter_async_context(daemon.watch(headers=headers, local="127.0.0.3"))
        await daemon.rejected(headers=headers, local="127.0.0.3")


async def test_rejections_by_routes_are_in_the_metrics(tmp_path: Path) -> None:
    given: Any = {"limits": {"max_stored_bytes": 500, "max_connections": 1}, "ingest": {"max_line_bytes": 1000}}
    async with running_daemon(tmp_path, **given) as daemon, client_of(daemon) as client, daemon.watch():
        answers = [
            await client.post("/api/events", content=b" " * 2000),
            await post_form(client, file_part(b"no PDF")),
            await post_form(client, file_part(PDF.ljust(900))),
            await client.get("/api/events"),
            await client.get("/api/jobs/nonsense"),  # not counted
        ]
        assert [answer.status_code for answer in answers] == [413, 415, 507, 503, 400]
        text = (await client.get("/api/metrics")).text
    counted = [line for line in text.splitlines() if line.startswith("progressd_requests_rejected_total")]
    assert counted == [f'progressd_requests_rejected_total{{status="{status}"}} 1.0' for status in (413, 415, 503, 507)]


# connections

DEFAULTS = Limits()
ELSEWHERE = "198.51.100.7"
KEY = Identity(key="a key")
TOKEN = Identity(key="a key", token="a token")


HERE, MAX = Client("127.0.0.1", ANONYMOUS), DEFAULTS.max_connections  # an exempt address


def fill(limiter: ConnectionLimiter, client: Client) -> tuple[int, type[Unavailable]]:
    """Add connections until the limit. Return their number, and the error."""
    added = 0
    try:
        while True:
            limiter.check(client)
            limiter.add(client)
            added += 1
    except Unavailable as error:
        return added, type(error)


@pytest.mark.parametrize(
    ("client", "most", "error"),
    [
        (HERE, MAX, TooManyConnections),
        (Client(ELSEWHERE, ANONYMOUS), DEFAULTS.max_connections_per_address, TooManyOfAddress),
        (HERE._replace(identity=KEY), DEFAULTS.max_connections_per_key, TooManyOfKey),
        (HERE._replace(identity=TOKEN), DEFAULTS.max_connections_per_token, TooManyOfKey),
    ],
    ids=["all", "address", "key", "token"],
)
def test_one_client_cannot_take_the_connections_of_others(
    tmp_path: Path, client: Client, most: int, error: type[Unavailable]
) -> None:
    limiter = ConnectionLimiter(settings_in(tmp_path))
    assert fill(limiter, client) == (most, error)
    limiter.remove(client)
    assert fill(limiter, client) == (1, error)
    assert fill(limiter, HERE) == (MAX - most, TooManyConnections)
    assert fill(limiter, HERE._replace(publishes=True)) == (MAX, TooManyConnections)


def test_tokens_share_the_connections_of_their_key(tmp_path: Path) -> None:
    limiter = ConnectionLimiter(settings_in(tmp_path))
    clients = [HERE._replace(identity=Identity(key="a key", token=str(number))) for number in range(MAX)]
    assert sum(fill(limiter, client)[0] for client in clients) == DEFAULTS.max_connections_per_key
    assert fill(limiter, Client(ELSEWHERE, KEY)) == (0, TooManyOfKey)


async def test_key_and_token_limits_cover_all_streams(tmp_path: Path) -> None:
    headers = bearer(keys.add(tmp_path / "state/keys.json", "ci", "write", "read"))
    limits = {"max_connections_per_key": 3, "max_connections_per_token": 2}
    async with (
        running_daemon(tmp_path, limits=limits) as daemon,
        client_of(daemon) as client,
        AsyncExitStack() as open_,
    ):
        token = (await client.post("/api/token", headers=headers)).json()["token"]
        for _ in range(2):
            await open_.enter_async_context(daemon.watch(f"/ws/jobs?token={token}"))
        assert (await daemon.rejected(f"/ws/jobs?token={token}")).status_code == 503
        rejected = await client.get("/api/events", params={"token": token})
        assert (rejected.status_code, rejected.json()["error"]) == (503, "this token already has 2 connections")
        await open_.enter_async_context(daemon.watch("/ws/jobs", headers))
        assert (await daemon.rejected("/ws/jobs", headers)).status_code == 503
        assert (await client.get("/api/events", headers=headers)).status_code == 503
        async with daemon.watch("/ws/publish", headers), daemon.watch("/ws/jobs"):
            pass
