"""Watch tokens: read access to one topic for a short time, in the query or a subprotocol."""

import json
import os
import signal
import stat
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import trio
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from progressd.auth.watch_tokens import AUDIENCE, new_token, read_token, secret_from
from progressd.cli.main import main
from progressd.core.errors import SettingsError, TokenExpired, Unauthorized
from support import keys
from support.daemon import RunningDaemon, completed, progress, registered, running_daemon
from support.http_client import client_of
from support.keys import bearer
from support.peer import Peer, request, upgrade
from support.samples import job_id
from support.waiting import PATIENCE, eventually

MINE, OTHER = job_id(1), job_id(2)
SECRET = "s" * 64


class Side:
    """A daemon that requires keys, and a client with a key that may read."""

    def __init__(self, daemon: RunningDaemon, client: httpx.AsyncClient) -> None:
        self.daemon = daemon
        self.client = client

    async def token(self, path: str = f"/api/jobs/{MINE}/token") -> str:
        response = await self.client.post(path)
        assert response.status_code == 200, response.text
        return str(response.json()["token"])


@pytest.fixture
async def side(tmp_path: Path) -> AsyncIterator[Side]:
    secret = keys.add(tmp_path / "state/keys.json", "look", "read", team="scan")
    async with running_daemon(tmp_path, auth={"required": True}) as daemon, client_of(daemon) as client:
        client.headers.update(bearer(secret))
        await daemon.report(registered(MINE, labels={"team": "scan"}), registered(OTHER), progress(MINE, 1))
        yield Side(daemon, client)


async def test_a_token_lives_longer_on_request_up_to_the_limit(side: Side) -> None:
    for lifetime, expected in [("3600", 1 / 24), ("1e9", 7)]:
        body = (await side.client.post(f"/api/jobs/{MINE}/token?lifetime={lifetime}")).json()
        left = datetime.fromisoformat(body["expires_at"]) - datetime.now(UTC)
        assert left / timedelta(days=1) == pytest.approx(expected, abs=0.01)
    assert (await side.client.post(f"/api/jobs/{MINE}/token?lifetime=0")).status_code == 400


