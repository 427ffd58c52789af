"""The PDF pipeline as a job of the daemon: malicious PDFs, and daemons that are killed during a conversion."""

import io
import re
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import pikepdf
import pytest
from progressd.config.settings import BUILT_IN_PIPELINES
from progressd.core.messages import JobStatus
from support.daemon import running_daemon
from support.samples import SCAN
from support.serving import ServedDaemon, served_daemon
from support.submitting import ended, run, shell, submit
from support.waiting import until

MIB = 1 << 20
MEMORY = 300 * MIB  # of the pipeline, so that the PDFs can be small; a page takes less than 100
PAGE = (
    b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources << /XObject << /X 5 0 R >> >> >>"
)
TREE = {1: b"<< /Type /Catalog /Pages 2 0 R >>", 2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", 3: PAGE}
TWICE = b"/Filter [/FlateDecode /FlateDecode]"


def document(objects: Mapping[int, bytes]) -> bytes:
    """Return a PDF of these objects. The first is its catalogue."""
    out = io.BytesIO()
    out.write(b"%PDF-1.7\n")
    offsets = {}
    for number, body in objects.items():
        offsets[number] = out.tell()
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    table, size = out.tell(), max(objects) + 1
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % size)
    for number in range(1, size):
        entry = b"%010d 00000 n \n" % offsets[number] if number in offsets else b"0000000000 65535 f \n"
        out.write(entry)
    out.write(b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, table))
    return out.getvalue()


def stream(data: bytes, extra: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), extra, data)


def inflating(head: bytes, fill: bytes, mebibytes: int) -> bytes:
    """Return data that inflates, twice, to the head and so many MiB of one byte."""
    packer = zlib.compressobj(9)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(fill * MIB) + packer.flush(zlib.Z_FULL_FLUSH)  # independent, so it can be repeated
    return zlib.compress(start + block * mebibytes + packer.flush(), 9)


def content_bomb() -> bytes:
    """Return a page whose drawing is a gigabyte of blanks."""
    return document({**TREE, 4: stream(inflating(b"", b" ", 1024), TWICE)})


