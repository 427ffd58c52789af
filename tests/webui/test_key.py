"""The page of a daemon that requires a key."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from support import keys
from support.serving import PATIENCE, served_daemon

from .conftest import opened_page

CONFIG = """
[auth]
required = true
token_lifetime = "10s"

[pipelines.pdf]
command = ["cp", "{input}", "{output}"]
"""
SIGN_OUT = "#sign-out"


class Locked(NamedTuple):
    """A daemon that requires keys, and its keys."""

    url: str
    keys_file: Path
    key: str
    reader: str
    writer: str
    brief: str

    def report(self, kind: str) -> None:
        """Register a job."""
        with httpx.Client(trust_env=False, verify=False, headers=keys.bearer(self.key), timeout=PATIENCE) as client:
            assert client.post(f"{self.url}/api/jobs", json={"kind": kind}).status_code == 201


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    state_dir = tmp_path_factory.mktemp("locked") / "state"
    file = state_dir / "keys.json"
    scopes = {"ops": ("read", "write"), "look": ("read",), "send": ("write",), "brief": ("read",)}
    made = [keys.add(file, name, *given) for name, given in scopes.items()]
    with served_daemon(state_dir, config=CONFIG) as daemon:
        yield Locked(daemon.url, file, *made)


@pytest.fixture
def locked_page(browser: Browser, locked: Locked) -> Iterator[Page]:
    with opened_page(browser, locked.url, "status of 401", "HTTP Authentication failed") as page:
        expect(page.get_by_role("heading", name="This server requires a key")).to_be_visible()
        expect(page.locator("#main")).to_be_hidden()
        yield page


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("Key", exact=True).fill(key)
    page.keyboard.press("Enter")


def test_a_key_uploads_and_downloads(locked_page: Page, locked: Locked, scan: Path) -> None:
    expect(locked_page.get_by_label("Key", exact=True)).to_be_focused()
    sign_in(locked_page, locked.key)
    expect(locked_page.locator("[data-connection=live]")).to_be_visible()
    expect(locked_page.locator("#who")).to_contain_text("ops")
    locked_page.locator("input[type=file]").set_input_files(scan)
    done = locked_page.locator(".job[data-status=completed]")
    expect(done).to_be_visible()
    with locked_page.expect_download() as download:
        done.locator("[data-action=download]").click()
    assert Path(download.value.path()).read_bytes().startswith(b"%PDF-")
    assert locked.key not in download.value.url


def test_a_reload_keeps_the_key(locked_page: Page, locked: Locked) -> None:
    sign_in(locked_page, locked.key)
    expect(locked_page.locator("[data-connection=live]")).to_be_visible()
    locked.report("backup")
    expect(locked_page.locator(".job", has_text="backup")).to_be_visible()
    locked_page.reload()
    expect(locked_page.locator("[data-connection=live]")).to_be_visible()
    stored = locked_page.evaluate("JSON.stringify(localStorage) + document.cookie")
    assert locked.key not in stored


def test_the_token_is_renewed_before_it_expires(locked_page: Page, locked: Locked) -> None:
    sign_in(locked_page, locked.key)
    expect(locked_page.locator("[data-connection=live]")).to_be_visible()
    locked_page.evaluate("""() => {
      window.seen = new Set();
      const {dataset} = document.getElementById('connection');
      const look = () => window.seen.add(dataset.connection);
      new MutationObserver(look).observe(document.body, {subtree: true, attributes: true});
    }""")
    with locked_page.expect_websocket():
        pass
    locked.report("renewed")
    expect(locked_page.locator(".job", has_text="renewed")).to_be_visible()
    assert locked_page.evaluate("[...window.seen]") == ["live"]


def test_signing_out_clears_the_page(locked_page: Page, locked: Locked) -> None:
    locked.report("secret")
    sign_in(locked_page, locked.key)
    expect(locked_page.locator(".job", has_text="secret").first).to_be_visible()
    locked_page.locator(SIGN_OUT).click()
    expect(locked_page.get_by_label("Key", exact=True)).to_be_visible()
    expect(locked_page.locator(".job")).to_have_count(0)
    assert locked_page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("pgd_nonsense", "The key is unknown or has been revoked."),
        ("pgd_a b", "This is not a key: it contains characters that keys never have."),
        ("WRITER", "The key send cannot view jobs: it needs the scope read."),
    ],
)
def test_a_rejected_key_shows_the_error(key: str, error: str, locked_page: Page, locked: Locked) -> None:
    sign_in(locked_page, locked.writer if key == "WRITER" else key)
    expect(locked_page.get_by_role("alert").filter(visible=True)).to_have_text(error)
    expect(locked_page.get_by_label("Key", exact=True)).to_be_focused()
    assert locked_page.evaluate("sessionStorage.length") == 0


def test_a_read_key_hides_all_actions(locked_page: Page, locked: Locked, scan: Path) -> None:
    locked.report("archive")
    sign_in(locked_page, locked.reader)
    archive = locked_page.locator(".job", has_text="archive")
    expect(archive).to_be_visible()
    expect(archive.locator("[data-action=cancel]")).to_be_hidden()
    expect(locked_page.locator("#upload")).to_be_hidden()
    expect(locked_page.get_by_text("This key is read-only.")).to_be_visible()
    locked_page.locator("input[type=file]").set_input_files(scan)
    locked.report("later")  # a card of the file would be shown before it
    expect(locked_page.locator(".job", has_text="later")).to_be_visible()
    expect(locked_page.locator("[data-upload-id]")).to_have_count(0)
    loaded = locked_page.evaluate("performance.getEntriesByType('resource').map(({ name }) => name.split('/').at(-1))")
    assert "main.js" in loaded
    assert not {"sending.js", "intake.js", "uploads.js"}.intersection(loaded)


def test_a_revoked_key_locks_the_page(locked_page: Page, locked: Locked) -> None:
    locked.report("kept")
    kept = locked_page.locator(".job", has_text="kept")
    sign_in(locked_page, locked.brief)
    expect(locked_page.locator("[data-connection=live]")).to_be_visible()
    expect(kept).to_be_visible()
    keys.revoke(locked.keys_file, "brief")
    expect(locked_page.get_by_role("alert").filter(visible=True)).to_contain_text("has been revoked")
    expect(locked_page.locator(".job")).to_have_count(0)
    sign_in(locked_page, locked.key)
    expect(locked_page.locator("[data-connection=live]")).to_be_visible()
    expect(kept).to_be_visible()