async def test_a_token_lasts_15_minutes_for_one_job(side: Side) -> None:
    body = (await side.client.post(f"/api/jobs/{MINE}/token")).json()
    assert body["topic"] == f"job:{MINE}"
    left = datetime.fromisoformat(body["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=14) < left <= timedelta(minutes=15)
    async with side.daemon.watch(f"/ws/jobs/{MINE}?token={body['token']}") as watcher:
        assert (await watcher.receive_until("progress"))[-1]["data"]["current_step"] == 1


async def test_a_token_opens_only_its_job(side: Side) -> None:
    """`test_matrix` tests every route."""
    token = await side.token()
    assert (await side.daemon.rejected(f"/ws/jobs?token={token}")).status_code == 403
    assert (await side.daemon.rejected(f"/ws/jobs/{OTHER}?token={token}")).status_code == 404
    async with side.daemon.watch(f"/ws?token={token}") as watcher:
        topics = ["jobs", f"job:{OTHER}", f"job:{MINE}"]
        await watcher.websocket.send_message(json.dumps({"type": "subscribe", "topics": topics}))
        messages = await watcher.receive_until("subscribed")
        assert [message["topic"] for message in messages[:2]] == topics[:2]
        assert messages[-1]["topics"] == topics[2:]


async def test_an_all_jobs_token_shows_its_keys_jobs(side: Side) -> None:
    token = await side.token("/api/token")
    async with side.daemon.watch(f"/ws/jobs?token={token}") as watcher:
        await side.daemon.report(progress(OTHER, 3), progress(MINE, 3), completed(MINE))
        seen = await watcher.receive_until("completed")
    assert {message["job_id"] for message in seen} == {MINE}
    assert (await side.client.get("/api/jobs", params={"token": token})).json()["total"] == 1


@pytest.mark.parametrize("others", [["progressd"], []])
async def test_a_token_works_as_a_subprotocol(side: Side, others: list[str]) -> None:
    name = f"progressd.token.{await side.token()}"
    async with Peer(await side.daemon.connect()) as peer:
        head = await peer.open(f"/ws/jobs/{MINE}", {"Sec-WebSocket-Protocol": ", ".join([*others, name])})
    assert f"sec-websocket-protocol: {[*others, name][0]}\r\n".lower().encode() in head.lower()


async def test_requests_end_with_their_token(side: Side, an_hour_later: Callable[[], None]) -> None:
    authenticator, token = side.daemon.daemon.authenticator, await side.token()
    async with Peer(await side.daemon.connect()) as poll, Peer(await side.daemon.connect()) as events:
        job = (await poll.ask(f"/api/jobs/{MINE}?token={token}")).json
        await poll.send(request(f"/api/jobs/{MINE}?since={job['cursor']}&wait=60&token={token}"))
        await events.send(request(f"/api/jobs/{MINE}/events?token={token}"))
        assert b" 200 " in await events.receive()  # otherwise the stream would become a whole response
        await eventually(lambda: len(authenticator._open) == 2)
        an_hour_later()
        answer = await poll.response()
        await events.rest()
    assert (answer.status, answer.json["message"]) == (401, "the token has expired")


async def test_an_expired_token_closes_with_4500(side: Side) -> None:
    authenticator = side.daemon.daemon.authenticator
    [key] = authenticator._keys.values()
    soon = new_token(authenticator._secret, f"job:{MINE}", datetime.now(UTC) + timedelta(seconds=1), key=key.key)
    path = f"/ws/jobs/{MINE}?token={soon}"
    with trio.fail_after(PATIENCE):
        async with side.daemon.watch(path) as watcher:
            assert await watcher.closed() == (4500, "credentials expired")
        async with side.daemon.watch(path) as watcher:
            assert await watcher.closed() == (4500, "credentials expired")
    response = await side.client.get(f"/api/jobs/{MINE}", params={"token": soon}, headers={"Authorization": ""})
    assert (response.status_code, response.json()["message"]) == (401, "the token has expired")


async def test_a_token_ends_with_its_key(side: Side) -> None:
    token = await side.token()
    async with side.daemon.watch(f"/ws/jobs/{MINE}?token={token}") as watcher:
        keys.revoke(side.daemon.settings.auth.keys_file, "look")
        assert (await watcher.closed())[0] == 4500
    assert (await side.daemon.rejected(f"/ws/jobs/{MINE}?token={token}")).status_code == 401


async def test_a_new_secret_ends_all_tokens(side: Side) -> None:
    token = await side.token()
    path = side.daemon.settings.auth.token_secret_file
    async with (
        side.daemon.watch(f"/ws/jobs/{MINE}?token={token}") as watcher,
        side.daemon.watch("/ws/jobs", {"Authorization": side.client.headers["Authorization"]}) as with_key,
    ):
        await watcher.receive_until("progress")
        side.daemon.kill(signal.SIGHUP)
        await side.daemon.report(progress(MINE, 2))
        assert (await watcher.receive_until("progress"))[-1]["data"]["percent"] == 2  # the connection is the same
        path.write_text(SECRET)
        side.daemon.kill(signal.SIGHUP)
        assert (await watcher.closed())[0] == 4500
        await side.daemon.report(completed(MINE))
        await with_key.receive_until("completed")
    rejected = await side.client.get(f"/api/jobs/{MINE}", params={"token": token}, headers={"Authorization": ""})
    assert (rejected.status_code, rejected.json()["message"]) == (401, "invalid token")
    assert read_token(SECRET, await side.token()).topic == f"job:{MINE}"


async def test_an_unreadable_secret_changes_nothing(side: Side) -> None:
    token = await side.token()
    side.daemon.settings.auth.token_secret_file.write_text("damaged")
    side.daemon.kill(signal.SIGHUP)
    await eventually(lambda: "is damaged" in side.daemon.daemon.reload.rejected)
    answer = await side.client.get(f"/api/jobs/{MINE}", params={"token": token}, headers={"Authorization": ""})
    assert answer.status_code == 200


def make_token(state_dir: Path, *arguments: str) -> str:
    """Return what `progressd token` prints."""
    return CliRunner().invoke(main, ["token", *arguments, "--state-dir", str(state_dir)]).output.strip()


async def say(side: Side, data: bytes) -> None:
    """Send data, and check that the response does not repeat the secret."""
    async with Peer(await side.daemon.connect()) as peer:
        await peer.send(data)
        with trio.fail_after(PATIENCE):
            assert b"eyJ" not in await peer.receive()


async def test_the_log_has_no_token_or_key(side: Side, capfd: pytest.CaptureFixture[str]) -> None:
    good, key = await side.token(), side.client.headers["Authorization"].removeprefix("Bearer ")
    expired = new_token(secret_from(side.daemon.settings.auth.token_secret_file), "jobs", datetime.now(UTC))
    targets = (f"/ws/jobs/{MINE}", f"/ws/jobs/{OTHER}", "/ws", "/ws/no", "/ws/jobs?since=x&interval=x")
    for secret in (good, expired, f"{good}x", key, f"{key}x"):
        for target in targets:
            join = "&" if "?" in target else "?"
            await say(side, upgrade(f"{target}{join}token={secret}"))
            await say(side, upgrade(target, {"Sec-WebSocket-Protocol": f"progressd.token.{secret}, progressd"}))
        await say(side, upgrade(f"/ws/jobs?token={secret}", {"Sec-WebSocket-Key": "x"}))
        for target in (f"/api/jobs/{MINE}", f"/api/jobs/{MINE}/events", "/api/x", "/api/jobs/x", "/api/jobs?limit=x"):
            join = "&" if "?" in target else "?"
            await say(side, request(f"{target}{join}token={secret}"))
            await say(side, request(target, bearer(secret)))
            await say(side, request(target, {"X-API-Key": secret}))
        await say(side, request(f"/api/jobs?token={secret}", {"Content-Length": "x"}))
        await say(side, request(f"/api/jobs?token={secret}", {"X": "x" * 20_000}))
    side.daemon.kill(signal.SIGHUP)
    await side.daemon.settled()
    written = "".join(capfd.readouterr())
    assert "watcher left" in written
    assert "connection rejected" in written
    assert [secret for secret in (good, expired, key) if secret[-20:] in written] == []


def test_the_command_needs_no_running_daemon(tmp_path: Path) -> None:
    secret_file = tmp_path / "state/token-secret"
    one, all_ = make_token(tmp_path / "state", MINE, "--expires", "8h"), make_token(tmp_path / "state")
    assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
    secret = secret_from(secret_file)
    claims = read_token(secret, one)
    assert claims.topic == f"job:{MINE}"
    assert timedelta(hours=7.9) < claims.expires_at - datetime.now(UTC) < timedelta(hours=8.1)
    assert read_token(secret, all_).topic == "jobs"


async def test_the_command_accepts_the_start_of_an_id(side: Side) -> None:
    settings = side.daemon.settings
    one, twin = "abcdef01-0000-4000-8000-000000000000", "abcdef01-1000-4000-8000-000000000000"
    absent = "00000000-0000-4000-8000-000000000000"

    async def made(id_: str) -> str:
        return await trio.to_thread.run_sync(make_token, settings.state_dir, id_)

    assert await made(absent) == f"Error: there is no job {absent} in the state directory {settings.state_dir}"
    await side.daemon.report(registered(one))
    claims = read_token(secret_from(settings.auth.token_secret_file), await made(one[:8].upper()))
    assert claims.topic == f"job:{one}"
    await side.daemon.report(registered(twin))
    assert await made(one[:8]) == f"Error: 2 job ids begin with {one[:8]}: {one}, {twin} (give more characters)"
    assert await made("abcdef02") == "Error: no job id begins with abcdef02"


def test_an_invalid_secret_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "token-secret"
    for content in (b"", b"short", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(SettingsError, match="is damaged: delete the file"):
            secret_from(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SettingsError, match=r"cannot use the token secret in .*: it is not a regular file"):
        secret_from(path)


NESTED = urlsafe_b64encode(b'{"alg":"HS256","a":' + b"[" * 9000).rstrip(b"=").decode()
GOOD: dict[str, Any] = {"aud": AUDIENCE, "sub": "jobs", "exp": 2**33, "name": "", "key": ""}


@pytest.mark.parametrize(
    ("claims", "secret", "algorithm"),
    [
        (GOOD, "t" * 64, "HS256"),
        (GOOD, SECRET, "HS512"),
        (GOOD, "", "none"),
        ({**GOOD, "aud": "other"}, SECRET, "HS256"),
        ({**GOOD, "exp": 1}, SECRET, "HS256"),
        *[({name: value for name, value in GOOD.items() if name != left}, SECRET, "HS256") for left in GOOD],
    ],
)
def test_forged_tokens_are_rejected(claims: dict[str, Any], secret: str, algorithm: str) -> None:
    token = jwt.encode(claims, secret, algorithm)
    with pytest.raises(TokenExpired if claims.get("exp") == 1 else Unauthorized):
        read_token(SECRET, token)


@given(st.data())
def test_a_changed_token_is_rejected_or_equal(data: st.DataObject) -> None:
    good = new_token(SECRET, "jobs", datetime.now(UTC) + timedelta(hours=1))
    place = data.draw(st.integers(0, len(good) - 1))
    text = good[:place] + data.draw(st.characters()) + good[place + 1 :]
    try:
        grant = read_token(SECRET, text)
    except Unauthorized:
        return
    assert grant == read_token(SECRET, good)


@given(st.text())
@example(f"{NESTED}.e30.AAAA")
def test_any_text_is_rejected(text: str) -> None:
    with pytest.raises(Unauthorized):
        read_token(SECRET, text)
