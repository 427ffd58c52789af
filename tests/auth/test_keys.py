"""API keys: created, listed and revoked on the command line, and checked by the daemon."""

import os
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result
from progressd.auth.api_keys import hashed, new_secret, read_keys
from progressd.auth.watch_tokens import new_token
from progressd.cli.main import main
from progressd.core.errors import SettingsError
from structlog.testing import capture_logs
from support import keys
from support.daemon import RunningDaemon, registered, running_daemon
from support.http_client import FORM_TYPE, file_part
from support.keys import SECRET, bearer
from support.peer import Peer, Response, request
from support.samples import ID
from support.waiting import PATIENCE, eventually

NEVER = datetime(2100, 1, 1, tzinfo=UTC)


def run(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments, "--state-dir", str(tmp_path / "state")])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state/keys.json"


@pytest.fixture
async def locked(tmp_path: Path) -> AsyncIterator[RunningDaemon]:
    """A daemon that requires keys."""
    async with running_daemon(tmp_path, auth={"required": True}) as daemon:
        yield daemon


def test_the_secret_pattern_finds_keys_and_tokens() -> None:
    for secret in (new_secret(), new_token("s" * 64, "jobs", NEVER)):
        assert SECRET.findall(f"target=/ws?token={secret} x=y") == [secret]


async def ask(daemon: RunningDaemon, target: str, headers: dict[str, str] | None = None, **how: str) -> Response:
    async with Peer(await daemon.connect()) as peer:
        return await peer.ask(target, headers, **how)


def test_a_key_is_stored_as_a_hash(tmp_path: Path, file: Path) -> None:
    result = run(tmp_path, "add", "ci", "--scope", "read,write", "--expires", "30d", "--label", "team=scan")
    assert result.exit_code == 0, result.output
    secret = result.stdout.strip()
    text = file.read_text()
    assert hashed(secret) in text
    assert secret not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    [key] = read_keys(file)
    assert (key.name, key.scopes, key.labels) == ("ci", ["read", "write"], {"team": "scan"})
    assert key.expires_at is not None
    assert (key.expires_at - key.created_at).days == 30
    listed = run(tmp_path, "list").stdout
    assert listed.startswith("ci  read,write  team=scan  expires ")
    assert secret not in listed


def test_a_revoked_name_can_be_reused(tmp_path: Path, file: Path) -> None:
    assert run(tmp_path, "add", "ci").exit_code == 0
    taken = "Error: the key ci already exists: revoke it first, or choose another name\n"
    assert run(tmp_path, "add", "ci").output == taken
    assert run(tmp_path, "revoke", "ci").output == "ci revoked\n"
    assert read_keys(file) == []
    assert run(tmp_path, "revoke", "ci").output == "Error: there is no key ci\n"
    assert run(tmp_path, "add", "ci").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a b"], "Error: "),
        (["x" * 65], "Error: "),
        (["x", "--scope", "all"], "Error: "),
        (["x", "--label", "team"], "Error: "),
        (["x", "--expires", "36501d"], "'36501d' is too long: use at most 36500d"),
        (["x", "--expires", "9999999999999d"], "is too long"),
        (["x", "--expires", "0d"], "'0d' is not a duration, such as 12h or 30d"),
        (["x", "--expires", "soon"], "'soon' is not a duration, such as 12h or 30d"),
    ],
)
def test_invalid_key_options_are_rejected(tmp_path: Path, file: Path, arguments: list[str], said: str) -> None:
    result = run(tmp_path, "add", *arguments)
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert "Traceback" not in result.output
    assert not file.exists()


