"""Reload of the settings: what changes at once, what needs a restart, and that no client is disconnected."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from progressd.config.fields import declared
from progressd.config.reload import FIXED, Reload, changed, with_fixed
from progressd.config.settings import LogSettings, Settings
from progressd.core.errors import SettingsError
from support.daemon import RunningDaemon, running_daemon, settings_in
from support.http_client import client_of
from support.submitting import run, shell
from support.waiting import eventually
from trio_websocket import ConnectionRejected


class Given:
    """Returns the next settings, or raises an error."""

    def __init__(self, now: Settings) -> None:
        self.next: Settings | SettingsError = now

    def __call__(self) -> Settings:
        if isinstance(self.next, SettingsError):
            raise self.next
        return self.next


def test_fixed_settings_keep_their_values(tmp_path: Path) -> None:
    old = settings_in(tmp_path, server={"port": 8080}, limits={"max_connections": 1})
    new = settings_in(tmp_path / "b", server={"port": 8081, "allowed_origins": ("https://a.example",)})
    kept = with_fixed(old, new)
    assert (kept.state_dir, kept.server.port, kept.ingest.socket) == (tmp_path, 8080, old.ingest.socket)
    assert kept.server.allowed_origins == ("https://a.example",)
    assert set(changed(old, kept)) == {"limits.max_connections", "server.allowed_origins"}
    assert set(changed(kept, new)) == {
        "auth.keys_file",
        "auth.token_secret_file",
        "ingest.socket",
        "server.port",
        "state_dir",
    }


def test_all_fixed_keys_are_settings() -> None:
    assert {setting.key for setting in declared(Settings)} >= FIXED


def test_an_error_changes_nothing(tmp_path: Path) -> None:
    old = settings_in(tmp_path)
    new = replace(old, log=LogSettings(level="error"))
    given = Given(new)
    reload = Reload(old, given)
    applied: list[str] = []
    errors = ["no certificate"]

    def check(settings: Settings) -> Any:
        if errors:
            raise SettingsError(errors.pop())
        return lambda: None

    reload.register(lambda settings: lambda: applied.append(settings.log.level))
    reload.register(check)
    reload()
    assert (applied, reload.settings, reload.rejected) == ([], old, "no certificate")
    given.next = SettingsError("the config file is not TOML")
    reload()
    assert (applied, reload.settings, reload.rejected) == ([], old, "the config file is not TOML")
    given.next = new
    reload()
    assert (applied, reload.settings, reload.rejected) == (["error"], new, "")


def test_settings_that_take_a_restart_are_pending(tmp_path: Path) -> None:
    old = settings_in(tmp_path)
    given = Given(replace(old, auth=replace(old.auth, required=True)))
    reload = Reload(old, given)
    reload()
    assert reload.pending == "settings wait for a restart: auth.required"
    assert not reload.settings.auth.required
    given.next = SettingsError("the config file is not TOML")
    reload()
    assert reload.pending == "settings not reloaded: the config file is not TOML"
    given.next = old
    reload()
    assert reload.pending == ""


def test_the_docs_list_all_fixed_settings() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs/operations.md").read_text().split())
    listed = text.partition("needs a restart: ")[2].partition(". ")[0]
    assert set(re.findall("`(.*?)`", listed)) == FIXED


async def reloaded(running: RunningDaemon) -> None:
    running.kill(signal.SIGHUP)
    before = running.daemon.reload.settings
    await eventually(lambda: running.daemon.reload.settings is not before)


async def test_a_reload_disconnects_no_watcher(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "state")
    given = Given(settings)
    async with running_daemon(tmp_path, read_settings=given) as running, running.watch() as watcher:
        given.next = replace(
            settings,
            limits=replace(settings.limits, max_connections=1, max_upload_bytes=10),
            pipelines={"new": shell("true")},
        )
        await reloaded(running)
        assert (await run(running, "new")).status == "completed"
        assert (await watcher.receive())["type"] == "job_created"
        with pytest.raises(ConnectionRejected):
            async with running.watch():
                raise AssertionError("there is room for one only")
        async with client_of(running) as client:
            too_large = await client.post("/api/convert", files={"file": ("a.pdf", b"%PDF-1.7 and more")})
        assert too_large.status_code == 400 or too_large.status_code == 413
        given.next = replace(settings, limits=replace(settings.limits, max_connections=2))
        await reloaded(running)
        async with running.watch():
            await trio.lowlevel.checkpoint()
