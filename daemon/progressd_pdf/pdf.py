"""Turns a scanned PDF into a cleaner one and says on stdout how far it is; it never knows who reads that.

    python -m progressd_pdf.pdf INPUT OUTPUT --options '{"dpi": 300, "ocr": true}'

Every line on stdout is one JSON object: `progress`, `page_preview`, and at the end `completed` or `error`.
"""

import argparse
import base64
import functools
import io
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

try:
    from PIL import Image

    from progressd_pdf.page import Miniature, Options, PageWork
    from progressd_pdf.pictures import Refused
    from progressd_pdf.source import POINTS_PER_INCH, Sheet, Source
    from progressd_pdf.spool import PdfSpool
    from progressd_pdf.tesseract import OCR_DPI, OCR_PIXELS, Tesseract
except ModuleNotFoundError as missing:
    if __name__ == "__main__":
        message = f"The daemon was installed without its PDF tools ({missing.name}): it needs the extra named pdf"
        print(msgspec.json.encode({"type": "error", "data": {"message": message}}).decode())
        sys.exit(1)
    raise

PREVIEW_WIDTH, PREVIEW_HEIGHT = 320, 480
"""Pixels that a preview fits into."""

PREVIEW_BYTES = 20_000
"""Bytes of a preview's JPEG. It goes to every watcher, so that 300 pages are 6 MB each and not 60."""


def emit(kind: str, **data: object) -> None:
    """Write one line to stdout at once."""
    sys.stdout.buffer.write(msgspec.json.encode({"type": kind, "data": data}) + b"\n")
    sys.stdout.buffer.flush()


class Steps:
    """Counts the steps that are done, and names the one under way, in a total known from the start."""

    def __init__(self, sheets: Sequence[Sheet], options: Options) -> None:
        bands = sum(sheet.bands for sheet in sheets)
        self._pages = len(sheets)
        self._total = bands * len(options.band_stages()) + self._pages * options.ocr + 1
        self._begun = 0

    def begin(self, name: str) -> None:
        """Say that a step begins, and with it that the one before is done."""
        emit("progress", current_step=self._begun, total_steps=self._total, step_name=name)
        self._begun += 1

    def begin_on(self, sheet: Sheet, band: int | None, stage: str) -> None:
        """Begin a stage of a page, naming the part of the page if that is worked on in several."""
        part = "" if band is None or sheet.bands == 1 else f", part {band + 1} of {sheet.bands}"
        self.begin(f"{stage} page {sheet.number} of {self._pages}{part}")

    def finish(self) -> None:
        """Say that the last step is done."""
        emit("progress", current_step=self._total, total_steps=self._total, step_name="Finished")


class Conversion:
    """One document on its way from `source` to `spool`."""

    def __init__(self, source: Source, spool: PdfSpool, options: Options, tesseract: Tesseract | None) -> None:
        self._source, self._spool, self._options, self._tesseract = source, spool, options, tesseract
        self._steps = Steps(source.sheets, options)

    def run(self) -> None:
        """Work through the pages one by one, then write the document."""
        for sheet in self._source.sheets:
            self._steps.begin_on(sheet, 0, "Rendering")  # reading the page and judging it is the first part of that
            with self._source.page(sheet) as page:
                self._convert(sheet, PageWork(page, self._options))
        self._steps.begin("Putting the document together")
        self._spool.save(self._source.title, self._source.author)
        self._steps.finish()

    def _convert(self, sheet: Sheet, work: PageWork) -> None:
        """Add a page to the spool and show what it looks like."""
        width, height = work.size
        preview = Miniature(work.size, min(PREVIEW_WIDTH / width, PREVIEW_HEIGHT / height), work.mode)
        reading = Miniature(work.size, ocr_scale(work), "L") if self._tesseract else None
        for index in range(sheet.bands):
            if index > 0:
                self._steps.begin_on(sheet, index, "Rendering")
            band = work.band(index, functools.partial(self._steps.begin_on, sheet, index))
            self._steps.begin_on(sheet, index, "Writing")
            lower, upper = (sheet.height * (1 - row / height) for row in reversed(band.rows))
            self._spool.add_band(band.stored, lower, sheet.width, upper - lower)
            for miniature in filter(None, (preview, reading)):
                miniature.add(band)
        text = None
        if self._tesseract and reading:
            self._steps.begin_on(sheet, None, "Recognising text on")
            text = self._tesseract.text_layer(reading.picture, reading.picture.width * POINTS_PER_INCH / sheet.width)
        self._spool.end_page(sheet.width, sheet.height, text)
        emit_preview(sheet.number, preview.picture)


def ocr_scale(work: PageWork) -> float:
    """Return by how much to shrink a page so that tesseract gets the resolution it reads best, and not too much."""
    width, height = work.size
    return min(1.0, OCR_DPI / work.dpi, math.sqrt(OCR_PIXELS / (width * height)))


def emit_preview(number: int, picture: Image.Image) -> None:
    """Write the `page_preview` line of a finished page, with as good a JPEG as fits its limit."""
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


def end_on_signal(clean_up: Callable[[], None]) -> None:
    """On SIGTERM or SIGINT clean up and end at once.

    A thread waits for it, since Python's own handlers wait for pdfium and Pillow to return, seconds later.
    """
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        number = os.read(heard, 1)[0]
        try:
            clean_up()
        except Exception:  # which leaves something behind, but does not let the process go on
            traceback.print_exc()
        os._exit(128 + number)

    threading.Thread(target=wait, daemon=True).start()


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for; raises Refused where that cannot be done."""
    try:
        options = msgspec.json.decode(arguments.options, type=Options)
    except msgspec.DecodeError as error:
        raise Refused(f"The options are not valid: {error}.") from None
    tesseract = Tesseract(arguments.ocr_language) if options.ocr else None
    source = Source(arguments.input, options.dpi)
    with PdfSpool(arguments.output) as spool:

        def clean_up() -> None:
            if tesseract:
                tesseract.stop()
            spool.abandon()

        end_on_signal(clean_up)
        Conversion(source, spool, options, tesseract).run()
    emit("completed", page_count=len(source.sheets))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m progressd_pdf.pdf", description=__doc__)
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--options", default="{}", metavar="JSON")
    parser.add_argument("--ocr-language", default="eng", metavar="LANG", help="as tesseract names it, eng+deu for two")
    try:
        return report(parser.parse_args(argv))
    except BrokenPipeError:  # nobody listens any more; Python must not complain about it at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def report(arguments: argparse.Namespace) -> int:
    """Run, and turn whatever goes wrong into a sentence on stdout, with the traceback of a fault on stderr."""
    try:
        run(arguments)
    except BrokenPipeError:
        raise
    except Refused as refusal:
        emit("error", message=str(refusal))
        return 1
    except MemoryError:
        traceback.print_exc()
        emit("error", message="The PDF needs more memory than a job may have.")
        return 1
    except OSError as error:
        traceback.print_exc()
        emit("error", message=f"The result could not be written: {error.strerror}.")
        return 1
    except Exception:
        traceback.print_exc()
        emit("error", message="The PDF could not be processed because of an unexpected fault.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
