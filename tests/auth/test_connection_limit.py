"""Connection limits: no address, key or token takes all places."""

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from progressd.auth.authenticator import ANONYMOUS, Client, Identity
from progressd.auth.limits import ConnectionLimiter
from progressd.config.settings import Limits
from progressd.core.errors import TooManyConnections, TooManyOfAddress, TooManyOfKey, Unavailable
from support.daemon import RunningDaemon, running_daemon, settings_in
from support.http_client import client_of
from support.keys import add, bearer
from trio_websocket import ConnectionRejected

DEFAULTS = Limits()
ELSEWHERE = "198.51.100.7"
KEY = Identity(key="a key")
TOKEN = Identity(key="a key", token="a token")


@pytest.fixture
def connection_limiter(tmp_path: Path) -> ConnectionLimiter:
    return ConnectionLimiter(settings_in(tmp_path))


@contextmanager
def fails(error: type[Unavailable]) -> Iterator[None]:
    """Expect exactly this error, not a subclass."""
    with pytest.raises(error) as raised:
        yield
    assert raised.type is error


def fill(connection_limiter: ConnectionLimiter, client: Client, error: type[Unavailable]) -> int:
    """Take places until the error. Returns their number."""
    taken = 0
    with fails(error):
        while True:
            connection_limiter.require(client)
            connection_limiter.take(client)
            taken += 1
    return taken


@pytest.mark.parametrize(
    ("identity", "most", "error"),
    [
        (ANONYMOUS, DEFAULTS.max_connections_per_address, TooManyOfAddress),
        (KEY, DEFAULTS.max_connections_per_key, TooManyOfKey),
        (TOKEN, DEFAULTS.max_connections_per_token, TooManyOfKey),
    ],
    ids=["address", "key", "token"],
)
def test_one_client_cannot_take_all_places(
    connection_limiter: ConnectionLimiter, identity: Identity, most: int, error: type[Unavailable]
) -> None:
    address = ELSEWHERE if error is TooManyOfAddress else "127.0.0.1"
    assert fill(connection_limiter, Client(address, identity), error) == most < DEFAULTS.max_connections
    assert (
        fill(connection_limiter, Client("127.0.0.1", ANONYMOUS), TooManyConnections) == DEFAULTS.max_connections - most
    )


def test_tokens_share_the_places_of_their_key(connection_limiter: ConnectionLimiter) -> None:
    taken = 0
    for number in range(DEFAULTS.max_connections):
        taken += fill(connection_limiter, Client("127.0.0.1", Identity(key="a key", token=str(number))), TooManyOfKey)
    assert taken == DEFAULTS.max_connections_per_key
    with fails(TooManyOfKey):
        connection_limiter.require(Client(ELSEWHERE, KEY))


def test_exempt_addresses_may_take_all_places(connection_limiter: ConnectionLimiter) -> None:
    assert fill(connection_limiter, Client("127.0.0.1", ANONYMOUS), TooManyConnections) == DEFAULTS.max_connections


def test_watchers_and_producers_have_separate_places(connection_limiter: ConnectionLimiter) -> None:
    for publishes in (False, True):
        taken = fill(connection_limiter, Client("127.0.0.1", ANONYMOUS, publishes), TooManyConnections)
        assert taken == DEFAULTS.max_connections


def test_a_returned_place_is_free_in_every_group(connection_limiter: ConnectionLimiter) -> None:
    client = Client(ELSEWHERE, TOKEN)
    assert fill(connection_limiter, client, TooManyOfKey) == DEFAULTS.max_connections_per_token
    connection_limiter.give_back(client)
    assert fill(connection_limiter, client, TooManyOfKey) == 1
    for _ in range(DEFAULTS.max_connections_per_token):
        connection_limiter.give_back(client)


async def rejected(daemon: RunningDaemon, path: str, headers: dict[str, str]) -> int:
    """Return the status of a rejected handshake."""
    with pytest.raises(ConnectionRejected) as refused:
        async with daemon.watch(path, headers):
            pass
    return refused.value.status_code


async def test_key_and_token_limits_cover_all_streams(tmp_path: Path) -> None:
    headers = bearer(add(tmp_path / "state/keys.json", "ci", "write", "read"))
    limits = {"max_connections_per_key": 3, "max_connections_per_token": 2}
    async with (
        running_daemon(tmp_path, limits=limits) as daemon,
        client_of(daemon) as client,
        AsyncExitStack() as open_,
    ):
        token = (await client.post("/api/token", headers=headers)).json()["token"]
        for _ in range(2):
            await open_.enter_async_context(daemon.watch(f"/ws/jobs?token={token}"))
        assert await rejected(daemon, f"/ws/jobs?token={token}", {}) == 503
        refused = await client.get("/api/events", params={"token": token})
        assert (refused.status_code, refused.json()["error"]) == (503, "this token already has 2 connections")
        await open_.enter_async_context(daemon.watch("/ws/jobs", headers))
        assert await rejected(daemon, "/ws/jobs", headers) == 503
        assert (await client.get("/api/events", headers=headers)).status_code == 503
        async with daemon.watch("/ws/publish", headers), daemon.watch("/ws/jobs"):
            pass
