"""The element `<progressd-jobs>` on a page of another site."""

from pathlib import Path

from playwright.sync_api import Browser, expect
from support.samples import job_id
from support.serving import served_daemon
from support.site import site

from .conftest import opened_page


def test_the_list_on_a_page_of_another_site(browser: Browser, tmp_path: Path) -> None:
    with (
        site() as (origin, pages),
        served_daemon(tmp_path / "state", config=f'[server]\nallowed_origins = ["{origin}"]\n') as daemon,
    ):
        for number in range(80):
            labels = {"host": f"worker-{number % 2}"}
            body = {"id": job_id(number), "kind": "copy", "name": f"Copy {number}", "labels": labels}
            assert daemon.request("POST", "/api/jobs", json=body).status_code == 201
        script = f'<script type="module" src="{daemon.url}/static/progressd.js"></script>'
        tag = '<progressd-jobs query="host=worker-1"></progressd-jobs>'
        pages["/"] = f'<!doctype html><html lang="en"><title>Site</title>{script}{tag}'
        with opened_page(browser, f"{origin}/") as page:
            rows = page.locator("progressd-jobs [role=row][data-id]")
            expect(rows.first).to_be_visible()
            expect(page.get_by_role("treegrid")).to_have_attribute("aria-rowcount", "41")
            assert rows.count() < 40
            copy = rows.filter(has=page.get_by_role("link", name="Copy 79", exact=True))
            link = copy.get_by_role("link", name="Copy 79", exact=True)
            expect(link).to_have_attribute("href", f"{daemon.url}/jobs/{job_id(79)}")
            event = {"type": "progress", "data": {"current_step": 3, "total_steps": 4}}
            assert daemon.request("POST", f"/api/jobs/{job_id(79)}/events", json=event).is_success
            expect(copy).to_contain_text("75%")
            page.locator("progressd-jobs").evaluate("element => element.setAttribute('query', 'tab=running')")
            expect(page.get_by_role("treegrid")).to_have_attribute("aria-rowcount", "2")