def test_commands_do_not_create_the_default_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = (["keys", "add", "ci"], ["keys", "list"], ["keys", "revoke", "ci"], ["token"])
    for arguments in (*keys, ["check"], ["check", "--repair"], ["jobs", "export"], ["backup", "copy"]):
        rejected = CliRunner().invoke(main, arguments)
        assert rejected.exit_code == 1
        assert rejected.output.startswith(f"Error: there is no state directory {tmp_path}/progressd-data: name the")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "progressd-data").mkdir()
    assert f" in {tmp_path}/progressd-data/keys.json.\n" in CliRunner().invoke(main, ["keys", "add", "ci"]).stderr
    assert (
        f" in {tmp_path}/new/keys.json.\n"
        in CliRunner().invoke(main, ["keys", "add", "a", "--state-dir", "new"]).stderr
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys": [{"name": "x"}]}', "[" * 100_000, "\udcff"])
def test_a_damaged_key_file_is_left_unchanged(tmp_path: Path, file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SettingsError, match=r"^the key file .* is damaged"):
        read_keys(file)
    assert run(tmp_path, "add", "ci").exit_code == 1
    assert file.read_bytes() == text.encode(errors="surrogateescape")


def test_a_pipe_as_key_file_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "keys")
    with pytest.raises(SettingsError, match=r"cannot read the keys in .*: it is not a regular file"):
        read_keys(tmp_path / "keys")


async def test_a_missing_key_returns_401(locked: RunningDaemon) -> None:
    response = await ask(locked, "/api/jobs")
    assert (response.status, response.headers["www-authenticate"]) == (401, "Bearer")
    assert response.json["error"] == "unauthorized"
    assert (await locked.rejected()).status_code == 401


async def test_a_new_key_works_at_once(locked: RunningDaemon) -> None:
    secret = keys.add(locked.settings.auth.keys_file, "look", "read")
    with trio.fail_after(PATIENCE):
        while (await ask(locked, "/api/jobs", bearer(secret))).status == 401:  # noqa: ASYNC110, the file is looked at
            await trio.sleep(0.05)
    assert (await ask(locked, "/api/jobs", {"X-API-Key": secret})).status == 200
    rejected = await ask(locked, "/api/jobs", bearer(secret), method="POST")
    assert (rejected.status, rejected.json["error"]) == (403, "forbidden")
    async with locked.watch(headers=bearer(secret)):
        pass
    me = (await ask(locked, "/api/auth/status", bearer(secret))).json
    assert me == {"authenticated": True, "key_name": "look", "scopes": ["read"], "expires_at": None}


FOREIGN: tuple[dict[str, str], ...] = ({"X-API-Key": "x"}, {"Authorization": "bearer x"}, {"X-API-Key": "\xff"})


async def test_a_wrong_key_is_always_rejected(daemon: RunningDaemon) -> None:
    keys.add(daemon.settings.auth.keys_file, "ci")
    daemon.daemon.authenticator.load()
    assert (await ask(daemon, "/api/jobs", {"Authorization": "Basic dXNlcjpwYXNz"})).status == 200
    for headers in FOREIGN:
        assert (await ask(daemon, "/api/jobs", headers)).status == 401
        assert (await ask(daemon, "/api/auth/status", headers)).status == 401


async def test_keys_are_ignored_without_keys_or_requirement(
    daemon: RunningDaemon,
) -> None:
    for headers in ({}, *FOREIGN):
        assert (await ask(daemon, "/api/jobs", headers)).status == 200
        assert (await ask(daemon, "/api/jobs", {**headers, "Content-Length": "0"}, method="POST")).status == 201
        assert (await ask(daemon, "/api/auth/status", headers)).json == {
            "authenticated": False,
            "auth_required": False,
            "message": "this daemon requires no key",
        }
    async with daemon.watch(headers=FOREIGN[0]):
        pass


UNDER_WAY = {
    "a long poll": (f"/api/jobs/{ID}?since=CURSOR&wait=60", {}, "GET", b""),
    "a body": ("/api/jobs", {"Content-Length": "99"}, "POST", b'{"kind"'),
    "a file": ("/api/convert", {**FORM_TYPE, "Content-Length": "99999"}, "POST", file_part()),
    "lines": ("/api/events", {"Content-Type": "application/x-ndjson", "Content-Length": "99"}, "POST", b"{"),
}


@pytest.mark.parametrize("what", UNDER_WAY)
async def test_revoking_a_key_aborts_its_running_requests(tmp_path: Path, what: str) -> None:
    path = tmp_path / "state/keys.json"
    secret = keys.add(path, "ci", "read", "write")
    async with running_daemon(tmp_path, auth={"required": True}) as daemon, Peer(await daemon.connect()) as peer:
        await daemon.report(registered(ID))
        cursor = (await peer.ask(f"/api/jobs/{ID}", bearer(secret))).json["cursor"]
        await eventually(lambda: not daemon.daemon.authenticator._open)
        target, headers, method, body = UNDER_WAY[what]
        asked = request(target.replace("CURSOR", cursor), {**bearer(secret), **headers}, method=method)
        await peer.send(asked + body)
        await eventually(lambda: daemon.daemon.authenticator._open)
        keys.revoke(path, "ci")
        daemon.daemon.authenticator.load()
        answer = await peer.response()
        assert (answer.status, answer.json["error"]) == (401, "unauthorized")
        assert answer.json["message"] == "the key is unknown or has been revoked"
        assert answer.headers.get("connection") == (None if method == "GET" else "close")


async def test_an_unreadable_key_file_changes_nothing(tmp_path: Path) -> None:
    secret = keys.add(tmp_path / "state/keys.json", "ci")
    async with running_daemon(tmp_path, auth={"required": True}) as daemon:
        file = daemon.settings.auth.keys_file
        with capture_logs() as logs:
            file.write_text("{")
            await eventually(lambda: any(line["event"].startswith("keys not read") for line in logs))
        assert (await ask(daemon, "/api/jobs", bearer(secret))).status == 200
