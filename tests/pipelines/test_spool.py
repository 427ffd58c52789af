"""The file of the result: once it is abandoned, nothing gets a name any more."""

import os
import subprocess
import sys
from pathlib import Path

from waiting import PATIENCE

SAVING = """
import os, sys, threading
from pathlib import Path
from PIL import Image
from progressd.pipelines.spool import PdfSpool

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
