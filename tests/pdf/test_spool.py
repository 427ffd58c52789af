"""The pipeline exits at once on a signal: it names no file and starts no program."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from support.waiting import PATIENCE

SAVING = """
import os, sys, threading
from pathlib import Path
from PIL import Image
from progressd_pdf.spool import PdfWriter

with PdfWriter(Path(sys.argv[1])) as spool:
    spool.add_band(Image.new("L", (10, 10)), 0, 10, 10)
    spool.end_page(10, 10, None)
    if sys.argv[2] == "abandoned":
        spool.abandon()
        threading.Timer(0.2, os._exit, (3,)).start()
    spool.save("", "")
"""


def test_an_abandoned_document_is_not_saved(tmp_path: Path) -> None:
    """A signal may arrive right before the result is written."""
    for fate, status, left in (("abandoned", 3, []), ("kept", 0, ["result.pdf"])):
        command = [sys.executable, "-c", SAVING, str(tmp_path / "result.pdf"), fate]
        assert subprocess.run(command, capture_output=True, timeout=PATIENCE).returncode == status
        assert os.listdir(tmp_path) == left


READING = """
import os, sys, threading
from PIL import Image
from progressd_pdf.pdf import Tesseract

tesseract = Tesseract("eng")
if sys.argv[1] == "stopped":
    tesseract.stop()
    threading.Timer(0.2, os._exit, (3,)).start()
tesseract.text_layer(Image.new("L", (10, 10)), 300)
"""


def test_tesseract_does_not_start_after_a_stop(tmp_path: Path) -> None:
    """A signal may arrive right before tesseract starts, which would outlive its parent."""
    program, pages = tmp_path / "tesseract", tmp_path / "pages"
    program.write_text(f"#!/bin/sh\n[ $1 = --list-langs ] && exec echo eng\ncat >> {pages}\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for fate, status in (("stopped", 3), ("working", 0)):
        command = [sys.executable, "-c", READING, fate]
        assert subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE).returncode == status
        assert pages.exists() == (fate == "working")


STOPPED = """
import os, threading, time
from PIL import Image
from progressd_pdf.pdf import Tesseract

def stop():
    while tesseract._child is None:
        time.sleep(0.001)
    tesseract.stop()
    time.sleep(0.2)
    os._exit(3)

tesseract = Tesseract("eng")
threading.Thread(target=stop).start()
tesseract.text_layer(Image.new("L", (10, 10)), 300)
"""


def test_a_stopped_tesseract_is_no_error(tmp_path: Path) -> None:
    program = tmp_path / "tesseract"
    program.write_text("#!/bin/sh\n[ $1 = --list-langs ] && exec echo eng\nexec sleep 60\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", STOPPED]
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stderr) == (3, b"")


def test_a_signal_ends_it_if_the_cleanup_fails() -> None:
    program = (
        "import os, signal\nfrom progressd_pdf.pdf import exit_on_signal\n"
        "exit_on_signal(lambda: os.unlink('/no/such/file'))\nos.kill(os.getpid(), signal.SIGTERM)\nsignal.pause()\n"
        "while True: signal.pause()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 128 + signal.SIGTERM
    assert "FileNotFoundError" in ended.stderr
