"""The page of a daemon that asks for a key."""

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
    """A daemon that asks for keys, and its keys."""

    url: str
    keys_file: Path
    key: str
    reader: str
    writer: str
    brief: str

    def report(self, kind: str) -> None:
        """Register a job."""
        with httpx.Client(trust_env=False, headers=keys.bearer(self.key), timeout=PATIENCE) as client:
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
def shut(browser: Browser, locked: Locked) -> Iterator[Page]:
    with opened_page(browser, locked.url, "status of 401", "HTTP Authentication failed") as page:
        expect(page.get_by_role("heading", name="This server requires a key")).to_be_visible()
        expect(page.locator("#main")).to_be_hidden()
        yield page


def give(page: Page, key: str) -> None:
    page.get_by_label("Key", exact=True).fill(key)
    page.keyboard.press("Enter")


def test_with_the_key_files_go_in_and_results_come_out(shut: Page, locked: Locked, scan: Path) -> None:
    expect(shut.get_by_label("Key", exact=True)).to_be_focused()
    give(shut, locked.key)
    expect(shut.locator("[data-connection=live]")).to_be_visible()
    expect(shut.locator("#who")).to_contain_text("ops")
    shut.locator("input[type=file]").set_input_files(scan)
    done = shut.locator(".job[data-status=completed]")
    expect(done).to_be_visible()
    with shut.expect_download() as download:
        done.locator("[data-action=download]").click()
    assert Path(download.value.path()).read_bytes().startswith(b"%PDF-")
    assert locked.key not in download.value.url


def test_it_is_live_and_stays_so_when_the_page_is_loaded_again(shut: Page, locked: Locked) -> None:
    give(shut, locked.key)
    expect(shut.locator("[data-connection=live]")).to_be_visible()
    locked.report("backup")
    expect(shut.locator(".job", has_text="backup")).to_be_visible()
    shut.reload()
    expect(shut.locator("[data-connection=live]")).to_be_visible()
    assert shut.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_before_its_token_expires_it_has_another_and_stays_live(shut: Page, locked: Locked) -> None:
    give(shut, locked.key)
    expect(shut.locator("[data-connection=live]")).to_be_visible()
    shut.evaluate("""() => {
      window.seen = new Set();
      const {dataset} = document.getElementById('connection');
      const look = () => window.seen.add(dataset.connection);
      new MutationObserver(look).observe(document.body, {subtree: true, attributes: true});
    }""")
    with shut.expect_websocket():
        pass
    locked.report("renewed")
    expect(shut.locator(".job", has_text="renewed")).to_be_visible()
    assert shut.evaluate("[...window.seen]") == ["live"]


def test_whoever_signs_out_leaves_nothing_behind(shut: Page, locked: Locked) -> None:
    locked.report("secret")
    give(shut, locked.key)
    expect(shut.locator(".job", has_text="secret").first).to_be_visible()
    shut.locator(SIGN_OUT).click()
    expect(shut.get_by_label("Key", exact=True)).to_be_visible()
    expect(shut.locator(".job")).to_have_count(0)
    assert shut.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("pgd_nonsense", "The key is unknown or has been revoked."),
        ("pgd_a b", "This is not a key: it contains characters that keys never have."),
        ("WRITER", "The key send cannot view jobs: it needs the scope read."),
    ],
)
def test_a_key_that_does_not_open_it_is_told_why(key: str, said: str, shut: Page, locked: Locked) -> None:
    give(shut, locked.writer if key == "WRITER" else key)
    expect(shut.get_by_role("alert").filter(visible=True)).to_have_text(said)
    expect(shut.get_by_label("Key", exact=True)).to_be_focused()
    assert shut.evaluate("sessionStorage.length") == 0


def test_a_key_that_only_looks_on_offers_nothing_that_changes_something(shut: Page, locked: Locked, scan: Path) -> None:
    locked.report("archive")
    give(shut, locked.reader)
    archive = shut.locator(".job", has_text="archive")
    expect(archive).to_be_visible()
    expect(archive.locator("[data-action=cancel]")).to_be_hidden()
    expect(shut.locator("#upload")).to_be_hidden()
    expect(shut.get_by_text("This key is read-only.")).to_be_visible()
    shut.locator("input[type=file]").set_input_files(scan)
    locked.report("later")  # by when a card of the file would be there too
    expect(shut.locator(".job", has_text="later")).to_be_visible()
    expect(shut.locator("[data-upload-id]")).to_have_count(0)


def test_a_key_that_is_revoked_shuts_it_again(shut: Page, locked: Locked) -> None:
    give(shut, locked.brief)
    expect(shut.locator("[data-connection=live]")).to_be_visible()
    keys.revoke(locked.keys_file, "brief")
    expect(shut.get_by_role("alert").filter(visible=True)).to_contain_text("has been revoked")
    expect(shut.locator(".job")).to_have_count(0)
    give(shut, locked.key)
    expect(shut.locator("[data-connection=live]")).to_be_visible()
