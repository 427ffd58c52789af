"""The page over many running jobs: `python -m benchmarks.page` measures it in Chromium.

The page opens over running jobs, of which some move each second. The figures are the time to the first row and to the
full list, frames a second at rest and while scrolling, and the memory of the page.
"""

import argparse
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
from playwright.sync_api import CDPSession, Page, sync_playwright

from benchmarks.jobs import job_id, register
from benchmarks.servers import SERVERS, running

CHROMIUM: Final = "/usr/bin/chromium"
# Without the last flag, the memory is rounded.
FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--js-flags=--expose-gc", "--enable-precise-memory-info")
NDJSON: Final = {"Content-Type": "application/x-ndjson"}
PATIENCE: Final = 120.0  # seconds
BATCHES: Final = 10  # a second

FRAMES: Final = """([seconds, step]) => new Promise((resolve) => {
  let frames = 0, longest = 0, last = performance.now();
  const start = last;
  const frame = () => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    frames += 1;
    if (step && (scrollY + innerHeight >= document.body.scrollHeight - 2 || (step < 0 && scrollY === 0))) step = -step;
    scrollBy(0, step);
    if (now - start < 1000 * seconds) requestAnimationFrame(frame);
    else resolve([frames / (now - start) * 1000, longest]);
  };
  requestAnimationFrame(frame);
})"""
ROWS: Final = "Number(document.querySelector('#rows').getAttribute('aria-rowcount')) - 1"
LOADED: Final = "performance.getEntriesByType('resource').filter(({name}) => name.includes('limit=1000')).length"


def main() -> None:
    arguments = _arguments()
    with running(SERVERS["progressd"], {}) as server, sync_playwright() as playwright:
        register(server.place.socket, arguments.jobs)
        url = f"http://127.0.0.1:{server.place.port}/"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        stop = threading.Event()
        producer = threading.Thread(target=_move, args=(url, arguments.jobs, arguments.moving, stop))
        producer.start()
        try:
            for name, value in _figures(page, url, arguments.jobs, arguments.seconds):
                print(f"{name:<32}{value:>10,.1f}", flush=True)
            if arguments.screenshot:
                page.screenshot(path=arguments.screenshot)
        finally:
            stop.set()
            producer.join()
        browser.close()
    print(f"load average {os.getloadavg()[0]:.1f}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="running jobs; default: 10000")
    parser.add_argument("--moving", type=int, default=1000, help="jobs that move each second; default: 1000")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of frames; default: 5")
    parser.add_argument("--screenshot", type=Path, metavar="FILE")
    return parser.parse_args()


def _figures(page: Page, url: str, jobs: int, seconds: float) -> Iterator[tuple[str, float]]:
    began = time.monotonic()
    page.goto(url, wait_until="commit")
    page.locator("[role=row][data-id]").first.wait_for(timeout=1000 * PATIENCE)
    yield "first row, s", time.monotonic() - began
    _wait(page, f"{ROWS} >= {jobs}")
    yield "all rows scrollable, s", time.monotonic() - began
    _wait(page, f"{LOADED} >= {(jobs - 100) // 1000}")
    yield "all rows loaded, s", time.monotonic() - began
    _wait(page, "document.querySelector('[data-connection=live]') !== null")
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable", {"timeDomain": "threadTicks"})  # CPU time, whatever else the machine does
    for name, step in (("at rest", 0), ("scrolling", 400)):
        busy = _task_seconds(client)
        frames, longest = page.evaluate(FRAMES, [seconds, step])
        yield f"frames a second, {name}", frames
        yield f"longest frame, {name}, ms", longest
        yield f"main thread's CPU, {name}, %", 100 * (_task_seconds(client) - busy) / seconds
    page.evaluate("gc()")
    yield "JS heap, MB", page.evaluate("performance.memory.usedJSHeapSize / 1e6")
    yield "rows in the document", page.locator("[role=row][data-id]").count()


def _wait(page: Page, condition: str) -> None:
    """Wait until a condition holds. The page's policy forbids `wait_for_function`, which needs eval."""
    end = time.monotonic() + PATIENCE
    while not page.evaluate(condition):
        if time.monotonic() > end:
            raise TimeoutError(f"the page did not reach {condition}")
        page.wait_for_timeout(20)


def _task_seconds(client: CDPSession) -> float:
    metrics = client.send("Performance.getMetrics")["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))


def _move(url: str, jobs: int, moving: int, stop: threading.Event) -> None:
    """Report progress of other jobs each second."""
    chosen = random.Random(1)
    steps = [1] * jobs
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        while not stop.is_set():
            end = time.monotonic() + 1 / BATCHES
            lines = list[str]()
            for number in chosen.sample(range(jobs), min(jobs, moving // BATCHES)):
                steps[number] = min(1000, steps[number] + 5)
                data = {"current_step": steps[number], "total_steps": 1000, "step_name": "Copying"}
                lines.append(json.dumps({"type": "progress", "job_id": job_id(number), "data": data}))
            client.post(f"{url}api/events", content="\n".join(lines).encode(), headers=NDJSON).raise_for_status()
            stop.wait(max(0, end - time.monotonic()))


if __name__ == "__main__":
    main()