def picture_bomb(side: int = 60_000) -> bytes:
    """Return a picture of 3600 million pixels in a few kilobytes."""
    about = b"/Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceGray /BitsPerComponent 8" % (
        side,
        side,
    )
    drawn = stream(b"q 595 0 0 842 0 0 cm /X Do Q")
    return document({**TREE, 4: drawn, 5: stream(inflating(b"", b"\0", side * side // MIB + 1), about + b" " + TWICE)})


def large_page_bomb() -> bytes:
    """Return a scan of 200 by 200 inches."""
    about = b"/Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8"
    drawn = stream(b"q 14400 0 0 14400 0 0 cm /X Do Q")
    return document({**TREE, 3: PAGE.replace(b"595 842", b"14400 14400"), 4: drawn, 5: stream(b"0", about)})


def page_count_bomb(count: int = 200_000) -> bytes:
    """Return 200,000 references to a page."""
    kids = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (count, b"3 0 R " * count)
    return document({**TREE, 2: kids, 4: stream(b"0 0 100 100 re f")})


def no_pages() -> bytes:
    return document({**TREE, 2: b"<< /Type /Pages /Kids [] /Count 0 >>"})


def page_tree_bomb(depth: int = 12) -> bytes:
    """Return a tree in which every node refers to the next ten times: 10^12 pages."""
    levels = {
        10 + level: b"<< /Type /Pages /Parent 2 0 R /Count %d /Kids [%s] >>"
        % (10 ** (depth - level), b"%d 0 R " % (11 + level if level < depth else 3) * 10)
        for level in range(depth + 1)
    }
    root = b"<< /Type /Pages /Count %d /Kids [10 0 R] >>" % 10 ** (depth + 1)
    return document({**TREE, 2: root, 4: stream(b"0 0 100 100 re f"), **levels})


def drawing_bomb(depth: int = 9) -> bytes:
    """Return forms that each draw the next ten times: 10^9 rectangles."""
    about = b"/Type /XObject /Subtype /Form /BBox [0 0 600 800] /Resources << /XObject << /X %d 0 R >> >>"
    forms = {
        10 + level: stream(b"/X Do " * 10 if level < depth else b"0 0 600 800 re f ", about % (11 + level))
        for level in range(depth + 1)
    }
    return document({**TREE, 3: PAGE.replace(b"/X 5 0 R", b"/X 10 0 R"), 4: stream(b"/X Do"), **forms})


BOMBS: list[tuple[Callable[[], bytes], str]] = [
    (content_bomb, "exceeded its memory limit of 300MiB|needs more memory than a job may have"),
    (picture_bomb, "A picture on page 1 has 3600 million pixels, which is too many."),
    (large_page_bomb, "Page 1 is 200 by 200 inches; the limit is 120 inches."),
    (page_count_bomb, "The PDF has 200000 pages; the limit is 10000."),
    (no_pages, "The PDF has no pages."),
    (page_tree_bomb, "The PDF has no pages."),
    (drawing_bomb, "exceeded its memory limit|Pipeline error: stopped after 3 s, the time limit"),
]


@pytest.mark.parametrize(("bomb", "sentence"), BOMBS)
async def test_a_malicious_pdf_fails_only_its_job(bomb: Callable[[], bytes], sentence: str, tmp_path: Path) -> None:
    timeout = 3 if bomb is drawing_bomb else 40
    pdf = msgspec.structs.replace(BUILT_IN_PIPELINES["pdf"], max_memory_bytes=MEMORY, timeout=timeout)
    pipelines = {"pdf": pdf, "next": shell("true")}
    async with running_daemon(tmp_path, pipelines=pipelines, runner={"concurrency": 1, "kill_grace": 0.5}) as daemon:
        content = bomb()
        assert len(content) < 2 * MIB
        options = {"dpi": 72, "deskew": False, "upscale": False, "ocr": False, "advanced": False}
        done = await ended(daemon, await submit(daemon, "pdf", content, options))
        assert (done.status, done.output_path) == (JobStatus.FAILED, None)
        assert re.search(sentence, done.error or ""), done.error
        assert {path.name for path in daemon.daemon.files.input(done.id).parent.iterdir()} <= {"input", "log", "stderr"}
        assert (await run(daemon, "next")).status is JobStatus.COMPLETED


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.torture)])
def test_a_killed_daemon_converts_the_pdf_again(tmp_path: Path, kills: int) -> None:
    """The third attempt is the last."""
    state_dir, job_id = tmp_path / "state", ""
    for attempt in range(1, kills + 1):
        with served_daemon(state_dir) as daemon:
            job_id = job_id or daemon.submit("pdf", SCAN.read_bytes(), dpi=150, rotate=False)
            until(partial(is_converting, daemon, job_id, attempt))
            assert daemon.request("GET", f"/api/jobs/{job_id}/download").status_code == 409
            daemon.kill()
    with served_daemon(state_dir) as daemon:
        job = daemon.ended(job_id)
        result = daemon.request("GET", f"/api/jobs/{job_id}/download")
    files = {path.name for path in (state_dir / "jobs" / job_id).iterdir()}
    if kills == 1:
        assert (job["status"], job["attempt"], job["page_count"]) == ("completed", 2, 4)
        with pikepdf.open(io.BytesIO(result.content), attempt_recovery=False) as pdf:
            assert len(pdf.pages) == 4
        assert "output" in files
    else:
        assert (job["status"], job["error"], result.status_code) == ("failed", "interrupted", 409)
    assert files <= {"input", "log", "output", "stderr"}


def is_converting(daemon: ServedDaemon, job_id: str, attempt: int) -> bool:
    job = daemon.job(job_id)
    return job["attempt"] == attempt and 0 < job["progress"]["current_step"] < job["progress"]["total_steps"]
