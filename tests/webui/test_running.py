"""Running jobs in the page. They run until they are cancelled."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from support.serving import ServedDaemon, served_daemon

from .conftest import CARDS, confirm, opened_page

# A pipeline that waits before each step, and ends only on a signal.
HELD = """
[pipelines.pdf]
command = ["sh", "-c", '''
for step in 1 2 3; do
    echo $step/4
    until read go < "$GATE"; do :; done
done
exec sleep 1000
''', "{{input}}"]
progress_pattern = '(?P<current>\\d)/(?P<total>\\d)'
environment = {{ GATE = "{gate}" }}
"""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writing to this file lets the pipeline continue by a step."""
    gate = tmp_path_factory.mktemp("held") / "gate"
    os.mkfifo(gate)
    return gate


@pytest.fixture(scope="module")
def served(gate: Path) -> Iterator[ServedDaemon]:
    """A daemon whose pipeline waits."""
    with served_daemon(gate.parent / "state", config=HELD.format(gate=gate)) as daemon:
        yield daemon


@pytest.fixture
def page(browser: Browser, served: ServedDaemon) -> Iterator[Page]:
    with opened_page(browser, served.url, script=CARDS) as page:
        yield page


def test_a_running_job_moves_and_is_cancelled(page: Page, gate: Path, scan: Path) -> None:
    page.locator("input[type=file]").set_input_files(scan)
    running = page.locator(".job[data-status=processing]")
    for percent in ("25", "50", "75"):
        expect(running.get_by_role("progressbar")).to_have_attribute("aria-valuenow", percent)
        gate.write_text("go\n")
    confirm(running.locator("[data-action=cancel]"))
    expect(page.locator(".job[data-status=cancelled]")).to_be_visible()


def test_a_batch_is_cancelled_as_a_whole(page: Page, served: ServedDaemon, scan: Path) -> None:
    expect(page.locator("[data-connection=live]")).to_be_visible()
    files = [("files[]", (f"part-{n}.pdf", scan.read_bytes())) for n in range(6)]
    options = {"options": json.dumps({"dpi": 600, "priority": "high"})}
    answer = served.request("POST", "/api/batch", files=files, data=options)
    assert answer.status_code < 300, answer.text
    batch = page.locator(".batch", has_text="Batch of 6 files")
    expect(batch).to_contain_text("part-0.pdf, … · high priority")
    expect(batch).to_contain_text("running")
    expect(batch.locator(".job").first).to_be_hidden()
    batch.get_by_role("button", name="Show files of batch of 6 files, part-0.pdf").click()
    expect(batch.locator(".job")).to_have_count(6)
    expect(batch.locator(".job").first).to_be_visible()
    cancel = batch.locator("[data-action=cancelAll]")
    cancel.click()
    cancel.click()
    expect(batch).to_have_attribute("data-status", "cancelled")
    expect(batch.locator(".job[data-status=cancelled]")).to_have_count(6)
    expect(cancel).to_be_hidden()
