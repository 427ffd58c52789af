"""How a process of the pipeline ends at once: nothing gets a name any more, nothing is started, nothing prevents it."""

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
from progressd_pdf.spool import PdfSpool

with PdfSpool(Path(sys.argv[1])) as spool:
    spool.add_band(Image.new("L", (10, 10)), 0, 10, 10)
    spool.end_page(10, 10, None)
    if sys.argv[2] == "abandoned":
        spool.abandon()
        threading.Timer(0.2, os._exit, (3,)).start()
    spool.save("", "")
"""


def test_nothing_is_named_that_was_abandoned_before_it_was_saved(tmp_path: Path) -> None:
    """As when a signal comes in the instant before the result is written."""
    for fate, status, left in (("abandoned", 3, []), ("kept", 0, ["result.pdf"])):
        command = [sys.executable, "-c", SAVING, str(tmp_path / "result.pdf"), fate]
        assert subprocess.run(command, capture_output=True, timeout=PATIENCE).returncode == status
        assert os.listdir(tmp_path) == left


READING = """
import os, sys, threading
from PIL import Image
from progressd_pdf.tesseract import Tesseract

tesseract = Tesseract("eng")
if sys.argv[1] == "stopped":
    tesseract.stop()
    threading.Timer(0.2, os._exit, (3,)).start()
tesseract.text_layer(Image.new("L", (10, 10)), 300)
"""


def test_no_program_is_started_after_the_last_one_was_stopped(tmp_path: Path) -> None:
    """As when a signal comes in the instant before a page is read: it would go on after its parent."""
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
from progressd_pdf.tesseract import Tesseract

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


def test_a_program_that_is_stopped_has_not_failed(tmp_path: Path) -> None:
    program = tmp_path / "tesseract"
    program.write_text("#!/bin/sh\n[ $1 = --list-langs ] && exec echo eng\nexec sleep 60\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", STOPPED]
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stderr) == (3, b"")


def test_a_signal_ends_it_also_where_it_cannot_clean_up() -> None:
    program = (
        "import os, signal\nfrom progressd_pdf.pdf import end_on_signal\n"
        "end_on_signal(lambda: os.unlink('/no/such/file'))\nos.kill(os.getpid(), signal.SIGTERM)\nsignal.pause()\n"
        "while True: signal.pause()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 128 + signal.SIGTERM
    assert "FileNotFoundError" in ended.stderr
