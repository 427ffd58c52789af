"""OCRmyPDF with the plugin, as a program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from support.reporting import newest
from support.serving import PATIENCE, ServedDaemon

PLUGIN = ["--plugin", "progressd.integrations.ocrmypdf"]


def ocrmypdf(daemon: ServedDaemon, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "ocrmypdf",
        *PLUGIN,
        "--output-type",
        "pdf",
        "--tesseract-timeout",
        "0",
        *map(str, arguments),
    ]
    environment = {**os.environ, "PROGRESSD_URL": daemon.url}
    return subprocess.run(words, env=environment, stderr=subprocess.PIPE, text=True, timeout=2 * PATIENCE, check=False)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.pdf"
    page = Image.new("L", (600, 200), "white")
    ImageDraw.Draw(page).text((50, 50), "progress", fill="black", font_size=60)
    page.save(path, resolution=100, save_all=True, append_images=[page])
    return path


def test_a_run_is_a_job(scan: Path, daemon: ServedDaemon) -> None:
    done = ocrmypdf(daemon, scan, scan.with_name("out.pdf"))
    assert done.returncode == 0, done.stderr
    job = newest(daemon, "ocrmypdf")
    assert (job["status"], job["input_filename"]) == ("completed", "scan.pdf")
    assert job["progress"]["step_name"] in ("Linearizing", "Checking output")


def test_an_error_fails_the_job(scan: Path, daemon: ServedDaemon) -> None:
    scan.write_bytes(b"no PDF")
    done = ocrmypdf(daemon, scan, scan.with_name("out.pdf"))
    assert done.returncode != 0
    job = newest(daemon, "ocrmypdf")
    assert job["status"] == "failed"
    assert "; UnsupportedImageFormatError" in job["error"]
