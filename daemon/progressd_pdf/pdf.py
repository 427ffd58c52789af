"""Convert a scanned PDF to a cleaner one, and report the progress on stdout.

    python -m progressd_pdf.pdf INPUT OUTPUT --options '{"dpi": 300, "ocr": true}'

Every line on stdout is one JSON object: `progress`, `page_preview`, or finally `completed` or `error`.
"""

import argparse
import base64
import functools
import io
import math
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec

try:
    from PIL import Image

    from progressd_pdf.page import Options, PageConversion, Thumbnail
    from progressd_pdf.source import POINTS_PER_INCH, ConversionError, Sheet, Source
    from progressd_pdf.spool import PdfWriter
except ModuleNotFoundError as missing:
    if __name__ == "__main__":
        message = f"{missing.name} is not installed: install progressd[pdf]"
        print(msgspec.json.encode({"type": "error", "data": {"message": message}}).decode())
        sys.exit(1)
    raise

PREVIEW_WIDTH, PREVIEW_HEIGHT = 320, 480  # the maximum size of a preview in pixels
PREVIEW_BYTES = 20_000  # bytes of a preview's JPEG; every watcher receives it: 6 MB for 300 pages
OCR_DPI = 300  # dots per inch that tesseract was trained with; more takes longer and reads no better
OCR_PIXELS = 40_000_000  # pixels of a page for tesseract, a newspaper page at 300 dpi; each takes about 10 bytes


def emit(kind: str, **data: object) -> None:
    """Write one line to stdout, without buffering."""
    sys.stdout.buffer.write(msgspec.json.encode({"type": kind, "data": data}) + b"\n")
    sys.stdout.buffer.flush()


class Steps:
    """Report the steps. Their total is known from the start."""

    def __init__(self, sheets: Sequence[Sheet], options: Options) -> None:
        bands = sum(sheet.bands for sheet in sheets)
        self._pages = len(sheets)
        self._total = bands * len(options.band_stages()) + self._pages * options.ocr + 1
        self._begun = 0

    def begin(self, name: str) -> None:
        """Report that a step begins and the previous step is done."""
        emit("progress", current_step=self._begun, total_steps=self._total, step_name=name)
        self._begun += 1

    def begin_on(self, sheet: Sheet, band: int | None, stage: str) -> None:
        """Begin a stage of a page, or of a band if the page has several bands."""
        part = "" if band is None or sheet.bands == 1 else f", part {band + 1} of {sheet.bands}"
        self.begin(f"{stage} page {sheet.number} of {self._pages}{part}")

    def finish(self) -> None:
        """Report that the last step is done."""
        emit("progress", current_step=self._total, total_steps=self._total, step_name="Finished")


class Tesseract:
    """Run tesseract in a language (`deu+eng` for several), on one page at a time."""

    def __init__(self, language: str) -> None:
        program = shutil.which("tesseract")
        if program is None:
            raise ConversionError("Text recognition (OCR) needs tesseract, which is not installed.")
        listed = subprocess.run([program, "--list-langs"], capture_output=True, text=True, check=True).stdout.split()
        missing = ", ".join(name for name in language.split("+") if name not in listed)
        if missing:
            raise ConversionError(
                f"Text recognition (OCR) needs the language {missing} of tesseract, which is not installed."
            )
        self._command = [program, "stdin", "stdout", "-l", language]

    def text_layer(self, page: Image.Image, dpi: float) -> bytes:
        """Return a PDF of one page with the invisible words of the grey `page`."""
        buffer = io.BytesIO()
        page.save(buffer, "PPM")
        command = [*self._command, "--dpi", str(round(dpi)), "-c", "textonly_pdf=1", "pdf"]
        # One thread: the daemon runs a job per core.
        environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
        done = subprocess.run(command, input=buffer.getvalue(), capture_output=True, env=environment, check=False)
        if done.returncode:
            errors = done.stderr.decode(errors="replace")
            raise RuntimeError(f"tesseract failed with exit status {done.returncode}: {errors}")
        return done.stdout


