"""Has the tesseract program read a page and gives its words as an invisible layer; it never draws anything visible."""

import io
import os
import shutil
import subprocess
import threading

from PIL import Image

from progressd_pdf.pictures import Refused

OCR_DPI = 300
"""Dots per inch that tesseract was trained at; more costs time and reads no better."""

OCR_PIXELS = 40_000_000
"""Pixels given to tesseract at once, a newspaper page at 300 dpi: it takes about 10 bytes for each."""


class Tesseract:
    """The program in one language (several as `deu+eng`), one page at a time, which can be stopped from a thread."""

    def __init__(self, language: str) -> None:
        program = shutil.which("tesseract")
        if program is None:
            raise Refused("Text recognition (OCR) is not available here: tesseract is not installed.")
        listed = subprocess.run([program, "--list-langs"], capture_output=True, text=True, check=True).stdout.split()
        missing = ", ".join(name for name in language.split("+") if name not in listed)
        if missing:
            raise Refused(f"Text recognition (OCR) is not available here for the language {missing}.")
        self._command = [program, "stdin", "stdout", "-l", language]
        self._child: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()

    def text_layer(self, page: Image.Image, dpi: float) -> bytes:
        """Return a PDF of one page, as large as the grey `page` is at `dpi`, that holds nothing but its words."""
        buffer = io.BytesIO()
        page.save(buffer, "PPM")
        command = [*self._command, "--dpi", str(round(dpi)), "-c", "textonly_pdf=1", "pdf"]
        # One thread a page: the daemon already runs a job a core.
        environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
        with self._starting:
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
            )
        with self._child as child:
            layer, complaint = child.communicate(buffer.getvalue())
        if child.returncode != 0:
            with self._starting:  # unless it was stopped, which is for nobody to hear of
                pass
            raise RuntimeError(f"tesseract ended with {child.returncode}: {complaint.decode(errors='replace')}")
        return layer

    def stop(self) -> None:
        """End the program if it is running, for a process that ends at once: it is never started again."""
        self._starting.acquire()
        if self._child is not None:
            self._child.kill()
