"""Uploads of the page, and the form that it builds from the pipelines of the daemon."""

from pathlib import Path

from playwright.sync_api import Browser, expect
from support.cutting_proxy import CuttingProxy
from support.serving import ServedDaemon, served_daemon
from support.waiting import until

from .conftest import opened_page

CONFIG = """
[pipelines.pack]
title = "Pack"
description = "Pack any file"
command = ["cp", "{input}", "{output}"]
accept = ["*/*"]

[pipelines.pack.options]
level = { type = "integer", default = 6, minimum = 1, maximum = 9, title = "Level" }
ratio = { type = "number", minimum = 0.5 }
format = { type = "string", choices = ["zip", "tar"], default = "tar" }
note = { type = "string", values_command = ["printf", "eng\\njpn\\n"] }
fast = { type = "boolean", default = true }
rotate = { type = "boolean", title = "Turn pages" }
turbo = { type = "boolean", needs = "no-such-program" }
"""
KEPT = "JSON.stringify(Object.keys(localStorage).filter((name) => name.startsWith('progressd-upload ')))"


def test_an_upload_continues_after_a_cut_and_a_reload(browser: Browser, served: ServedDaemon, tmp_path: Path) -> None:
    large = tmp_path / "large.pdf"
    large.write_bytes(b"%PDF-1.7\n".ljust(30_000_000))
    with (
        CuttingProxy(served.port) as proxy,
        opened_page(browser, proxy.url, "ERR_", "WebSocket", "of 409", "of 423") as page,
    ):
        expect(page.locator("[data-connection=live]")).to_be_visible()
        proxy.hold_after = 5_000_000
        page.locator("input[type=file]").set_input_files(large)
        upload = page.locator("[data-upload-id]", has_text="large.pdf")
        step = upload.locator("[data-part=step]")
        expect(step).to_have_text("Uploading")
        until(lambda: sizes(served) >= [4_000_000])
        proxy.cut()
        until(lambda: sizes(served) >= [8_000_000])  # it continues by itself
        page.on("dialog", lambda dialog: dialog.accept())  # the page warns
        page.reload()
        expect(step).to_contain_text("of 28.6 MiB uploaded: drop the file again to continue")
        assert int(upload.get_by_role("progressbar").get_attribute("aria-valuenow") or 0) > 10
        proxy.release()
        page.locator("input[type=file]").set_input_files(large)
        expect(page.locator("[data-job-id]", has_text="large.pdf")).to_be_visible()
        expect(upload).to_have_count(0)
        assert page.evaluate(KEPT) == "[]"
    [job] = [job for job in served.request("GET", "/api/jobs").json()["jobs"] if job["input_filename"] == "large.pdf"]
    assert (served.state_dir / "jobs" / job["id"] / "input").read_bytes() == large.read_bytes()


def sizes(served: ServedDaemon) -> list[int]:
    """Return the sizes of unfinished uploads."""
    return [path.stat().st_size for path in (served.state_dir / "partial").iterdir() if not path.suffix]


def test_the_form_is_that_of_the_chosen_pipeline(browser: Browser, tmp_path: Path) -> None:
    small = tmp_path / "a.txt"
    small.write_text("abc")
    with (
        served_daemon(tmp_path / "state", config=CONFIG) as daemon,
        opened_page(browser, daemon.url) as page,
    ):
        expect(page.locator("input[name=dpi]")).to_have_value("300")
        expect(page.locator("input[type=file]")).to_have_attribute("accept", ".pdf,application/pdf")
        page.get_by_label("Pipeline").select_option(label="Pack")
        expect(page.locator("input[name=dpi]")).to_have_count(0)
        expect(page.locator("input[type=file]")).to_have_attribute("accept", "")
        expect(page.get_by_label("turbo")).to_be_disabled()
        expect(page.locator("#values-of-note option").first).to_have_attribute("value", "eng")
        expect(page.locator(".option", has_text="turbo")).to_contain_text("the server needs no-such-program")
        page.get_by_label("Level").fill("12")
        page.locator("input[type=file]").set_input_files(small)
        expect(page.locator("input[name=level]:invalid")).to_be_focused()
        page.get_by_label("Level").fill("9")
        page.get_by_label("format").select_option("zip")
        page.locator("input[name=fast]").uncheck()
        page.get_by_label("Turn pages").select_option("Off")
        page.locator("input[type=file]").set_input_files([small, small])
        expect(page.locator(".job[data-status=completed]", has_text="a.txt").last).to_be_visible()
        page.reload()
        expect(page.get_by_label("Pipeline")).to_have_value("pack")
        [job, *_] = daemon.request("GET", "/api/jobs").json()["jobs"]
        assert job["options"] == {"level": 9, "format": "zip", "fast": False, "rotate": False}
        assert daemon.request("GET", f"/api/batch/{job['batch_id']}").json()["name"] == "a.txt and 1 more"