class Conversion:
    """The conversion of one document from `source` to `writer`."""

    def __init__(self, source: Source, writer: PdfWriter, options: Options, tesseract: Tesseract | None) -> None:
        self._source, self._writer, self._options, self._tesseract = source, writer, options, tesseract
        self._steps = Steps(source.sheets, options)

    def run(self) -> None:
        """Convert the pages one by one, then write the document."""
        for sheet in self._source.sheets:
            self._steps.begin_on(sheet, 0, "Rendering")  # includes reading the page
            with self._source.page(sheet) as page:
                self._convert(sheet, PageConversion(page, self._options))
        self._steps.begin("Writing the document")
        self._writer.save(self._source.title, self._source.author)
        self._steps.finish()

    def _convert(self, sheet: Sheet, work: PageConversion) -> None:
        """Convert a page, add it to the document, and emit its preview."""
        width, height = work.size
        preview = Thumbnail(work.size, min(PREVIEW_WIDTH / width, PREVIEW_HEIGHT / height), work.mode)
        reading = Thumbnail(work.size, ocr_scale(work), "L") if self._tesseract else None
        for index in range(sheet.bands):
            if index > 0:
                self._steps.begin_on(sheet, index, "Rendering")
            band = work.band(index, functools.partial(self._steps.begin_on, sheet, index))
            self._steps.begin_on(sheet, index, "Writing")
            lower, upper = (sheet.height * (1 - row / height) for row in reversed(band.rows))
            self._writer.add_band(band.stored, lower, sheet.width, upper - lower)
            for miniature in filter(None, (preview, reading)):
                miniature.add(band)
        text = None
        if self._tesseract and reading:
            self._steps.begin_on(sheet, None, "Recognising text on")
            text = self._tesseract.text_layer(reading.picture, reading.picture.width * POINTS_PER_INCH / sheet.width)
        self._writer.end_page(sheet.width, sheet.height, text)
        emit_preview(sheet.number, preview.picture)


def ocr_scale(work: PageConversion) -> float:
    """Return the scale at which tesseract reads the page."""
    width, height = work.size
    return min(1.0, OCR_DPI / work.dpi, math.sqrt(OCR_PIXELS / (width * height)))


def emit_preview(number: int, picture: Image.Image) -> None:
    """Emit the preview of a finished page, with the best JPEG quality that fits its limit."""
    for quality in (75, 60, 45, 30, 15):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= PREVIEW_BYTES:
            break
    emit(
        "page_preview",
        page_number=number,
        preview_base64=base64.b64encode(buffer.getvalue()).decode(),
        stage="Finished",
        width=picture.width,
        height=picture.height,
    )


def convert(arguments: argparse.Namespace) -> None:
    """Convert the document. Raises ConversionError."""
    try:
        options = msgspec.json.decode(arguments.options, type=Options)
    except msgspec.DecodeError as error:
        raise ConversionError(f"The options are not valid: {error}.") from None
    tesseract = Tesseract(arguments.ocr_language) if options.ocr else None
    source = Source(arguments.input, options.dpi)
    with PdfWriter(arguments.output) as writer:
        Conversion(source, writer, options, tesseract).run()
    emit("completed", page_count=len(source.sheets))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status.

    Errors are sentences on stdout. The traceback of a defect is on stderr.
    """
    parser = argparse.ArgumentParser(prog="python -m progressd_pdf.pdf", description=__doc__)
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--options", default="{}", metavar="JSON")
    parser.add_argument("--ocr-language", default="eng", metavar="LANG", help="as tesseract names it, eng+deu for two")
    try:
        convert(parser.parse_args(argv))
    except BrokenPipeError:
        os._exit(128 + signal.SIGPIPE)  # the daemon died; Python would report the error again at exit
    except ConversionError as error:
        return fail(str(error))
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, MemoryError):
            return fail("The PDF needs more memory than a job may have.")
        if isinstance(error, OSError):
            return fail(f"Cannot write the result: {error.strerror}.")
        return fail("The PDF cannot be converted because of an unexpected error.")
    return 0


def fail(message: str) -> int:
    """Report the error and return the exit status."""
    emit("error", message=message)
    return 1


if __name__ == "__main__":
    sys.exit(main())
